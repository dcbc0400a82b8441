//! Affine accesses: how a point of an iteration space becomes an element of a tensor, and how views compose with that.
//!
//! An [`Access`] into a value is a map from a point to the value's *row-major linear index*. A reshape therefore changes nothing; the
//! other views need the index of each axis, which [`axes`] recovers. Where one dimension of the space runs over several axes, it
//! has to be split first: [`Blocked::Split`] says how, the caller splits and starts again.

use crate::graph::Op;
use fp8c_kernels::program::{Access, Guard};

/// Why an access cannot be followed through a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    /// Dimension `dim` of the space must become `[extent / inner, inner]`.
    Split { dim: usize, inner: u64 },
    /// No affine access exists.
    Opaque,
}

/// Index along one axis of a value: `offset + sum(coefficients[j] * point[j])`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub offset: i64,
    pub coefficients: Vec<i64>,
}

/// Row-major strides of a shape.
pub(super) fn row_major(shape: &[u64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d].saturating_mul(shape[d].max(1) as i64);
    }
    strides
}

/// The access that reads a row-major tensor of the space's own shape.
pub(super) fn identity(space: &[u64]) -> Access {
    Access { offset: 0, strides: row_major(space), guards: vec![] }
}

/// The half-open range of each dimension that the guards leave.
fn ranges(access: &Access, space: &[u64]) -> Vec<(i64, i64)> {
    let mut ranges: Vec<(i64, i64)> = space.iter().map(|&e| (0, e as i64)).collect();
    for g in &access.guards {
        let r = &mut ranges[g.dim as usize];
        *r = (r.0.max(g.lower), r.1.min(g.upper));
    }
    ranges
}

/// The index along each axis of a row-major tensor of `shape` at a linear access.
///
/// # Errors
/// When a dimension of the space crosses an axis, or the access is no box of the tensor.
pub(super) fn axes(access: &Access, space: &[u64], shape: &[u64]) -> Result<Vec<Axis>, Blocked> {
    let zero = || Axis { offset: 0, coefficients: vec![0; space.len()] };
    let mut out: Vec<Axis> = shape.iter().map(|_| zero()).collect();
    let ranges = ranges(access, space);
    if ranges.iter().any(|r| r.1 <= r.0) {
        return Ok(out);
    }
    let strides = row_major(shape);
    let origin = access.offset + access.strides.iter().zip(&ranges).map(|(s, r)| s * r.0).sum::<i64>();
    let total: i64 = shape.iter().map(|&e| e as i64).product();
    if origin < 0 || origin >= total {
        return Err(Blocked::Opaque);
    }
    for (d, axis) in out.iter_mut().enumerate() {
        axis.offset = origin / strides[d] % shape[d].max(1) as i64;
    }
    let mut bounds: Vec<(i64, i64)> = out.iter().map(|a| (a.offset, a.offset)).collect();
    for (j, range) in ranges.iter().enumerate().take(space.len()) {
        let (span, stride) = (range.1 - range.0 - 1, access.strides[j]);
        if span == 0 || stride == 0 {
            continue;
        }
        let holds = |&d: &usize| shape[d] > 1 && strides[d] <= stride.abs() && stride.abs() < strides[d] * shape[d] as i64;
        let d = (0..shape.len()).rev().find(holds).ok_or(Blocked::Opaque)?;
        if stride % strides[d] != 0 {
            return Err(Blocked::Opaque);
        }
        let c = stride / strides[d];
        if c.abs() * span >= shape[d] as i64 {
            return Err(split(access, space, j, shape[d] as i64, c.abs()));
        }
        out[d].coefficients[j] = c;
        out[d].offset -= c * range.0;
        let bound = &mut bounds[d];
        *bound = (bound.0 + (c * span).min(0), bound.1 + (c * span).max(0));
    }
    let inside = bounds.iter().zip(shape).all(|(b, &e)| b.0 >= 0 && b.1 < e as i64);
    if inside { Ok(out) } else { Err(Blocked::Opaque) }
}

