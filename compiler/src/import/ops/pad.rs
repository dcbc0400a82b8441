//! Padding.

use super::call::{Call, axis};
use super::expr::Scalar;
use super::{Outcome, Rule, Table};
use crate::graph::{ConstData, Op, TensorType, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::Binary;

pub(super) const OPS: Table = &[("Pad", Rule::Call(pad))];

/// Longest padded axis.
const MAX_POSITIONS: i64 = 1 << 24;

fn pad(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let rank = call.rank(x);
    let pads = call.const_ints(1, "the pads")?.ok_or("needs pads")?;
    let along = match call.const_ints(3, "the axes")? {
        Some(list) => list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).collect(),
    };
    let n = along.len();
    if pads.len() != 2 * n || pads.iter().any(|p| p.unsigned_abs() > MAX_POSITIONS as u64) {
        return Err(format!("needs two pads for each of {n} axes, has {pads:?}"));
    }
    let (mut low, mut high) = (vec![0; rank], vec![0; rank]);
    for (i, &d) in along.iter().enumerate() {
        (low[d], high[d]) = (pads[i], pads[n + i]);
    }
    match call.string("mode", "constant")? {
        "constant" => constant(call, x, &low, &high),
        "reflect" => by_position(call, x, &low, &high, reflected),
        "edge" => by_position(call, x, &low, &high, |i, n| i.clamp(0, n - 1)),
        "wrap" => by_position(call, x, &low, &high, |i, n| i.rem_euclid(n)),
        other => Err(format!("has the mode {other}")),
    }
    .map(|v| vec![v])
}

fn reflected(i: i64, n: i64) -> i64 {
    let period = (2 * (n - 1)).max(1);
    let at = i.rem_euclid(period);
    if at < n { at } else { period - at }
}

/// Gathers along each padded axis.
fn by_position(call: &mut Call, mut x: ValueId, low: &[i64], high: &[i64], at: impl Fn(i64, i64) -> i64) -> Result<ValueId, String> {
    for d in (0..low.len()).filter(|&d| (low[d], high[d]) != (0, 0)) {
        let n = i64::try_from(call.shape(x)[d]).unwrap_or(i64::MAX);
        if n == 0 || n > MAX_POSITIONS {
            return Err(format!("cannot extend an axis of {n} elements"));
        }
        let list: Vec<i64> = (-low[d]..n + high[d]).map(|i| at(i, n)).collect();
        x = call.take_list(x, d, &list)?;
    }
    Ok(x)
}

/// Negative pads cut; the rest is filled with a value, 0 if there is none.
fn constant(call: &mut Call, x: ValueId, low: &[i64], high: &[i64]) -> Result<ValueId, String> {
    let mut x = x;
    for d in 0..low.len() {
        let n = call.shape(x)[d];
        let (cut_low, cut_high) = ((-low[d]).max(0) as u64, (-high[d]).max(0) as u64);
        let left = n.checked_sub(cut_low.saturating_add(cut_high)).ok_or_else(|| format!("cuts more than axis {d} has"))?;
        x = call.narrow(x, d, cut_low, left)?;
    }
    let grow = |list: &[i64]| list.iter().map(|&p| p.max(0) as u64).collect::<Vec<_>>();
    let (low, high) = (grow(low), grow(high));
    if low.iter().chain(&high).all(|&p| p == 0) {
        return Ok(x);
    }
    let padded = call.one(Op::Pad { low: low.clone(), high: high.clone() }, &[x])?;
    let Some(value) = call.optional(2) else { return Ok(padded) };
    let zero = call.lowering.graph.constant(value).is_some_and(|c| c.bytes.iter().all(|&b| b == 0));
    match zero {
        true => Ok(padded),
        false => filled(call, padded, value, &call.shape(x), &low),
    }
}

/// Where any axis is outside the original, the value.
fn filled(call: &mut Call, padded: ValueId, value: ValueId, inner: &[u64], low: &[u64]) -> Result<ValueId, String> {
    let (dtype, shape) = (call.dtype(padded), call.shape(padded));
    if call.dtype(value) != dtype {
        return Err("needs a value of the data's type".into());
    }
    let mut inputs = vec![padded, call.reshape(value, vec![])?];
    let mut e = Scalar::default();
    let (x0, fill) = (e.operand(0), e.operand(1));
    let mut inside = None;
    for d in (0..shape.len()).filter(|&d| shape[d] != inner[d]) {
        if shape[d] > 4 * MAX_POSITIONS as u64 {
            return Err(format!("fills an axis of {} elements", shape[d]));
        }
        let mut line = vec![1; shape.len()];
        line[d] = shape[d];
        let bytes = (0..shape[d]).map(|i| (i >= low[d] && i - low[d] < inner[d]) as u8).collect();
        inputs.push(call.constant(ConstData { ty: TensorType::new(DType::Bool, line), bytes }));
        let here = e.operand(inputs.len() as u32 - 1);
        inside = Some(inside.map_or(here, |before| e.binary(Binary::And, before, here)));
    }
    match inside {
        None => Ok(padded),
        Some(inside) => {
            e.select(inside, x0, fill);
            call.map(e.finish(), &inputs, dtype)
        }
    }
}
