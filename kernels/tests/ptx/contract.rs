//! Matrix products through ptxas.

use super::agree::{Tolerance, agree_tiled};
use super::assembler::{check, check_tiled};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Contract, Epilogue, Kernel, Matrix, ScaleGroup, ScaledContract};
use fp8c_kernels::ptx::{Problem, Tile};

/// Which operands lie transposed in memory.
#[derive(Clone, Copy)]
pub struct Layout {
    pub left: bool,
    pub right: bool,
}

fn matrix(dtype: DType, batch: &[u64], rows: u64, cols: u64, transposed: bool) -> Matrix {
    let size = rows * cols;
    let batch_strides: Vec<u64> = (0..batch.len()).map(|d| size * batch[d + 1..].iter().product::<u64>()).collect();
    let (row_stride, col_stride) = if transposed { (1, rows) } else { (cols, 1) };
    Matrix { dtype, elements: size * batch.iter().product::<u64>(), offset: 0, batch_strides, row_stride, col_stride }
}

pub fn dense(dtypes: [DType; 3], batch: &[u64], [m, n, k]: [u64; 3], layout: Layout, epilogue: Epilogue) -> Kernel {
    Kernel::Contract(Contract {
        batch: batch.to_vec(),
        m,
        n,
        k,
        a: matrix(dtypes[0], batch, m, k, layout.left),
        b: matrix(dtypes[1], batch, k, n, layout.right),
        c: matrix(dtypes[2], batch, m, n, false),
        epilogue,
    })
}

pub fn dense_kernels() -> Vec<(String, Kernel)> {
    const B: DType = DType::Bf16;
    const F: DType = DType::F32;
    let plain = Epilogue::default();
    let mut all = vec![];
    for (left, right) in [(false, false), (false, true), (true, false), (true, true)] {
        let layout = Layout { left, right };
        let name = format!("{}{}", ["n", "t"][left as usize], ["n", "t"][right as usize]);
        for (m, n, k) in [(2048, 1024, 512), (64, 64, 64), (100, 72, 40), (33, 17, 5)] {
            all.push((format!("bf16_{name}_{m}x{n}x{k}"), dense([B, B, B], &[], [m, n, k], layout, plain)));
            all.push((format!("f32_{name}_{m}x{n}x{k}"), dense([F, F, F], &[], [m, n, k], layout, plain)));
        }
    }
    let straight = Layout { left: false, right: false };
    all.push(("large_edges".into(), dense([B, B, B], &[], [1400, 1304, 200], straight, plain)));
    all.push(("large_f32_edges".into(), dense([F, F, F], &[], [1401, 1303, 203], straight, plain)));
    all.push(("batched".into(), dense([B, B, F], &[3, 4], [96, 80, 64], Layout { left: false, right: true }, plain)));
    all.push(("mixed".into(), dense([F, B, B], &[2], [50, 60, 70], straight, plain)));
    all.push(("codes".into(), dense([DType::E4m3, B, F], &[], [64, 128, 96], straight, plain)));
    let full = Epilogue { bias: Some(F), accumulate: true };
    all.push(("epilogue".into(), dense([B, B, F], &[], [256, 2048, 128], straight, full)));
    all.push(("epilogue_f32".into(), dense([F, F, F], &[], [100, 90, 33], straight, full)));
    all.push(("empty_sum".into(), dense([F, F, F], &[], [5, 6, 0], straight, plain)));
    all.push(("empty_sum_bf16".into(), dense([B, B, F], &[], [5, 6, 0], straight, plain)));
    all.push(("vocabulary".into(), dense([B, B, B], &[], [256, 50257, 768], Layout { left: false, right: true }, plain)));
    all.push(("vector".into(), dense([B, B, B], &[], [1, 512, 256], straight, plain)));
    all
}

/// Products that take large tiles, with short sums.
pub fn large_kernels() -> Vec<(String, Kernel)> {
    const B: DType = DType::Bf16;
    const F: DType = DType::F32;
    let plain = Epilogue::default();
    let layout = |left, right| Layout { left, right };
    let mut all = vec![];
    for (left, right) in [(false, false), (true, true)] {
        all.push((format!("large_bf16_{left}_{right}"), dense([B, B, F], &[10], [384, 512, 72], layout(left, right), plain)));
        all.push((format!("large_f32_{left}_{right}"), dense([F, F, F], &[10], [390, 500, 20], layout(left, right), plain)));
    }
    all
}

pub fn scaled_kernels() -> Vec<(String, Kernel)> {
    let mut all = vec![];
    for (m, n, k) in
        [(2048, 2048, 1024), (128, 64, 256), (100, 72, 144), (33, 17, 5), (70, 130, 132), (1, 128, 384), (128, 352, 512), (1400, 1304, 512)]
    {
        for b_scales in [ScaleGroup::Block, ScaleGroup::Row] {
            let (c, epilogue) = match b_scales {
                ScaleGroup::Block => (DType::Bf16, Epilogue::default()),
                ScaleGroup::Row => (DType::F32, Epilogue { bias: Some(DType::Bf16), accumulate: true }),
            };
            all.push((
                format!("scaled_{b_scales:?}_{m}x{n}x{k}"),
                Kernel::ScaledContract(ScaledContract { m, n, k, b_scales, c, epilogue }),
            ));
        }
    }
    all
}

#[test]
fn dense_products_assemble_without_spills() {
    dense_kernels().iter().for_each(|(name, kernel)| check(name, kernel));
}

#[test]
fn scaled_products_assemble_without_spills() {
    scaled_kernels().iter().for_each(|(name, kernel)| check(name, kernel));
}

/// A product of each kind with every tile that sm_90a's generators may choose.
fn tiled() -> Vec<(String, Kernel, Tile)> {
    const B: DType = DType::Bf16;
    let scaled = |b_scales, c, epilogue| Kernel::ScaledContract(ScaledContract { m: 290, n: 276, k: 1100, b_scales, c, epilogue });
    let layout = |left, right| Layout { left, right };
    let bf16 = |layout, c, epilogue| dense([B, B, c], &[], [288, 280, 584], layout, epilogue);
    let full = Epilogue { bias: Some(DType::F32), accumulate: true };
    let kinds = [
        ("e4m3_block", 1, scaled(ScaleGroup::Block, B, Epilogue::default())),
        ("e4m3_row", 1, scaled(ScaleGroup::Row, DType::F32, full)),
        ("bf16_nt", 2, bf16(layout(false, true), B, Epilogue { bias: Some(B), accumulate: false })),
        ("bf16_tn", 2, bf16(layout(true, false), DType::F32, full)),
    ];
    let each = |(name, element, kernel): &(&str, u64, Kernel)| {
        let tiles = Tile::candidates(&Problem { batches: 1, m: 1, n: 1, k: 1, element: *element, result: 2 });
        let named = |t: Tile| (format!("{name}_{}x{}_{}", t.m(), t.n, t.groups), kernel.clone(), t);
        tiles.into_iter().map(named).collect::<Vec<_>>()
    };
    kinds.iter().flat_map(each).collect()
}

#[test]
fn every_tile_assembles_to_warpgroup_products_without_spills() {
    tiled().iter().for_each(|(name, kernel, tile)| check_tiled(name, kernel, *tile));
}

#[test]
fn every_tile_agrees_with_the_cpu_emulated() {
    let close = Tolerance { relative: 2e-5, absolute: 2e-4 };
    tiled().iter().for_each(|(name, kernel, tile)| agree_tiled(name, kernel, *tile, close));
}
