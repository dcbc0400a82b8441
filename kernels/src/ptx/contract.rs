//! Dense matrix products: bf16 operands (and E4M3 ones, which are bf16 values) on tensor cores, f32 operands in true f32.

use super::Arch;
use super::build::{Build, Int};
use super::contract_f32;
use super::epilogue::{Output, alignment};
use super::module::Emitter;
use super::sm90;
use super::tiles::{Accumulator, Copy, Operand, Tiles, pipeline, raster};
use crate::program::{Contract, Kernel, Matrix};
use crate::{DType, KernelError};

/// Tile shapes of a block: `m` x `n`, split over `warps` in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Blocking {
    pub m: i64,
    pub n: i64,
    pub warps: [i64; 2],
    pub stages: i64,
}

/// 8 warps of 64 x 32.
const LARGE: Blocking = Blocking { m: 128, n: 128, warps: [2, 4], stages: 3 };
/// 4 warps of 32 x 32, where large tiles would leave processors idle.
const SMALL: Blocking = Blocking { m: 64, n: 64, warps: [2, 2], stages: 3 };

/// Blocks below which a large tile leaves too many of a chip's 100 to 140 processors without one.
const BUSY: u64 = 100;

impl Blocking {
    pub fn threads(&self) -> i64 {
        32 * self.warps[0] * self.warps[1]
    }

    /// Rows and columns of a warp's part.
    pub fn warp(&self) -> [i64; 2] {
        [self.m / self.warps[0], self.n / self.warps[1]]
    }

    pub fn tiles(&self, m: u64, n: u64) -> [i64; 2] {
        [m.div_ceil(self.m as u64) as i64, n.div_ceil(self.n as u64) as i64]
    }

    /// The block shape for a product.
    pub fn choose(batches: u64, m: u64, n: u64) -> Self {
        let blocks = |b: &Blocking| batches * b.tiles(m, n).iter().product::<i64>() as u64;
        if blocks(&LARGE) >= BUSY && m > 64 && n > 64 { LARGE } else { SMALL }
    }
}

/// Generates the single entry of a product.
pub fn generate(e: &Emitter<'_>, k: &Contract, name: &str) -> Result<(), KernelError> {
    let batches: u64 = k.batch.iter().product();
    if batches == 0 || k.m == 0 || k.n == 0 {
        return Ok(());
    }
    if [k.m, k.n, k.k].iter().any(|&extent| extent >= 1 << 30) {
        return Err(KernelError::Unsupported(format!("matrix product {} x {} x {}", k.m, k.n, k.k)));
    }
    match [k.a.dtype, k.b.dtype].iter().all(|d| matches!(d, DType::Bf16 | DType::E4m3)) {
        true if e.arch == Arch::Sm90a => sm90::bf16_contract(e, k, name, batches),
        true => tensor_cores(e, k, name, batches),
        false => contract_f32::generate(e, k, name, batches),
    }
}

/// The number of a block's batch and the number of its tile.
pub fn batch_and_tile<'c>(b: &Build<'c, '_>, tiles: i64, batches: u64) -> (Int<'c>, Int<'c>) {
    let block = b.block_index();
    if batches == 1 { (b.i32(0), block) } else { (b.udivc(block, tiles), b.uremc(block, tiles)) }
}

/// First element of batch `z` of a matrix.
pub fn batch_base<'c>(b: &Build<'c, '_>, batch: &[u64], m: &Matrix, mut z: Int<'c>) -> Int<'c> {
    let mut base = b.i64(m.offset as i64);
    for (&n, &stride) in batch.iter().zip(&m.batch_strides).rev() {
        base = b.add(base, b.mulc(b.to_i64(b.uremc(z, n as i64)), stride as i64));
        z = b.udivc(z, n as i64);
    }
    base
}

/// Where the product goes; `base` is its batch's first element, `tile` the shape of a block's tile.
pub fn output<'c, 'b>(b: &'b Build<'c, 'b>, k: &Contract, base: Int<'c>, tile: [i64; 2]) -> Output<'c, 'b> {
    let arg = Kernel::Contract(k.clone()).args().len() - 1;
    Output {
        b,
        arg,
        dtype: k.c.dtype,
        base,
        m: k.m as i64,
        n: k.n as i64,
        row_stride: k.c.row_stride as i64,
        col_stride: k.c.col_stride as i64,
        aligned: alignment(k.c.batch_strides.iter().chain([&k.c.offset]).map(|&s| s as i64)),
        bias: k.epilogue.bias.map(|d| (2, d)),
        accumulate: k.epilogue.accumulate,
        exact: k.m as i64 % tile[0] == 0 && k.n as i64 % tile[1] == 0,
    }
}

/// Operand `arg` (0 or 1) with its strides along rows of the tile and along the depth; `threads` threads bring tiles of `rows` rows.
pub fn operand(m: &Matrix, arg: usize, k: &Contract, strides: [u64; 2], rows: i64, threads: i64) -> Operand {
    let extent = if arg == 0 { k.m } else { k.n };
    // The stride of an axis of one element is never walked.
    let walked = |stride: u64, extent: u64| if extent == 1 { 0 } else { stride as i64 };
    let mut o = Operand {
        arg,
        dtype: m.dtype,
        element: 2,
        extent: extent as i64,
        k: k.k as i64,
        stride: walked(strides[0], extent),
        k_stride: walked(strides[1], k.k),
        rows,
        threads,
        copy: Copy::Elements,
    };
    let offsets: Vec<i64> = m.batch_strides.iter().chain([&m.offset]).map(|&s| s as i64).collect();
    o.copy = o.copy_for(DType::Bf16, &offsets);
    o
}