/// The split that would let dimension `j`, stepping an axis of `extent` by `step`, stay inside the axis.
fn split(access: &Access, space: &[u64], j: usize, extent: i64, step: i64) -> Blocked {
    let inner = (extent / step) as u64;
    let guarded = access.guards.iter().any(|g| g.dim as usize == j);
    match extent % step == 0 && !guarded && inner > 1 && inner < space[j] && space[j].is_multiple_of(inner) {
        true => Blocked::Split { dim: j, inner },
        false => Blocked::Opaque,
    }
}

/// The linear access that steps `strides[d]` along axis `d`.
pub(super) fn linear(axes: &[Axis], strides: &[i64], offset: i64, guards: &[Guard], dims: usize) -> Access {
    let mut access = Access { offset, strides: vec![0; dims], guards: guards.to_vec() };
    for (axis, s) in axes.iter().zip(strides) {
        access.offset += axis.offset * s;
        for (out, c) in access.strides.iter_mut().zip(&axis.coefficients) {
            *out += c * s;
        }
    }
    access
}

/// Follows an access to a value of shape `to` into the operand of shape `from` that broadcasts to it.
///
/// # Errors
/// What [`axes`] says.
pub(super) fn broadcast(access: &Access, space: &[u64], to: &[u64], from: &[u64]) -> Result<Access, Blocked> {
    if from == to {
        return Ok(access.clone());
    }
    if from.iter().all(|&e| e == 1) {
        return Ok(Access { offset: 0, strides: vec![0; space.len()], guards: access.guards.clone() });
    }
    let axes = axes(access, space, to)?;
    let lead = to.len() - from.len();
    let strides: Vec<i64> = row_major(from).iter().zip(from).map(|(&s, &e)| if e == 1 { 0 } else { s }).collect();
    Ok(linear(&axes[lead..], &strides, 0, &access.guards, space.len()))
}

/// Follows an access to the result of a view into its operand; `None` for an operator that is no view.
///
/// # Errors
/// What [`axes`] says, or that a padded edge falls on no boundary of the space.
pub(super) fn through(op: &Op, access: &Access, space: &[u64], to: &[u64], from: &[u64]) -> Option<Result<Access, Blocked>> {
    let from_strides = row_major(from);
    let strided = |strides: &[i64], offset: i64| {
        let axes = axes(access, space, to)?;
        Ok(linear(&axes, strides, offset, &access.guards, space.len()))
    };
    Some(match op {
        Op::Reshape(_) => Ok(access.clone()),
        Op::Broadcast(_) => broadcast(access, space, to, from),
        Op::Transpose(perm) => strided(&perm.iter().map(|&p| from_strides[p]).collect::<Vec<_>>(), 0),
        Op::Slice { starts, steps, .. } => {
            let strides: Vec<i64> = from_strides.iter().zip(steps).map(|(s, step)| s * step).collect();
            strided(&strides, from_strides.iter().zip(starts).map(|(s, start)| s * start).sum())
        }
        Op::Pad { low, .. } => pad(access, space, to, from, low),
        _ => return None,
    })
}

