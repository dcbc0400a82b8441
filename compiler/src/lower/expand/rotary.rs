//! Rotary embedding: the two members of each pair, each computed from both, then joined.

use super::Writer;
use crate::Error;
use crate::graph::{Op, ValueId};

/// The attributes of `Op::Rotary`.
pub(super) struct Form {
    pub rotated: u64,
    pub interleaved: bool,
    pub inverse: bool,
}

/// Every `step`-th element of the last axis from `start` on, `size` of them. An axis of extent 1 is left to broadcast.
fn part(w: &mut Writer, x: ValueId, start: u64, step: i64, size: u64) -> Result<ValueId, Error> {
    let mut sizes = w.shape(x).to_vec();
    let last = sizes.len() - 1;
    if sizes[last] == 1 && size != 1 {
        return Ok(x);
    }
    let (mut starts, mut steps) = (vec![0; sizes.len()], vec![1; sizes.len()]);
    (starts[last], steps[last], sizes[last]) = (start as i64, step, size);
    w.one(Op::Slice { starts, steps, sizes }, &[x])
}

/// Inputs x, cos, sin.
pub(super) fn rotary(w: &mut Writer, form: Form, v: &[ValueId]) -> Result<ValueId, Error> {
    let (x, dtype) = (v[0], w.dtype(v[0]));
    let shape = w.shape(x).to_vec();
    let (axis, half) = (shape.len() - 1, form.rotated / 2);
    let (second, step) = if form.interleaved { (1, 2) } else { (half, 1) };
    let mut parts = vec![];
    for v in v {
        parts.push([part(w, *v, 0, step, half)?, part(w, *v, second, step, half)?]);
    }
    let [[a, b], [ca, cb], [sa, sb]] = [parts[0], parts[1], parts[2]];
    // Forward: a cos - b sin, b cos + a sin; the inverse turns the other way, with each sine of the other's place.
    let (first_sin, second_sin) = if form.inverse { (sb, sa) } else { (sa, sb) };
    let y = w.map(dtype, &[a, ca, b, first_sin], |f, v| {
        let (p, q) = (f.mul(v[0], v[1]), f.mul(v[2], v[3]));
        if form.inverse { f.add(p, q) } else { f.sub(p, q) }
    })?;
    let z = w.map(dtype, &[b, cb, a, second_sin], |f, v| {
        let (p, q) = (f.mul(v[0], v[1]), f.mul(v[2], v[3]));
        if form.inverse { f.sub(p, q) } else { f.add(p, q) }
    })?;
    let mut pieces = vec![y, z];
    if form.interleaved {
        let column = [&shape[..axis], &[half, 1]].concat();
        let (y, z) = (w.reshape(y, &column)?, w.reshape(z, &column)?);
        let pairs = w.one(Op::Concat { axis: axis + 1 }, &[y, z])?;
        let mut turned = shape.clone();
        turned[axis] = form.rotated;
        pieces = vec![w.reshape(pairs, &turned)?];
    }
    if form.rotated < shape[axis] {
        pieces.push(part(w, x, form.rotated, 1, shape[axis] - form.rotated)?);
    }
    if pieces.len() == 1 { Ok(pieces[0]) } else { w.one(Op::Concat { axis }, &pieces) }
}
