//! The forward pass: a block for 64 queries of a head, over the keys they see, with a running maximum and sum.

use super::SIDE;
use super::score::{Scorer, arg_after};
use super::tile::{OWN, SHARED, THREADS, Tiles};
use crate::KernelError;
use crate::program::{Attention, Kernel};
use crate::ptx::build::{Build, Int};
use crate::ptx::direct::unravel;
use crate::ptx::math;
use crate::ptx::module::Emitter;

/// Batch, head and first query of a block; long rows of a causal mask start first.
pub fn place<'c>(b: &Build<'c, '_>, k: &Attention, heads: u64) -> [Int<'c>; 3] {
    let tiles = k.q_len.div_ceil(SIDE as u64);
    let [batch, head, tile] = unravel(b, b.block_index(), [k.batch, heads, tiles]);
    let tile = b.sub(b.i32(tiles as i32 - 1), tile);
    [batch, head, b.mulc(tile, SIDE)]
}

/// Generates the single entry.
pub fn generate(e: &Emitter<'_>, k: &Attention, name: &str) -> Result<(), KernelError> {
    let blocks = k.batch * k.heads * k.q_len.div_ceil(SIDE as u64);
    if blocks == 0 {
        return Ok(());
    }
    let b = e.entry(name, &Kernel::Attention(k.clone()).args(), blocks, THREADS, SHARED)?;
    let [batch, head, i0] = place(&b, k, k.heads);
    let kv_head = b.udivc(head, (k.heads / k.kv_heads.max(1)) as i64);
    let t = Tiles { b: &b, dtype: k.dtype };
    let q = t.rows(0, &k.q, batch, head, k.q_len, k.depth);
    let (keys, values) = (t.rows(1, &k.k, batch, kv_head, k.kv_len, k.depth), t.rows(2, &k.v, batch, kv_head, k.kv_len, k.v_depth));
    let o = t.rows(arg_after(k, 0), &k.o, batch, head, k.q_len, k.v_depth);
    let scorer = Scorer::new(&b, k, batch, head);
    let sums = t.results(k.v_depth as i64);
    let state: Vec<_> = (0..OWN).map(|_| (b.cell(b.f32(f32::NEG_INFINITY)), b.cell(b.f32(0.0)))).collect();
    let (start, end) = scorer.key_range(i0);
    b.for_range(start, end, SIDE, |j0| {
        let products = t.products(&q, i0, &keys, j0);
        let mut weights = Vec::with_capacity(products.len());
        let mut factors = Vec::with_capacity(state.len());
        for (a, (largest, total)) in state.iter().enumerate() {
            let i = b.add(i0, t.row(a as i64));
            let own = &products[a * OWN as usize..][..OWN as usize];
            let z: Vec<_> = own.iter().enumerate().map(|(c, &p)| scorer.score(p, i, b.add(j0, t.col(c as i64))).z).collect();
            let here = z.iter().fold(b.f32(f32::NEG_INFINITY), |m, &z| b.fmax(m, z));
            let old = b.get(largest);
            let new = b.fmax(old, t.across(here, |x, y| b.fmax(x, y)));
            let p: Vec<_> = z.iter().map(|&z| scorer.probability(z, new)).collect();
            let sum = t.across(p.iter().fold(b.f32(0.0), |s, &p| b.fadd(s, p)), |x, y| b.fadd(x, y));
            let factor = scorer.probability(old, new);
            b.set(total, b.fma(b.get(total), factor, sum));
            b.set(largest, new);
            weights.extend(p);
            factors.push(factor);
        }
        t.put_weights(&weights);
        sums.scale(&b, &factors);
        t.accumulate(&sums, &values, j0, false);
    });
    let lse = b.arg(arg_after(k, 1));
    let line = b.add(b.mulc(batch, k.heads as i64), head);
    let mut inverses = Vec::with_capacity(state.len());
    for (a, (largest, total)) in state.iter().enumerate() {
        let i = b.add(i0, t.row(a as i64));
        let total = b.get(total);
        let empty = b.fcmp(inkwell::FloatPredicate::OEQ, total, b.f32(0.0));
        inverses.push(b.select(empty, b.f32(0.0), b.fdiv(b.f32(1.0), total)));
        let first = b.and(b.eqc(t.tx(), 0), b.ltc(i, k.q_len as i64));
        let value = b.select(empty, b.f32(f32::NEG_INFINITY), b.fadd(b.get(largest), math::log(&b, total)));
        let at = b.add(b.mulc(b.to_i64(line), k.q_len as i64), b.to_i64(i));
        b.if_then(first, || b.store_f32(lse, at, value));
    }
    t.store(&sums, &o, i0, &inverses);
    b.finish();
    Ok(())
}