fn pad(access: &Access, space: &[u64], to: &[u64], from: &[u64], low: &[u64]) -> Result<Access, Blocked> {
    let axes = axes(access, space, to)?;
    let mut guards = access.guards.clone();
    for (d, axis) in axes.iter().enumerate() {
        if from[d] == to[d] {
            continue;
        }
        let (low, high) = (low[d] as i64, (low[d] + from[d]) as i64);
        let moving: Vec<usize> = (0..space.len()).filter(|&j| axis.coefficients[j] != 0).collect();
        match moving[..] {
            [] if (low..high).contains(&axis.offset) => {}
            [] if !space.is_empty() => guards.push(Guard { dim: 0, lower: 0, upper: 0 }),
            [j] => {
                let (c, o) = (axis.coefficients[j], axis.offset);
                // low <= c * i + o < high, for either sign of c
                let (first, end) =
                    if c > 0 { (ceil(low - o, c), ceil(high - o, c)) } else { (ceil(high - 1 - o, c), ceil(low - 1 - o, c)) };
                let extent = space[j] as i64;
                guards.push(Guard { dim: j as u32, lower: first.clamp(0, extent), upper: end.clamp(0, extent) });
            }
            _ => return Err(Blocked::Opaque),
        }
    }
    let strides = row_major(from);
    let offset = -strides.iter().zip(low).map(|(s, &l)| s * l as i64).sum::<i64>();
    Ok(linear(&axes, &strides, offset, &merged(guards), space.len()))
}

/// Quotient rounded up, for a divisor of either sign.
fn ceil(a: i64, b: i64) -> i64 {
    let q = a / b;
    if a % b != 0 && (a < 0) == (b < 0) { q + 1 } else { q }
}

