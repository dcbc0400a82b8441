//! Views: operators that move elements, and those that read shapes.

use super::call::{Call, axes, axis, volume};
use super::constant::extents;
use super::{Outcome, Rule, Table};
use crate::graph::{ConstData, Op, ValueId};
use fp8c_kernels::DType;

pub(super) const OPS: Table = &[
    ("Concat", Rule::Call(concat)),
    ("CumSum", Rule::Call(cum_sum)),
    ("DepthToSpace", Rule::Call(depth_to_space)),
    ("Expand", Rule::Call(expand)),
    ("Flatten", Rule::Call(flatten)),
    ("Reshape", Rule::Call(reshape)),
    ("Shape", Rule::Call(shape)),
    ("Size", Rule::Call(size)),
    ("Slice", Rule::Call(slice)),
    ("SpaceToDepth", Rule::Call(space_to_depth)),
    ("Split", Rule::Call(split)),
    ("Squeeze", Rule::Call(squeeze)),
    ("Tile", Rule::Call(tile)),
    ("Transpose", Rule::Call(transpose)),
    ("Unsqueeze", Rule::Call(unsqueeze)),
];

fn concat(call: &mut Call) -> Outcome {
    let inputs = call.all_inputs()?;
    let along = axis(call.int("axis", i64::MAX)?, call.rank(inputs[0]))?;
    call.concat(along, &inputs).map(|v| vec![v])
}

fn cum_sum(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    if call.dtype(x) == DType::Bool {
        return Err("cannot take bool".into());
    }
    let list = call.const_ints(1, "the axis")?.ok_or("needs an axis")?;
    let axis = match list[..] {
        [a] => axis(a, call.rank(x))?,
        _ => return Err("needs one axis".into()),
    };
    let (exclusive, reverse) = (call.flag("exclusive")?, call.flag("reverse")?);
    call.one(Op::CumSum { axis, exclusive, reverse }, &[x]).map(|v| vec![v])
}

/// The image `[n, c, h, w]` and the block size.
fn blocks(call: &Call) -> Result<(ValueId, [u64; 4], u64), String> {
    let x = call.input(0)?;
    let size = u64::try_from(call.int("blocksize", 0)?).ok().filter(|&b| b > 0).ok_or("needs a positive blocksize")?;
    match call.shape(x)[..] {
        [n, c, h, w] => Ok((x, [n, c, h, w], size)),
        _ => Err("needs an image of rank 4".into()),
    }
}

fn depth_to_space(call: &mut Call) -> Outcome {
    let (x, [n, c, h, w], b) = blocks(call)?;
    let square = b.checked_mul(b).filter(|s| c % s == 0).ok_or_else(|| format!("cannot split {c} channels into blocks of {b} x {b}"))?;
    let depth = c / square;
    let (split, perm) = match call.string("mode", "DCR")? {
        "DCR" => (vec![n, b, b, depth, h, w], vec![0, 3, 4, 1, 5, 2]),
        "CRD" => (vec![n, depth, b, b, h, w], vec![0, 1, 4, 2, 5, 3]),
        other => return Err(format!("has the mode {other}; DCR and CRD exist")),
    };
    let x = call.reshape(x, split)?;
    let x = call.transpose(x, perm)?;
    call.reshape(x, vec![n, depth, h.saturating_mul(b), w.saturating_mul(b)]).map(|v| vec![v])
}

fn space_to_depth(call: &mut Call) -> Outcome {
    let (x, [n, c, h, w], b) = blocks(call)?;
    if h % b != 0 || w % b != 0 {
        return Err(format!("cannot split {h} x {w} into blocks of {b}"));
    }
    let x = call.reshape(x, vec![n, c, h / b, b, w / b, b])?;
    let x = call.transpose(x, vec![0, 3, 5, 1, 2, 4])?;
    call.reshape(x, vec![n, c.saturating_mul(b).saturating_mul(b), h / b, w / b]).map(|v| vec![v])
}

