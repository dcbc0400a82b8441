//! Dense matrix products of bf16 operands (and E4M3 ones, which are bf16 values), for sm_90a.

use super::pipeline::{Job, Plan, Ring, WARPGROUP};
use crate::KernelError;
use crate::program::{Contract, Kernel};
use crate::ptx::build::{Int, Ptr};
use crate::ptx::contract::{batch_base, operand, output};
use crate::ptx::heuristics::{Problem, Tile};
use crate::ptx::module::Emitter;
use crate::ptx::tiles::raster;

/// Generates the single entry of a product.
pub fn generate<'c>(e: &Emitter<'c>, k: &Contract, name: &str, batches: u64) -> Result<(), KernelError> {
    let result = k.c.dtype.size() * (1 + k.epilogue.accumulate as u64);
    let problem = Problem { batches, m: k.m, n: k.n, k: k.k, element: 2, result };
    let tile = e.tile.unwrap_or_else(|| Tile::choose(&problem));
    let [tiles_m, tiles_n] = tile.tiles(&problem);
    let left = operand(&k.a, 0, k, [k.a.row_stride, k.a.col_stride], tile.m(), WARPGROUP);
    let right = operand(&k.b, 1, k, [k.b.col_stride, k.b.row_stride], tile.n, WARPGROUP);
    let plan = Plan {
        tile,
        left,
        right,
        steps: k.k.div_ceil(left.depth() as u64) as i64,
        beside: 0,
        tiles: batches as i64 * tiles_m * tiles_n,
        blocks: tile.blocks(&problem),
    };
    let b = e.entry(name, &Kernel::Contract(k.clone()).args(), plan.blocks as u64, tile.threads() as u32, plan.shared() as u32)?;
    let ring = Ring { b: &b, plan };
    let sums: Vec<_> = (0..tile.fragments * tile.n / 2).map(|_| b.cell(b.f32(0.0))).collect();
    let job = |t: Int<'c>| {
        let per_batch = tiles_m * tiles_n;
        let (z, t) = if batches == 1 { (b.i32(0), t) } else { (b.udivc(t, per_batch), b.uremc(t, per_batch)) };
        let (i, j) = raster(&b, t, tiles_m, tiles_n);
        let base = |m| batch_base(&b, &k.batch, m, z);
        Job { row: b.mulc(i, tile.m()), col: b.mulc(j, tile.n), left: base(&k.a), right: base(&k.b), out: base(&k.c) }
    };
    let multiply = |stage: Ptr<'c>| {
        for (fragment, sums) in sums.chunks(tile.n as usize / 2).enumerate() {
            let old: Vec<_> = sums.iter().map(|s| b.get(s)).collect();
            let new = ring.product(stage, fragment as i64, Some(&old));
            sums.iter().zip(new).for_each(|(s, v)| b.set(s, v));
        }
    };
    let finish = |job: &Job<'c>| ring.store(&output(&b, k, job.out, [tile.m(), tile.n]), job, &sums);
    let start = || sums.iter().for_each(|s| b.set(s, b.f32(0.0)));
    ring.run(job, |_, _, _| {}, start, multiply, finish);
    b.finish();
    Ok(())
}
