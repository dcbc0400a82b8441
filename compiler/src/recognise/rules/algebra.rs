//! Commuting, scalars drawn out, and views composed.

use super::{Match, Rule, family, plain, rule};
use crate::graph::Op;
use egg::Id;

pub fn rules() -> Vec<Rule> {
    let plain_rules = [
        plain("commute-add", "(add ?x ?y)", "(add ?y ?x)"),
        plain("commute-mul", "(mul ?x ?y)", "(mul ?y ?x)"),
        plain("recip-sqrt", "(recip (sqrt ?x))", "(rsqrt ?x)"),
        plain("div-sqrt", "(div ?x (sqrt ?y))", "(mul ?x (rsqrt ?y))"),
    ];
    let built = [
        rule("div-scalar", "(div ?x ?c)", div_scalar),
        rule("one-over", "(div ?c ?x)", one_over),
        rule("pow-2", "(pow ?x ?c)", square),
        rule("pow-half", "(pow ?x ?c)", root),
        rule("mul-scalars", "(mul (mul ?x ?c) ?d)", mul_scalars),
        rule("matmul-scaled-left", "(matmul (mul ?x ?c) ?y ?t)", scaled_left),
        rule("matmul-scaled-right", "(matmul ?x (mul ?y ?c) ?t)", scaled_right),
        rule("matmul-transposed-right", "(matmul ?x (transpose ?y ?p) ?t)", transposed_right),
        rule("matmul-transposed-left", "(matmul (transpose ?x ?p) ?y ?t)", transposed_left),
        rule("transpose-transpose", "(transpose (transpose ?x ?p) ?q)", transposes),
        rule("reshape-reshape", "(reshape (reshape ?x ?p) ?q)", reshapes),
        rule("reshape-transpose-reshape", "(reshape (transpose (reshape ?x ?r) ?p) ?q)", merged_transpose),
    ];
    let identities =
        family("identity-view", &["(reshape ?x ?t)", "(broadcast ?x ?t)", "(transpose ?x ?t)", "(slice ?x ?t)"], identity_view);
    plain_rules.into_iter().chain(built).flatten().chain(identities).collect()
}

/// `x / c = x * (1 / c)`
fn div_scalar(m: &mut Match) -> Option<Id> {
    let c = m.scalar("?c").filter(|c| c.is_normal())?;
    let (x, inverse) = (m.id("?x")?, m.literal(1.0 / c));
    m.ty("?x").filter(|t| t.dtype.is_float())?;
    Some(m.map("mul", &[x, inverse]))
}

/// `1 / x`
fn one_over(m: &mut Match) -> Option<Id> {
    m.is("?c", 1.0)?;
    let x = m.id("?x")?;
    m.ty("?x").filter(|t| t.dtype.is_float())?;
    Some(m.map("recip", &[x]))
}

fn square(m: &mut Match) -> Option<Id> {
    m.is("?c", 2.0)?;
    let x = m.id("?x")?;
    Some(m.map("mul", &[x, x]))
}

fn root(m: &mut Match) -> Option<Id> {
    let (x, c) = (m.id("?x")?, m.scalar("?c")?);
    match c {
        0.5 => Some(m.map("sqrt", &[x])),
        -0.5 => Some(m.map("rsqrt", &[x])),
        _ => None,
    }
}

/// `(x c) d = x (c d)`
fn mul_scalars(m: &mut Match) -> Option<Id> {
    let (c, d) = (m.scalar("?c")?, m.scalar("?d")?);
    let (x, cd) = (m.id("?x")?, m.literal(c * d));
    m.ty("?x").filter(|t| t.dtype.is_float() && (c * d).is_normal())?;
    Some(m.map("mul", &[x, cd]))
}

fn scaled_left(m: &mut Match) -> Option<Id> {
    let (x, y, t) = (m.id("?x")?, m.id("?y")?, m.op("?t")?);
    scaled_product(m, x, y, t)
}

fn scaled_right(m: &mut Match) -> Option<Id> {
    let (x, y, t) = (m.id("?x")?, m.id("?y")?, m.op("?t")?);
    scaled_product(m, x, y, t)
}