/// Broadcasting both ways: an extent of 1 in the shape keeps the input's.
fn expand(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let to = extents(&call.const_ints(1, "the shape")?.ok_or("needs a shape")?)?;
    let shape = crate::graph::infer::broadcast([call.shape(x).as_slice(), &to].into_iter())?;
    call.broadcast(x, shape).map(|v| vec![v])
}

fn flatten(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let shape = call.shape(x);
    let at = match call.int("axis", 1)? {
        a if a == shape.len() as i64 => shape.len(),
        a => axis(a, shape.len())?,
    };
    let matrix = vec![volume(&shape[..at])?, volume(&shape[at..])?];
    call.reshape(x, matrix).map(|v| vec![v])
}

/// 0 copies an extent (unless `allowzero`), one -1 is what is left over.
fn reshape(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let from = call.shape(x);
    let wanted = call.const_ints(1, "the shape")?.ok_or("needs a shape")?;
    let allow_zero = call.flag("allowzero")?;
    let mut to = Vec::with_capacity(wanted.len());
    for (i, &d) in wanted.iter().enumerate() {
        to.push(match d {
            0 if !allow_zero => *from.get(i).ok_or_else(|| format!("copies extent {i}, which {from:?} does not have"))?,
            -1 => 1,
            d => u64::try_from(d).map_err(|_| format!("has the extent {d}"))?,
        });
    }
    let free: Vec<usize> = (0..wanted.len()).filter(|&i| wanted[i] == -1).collect();
    if let [at] = free[..] {
        let (all, known) = (volume(&from)?, volume(&to)?);
        to[at] = all.checked_div(known).filter(|q| q * known == all).ok_or_else(|| format!("cannot reshape {from:?} to {wanted:?}"))?;
    } else if free.len() > 1 {
        return Err(format!("has more than one free extent in {wanted:?}"));
    }
    call.reshape(x, to).map(|v| vec![v])
}

fn shape(call: &mut Call) -> Outcome {
    let shape = call.shape(call.input(0)?);
    let rank = shape.len() as i64;
    let clamp = |a: i64| (if a < 0 { a.saturating_add(rank) } else { a }).clamp(0, rank) as usize;
    let (start, end) = (clamp(call.int("start", 0)?), clamp(call.int("end", rank)?));
    let list: Vec<i64> = shape[start..end.max(start)].iter().map(|&d| d as i64).collect();
    Ok(vec![call.constant(ConstData::i64([list.len() as u64], &list))])
}

fn size(call: &mut Call) -> Outcome {
    let n = volume(&call.shape(call.input(0)?))?;
    Ok(vec![call.constant(ConstData::i64([], &[n as i64]))])
}