fn tensor_cores(e: &Emitter<'_>, k: &Contract, name: &str, batches: u64) -> Result<(), KernelError> {
    let shape = Blocking::choose(batches, k.m, k.n);
    let [tiles_m, tiles_n] = shape.tiles(k.m, k.n);
    let left = operand(&k.a, 0, k, [k.a.row_stride, k.a.col_stride], shape.m, shape.threads());
    let right = operand(&k.b, 1, k, [k.b.col_stride, k.b.row_stride], shape.n, shape.threads());
    let shared = shape.stages * (left.bytes() + right.bytes());
    let grid = batches * (tiles_m * tiles_n) as u64;
    let b = e.entry(name, &Kernel::Contract(k.clone()).args(), grid, shape.threads() as u32, shared as u32)?;
    let (z, tile) = batch_and_tile(&b, tiles_m * tiles_n, batches);
    let (tile_m, tile_n) = raster(&b, tile, tiles_m, tiles_n);
    let (row0, col0) = (b.mulc(tile_m, shape.m), b.mulc(tile_n, shape.n));
    let left = Tiles { b: &b, o: left, base: batch_base(&b, &k.batch, &k.a, z), origin: row0 };
    let right = Tiles { b: &b, o: right, base: batch_base(&b, &k.batch, &k.b, z), origin: col0 };
    let warp = WarpTile::new(&b, &shape);
    let sums: Vec<_> = (0..warp.fragments()).map(|_| [0; 4].map(|_| b.cell(b.f32(0.0)))).collect();
    if k.k > 0 {
        let steps = k.k.div_ceil(left.o.depth() as u64) as i64;
        pipeline(&left, &right, steps, shape.stages, |tile_a, tile_b, _| {
            for kk in 0..4 {
                let a: Vec<_> = (0..warp.mi).map(|i| left.fragment(tile_a, b.addc(warp.row, 16 * i), kk, true)).collect();
                for j in 0..warp.ni / 2 {
                    let [b0, b1, b2, b3] = right.fragment(tile_b, b.addc(warp.col, 16 * j), kk, false);
                    for (i, a) in a.iter().enumerate() {
                        for (half, pair) in [[b0, b1], [b2, b3]].into_iter().enumerate() {
                            let cell = &sums[warp.index(i as i64, 2 * j + half as i64)];
                            let sum = b.mma(2, *a, pair, [0, 1, 2, 3].map(|x| b.get(&cell[x])));
                            cell.iter().zip(sum).for_each(|(c, v)| b.set(c, v));
                        }
                    }
                }
            }
        });
    }
    let out = output(&b, k, batch_base(&b, &k.batch, &k.c, z), [shape.m, shape.n]);
    warp.store(&out, row0, col0, |f| [0, 1, 2, 3].map(|x| b.get(&sums[f][x])));
    b.finish();
    Ok(())
}

/// A warp's part of a block's tile, in fragments of 16 x 8.
pub struct WarpTile<'c, 'b> {
    b: &'b Build<'c, 'b>,
    /// First row and column in the block's tile.
    pub row: Int<'c>,
    pub col: Int<'c>,
    pub mi: i64,
    pub ni: i64,
}

impl<'c, 'b> WarpTile<'c, 'b> {
    pub fn new(b: &'b Build<'c, 'b>, shape: &Blocking) -> Self {
        let warp = b.udivc(b.thread(), 32);
        let [rows, cols] = shape.warp();
        let (row, col) = (b.mulc(b.udivc(warp, shape.warps[1]), rows), b.mulc(b.uremc(warp, shape.warps[1]), cols));
        WarpTile { b, row, col, mi: rows / 16, ni: cols / 8 }
    }

    pub fn fragments(&self) -> i64 {
        self.mi * self.ni
    }

    pub fn index(&self, i: i64, j: i64) -> usize {
        (i * self.ni + j) as usize
    }

    /// Row of a lane's first two results in the warp's fragment row `i`, and column of its results in fragment column `j`.
    pub fn place(&self, i: i64, j: i64) -> (Int<'c>, Int<'c>) {
        let b = self.b;
        let lane = b.andc(b.thread(), 31);
        let row = b.add(self.row, b.addc(b.shr(lane, 2), 16 * i));
        (row, b.add(self.col, b.addc(b.mulc(b.andc(lane, 3), 2), 8 * j)))
    }

    /// Stores the warp's fragments.
    pub fn store(&self, out: &Output<'c, '_>, row0: Int<'c>, col0: Int<'c>, fragment: impl Fn(usize) -> Accumulator<'c>) {
        let b = self.b;
        for (i, j) in (0..self.mi).flat_map(|i| (0..self.ni).map(move |j| (i, j))) {
            let (row, col) = self.place(i, j);
            let (row, col) = (b.add(row0, row), b.add(col0, col));
            let v = fragment(self.index(i, j));
            out.store(row, col, &v[..2]);
            out.store(b.addc(row, 8), col, &v[2..]);
        }
    }
}
