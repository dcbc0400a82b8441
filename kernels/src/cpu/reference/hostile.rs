//! Kernels with numbers that no compiler would write: they are refused, or run inside their buffers.

use super::row_tests::Generator;
use super::{Random, try_launch};
use crate::DType;
use crate::program::*;
use proptest::prelude::*;
use serde_json::Value;

/// Kernels that verify, one of each family.
fn kernel(seed: u64) -> Kernel {
    let window = Window { input: [5, 6], output: [3, 3], kernel: [3, 2], stride: [2, 2], dilation: [1, 1], pad: [1, 0] };
    let matrix = |elements, batch, row_stride, col_stride| Matrix {
        dtype: DType::F32,
        elements,
        offset: 1,
        batch_strides: vec![batch],
        row_stride,
        col_stride,
    };
    let heads = Heads { elements: 2 * 4 * 5 * 8, offset: 0, batch: 160, head: 8, position: 32 };
    let bias = Some(Bias { dtype: DType::F32, elements: 25, batch: 0, head: 0, query: 5, key: 1 });
    let attention = Attention {
        batch: 2,
        heads: 4,
        kv_heads: 2,
        q_len: 5,
        kv_len: 5,
        depth: 8,
        v_depth: 8,
        scale: FloatBits(0.5f32.to_bits()),
        softcap: None,
        mask: Mask { causal: true, window: Some(3), align_end: false },
        bias,
        dtype: DType::F32,
        q: heads,
        k: heads,
        v: heads,
        o: heads,
        grads: [heads; 4],
    };
    let epilogue = Epilogue { bias: Some(DType::F32), accumulate: true };
    match seed % 16 {
        0 => Kernel::Contract(Contract {
            batch: vec![2],
            m: 3,
            n: 4,
            k: 5,
            a: matrix(31, 15, 5, 1),
            b: matrix(41, 20, 4, 1),
            c: matrix(25, 12, 4, 1),
            epilogue,
        }),
        1 => Kernel::ScaledContract(ScaledContract { m: 3, n: 4, k: 200, b_scales: ScaleGroup::Block, c: DType::F32, epilogue }),
        2 => Kernel::Quantize(Quantize { rows: 130, cols: 5, source: DType::Bf16, layout: Layout::BlocksBoth, power_of_two: true }),
        3 => Kernel::Attention(attention),
        4 => Kernel::AttentionGrad(attention),
        5 => {
            let pass = [ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad][(seed / 16 % 3) as usize];
            let (dtype, weight) = (DType::F32, DType::F32);
            Kernel::Conv(Conv { pass, batch: 2, cin: 4, cout: 6, groups: 2, window, bias: true, dtype, weight })
        }
        6 => {
            let op = PoolOp::AverageWithPadding { pad_end: [1, 1] };
            Kernel::Pool(Pool { op, backward: (seed / 16).is_multiple_of(2), planes: 3, window, dtype: DType::F32 })
        }
        7 => Kernel::ScatterAdd(ScatterAdd {
            outer: 2,
            picks: 3,
            inner: 4,
            extent: 5,
            index_outer: true,
            index_inner: false,
            src: DType::F32,
            index: DType::I64,
            dst: DType::F32,
            accumulate: true,
        }),
        8 => Kernel::Scan(Scan { outer: 2, extent: 3, inner: 4, exclusive: true, reverse: true, dtype: DType::I64 }),
        _ => Generator::new(seed).finish().0,
    }
}

const NUMBERS: [i64; 18] =
    [0, 1, 2, 3, -1, 7, 63, 129, 1 << 16, 1 << 31, (1 << 32) + 1, 1 << 48, 1 << 56, i64::MAX, i64::MIN, -3, i64::MIN / 2 + 1, i64::MAX / 3];

/// Numbers of a document, in order.
fn numbers(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Number(_) => vec![value],
        Value::Array(all) => all.iter_mut().flat_map(numbers).collect(),
        Value::Object(all) => all.values_mut().flat_map(numbers).collect(),
        _ => Vec::new(),
    }
}

/// The kernel with up to three of its numbers replaced; `None` if that is not a kernel.
fn damaged(kernel: &Kernel, random: &mut Random) -> Option<Kernel> {
    let mut value = serde_json::to_value(kernel).expect("serialises");
    let mut all = numbers(&mut value);
    for _ in 0..1 + random.below(3) {
        let at = random.below(all.len() as u64) as usize;
        *all[at] = NUMBERS[random.below(NUMBERS.len() as u64) as usize].into();
    }
    serde_json::from_value(value).ok()
}

/// True for a kernel that runs in no time.
fn small(kernel: &Kernel) -> bool {
    let bytes = kernel.args().iter().fold(0u64, |sum, a| sum.saturating_add(a.bytes()));
    let points = match kernel {
        Kernel::Row(p) => p.rows().saturating_mul(p.row_len()),
        Kernel::Contract(k) => k.batch.iter().fold(k.m, |v, e| v.saturating_mul(*e)).saturating_mul(k.n).saturating_mul(k.k),
        Kernel::ScaledContract(k) => k.m.saturating_mul(k.n).saturating_mul(k.k),
        Kernel::Attention(k) | Kernel::AttentionGrad(k) => {
            let scores = k.batch.saturating_mul(k.heads).saturating_mul(k.q_len).saturating_mul(k.kv_len);
            scores.saturating_mul(k.depth + k.v_depth)
        }
        Kernel::Conv(k) => {
            let [x, y] = [k.window.kernel, k.window.output].map(|[h, w]| h.saturating_mul(w));
            x.saturating_mul(y).saturating_mul(k.batch).saturating_mul(k.cin).saturating_mul(k.cout)
        }
        Kernel::Pool(k) => {
            let [x, y] = [k.window.kernel, k.window.output].map(|[h, w]| h.saturating_mul(w));
            x.saturating_mul(y).saturating_mul(k.planes)
        }
        _ => 0,
    };
    bytes < 1 << 20 && points < 1 << 20
}

proptest! {
    #[test]
    fn a_damaged_kernel_is_refused_or_stays_inside_its_buffers(seed: u64) {
        let mut random = Random::new(seed);
        let kernel = kernel(seed);
        prop_assert_eq!(kernel.verify(), Ok(()), "{}", kernel);
        prop_assert_eq!(kernel.to_string().parse(), Ok(kernel.clone()));
        if let Some(damaged) = damaged(&kernel, &mut random)
            && damaged.verify().is_ok() && small(&damaged) {
            let inputs = random.inputs(&damaged);
            // Random data may hold indices out of range; what counts is that nothing else is touched.
            let _ = try_launch(&damaged, &inputs, 2);
        }
    }
}
