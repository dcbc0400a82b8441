//! E4M3 matrix products with fine-grained scales, on `mma.sync`.
//!
//! The tensor core's accumulator holds fewer bits than an f32 sum over a long `k` needs. So each fragment runs over one group of 128
//! into a temporary, which is scaled and added to the f32 sum, before the next fragment starts: a second full set of accumulators
//! would not fit into registers.

use super::Arch;
use super::build::{Float, Int};
use super::contract::{Blocking, WarpTile};
use super::epilogue::Output;
use super::module::Emitter;
use super::sm90;
use super::tiles::{Copy, Operand, Tiles, pipeline, raster};
use crate::program::{Kernel, ScaleGroup, ScaledContract, groups};
use crate::{DType, KernelError};

/// Generates the single entry of a scaled product.
pub fn generate(e: &Emitter<'_>, k: &ScaledContract, name: &str) -> Result<(), KernelError> {
    if k.m == 0 || k.n == 0 {
        return Ok(());
    }
    if [k.m, k.n, k.k].iter().any(|&extent| extent >= 1 << 30) {
        return Err(KernelError::Unsupported(format!("matrix product {} x {} x {}", k.m, k.n, k.k)));
    }
    if e.arch == Arch::Sm90a {
        return sm90::e4m3_contract(e, k, name);
    }
    let shape = Blocking::choose(1, k.m, k.n);
    let [tiles_m, tiles_n] = shape.tiles(k.m, k.n);
    let operand = |arg, extent: u64, rows| {
        let stride = if extent == 1 { 0 } else { k.k as i64 };
        let (extent, k, threads) = (extent as i64, k.k as i64, shape.threads());
        let mut o = Operand { arg, dtype: DType::E4m3, element: 1, extent, k, stride, k_stride: 1, rows, threads, copy: Copy::Elements };
        o.copy = o.copy_for(DType::E4m3, &[]);
        o
    };
    let (left, right) = (operand(0, k.m, shape.m), operand(2, k.n, shape.n));
    let args = Kernel::ScaledContract(k.clone()).args();
    let shared = shape.stages * (left.bytes() + right.bytes());
    let b = e.entry(name, &args, (tiles_m * tiles_n) as u64, shape.threads() as u32, shared as u32)?;
    let (tile_m, tile_n) = raster(&b, b.block_index(), tiles_m, tiles_n);
    let (row0, col0) = (b.mulc(tile_m, shape.m), b.mulc(tile_n, shape.n));
    let left = Tiles { b: &b, o: left, base: b.i64(0), origin: row0 };
    let right = Tiles { b: &b, o: right, base: b.i64(0), origin: col0 };
    let warp = WarpTile::new(&b, &shape);
    let sums: Vec<_> = (0..warp.fragments()).map(|_| [0; 4].map(|_| b.cell(b.f32(0.0)))).collect();
    let scales = Scales { b: &b, k, warp: &warp, row0, col0 };
    if k.k > 0 {
        pipeline(&left, &right, groups(k.k) as i64, shape.stages, |tile_a, tile_b, group| {
            let (of_rows, of_cols) = (scales.rows(group), scales.cols(group));
            let wide = |j| right.slices(tile_b, b.addc(warp.col, 16 * j), false);
            let of_right: Vec<_> = (0..warp.ni / 2).map(wide).collect();
            for i in 0..warp.mi {
                let of_left = left.slices(tile_a, b.addc(warp.row, 16 * i), true);
                for j in 0..warp.ni {
                    let (four, first) = (&of_right[j as usize / 2], 2 * (j as usize % 2));
                    let product = |sum, kk: usize| b.mma(1, of_left[kk], [four[kk][first], four[kk][first + 1]], sum);
                    let partial = (0..4).fold([0; 4].map(|_| b.f32(0.0)), product);
                    for (x, (cell, &p)) in sums[warp.index(i, j)].iter().zip(&partial).enumerate() {
                        let scale = b.fmul(of_rows[2 * i as usize + x / 2], of_cols[2 * j as usize + x % 2]);
                        b.set(cell, b.fma(p, scale, b.get(cell)));
                    }
                }
            }
        });
    }
    let out = Output::scaled(&b, k, [shape.m, shape.n]);
    warp.store(&out, row0, col0, |f| [0, 1, 2, 3].map(|x| b.get(&sums[f][x])));
    b.finish();
    Ok(())
}

/// The scales that a lane's results need.
struct Scales<'c, 'b> {
    b: &'b super::build::Build<'c, 'b>,
    k: &'b ScaledContract,
    warp: &'b WarpTile<'c, 'b>,
    row0: Int<'c>,
    col0: Int<'c>,
}

impl<'c> Scales<'c, '_> {
    fn at(&self, arg: usize, line: Int<'c>, lines: u64, group: Int<'c>) -> Float<'c> {
        let b = self.b;
        let line = b.minc(line, lines as i64 - 1);
        b.load_f32(b.arg(arg), b.add(b.mulc(b.to_i64(line), groups(self.k.k) as i64), b.to_i64(group)))
    }

    /// Scales of the lane's rows, two a fragment row; rows beyond the matrix take the last one's.
    fn rows(&self, group: Int<'c>) -> Vec<Float<'c>> {
        let rows = (0..self.warp.mi).flat_map(|i| [0, 8].map(|h| (i, h)));
        let row = |(i, h)| self.b.addc(self.b.add(self.row0, self.warp.place(i, 0).0), h);
        rows.map(|r| self.at(1, row(r), self.k.m, group)).collect()
    }

    /// Scales of the lane's columns, two a fragment column.
    fn cols(&self, group: Int<'c>) -> Vec<Float<'c>> {
        let b = self.b;
        if self.k.b_scales == ScaleGroup::Block {
            // A block's tile is at most 128 columns wide and starts at a multiple of its width: one scale serves it.
            let block = b.udivc(self.col0, 128);
            return vec![self.at(3, block, groups(self.k.n), group); 2 * self.warp.ni as usize];
        }
        let cols = (0..self.warp.ni).flat_map(|j| [0, 1].map(|h| (j, h)));
        let col = |(j, h)| b.addc(b.add(self.col0, self.warp.place(0, j).1), h);
        cols.map(|c| self.at(3, col(c), self.k.n, group)).collect()
    }
}
