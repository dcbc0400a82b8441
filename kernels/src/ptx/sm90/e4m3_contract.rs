//! E4M3 matrix products with fine-grained scales, for sm_90a.
//!
//! The tensor core's accumulator holds about 14 bits. So each product runs over one group of 128 of the depth into registers of its own,
//! which are scaled and added to the f32 sums.

use super::pipeline::{Job, Plan, Ring, WARPGROUP};
use crate::program::{GROUP, Kernel, ScaleGroup, ScaledContract, groups};
use crate::ptx::build::{Build, Cell, Float, Int, Ptr};
use crate::ptx::epilogue::Output;
use crate::ptx::heuristics::{Problem, Tile};
use crate::ptx::module::Emitter;
use crate::ptx::tiles::{Copy, Operand, raster};
use crate::{DType, KernelError};

/// Generates the single entry of a scaled product.
pub fn generate<'c>(e: &Emitter<'c>, k: &ScaledContract, name: &str) -> Result<(), KernelError> {
    let result = k.c.size() * (1 + k.epilogue.accumulate as u64);
    let problem = Problem { batches: 1, m: k.m, n: k.n, k: k.k, element: 1, result };
    let tile = e.tile.unwrap_or_else(|| Tile::choose(&problem));
    let columns = Columns::new(k, &tile);
    let [tiles_m, tiles_n] = tile.tiles(&problem);
    let plan = Plan {
        tile,
        left: operand(0, k.m, k.k, tile.m()),
        right: operand(2, k.n, k.k, tile.n),
        steps: groups(k.k) as i64,
        beside: 4 * (tile.m() + columns.count),
        tiles: tiles_m * tiles_n,
        blocks: tile.blocks(&problem),
    };
    let args = Kernel::ScaledContract(k.clone()).args();
    let b = e.entry(name, &args, plan.blocks as u64, tile.threads() as u32, plan.shared() as u32)?;
    let ring = Ring { b: &b, plan };
    let sums: Vec<_> = (0..tile.fragments * tile.n / 2).map(|_| b.cell(b.f32(0.0))).collect();
    let zero = b.i64(0);
    let job = |t: Int<'c>| {
        let (i, j) = raster(&b, t, tiles_m, tiles_n);
        Job { row: b.mulc(i, tile.m()), col: b.mulc(j, tile.n), left: zero, right: zero, out: zero }
    };
    let scales = Scales { b: &b, k, tile, columns };
    let start = || sums.iter().for_each(|s| b.set(s, b.f32(0.0)));
    let finish = |job: &Job<'c>| ring.store(&Output::scaled(&b, k, [tile.m(), tile.n]), job, &sums);
    ring.run(job, |beside, job, step| scales.fetch(beside, job, step), start, |stage| promote(&ring, &scales, stage, &sums), finish);
    b.finish();
    Ok(())
}

fn operand(arg: usize, extent: u64, k: u64, rows: i64) -> Operand {
    let (stride, copy) = (if extent == 1 { 0 } else { k as i64 }, Copy::Elements);
    let (extent, k) = (extent as i64, k as i64);
    let o = Operand { arg, dtype: DType::E4m3, element: 1, extent, k, stride, k_stride: 1, rows, threads: WARPGROUP, copy };
    Operand { copy: o.copy_for(DType::E4m3, &[]), ..o }
}

