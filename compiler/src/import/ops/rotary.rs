//! Rotary position embedding.

use super::call::Call;
use super::{Outcome, Rule, Table};
use crate::graph::{Op, ValueId};
use fp8c_kernels::program::Kind;

pub(super) const OPS: Table = &[("RotaryEmbedding", Rule::Call(rotary_embedding))];

fn rotary_embedding(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    let shape = call.shape(x);
    let heads = u64::try_from(call.int("num_heads", 0)?).map_err(|_| "has a negative num_heads")?;
    let split = match shape[..] {
        [b, h, s, d] => [b, h, s, d],
        [b, s, width] if heads > 0 && width % heads == 0 => [b, heads, s, width / heads],
        _ => return Err(format!("needs an input [b, h, s, d], or [b, s, h * d] and num_heads, has {shape:?}")),
    };
    let rotated = match u64::try_from(call.int("rotary_embedding_dim", 0)?) {
        Ok(0) => split[3],
        Ok(r) if r <= split[3] => r,
        _ => return Err("rotates more than the input has".into()),
    };
    if rotated % 2 != 0 {
        return Err(format!("cannot pair {rotated} elements"));
    }
    let interleaved = call.flag("interleaved")?;
    let cos = angles(call, 1, split, rotated, interleaved)?;
    let sin = angles(call, 2, split, rotated, interleaved)?;
    let op = Op::Rotary { rotated, interleaved, inverse: false };
    if shape.len() == 4 {
        return call.emit(op, &[x, cos, sin]);
    }
    let [b, h, s, d] = split;
    let x = call.reshape(x, vec![b, s, h, d])?;
    let x = call.transpose(x, vec![0, 2, 1, 3])?;
    let y = call.one(op, &[x, cos, sin])?;
    let y = call.transpose(y, vec![0, 2, 1, 3])?;
    call.reshape(y, shape).map(|v| vec![v])
}

/// Cosines or sines `[b, 1, s, rotated]` from a table of half as many, `[positions, rotated / 2]` or `[b, s, rotated / 2]`.
fn angles(call: &mut Call, i: usize, [b, _, s, _]: [u64; 4], rotated: u64, interleaved: bool) -> Result<ValueId, String> {
    let mut table = call.float_input(i)?;
    if call.lowering.is_trained(table) {
        return Err("has a table of angles that is trained".into());
    }
    let half = rotated / 2;
    if let Some(positions) = call.optional(3) {
        let (at, shape) = (call.shape(positions), call.shape(table));
        if shape.len() != 2 || Kind::from(call.dtype(positions)) != Kind::Int || at.len() != 2 {
            return Err("needs a table [positions, d] for its position_ids [b, s]".into());
        }
        let index = call.reshape(positions, vec![1, at[0].saturating_mul(at[1]), 1])?;
        let taken = call.take(table, 0, index)?;
        table = call.reshape(taken, vec![at[0], at[1], shape[1]])?;
    }
    let shape = call.shape(table);
    let lead = match shape[..] {
        [lead, positions, d] if (lead == 1 || lead == b) && positions == s && d == half => lead,
        _ => return Err(format!("needs angles [{b}, {s}, {half}], has {shape:?}")),
    };
    if !interleaved {
        let table = call.reshape(table, vec![lead, 1, s, half])?;
        return call.concat(3, &[table, table]);
    }
    let table = call.reshape(table, vec![lead, 1, s, half, 1])?;
    let pairs = call.broadcast(table, vec![lead, 1, s, half, 2])?;
    call.reshape(pairs, vec![lead, 1, s, rotated])
}
