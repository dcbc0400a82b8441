//! Gathers: everything becomes `Take` along one axis of a rank-3 view.

use super::call::{Call, axis, volume};
use super::expr::Scalar;
use super::{Outcome, Rule, Table};
use crate::graph::{ConstData, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::Binary;

pub(super) const OPS: Table = &[
    ("Gather", Rule::Call(gather)),
    ("GatherElements", Rule::Call(gather_elements)),
    ("GatherND", Rule::Call(gather_nd)),
    ("OneHot", Rule::Call(one_hot)),
];

/// The index with negative positions counted from the end of an axis of this extent.
pub(super) fn from_front(call: &mut Call, index: ValueId, extent: u64) -> Result<ValueId, String> {
    let dtype = call.dtype(index);
    if !matches!(dtype, DType::I64 | DType::I32) {
        return Err(format!("needs an index of integers, has {dtype}"));
    }
    if let Some(data) = call.lowering.graph.constant(index) {
        let bad = data.to_i64().into_iter().find(|&i| i < -(extent as i64) || i >= extent as i64);
        if let Some(bad) = bad {
            return Err(format!("takes element {bad} of an axis of {extent}"));
        }
    }
    let mut e = Scalar::default();
    let (i, zero, n) = (e.operand(0), e.int(0), e.int(extent as i64));
    let negative = e.binary(Binary::Lt, i, zero);
    let wrapped = e.binary(Binary::Add, i, n);
    e.select(negative, wrapped, i);
    call.map(e.finish(), &[index], dtype)
}

/// Slices of the data along an axis, in place of which the index's axes stand.
fn gather(call: &mut Call) -> Outcome {
    let (x, index) = (call.input(0)?, call.input(1)?);
    let (shape, at) = (call.shape(x), call.shape(index));
    let along = axis(call.int("axis", 0)?, shape.len())?;
    let index = from_front(call, index, shape[along])?;
    let index = call.reshape(index, vec![1, volume(&at)?, 1])?;
    let taken = call.take(x, along, index)?;
    let result = [&shape[..along], &at, &shape[along + 1..]].concat();
    call.reshape(taken, result).map(|v| vec![v])
}

/// One element for each element of the index, which may be shorter than the data along the other axes.
fn gather_elements(call: &mut Call) -> Outcome {
    let (mut x, index) = (call.input(0)?, call.input(1)?);
    let (shape, at) = (call.shape(x), call.shape(index));
    let along = axis(call.int("axis", 0)?, shape.len())?;
    if at.len() != shape.len() || (0..at.len()).any(|d| d != along && at[d] > shape[d]) {
        return Err(format!("needs an index that fits the data, has {at:?} for {shape:?}"));
    }
    for d in (0..at.len()).filter(|&d| d != along) {
        x = call.narrow(x, d, 0, at[d])?;
    }
    let index = from_front(call, index, shape[along])?;
    let (outer, inner) = (volume(&at[..along])?, volume(&at[along + 1..])?);
    let x = call.reshape(x, vec![outer, shape[along], inner])?;
    let index = call.reshape(index, vec![outer, at[along], inner])?;
    let taken = call.one(Op::Take, &[x, index])?;
    call.reshape(taken, at).map(|v| vec![v])
}

/// Slices that the last axis of the index addresses, by its first axes after the batch: one linear position.
fn gather_nd(call: &mut Call) -> Outcome {
    let (x, index) = (call.input(0)?, call.input(1)?);
    let (shape, at) = (call.shape(x), call.shape(index));
    let batch = usize::try_from(call.int("batch_dims", 0)?).map_err(|_| "has negative batch_dims")?;
    let Some((&depth, lead)) = at.split_last() else { return Err("needs an index of rank 1 or more".into()) };
    let end = batch.saturating_add(usize::try_from(depth).unwrap_or(usize::MAX));
    if end > shape.len() || batch > lead.len() || shape[..batch] != lead[..batch] || depth == 0 {
        return Err(format!("needs an index that fits the data, has {at:?} for {shape:?}"));
    }
    let (batches, count, picked) = (volume(&shape[..batch])?, volume(&lead[batch..])?, &shape[batch..end]);
    let index = call.reshape(index, vec![batches, count, depth])?;
    let linear = linear(call, index, picked)?;
    let data = call.reshape(x, vec![batches, volume(picked)?, volume(&shape[end..])?])?;
    let taken = call.one(Op::Take, &[data, linear])?;
    let result = [lead, &shape[end..]].concat();
    call.reshape(taken, result).map(|v| vec![v])
}

/// Row-major positions `[b, j, 1]` of the coordinates `[b, j, depth]` in a box.
pub(super) fn linear(call: &mut Call, index: ValueId, picked: &[u64]) -> Result<ValueId, String> {
    let mut position = None;
    for (d, &extent) in picked.iter().enumerate() {
        let coordinate = call.narrow(index, 2, d as u64, 1)?;
        let coordinate = from_front(call, coordinate, extent)?;
        let coordinate = call.cast(coordinate, DType::I64)?;
        position = Some(match position {
            None => coordinate,
            Some(before) => {
                let extent = call.constant(ConstData::i64([], &[extent as i64]));
                let scaled = call.binary(Binary::Mul, before, extent)?;
                call.binary(Binary::Add, scaled, coordinate)?
            }
        });
    }
    position.ok_or_else(|| "needs an index with coordinates".into())
}

/// A new axis with one value where the index says and another elsewhere; an index beyond the axis says nowhere.
fn one_hot(call: &mut Call) -> Outcome {
    let (index, values) = (call.input(0)?, call.input(2)?);
    let depth = call.const_ints(1, "the depth")?.and_then(|d| d.first().copied()).unwrap_or(-1);
    let depth = u64::try_from(depth).map_err(|_| "needs a depth")?;
    if call.shape(values) != [2] {
        return Err("needs the values off and on".into());
    }
    let mut shape = call.shape(index);
    let along = axis(call.int("axis", -1)?, shape.len() + 1)?;
    let index = call.cast(index, DType::I64)?;
    shape.insert(along, 1);
    let index = call.reshape(index, shape.clone())?;
    let mut line = vec![1; shape.len()];
    line[along] = depth;
    let position = call.one(Op::Iota { shape: line, axis: along }, &[])?;
    let (off, on) = (call.narrow(values, 0, 0, 1)?, call.narrow(values, 0, 1, 1)?);
    let mut e = Scalar::default();
    let (i, p, off_value, on_value) = (e.operand(0), e.operand(1), e.operand(2), e.operand(3));
    let (zero, n) = (e.int(0), e.int(depth as i64));
    let negative = e.binary(Binary::Lt, i, zero);
    let wrapped = e.binary(Binary::Add, i, n);
    let from_front = e.select(negative, wrapped, i);
    let here = e.binary(Binary::Eq, from_front, p);
    e.select(here, on_value, off_value);
    let dtype = call.dtype(values);
    call.map(e.finish(), &[index, position, off, on], dtype).map(|v| vec![v])
}
