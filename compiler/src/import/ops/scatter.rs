//! Scatters: the inverse of gathers.
//!
//! With a constant index, which exporters of slice assignments give, the result is a gather from the data and the updates side by
//! side. Otherwise updates are summed into place, and chosen where anything was written.

use super::call::{Call, axis, volume};
use super::expr::Scalar;
use super::gather::{from_front, linear};
use super::{Outcome, Rule, Table};
use crate::graph::{ConstData, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::Binary;

pub(super) const OPS: Table = &[("ScatterElements", Rule::Call(scatter_elements)), ("ScatterND", Rule::Call(scatter_nd))];

/// Most elements of a gather that stands for a scatter.
const MAX_GATHERED: u64 = 1 << 22;

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    Replace,
    Add,
}

fn reduction(call: &Call, dtype: DType) -> Result<Reduction, String> {
    match call.string("reduction", "none")? {
        "none" => Ok(Reduction::Replace),
        "add" if dtype.is_float() => Ok(Reduction::Add),
        "add" => Err(format!("cannot add {dtype} in place")),
        other => Err(format!("has the reduction {other}; none and add are supported")),
    }
}

/// Slices written at the positions that the last axis of the index addresses.
fn scatter_nd(call: &mut Call) -> Outcome {
    let (x, index, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (shape, at, dtype) = (call.shape(x), call.shape(index), call.dtype(x));
    let Some((&depth, lead)) = at.split_last() else { return Err("needs an index of rank 1 or more".into()) };
    let depth = usize::try_from(depth).unwrap_or(usize::MAX);
    let fits = depth <= shape.len() && depth > 0 && call.dtype(updates) == dtype;
    if !fits || call.shape(updates) != [lead, &shape[depth..]].concat() {
        return Err(format!("needs an index and updates that fit the data, has {at:?} and {:?} for {shape:?}", call.shape(updates)));
    }
    let (count, positions, width) = (volume(lead)?, volume(&shape[..depth])?, volume(&shape[depth..])?);
    let reduction = reduction(call, dtype)?;
    let index = call.reshape(index, vec![1, count, depth as u64])?;
    let index = linear(call, index, &shape[..depth])?;
    let data = call.reshape(x, vec![1, positions, width])?;
    let source = call.reshape(updates, vec![1, count, width])?;
    let written = written(call, data, index, source, reduction)?;
    call.reshape(written, shape).map(|v| vec![v])
}

/// `data [1, n, w]` with `source [1, j, w]` at the positions `index [1, j, 1]`.
fn written(call: &mut Call, data: ValueId, index: ValueId, source: ValueId, reduction: Reduction) -> Result<ValueId, String> {
    let (n, j) = (call.shape(data)[1], call.shape(source)[1]);
    let list = call.lowering.graph.constant(index).map(|c| c.to_i64());
    match list {
        Some(list) if reduction == Reduction::Replace && n <= MAX_GATHERED && j <= MAX_GATHERED => {
            let both = call.concat(1, &[data, source])?;
            let mut from: Vec<i64> = (0..n as i64).collect();
            for (k, &at) in list.iter().enumerate() {
                let slot = usize::try_from(at).ok().and_then(|at| from.get_mut(at)).ok_or_else(|| format!("writes element {at} of {n}"))?;
                *slot = (n + k as u64) as i64;
            }
            call.take_list(both, 1, &from)
        }
        _ => {
            let ones = call.filled(1.0, DType::F32, vec![1, j, 1])?;
            summed(call, data, index, source, ones, reduction)
        }
    }
}

/// Updates summed into place; for a replacement, chosen where the sum of ones says that something was written.
fn summed(call: &mut Call, data: ValueId, index: ValueId, source: ValueId, ones: ValueId, reduction: Reduction) -> Result<ValueId, String> {
    let (dtype, extent) = (call.dtype(data), call.shape(data)[1]);
    if !dtype.is_float() {
        return Err(format!("needs its index to be constant, or floats, has {dtype}"));
    }
    let put = call.one(Op::PutAdd { extent, dtype: DType::F32 }, &[source, index])?;
    let mut e = Scalar::default();
    let (x, p) = (e.operand(0), e.operand(1));
    if reduction == Reduction::Add {
        e.binary(Binary::Add, x, p);
        return call.map(e.finish(), &[data, put], dtype);
    }
    let touched = call.one(Op::PutAdd { extent, dtype: DType::F32 }, &[ones, index])?;
    let t = e.operand(2);
    let any = e.with(Binary::Gt, t, 0.0);
    e.select(any, p, x);
    call.map(e.finish(), &[data, put, touched], dtype)
}

/// Elements written along one axis; the index may be shorter than the data along the others.
fn scatter_elements(call: &mut Call) -> Outcome {
    let (x, index, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (shape, at, dtype) = (call.shape(x), call.shape(index), call.dtype(x));
    let along = axis(call.int("axis", 0)?, shape.len())?;
    let fits = at.len() == shape.len() && (0..at.len()).all(|d| d == along || at[d] <= shape[d]);
    if !fits || call.shape(updates) != at || call.dtype(updates) != dtype {
        return Err(format!("needs an index and updates that fit the data, has {at:?} for {shape:?}"));
    }
    let reduction = reduction(call, dtype)?;
    let index = from_front(call, index, shape[along])?;
    let (total, count) = (volume(&shape)?, volume(&at)?);
    let list = call.lowering.graph.constant(index).map(|c| c.to_i64());
    if let Some(list) = list.filter(|_| reduction == Reduction::Replace && total.max(count) <= MAX_GATHERED) {
        let flat = positions(&list, &shape, &at, along);
        let index = call.constant(ConstData::i64([1, count, 1], &flat));
        let data = call.reshape(x, vec![1, total, 1])?;
        let source = call.reshape(updates, vec![1, count, 1])?;
        let written = written(call, data, index, source, reduction)?;
        return call.reshape(written, shape).map(|v| vec![v]);
    }
    if (0..at.len()).any(|d| d != along && at[d] != shape[d]) {
        return Err("needs its index to be constant where it is shorter than the data".into());
    }
    let view = |extent: u64| Ok::<_, String>(vec![volume(&shape[..along])?, extent, volume(&shape[along + 1..])?]);
    let (data, index) = (call.reshape(x, view(shape[along])?)?, call.reshape(index, view(at[along])?)?);
    let source = call.reshape(updates, view(at[along])?)?;
    let ones = call.filled(1.0, DType::F32, view(at[along])?)?;
    let written = summed(call, data, index, source, ones, reduction)?;
    call.reshape(written, shape).map(|v| vec![v])
}

/// Row-major positions in `shape` of the elements of an index of shape `at`.
fn positions(list: &[i64], shape: &[u64], at: &[u64], along: usize) -> Vec<i64> {
    let position = |(i, &picked): (usize, &i64)| {
        let (mut rest, mut stride, mut position) = (i as u64, 1, 0);
        for d in (0..at.len()).rev() {
            let coordinate = rest % at[d];
            rest /= at[d];
            position += stride * if d == along { picked } else { coordinate as i64 };
            stride *= shape[d] as i64;
        }
        position
    };
    list.iter().enumerate().map(position).collect()
}