/// Multiplies a stage and adds the scaled products to the sums.
fn promote<'c>(ring: &Ring<'c, '_>, scales: &Scales<'c, '_>, stage: Ptr<'c>, sums: &[Cell<'c, Float<'c>>]) {
    let (b, plan) = (ring.b, &ring.plan);
    let beside = b.at(stage, b.i32(plan.beside_at() as i32), 1);
    for (fragment, sums) in sums.chunks(plan.tile.n as usize / 2).enumerate() {
        let row = ring.row(fragment as i64);
        let of_rows = [0, 8].map(|h| b.load_f32(beside, b.addc(row, h)));
        let part = ring.product(stage, fragment as i64, None);
        for (j, (sums, part)) in sums.chunks(4).zip(part.chunks(4)).enumerate() {
            let of_cols = scales.of_eight(beside, ring.col(), j as i64);
            for (x, (sum, &part)) in sums.iter().zip(part).enumerate() {
                let scale = b.fmul(of_rows[x / 2], of_cols[x % 2]);
                b.set(sum, b.fma(part, scale, b.get(sum)));
            }
        }
        // Else the products of all fragments wait for their scaling together, and there are no registers for that.
        if fragment as i64 + 1 < plan.tile.fragments {
            let scaled: Vec<_> = sums.iter().map(|s| b.get(s)).collect();
            sums.iter().zip(b.by_now(&scaled)).for_each(|(s, v)| b.set(s, v));
        }
    }
}

/// Scales of the right operand that a stage holds: one for each `width` columns.
#[derive(Clone, Copy)]
struct Columns {
    width: i64,
    count: i64,
}

impl Columns {
    fn new(k: &ScaledContract, tile: &Tile) -> Self {
        let width = match k.b_scales {
            ScaleGroup::Row => 1,
            // The widest that divides both a group and the tile: its columns are of one group, wherever the tile starts.
            ScaleGroup::Block => [128, 64, 32, 16, 8].into_iter().find(|w| tile.n % w == 0).unwrap_or(8),
        };
        Columns { width, count: tile.n / width }
    }
}

/// The scales of a stage: of the tile's rows, then of its columns.
struct Scales<'c, 'b> {
    b: &'b Build<'c, 'b>,
    k: &'b ScaledContract,
    tile: Tile,
    columns: Columns,
}

impl<'c> Scales<'c, '_> {
    /// Starts to bring the scales of a step to shared memory; lines beyond the matrix take the last one's.
    fn fetch(&self, beside: Ptr<'c>, job: &Job<'c>, step: Int<'c>) {
        let (b, k) = (self.b, self.k);
        let copy = |arg: usize, to: Int<'c>, line: Int<'c>, lines: u64| {
            let line = b.to_i64(b.minc(line, lines as i64 - 1));
            let from = b.add(b.mulc(line, groups(k.k) as i64), b.to_i64(step));
            b.copy_word(b.at(beside, to, 4), b.at(b.arg(arg), from, 4));
        };
        for first in (0..self.tile.m()).step_by(WARPGROUP as usize) {
            let row = b.addc(b.thread(), first);
            let all = self.tile.m() - first >= WARPGROUP;
            let bring = || copy(1, row, b.add(job.row, row), k.m);
            if all { bring() } else { b.if_then(b.ltc(row, self.tile.m()), bring) }
        }
        let Columns { width, count } = self.columns;
        for first in (0..count).step_by(WARPGROUP as usize) {
            let number = b.addc(b.thread(), first);
            let bring = || {
                let col = b.add(job.col, b.mulc(number, width));
                let (line, lines) = match k.b_scales {
                    ScaleGroup::Row => (col, k.n),
                    ScaleGroup::Block => (b.udivc(col, GROUP as i64), groups(k.n)),
                };
                copy(3, b.addc(number, self.tile.m()), line, lines);
            };
            if count - first >= WARPGROUP { bring() } else { b.if_then(b.ltc(number, count), bring) }
        }
    }

    /// Scales of a thread's two columns of the `j`-th eight.
    fn of_eight(&self, beside: Ptr<'c>, col: Int<'c>, j: i64) -> [Float<'c>; 2] {
        let b = self.b;
        let at = |i: Int<'c>| b.load_f32(beside, b.addc(i, self.tile.m()));
        match self.k.b_scales {
            ScaleGroup::Row => [0, 1].map(|h| at(b.addc(col, 8 * j + h))),
            ScaleGroup::Block => [at(b.i32((8 * j / self.columns.width) as i32)); 2],
        }
    }
}
