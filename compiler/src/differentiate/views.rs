//! Views: the derivative of moving elements is moving them back.

use super::backward::{Backward, Primal};
use super::*;

pub(super) fn rule(b: &mut Backward, p: &Primal, dy: ValueId) -> Result<(), Error> {
    let x = p.inputs[0];
    let shape = b.shape(x);
    match &p.op {
        Op::Reshape(_) => {
            let dx = b.reshape(dy, &shape)?;
            b.contribute(x, dx)
        }
        Op::Transpose(perm) => {
            let mut inverse = vec![0; perm.len()];
            perm.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
            let dx = b.transpose(dy, inverse)?;
            b.contribute(x, dx)
        }
        Op::Broadcast(_) => b.contribute(x, dy),
        Op::Pad { low, .. } => {
            let starts = low.iter().map(|&l| l as i64).collect();
            let dx = b.emit(Op::Slice { starts, steps: vec![1; shape.len()], sizes: shape }, &[dy])?;
            b.contribute(x, dx)
        }
        Op::Concat { axis } => concat(b, p, *axis, dy),
        Op::Slice { starts, steps, sizes } => slice(b, x, (starts, steps, sizes), dy),
        _ => Err(b.unsupported("a derivative of a view")),
    }
}

fn concat(b: &mut Backward, p: &Primal, axis: usize, dy: ValueId) -> Result<(), Error> {
    let mut start = 0;
    for &x in &p.inputs {
        let sizes = b.shape(x);
        let extent = sizes[axis];
        if b.needs(x) {
            let mut starts = vec![0; sizes.len()];
            starts[axis] = start as i64;
            let dx = b.emit(Op::Slice { starts, steps: vec![1; sizes.len()], sizes }, &[dy])?;
            b.contribute(x, dx)?;
        }
        start += extent;
    }
    Ok(())
}

fn slice(b: &mut Backward, x: ValueId, (starts, steps, sizes): (&[i64], &[i64], &[u64]), dy: ValueId) -> Result<(), Error> {
    let shape = b.shape(x);
    if sizes.contains(&0) {
        return Ok(());
    }
    let cut: Vec<usize> = (0..shape.len()).filter(|&d| sizes[d] != shape[d] || steps[d] < 0).collect();
    if let [axis] = cut[..]
        && (steps[axis] == 1 || sizes[axis] == 1)
    {
        return b.contribute_piece(x, axis, starts[axis] as u64, dy);
    }
    let reversed: Vec<bool> = (0..shape.len()).map(|d| steps[d] < 0 && sizes[d] > 1).collect();
    let mut dx = dy;
    if reversed.contains(&true) {
        let pick = |d: usize, yes: i64, no: i64| if reversed[d] { yes } else { no };
        let starts = (0..shape.len()).map(|d| pick(d, sizes[d] as i64 - 1, 0)).collect();
        let steps = (0..shape.len()).map(|d| pick(d, -1, 1)).collect();
        dx = b.emit(Op::Slice { starts, steps, sizes: sizes.to_vec() }, &[dx])?;
    }
    let mut extents = sizes.to_vec();
    for d in 0..shape.len() {
        let step = steps[d].unsigned_abs();
        if step > 1 && sizes[d] > 1 {
            dx = spread(b, dx, d, step)?;
            extents[d] = (sizes[d] - 1) * step + 1;
        }
    }
    let first = |d: usize| if reversed[d] { starts[d] - (extents[d] as i64 - 1) } else { starts[d] } as u64;
    let low: Vec<u64> = (0..shape.len()).map(first).collect();
    let high: Vec<u64> = (0..shape.len()).map(|d| shape[d] - low[d] - extents[d]).collect();
    if low.iter().chain(&high).any(|&w| w > 0) {
        dx = b.emit(Op::Pad { low, high }, &[dx])?;
    }
    b.contribute(x, dx)
}

/// Puts `step - 1` zeros between the elements along an axis.
fn spread(b: &mut Backward, v: ValueId, axis: usize, step: u64) -> Result<ValueId, Error> {
    let shape = b.shape(v);
    let mut split = shape.clone();
    split.insert(axis + 1, 1);
    let column = b.reshape(v, &split)?;
    let (low, mut high) = (vec![0; split.len()], vec![0; split.len()]);
    high[axis + 1] = step - 1;
    let padded = b.emit(Op::Pad { low, high }, &[column])?;
    let mut merged = shape.clone();
    merged[axis] *= step;
    let whole = b.reshape(padded, &merged)?;
    merged[axis] -= step - 1;
    b.emit(Op::Slice { starts: vec![0; shape.len()], steps: vec![1; shape.len()], sizes: merged }, &[whole])
}
