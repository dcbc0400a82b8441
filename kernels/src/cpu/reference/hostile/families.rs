//! Valid kernels of every family, with the extents at which tiles, groups and lanes end.

use super::super::Random;
use super::super::generator::Generator;
use crate::DType;
use crate::program::*;

const EXTENTS: [u64; 24] = [0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 130, 257];
const SHORT: [u64; 12] = [0, 1, 1, 2, 2, 3, 3, 4, 5, 7, 9, 17];
const FLOATS: [DType; 2] = [DType::F32, DType::Bf16];

pub fn kernel(random: &mut Random) -> Kernel {
    match random.below(17) {
        0 | 1 => Kernel::Contract(product(random)),
        2 => Kernel::ScaledContract(scaled(random)),
        3 => Kernel::Quantize(quantizer(random)),
        4 => Kernel::Attention(attention(random)),
        5 => Kernel::AttentionGrad(attention(random)),
        6 | 7 => Kernel::Conv(conv(random)),
        8 => Kernel::Pool(pool(random)),
        9 => Kernel::ScatterAdd(scatter(random)),
        10 => Kernel::Scan(scan(random)),
        16 => Kernel::Update(optimizer_step(random)),
        _ => Generator::new(random.fork()).finish().0,
    }
}

/// Strides of a box that hits no element twice, and the elements it needs; dimensions in a random order, some with gaps.
fn strides(random: &mut Random, extents: &[u64]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..extents.len()).collect();
    if random.once_in(3) {
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i as u64 + 1) as usize);
        }
    }
    let (mut strides, mut size) = (vec![0; extents.len()], 1);
    for &d in order.iter().rev() {
        strides[d] = size;
        size = size * extents[d].max(1) + if random.once_in(8) { random.below(3) } else { 0 };
    }
    (strides, if extents.contains(&0) { 0 } else { size })
}

fn matrix(random: &mut Random, dtype: DType, batch: &[u64], [rows, cols]: [u64; 2], broadcast: bool) -> Matrix {
    let extents: Vec<u64> = batch.iter().map(|&e| if broadcast { e.min(1) } else { e }).chain([rows, cols]).collect();
    let (mut all, elements) = strides(random, &extents);
    let (col_stride, row_stride) = (all.pop().unwrap_or(1), all.pop().unwrap_or(1));
    if broadcast {
        all.fill(0);
    }
    let offset = if elements > 0 { random.pick(&[0, 0, 0, 1, 5]) } else { 0 };
    Matrix { dtype, elements: elements + offset, offset, batch_strides: all, row_stride, col_stride }
}

fn epilogue(random: &mut Random, c: DType) -> Epilogue {
    let bias = if random.once_in(2) { Some(random.pick(&FLOATS)) } else { None };
    Epilogue { bias, accumulate: c == DType::F32 && random.once_in(3) }
}

fn product(random: &mut Random) -> Contract {
    let batch: Vec<u64> = (0..random.below(3)).map(|_| random.pick(&SHORT)).collect();
    let [m, n, k] = [0; 3].map(|_| random.pick(&EXTENTS));
    let operands = [DType::F32, DType::F32, DType::Bf16, DType::E4m3];
    let c = random.pick(&FLOATS);
    let a = (random.pick(&operands), random.once_in(4));
    let b = (random.pick(&operands), random.once_in(4));
    Contract {
        m,
        n,
        k,
        a: matrix(random, a.0, &batch, [m, k], a.1),
        b: matrix(random, b.0, &batch, [k, n], b.1),
        c: matrix(random, c, &batch, [m, n], false),
        epilogue: epilogue(random, c),
        batch,
    }
}

fn scaled(random: &mut Random) -> ScaledContract {
    let [m, n, k] = [0; 3].map(|_| random.pick(&EXTENTS));
    let c = random.pick(&FLOATS);
    let b_scales = random.pick(&[ScaleGroup::Block, ScaleGroup::Row]);
    ScaledContract { m, n, k, b_scales, c, epilogue: epilogue(random, c) }
}

fn quantizer(random: &mut Random) -> Quantize {
    let layouts = [Layout::Rows, Layout::Columns, Layout::RowsAndColumns, Layout::Blocks, Layout::BlocksBoth];
    Quantize {
        rows: random.pick(&EXTENTS),
        cols: random.pick(&EXTENTS),
        source: random.pick(&FLOATS),
        layout: random.pick(&layouts),
        power_of_two: random.once_in(2),
    }
}

fn heads(random: &mut Random, [batch, heads, positions, depth]: [u64; 4]) -> Heads {
    let gap = random.pick(&[0, 0, 2]);
    let (outer, size) = strides(random, &[batch, heads, positions]);
    let row = depth + gap;
    let offset = if size * depth > 0 { random.pick(&[0, 0, 3]) } else { 0 };
    let elements = if depth == 0 { 0 } else { size * row };
    Heads { elements: elements + offset, offset, batch: outer[0] * row, head: outer[1] * row, position: outer[2] * row }
}