/// `(x c) @ y = (x @ y) c` for one constant c; the scalar must not be what gives an operand its shape.
fn scaled_product(m: &mut Match, x: Id, y: Id, t: Op) -> Option<Id> {
    let c = m.scalar("?c")?;
    let rank = |id: Id, m: &Match| m.egraph[id].data.ty.as_ref().map(|t| t.rank());
    if m.ty("?c")?.elements() != 1 || rank(x, m)? < 2 || rank(x, m)? != rank(y, m)? {
        return None;
    }
    let (product, c) = (m.add("matmul", &[x, y], t), m.literal(c));
    Some(m.map("mul", &[product, c]))
}

/// True for the permutation that swaps the last two axes.
fn swaps_last_two(perm: &[usize]) -> bool {
    let n = perm.len();
    n >= 2 && perm[n - 2] == n - 1 && perm[n - 1] == n - 2 && perm[..n - 2].iter().enumerate().all(|(i, &p)| i == p)
}

fn transposed_right(m: &mut Match) -> Option<Id> {
    let (Op::Transpose(p), Op::Matmul { trans_a, trans_b, dtype }) = (m.op("?p")?, m.op("?t")?) else { return None };
    let (x, y) = (m.id("?x")?, m.id("?y")?);
    swaps_last_two(&p).then(|| m.add("matmul", &[x, y], Op::Matmul { trans_a, trans_b: !trans_b, dtype }))
}

fn transposed_left(m: &mut Match) -> Option<Id> {
    let (Op::Transpose(p), Op::Matmul { trans_a, trans_b, dtype }) = (m.op("?p")?, m.op("?t")?) else { return None };
    let (x, y) = (m.id("?x")?, m.id("?y")?);
    swaps_last_two(&p).then(|| m.add("matmul", &[x, y], Op::Matmul { trans_a: !trans_a, trans_b, dtype }))
}

fn transposes(m: &mut Match) -> Option<Id> {
    let (Op::Transpose(p), Op::Transpose(q)) = (m.op("?p")?, m.op("?q")?) else { return None };
    let (x, both) = (m.id("?x")?, q.iter().map(|&i| p[i]).collect());
    Some(m.add("transpose", &[x], Op::Transpose(both)))
}

fn reshapes(m: &mut Match) -> Option<Id> {
    let (x, q) = (m.id("?x")?, m.op("?q")?);
    Some(m.add("reshape", &[x], q))
}

fn identity_view(m: &mut Match) -> Option<Id> {
    let shape = m.shape("?x")?;
    let same = match m.op("?t")? {
        Op::Reshape(s) | Op::Broadcast(s) => s == shape,
        Op::Transpose(p) => p.iter().enumerate().all(|(i, &a)| i == a),
        Op::Slice { starts, steps, sizes } => sizes == shape && starts.iter().all(|&s| s == 0) && steps.iter().all(|&s| s == 1),
        _ => false,
    };
    if same { m.id("?x") } else { None }
}

/// Reshape, transpose, reshape is one transpose where the reshapes only merge and split axes that travel together.
fn merged_transpose(m: &mut Match) -> Option<Id> {
    let (Op::Transpose(p), Op::Reshape(out)) = (m.op("?p")?, m.op("?q")?) else { return None };
    let (x, shape) = (m.id("?x")?, m.shape("?x")?);
    let Op::Reshape(middle) = m.op("?r")? else { return None };
    let groups = merged_axes(&shape, &middle)?;
    let perm: Vec<usize> = p.iter().flat_map(|&axis| groups[axis].clone()).collect();
    let permuted: Vec<u64> = perm.iter().map(|&a| shape[a]).collect();
    (permuted == out).then(|| m.add("transpose", &[x], Op::Transpose(perm)))
}

/// For each axis of `merged`, the run of axes of `shape` that it merges; `None` if it splits one.
fn merged_axes(shape: &[u64], merged: &[u64]) -> Option<Vec<std::ops::Range<usize>>> {
    let mut at = 0;
    let mut out = vec![];
    for &extent in merged {
        let (start, mut product) = (at, 1);
        if extent == 1 {
            at += (shape.get(at) == Some(&1)) as usize;
        }
        while product < extent {
            product *= shape.get(at)?;
            at += 1;
        }
        if product != extent {
            return None;
        }
        out.push(start..at);
    }
    (at == shape.len()).then_some(out)
}