/// One guard for each dimension.
fn merged(guards: Vec<Guard>) -> Vec<Guard> {
    let mut out: Vec<Guard> = vec![];
    for g in guards {
        match out.iter_mut().find(|o| o.dim == g.dim) {
            Some(o) => (o.lower, o.upper) = (o.lower.max(g.lower), o.upper.min(g.upper)),
            None => out.push(g),
        }
    }
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(space: &[u64], n: u64) -> Vec<i64> {
        let strides = row_major(space);
        space.iter().zip(strides).map(|(&e, s)| (n as i64 / s) % e as i64).collect()
    }

    fn at(access: &Access, p: &[i64]) -> Option<i64> {
        let inside = access.guards.iter().all(|g| (g.lower..g.upper).contains(&p[g.dim as usize]));
        inside.then(|| access.offset + access.strides.iter().zip(p).map(|(s, i)| s * i).sum::<i64>())
    }

    /// Follows `ops` from the last to the first over the splits that they ask for; the space at the end and the access.
    fn follow(shapes: &[Vec<u64>], ops: &[Op]) -> Option<(Vec<u64>, Access)> {
        let mut space = vec![shapes.last()?.iter().product()];
        'again: loop {
            let mut access = identity(&space);
            for (i, op) in ops.iter().enumerate().rev() {
                match through(op, &access, &space, &shapes[i + 1], &shapes[i])? {
                    Ok(next) => access = next,
                    Err(Blocked::Split { dim, inner }) => {
                        space.splice(dim..=dim, [space[dim] / inner, inner]);
                        continue 'again;
                    }
                    Err(Blocked::Opaque) => return None,
                }
            }
            return Some((space, access));
        }
    }

    /// The linear index of the first operand that each element of the last result shows, by brute force.
    fn brute(shapes: &[Vec<u64>], ops: &[Op]) -> Vec<Option<i64>> {
        let mut data: Vec<Option<i64>> = (0..shapes[0].iter().product::<u64>()).map(|i| Some(i as i64)).collect();
        for (i, op) in ops.iter().enumerate() {
            let (from, to) = (&shapes[i], &shapes[i + 1]);
            let strides = row_major(from);
            let pick = |p: &[i64]| data[p.iter().zip(&strides).map(|(i, s)| i * s).sum::<i64>() as usize];
            data = (0..to.iter().product::<u64>())
                .map(|n| {
                    let p = point(to, n);
                    match op {
                        Op::Reshape(_) => data[n as usize],
                        Op::Transpose(perm) => {
                            pick(&(0..p.len()).map(|d| p[perm.iter().position(|&q| q == d).unwrap()]).collect::<Vec<_>>())
                        }
                        Op::Slice { starts, steps, .. } => {
                            pick(&p.iter().zip(starts).zip(steps).map(|((i, a), s)| a + i * s).collect::<Vec<_>>())
                        }
                        Op::Broadcast(_) => pick(&p.iter().zip(from).map(|(i, &e)| if e == 1 { 0 } else { *i }).collect::<Vec<_>>()),
                        Op::Pad { low, .. } => {
                            let q: Vec<i64> = p.iter().zip(low).map(|(i, &l)| i - l as i64).collect();
                            q.iter().zip(from).all(|(&i, &e)| i >= 0 && i < e as i64).then(|| pick(&q)).flatten()
                        }
                        _ => unreachable!("only views are drawn"),
                    }
                })
                .collect();
        }
        data
    }

    fn next(shape: &[u64], choice: u8) -> (Op, Vec<u64>) {
        let r = shape.len();
        match choice % 6 {
            0 => {
                let perm: Vec<usize> = (0..r).rev().collect();
                let to = perm.iter().map(|&p| shape[p]).collect();
                (Op::Transpose(perm), to)
            }
            1 => {
                let mut perm: Vec<usize> = (0..r).collect();
                perm.rotate_left(1.min(r));
                let to = perm.iter().map(|&p| shape[p]).collect();
                (Op::Transpose(perm), to)
            }
            2 if r > 1 => {
                let mut to = shape.to_vec();
                let last = to.pop().unwrap();
                *to.last_mut().unwrap() *= last;
                (Op::Reshape(to.clone()), to)
            }
            3 => {
                let to: Vec<u64> = shape.iter().flat_map(|&e| if e % 2 == 0 && e > 2 { vec![2, e / 2] } else { vec![e] }).collect();
                (Op::Reshape(to.clone()), to)
            }
            4 => {
                let sizes: Vec<u64> = shape.iter().map(|&e| e.div_ceil(2)).collect();
                let steps: Vec<i64> = shape.iter().enumerate().map(|(d, _)| if d % 2 == 0 { 1 } else { -1 }).collect();
                let starts = shape.iter().zip(&sizes).zip(&steps).map(|((&e, &s), &t)| if t > 0 { e - s } else { e - 1 } as i64).collect();
                (Op::Slice { starts, steps, sizes: sizes.clone() }, sizes)
            }
            _ => {
                let (low, high) = (vec![1; r], vec![2; r]);
                let to = shape.iter().map(|e| e + 3).collect();
                (Op::Pad { low, high }, to)
            }
        }
    }

    proptest! {
        #[test]
        fn a_followed_access_reads_what_the_views_show(first in prop::collection::vec(1u64..6, 1..4), choices in prop::collection::vec(0u8..6, 1..5)) {
            let (mut shapes, mut ops) = (vec![first], vec![]);
            for c in choices {
                let (op, to) = next(shapes.last().unwrap(), c);
                ops.push(op);
                shapes.push(to);
            }
            if let Some((space, access)) = follow(&shapes, &ops) {
                let got: Vec<Option<i64>> = (0..space.iter().product()).map(|n| at(&access, &point(&space, n))).collect();
                prop_assert_eq!(got, brute(&shapes, &ops));
            }
        }
    }

    #[test]
    fn heads_split_out_of_a_fused_projection_are_strides() {
        let shapes = [vec![2, 8, 96], vec![2, 8, 32], vec![2, 8, 4, 8], vec![2, 4, 8, 8]];
        let slice = Op::Slice { starts: vec![0, 0, 32], steps: vec![1; 3], sizes: vec![2, 8, 32] };
        let ops = [slice, Op::Reshape(shapes[2].clone()), Op::Transpose(vec![0, 2, 1, 3])];
        let space = shapes[3].clone();
        let mut access = identity(&space);
        for i in (0..3).rev() {
            access = through(&ops[i], &access, &space, &shapes[i + 1], &shapes[i]).unwrap().unwrap();
        }
        assert_eq!((access.offset, &access.strides[..]), (32, &[768, 8, 96, 1][..]));
    }
}