fn attention(random: &mut Random) -> Attention {
    let [batch, kv_heads, group] = [0; 3].map(|_| random.pick(&[1, 1, 2, 3]));
    let [q_len, kv_len] = [0; 2].map(|_| random.pick(&EXTENTS));
    let [depth, v_depth] = [0; 2].map(|_| random.pick(&SHORT));
    let n_heads = kv_heads * group;
    let kept = [0; 4].map(|_| random.once_in(2));
    let bias = random.once_in(2).then(|| {
        let extents = [batch, n_heads, q_len, kv_len];
        let (mut strides, mut elements) = ([0; 4], 1);
        for d in (0..4).rev().filter(|d| kept[*d]) {
            strides[d] = elements;
            elements *= extents[d];
        }
        let dtype = random.pick(&[DType::F32, DType::Bf16, DType::Bool]);
        Bias { dtype, elements, batch: strides[0], head: strides[1], query: strides[2], key: strides[3] }
    });
    let [q, k, v, o] = [(n_heads, q_len, depth), (kv_heads, kv_len, depth), (kv_heads, kv_len, v_depth), (n_heads, q_len, v_depth)]
        .map(|(heads, positions, depth)| [batch, heads, positions, depth]);
    let bits = |x: f32| FloatBits(x.to_bits());
    let window = if random.once_in(3) { Some(random.pick(&[1, 2, 17, 64, 300])) } else { None };
    Attention {
        batch,
        heads: n_heads,
        kv_heads,
        q_len,
        kv_len,
        depth,
        v_depth,
        scale: bits(0.5),
        softcap: random.once_in(3).then(|| bits(1.5)),
        mask: Mask { causal: random.once_in(2), window, align_end: random.once_in(2) },
        bias,
        dtype: random.pick(&FLOATS),
        q: heads(random, q),
        k: heads(random, k),
        v: heads(random, v),
        o: heads(random, o),
        grads: [heads(random, o), heads(random, q), heads(random, k), heads(random, v)],
    }
}

fn window(random: &mut Random) -> Window {
    let two = |random: &mut Random, of: &[u64]| [random.pick(of), random.pick(of)];
    let input = two(random, &SHORT);
    let kernel = two(random, &[1, 1, 2, 3, 5]);
    let stride = two(random, &[1, 1, 2, 3]);
    let dilation = two(random, &[1, 1, 2]);
    let pad = two(random, &[0, 0, 1, 2]);
    let fits = |d: usize| (input[d] + 2 * pad[d]).checked_sub(dilation[d] * (kernel[d] - 1) + 1).map_or(0, |room| room / stride[d] + 1);
    let mut output = [fits(0), fits(1)];
    if random.once_in(6) {
        output = two(random, &SHORT);
    }
    Window { input, output, kernel, stride, dilation, pad }
}

fn conv(random: &mut Random) -> Conv {
    let groups = random.pick(&[1, 1, 2, 3]);
    let [cig, cog] = [0; 2].map(|_| random.pick(&[0, 1, 1, 1, 2, 3, 4, 5, 9]));
    Conv {
        pass: random.pick(&[ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad]),
        batch: random.pick(&[0, 1, 1, 2, 3]),
        cin: groups * cig,
        cout: groups * cog,
        groups,
        window: window(random),
        bias: random.once_in(2),
        dtype: random.pick(&FLOATS),
        weight: random.pick(&FLOATS),
    }
}

fn pool(random: &mut Random) -> Pool {
    let pad_end = [random.below(3), random.below(3)];
    Pool {
        op: random.pick(&[PoolOp::Max, PoolOp::Average, PoolOp::AverageWithPadding { pad_end }]),
        backward: random.once_in(2),
        planes: random.pick(&[0, 1, 2, 5]),
        window: window(random),
        dtype: random.pick(&FLOATS),
    }
}

fn scatter(random: &mut Random) -> ScatterAdd {
    ScatterAdd {
        outer: random.pick(&[0, 1, 1, 2, 3]),
        picks: random.pick(&SHORT),
        inner: random.pick(&EXTENTS),
        extent: random.pick(&[0, 2, 3, 3, 4, 9, 40]),
        index_outer: random.once_in(2),
        index_inner: random.once_in(2),
        src: random.pick(&[DType::F32, DType::Bf16, DType::E4m3]),
        index: random.pick(&[DType::I64, DType::I32]),
        dst: random.pick(&FLOATS),
        accumulate: random.once_in(2),
    }
}

fn scan(random: &mut Random) -> Scan {
    Scan {
        outer: random.pick(&SHORT),
        extent: random.pick(&SHORT),
        inner: random.pick(&EXTENTS),
        exclusive: random.once_in(2),
        reverse: random.once_in(2),
        dtype: random.pick(&[DType::F32, DType::Bf16, DType::I64, DType::I32]),
    }
}

fn optimizer_step(random: &mut Random) -> Update {
    Update {
        rule: random.pick(&[Rule::AdamW, Rule::Sgd, Rule::Lion]),
        elements: random.pick(&EXTENTS) * random.pick(&[1, 1, 3, 100]),
        gradient: random.pick(&FLOATS),
        master: random.pick(&FLOATS),
        moments: random.pick(&[DType::F32, DType::Bf16, DType::E4m3]),
        guarded: random.once_in(2),
    }
}
