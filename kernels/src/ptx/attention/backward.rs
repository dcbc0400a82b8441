//! The backward pass: dq by query tiles, dk and dv by key tiles.

use super::SIDE;
use super::forward::place;
use super::score::{Scorer, arg_after};
use super::tile::{OWN, Rows, SHARED, Scores, THREADS, Tiles};
use crate::KernelError;
use crate::program::{Attention, Kernel};
use crate::ptx::build::{Build, Float, Int};
use crate::ptx::direct::unravel;
use crate::ptx::module::Emitter;

/// The operands of one batch and head.
struct Operands<'c> {
    q: Rows<'c>,
    k: Rows<'c>,
    v: Rows<'c>,
    o: Rows<'c>,
    d_o: Rows<'c>,
    /// First element of the head's `lse`, i64.
    lse: Int<'c>,
}

fn operands<'c>(t: &Tiles<'c, '_>, a: &Attention, batch: Int<'c>, head: Int<'c>, kv_head: Int<'c>) -> Operands<'c> {
    let b = t.b;
    let line = b.add(b.mulc(batch, a.heads as i64), head);
    Operands {
        q: t.rows(0, &a.q, batch, head, a.q_len, a.depth),
        k: t.rows(1, &a.k, batch, kv_head, a.kv_len, a.depth),
        v: t.rows(2, &a.v, batch, kv_head, a.kv_len, a.v_depth),
        o: t.rows(arg_after(a, 0), &a.o, batch, head, a.q_len, a.v_depth),
        d_o: t.rows(arg_after(a, 2), &a.grads[0], batch, head, a.q_len, a.v_depth),
        lse: b.mulc(b.to_i64(line), a.q_len as i64),
    }
}

/// What the backward pass reads of a query's row.
struct RowState<'c> {
    lse: Vec<Float<'c>>,
    delta: Vec<Float<'c>>,
}

fn row_state<'c>(t: &Tiles<'c, '_>, a: &Attention, x: &Operands<'c>, i0: Int<'c>) -> RowState<'c> {
    let b = t.b;
    let lse = |r: i64| {
        let row = b.minc(b.add(i0, t.row(r)), a.q_len as i64 - 1);
        b.load_f32(b.arg(arg_after(a, 1)), b.add(x.lse, b.to_i64(row)))
    };
    RowState { lse: (0..OWN).map(lse).collect(), delta: t.row_products(&x.o, &x.d_o, i0) }
}

/// Probabilities of a tile, and the derivative of the loss by its inner products, but for the scale.
fn tile<'c>(t: &Tiles<'c, '_>, s: &Scorer<'c, '_>, x: &Operands<'c>, rows: &RowState<'c>, i0: Int<'c>, j0: Int<'c>) -> [Scores<'c>; 2] {
    let b = t.b;
    let products = t.products(&x.q, i0, &x.k, j0);
    let dp = t.products(&x.d_o, i0, &x.v, j0);
    let (mut p, mut dz) = (Vec::with_capacity(dp.len()), Vec::with_capacity(dp.len()));
    for (n, (&product, &dp)) in products.iter().zip(&dp).enumerate() {
        let (a, c) = (n / OWN as usize, n as i64 % OWN);
        let score = s.score(product, b.add(i0, t.row(a as i64)), b.add(j0, t.col(c)));
        let probability = s.probability(score.z, rows.lse[a]);
        let d = b.fmul(probability, b.fsub(dp, rows.delta[a]));
        p.push(probability);
        dz.push(score.slope.map_or(d, |slope| b.fmul(d, slope)));
    }
    [p, dz]
}

fn scale<'c>(b: &Build<'c, '_>, a: &Attention) -> Vec<Float<'c>> {
    vec![b.f32(f32::from_bits(a.scale.0)); OWN as usize]
}

/// Generates the entry that writes dq: a block for 64 queries of a head.
pub fn queries(e: &Emitter<'_>, a: &Attention, name: &str) -> Result<(), KernelError> {
    let blocks = a.batch * a.heads * a.q_len.div_ceil(SIDE as u64);
    if blocks == 0 {
        return Ok(());
    }
    let b = e.entry(name, &Kernel::AttentionGrad(a.clone()).args(), blocks, THREADS, SHARED)?;
    let [batch, head, i0] = place(&b, a, a.heads);
    let kv_head = b.udivc(head, (a.heads / a.kv_heads.max(1)) as i64);
    let t = Tiles { b: &b, dtype: a.dtype };
    let x = operands(&t, a, batch, head, kv_head);
    let scorer = Scorer::new(&b, a, batch, head);
    let rows = row_state(&t, a, &x, i0);
    let dq = t.results(a.depth as i64);
    let (start, end) = scorer.key_range(i0);
    b.for_range(start, end, SIDE, |j0| {
        let [_, dz] = tile(&t, &scorer, &x, &rows, i0, j0);
        t.put_weights(&dz);
        t.accumulate(&dq, &x.k, j0, false);
    });
    let out = t.rows(arg_after(a, 3), &a.grads[1], batch, head, a.q_len, a.depth);
    t.store(&dq, &out, i0, &scale(&b, a));
    b.finish();
    Ok(())
}

/// Generates the entry that writes dk and dv: a block for 64 keys of a key head, over the queries and heads that see them.
pub fn keys(e: &Emitter<'_>, a: &Attention, name: &str) -> Result<(), KernelError> {
    let tiles = a.kv_len.div_ceil(SIDE as u64);
    let blocks = a.batch * a.kv_heads * tiles;
    if blocks == 0 {
        return Ok(());
    }
    let b = e.entry(name, &Kernel::AttentionGrad(a.clone()).args(), blocks, THREADS, SHARED)?;
    let [batch, kv_head, key_tile] = unravel(&b, b.block_index(), [a.batch, a.kv_heads, tiles]);
    let j0 = b.mulc(key_tile, SIDE);
    let t = Tiles { b: &b, dtype: a.dtype };
    let (dk, dv) = (t.results(a.depth as i64), t.results(a.v_depth as i64));
    let group = (a.heads / a.kv_heads.max(1)) as i64;
    b.for_range(b.i32(0), b.i32(group as i32), 1, |member| {
        let head = b.add(b.mulc(kv_head, group), member);
        let x = operands(&t, a, batch, head, kv_head);
        let scorer = Scorer::new(&b, a, batch, head);
        let (start, end) = scorer.query_range(j0);
        b.for_range(start, end, SIDE, |i0| {
            let rows = row_state(&t, a, &x, i0);
            let [p, dz] = tile(&t, &scorer, &x, &rows, i0, j0);
            t.put_weights(&p);
            t.accumulate(&dv, &x.d_o, i0, true);
            t.put_weights(&dz);
            t.accumulate(&dk, &x.q, i0, true);
        });
    });
    let ones = vec![b.f32(1.0); OWN as usize];
    t.store(&dk, &t.rows(arg_after(a, 4), &a.grads[2], batch, kv_head, a.kv_len, a.depth), j0, &scale(&b, a));
    t.store(&dv, &t.rows(arg_after(a, 5), &a.grads[3], batch, kv_head, a.kv_len, a.v_depth), j0, &ones);
    b.finish();
    Ok(())
}