fn slice(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let shape = call.shape(x);
    let from = call.const_ints(1, "the starts")?.ok_or("needs starts")?;
    let to = call.const_ints(2, "the ends")?.ok_or("needs ends")?;
    let along = match call.const_ints(3, "the axes")? {
        Some(list) => list.iter().map(|&a| axis(a, shape.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..from.len()).collect(),
    };
    let by = call.const_ints(4, "the steps")?.unwrap_or_else(|| vec![1; from.len()]);
    if [to.len(), along.len(), by.len()].iter().any(|&n| n != from.len()) || from.len() > shape.len() {
        return Err("needs a start, an end, an axis and a step for each range".into());
    }
    let (mut starts, mut steps, mut sizes) = (vec![0; shape.len()], vec![1; shape.len()], shape.clone());
    for (i, &d) in along.iter().enumerate() {
        (starts[d], sizes[d]) = range(from[i], to[i], by[i], shape[d])?;
        steps[d] = by[i];
    }
    match sizes == shape && steps.iter().all(|&s| s == 1) {
        true => Ok(vec![x]),
        false => call.one(Op::Slice { starts, steps, sizes }, &[x]).map(|v| vec![v]),
    }
}

/// First element and number of elements of a range as ONNX (and Python) clamps it.
fn range(start: i64, end: i64, step: i64, extent: u64) -> Result<(i64, u64), String> {
    let n = extent as i128;
    let from_front = |a: i64| if a < 0 { a as i128 + n } else { a as i128 };
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let first = from_front(start).clamp(low.max(0), high.max(0));
    let last = from_front(end).clamp(low, high);
    let step = step as i128;
    let count = match step {
        0 => return Err("has a step of 0".into()),
        s if s > 0 => (last - first + s - 1) / s,
        s => (first - last - s - 1) / -s,
    };
    let count = if extent == 0 { 0 } else { count.max(0) };
    Ok((first as i64, count as u64))
}

fn split(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let shape = call.shape(x);
    let along = axis(call.int("axis", 0)?, shape.len())?;
    let parts = call.node.outputs.len() as u64;
    let sizes = match call.ints_or_input("split", 1)? {
        Some(list) => extents(&list)?,
        None if parts > 0 && call.int("num_outputs", parts as i64)? == parts as i64 => {
            let each = shape[along].div_ceil(parts);
            (0..parts).map(|i| each.min(shape[along].saturating_sub(each.saturating_mul(i)))).collect()
        }
        None => return Err(format!("needs as many outputs as num_outputs says, has {parts}")),
    };
    if sizes.iter().fold(0u64, |n, &s| n.saturating_add(s)) != shape[along] || sizes.len() as u64 != parts {
        return Err(format!("cannot split {} into {parts} parts of {sizes:?}", shape[along]));
    }
    let mut start = 0;
    let mut results = Vec::with_capacity(sizes.len());
    for size in sizes {
        results.push(call.narrow(x, along, start, size)?);
        start += size;
    }
    Ok(results)
}

fn squeeze(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let shape = call.shape(x);
    let dropped = match call.ints_or_input("axes", 1)? {
        Some(list) => axes(&list, shape.len())?,
        None => (0..shape.len()).filter(|&d| shape[d] == 1).collect(),
    };
    if let Some(&d) = dropped.iter().find(|&&d| shape[d] != 1) {
        return Err(format!("cannot drop axis {d} of extent {}", shape[d]));
    }
    let left = (0..shape.len()).filter(|d| !dropped.contains(d)).map(|d| shape[d]).collect();
    call.reshape(x, left).map(|v| vec![v])
}

fn unsqueeze(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let shape = call.shape(x);
    let list = call.ints_or_input("axes", 1)?.ok_or("needs axes")?;
    let added = axes(&list, shape.len().saturating_add(list.len()))?;
    let mut old = shape.iter();
    let grown = (0..shape.len() + list.len()).map(|d| if added.contains(&d) { 1 } else { old.next().copied().unwrap_or(1) });
    let grown = grown.collect();
    call.reshape(x, grown).map(|v| vec![v])
}

/// Repeats along each axis: a broadcast of a new axis before it.
fn tile(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let shape = call.shape(x);
    let repeats = extents(&call.const_ints(1, "the repeats")?.ok_or("needs repeats")?)?;
    if repeats.len() != shape.len() {
        return Err("needs a repeat for each axis".into());
    }
    let pairs = |outer: &dyn Fn(usize) -> u64| (0..shape.len()).flat_map(|d| [outer(d), shape[d]]).collect::<Vec<_>>();
    let spread = call.reshape(x, pairs(&|_| 1))?;
    let spread = call.broadcast(spread, pairs(&|d| repeats[d]))?;
    let tiled = shape.iter().zip(&repeats).map(|(a, b)| a.saturating_mul(*b)).collect();
    call.reshape(spread, tiled).map(|v| vec![v])
}

fn transpose(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let rank = call.rank(x);
    let perm = match call.ints("perm")? {
        Some(list) => list.iter().map(|&p| axis(p, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).rev().collect(),
    };
    match perm.len() == rank {
        true => call.transpose(x, perm).map(|v| vec![v]),
        false => Err(format!("needs a permutation of {rank} axes")),
    }
}
