//! Attention.

use super::call::{Call, volume};
use super::expr::Scalar;
use super::{Outcome, Rule, Table, softmax};
use crate::graph::{AttentionOp, ConstData, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, FloatBits, Fold, Mask, Unary};

pub(super) const OPS: Table = &[("Attention", Rule::Call(attention))];

/// Operands as `[batch, heads, positions, depth]`, past keys and values in front.
struct Heads {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    /// Number of past positions.
    past: u64,
    scale: f32,
    softcap: Option<f32>,
    causal: bool,
    /// Bool (false excludes) or float (added), `[.., q, k]` of rank 4.
    mask: Option<ValueId>,
}

fn attention(call: &mut Call) -> Outcome {
    if call.optional(6).is_some() {
        return Err("takes nonpad_kv_seqlen, which is not supported".into());
    }
    if ["left_window_size", "right_window_size"].iter().any(|name| call.attribute(name).is_some()) {
        return Err("takes a window, which is not supported as an attribute".into());
    }
    let heads = operands(call)?;
    let rank = call.rank(call.input(0)?);
    let mut results = match composite(call, &heads) {
        Some(op) => {
            let inputs: Vec<ValueId> = [heads.q, heads.k, heads.v].into_iter().chain(heads.mask).collect();
            vec![call.one(op, &inputs)?, heads.k, heads.v]
        }
        None => decomposed(call, &heads)?,
    };
    if rank == 3 {
        let [b, h, s, d] = four(&call.shape(results[0]))?;
        let y = call.transpose(results[0], vec![0, 2, 1, 3])?;
        results[0] = call.reshape(y, vec![b, s, h.saturating_mul(d)])?;
    }
    Ok(results)
}

fn four(shape: &[u64]) -> Result<[u64; 4], String> {
    shape.try_into().map_err(|_| format!("needs operands of rank 4, has {shape:?}"))
}

fn operands(call: &mut Call) -> Result<Heads, String> {
    let q = split(call, 0, "q_num_heads")?;
    let (mut k, mut v) = (split(call, 1, "kv_num_heads")?, split(call, 2, "kv_num_heads")?);
    let mut past = 0;
    match (call.optional(4), call.optional(5)) {
        (None, None) => {}
        (Some(past_k), Some(past_v)) => {
            past = four(&call.shape(past_k))?[2];
            (k, v) = (call.concat(2, &[past_k, k])?, call.concat(2, &[past_v, v])?);
        }
        _ => return Err("needs both past keys and past values, or neither".into()),
    }
    let ([b, h, s, d], [kb, kh, t, kd], [vb, vh, vt, _]) = (four(&call.shape(q))?, four(&call.shape(k))?, four(&call.shape(v))?);
    if [kb, vb, kd, vh, vt] != [b, b, d, kh, t] || kh == 0 || h % kh != 0 {
        return Err(format!("needs operands that fit, has {:?}, {:?} and {:?}", call.shape(q), call.shape(k), call.shape(v)));
    }
    if call.dtype(k) != call.dtype(q) || call.dtype(v) != call.dtype(q) {
        return Err("needs operands of one type".into());
    }
    let scale = call.float("scale", 1.0 / (d as f32).sqrt())?;
    let softcap = Some(call.float("softcap", 0.0)?).filter(|&c| c != 0.0);
    if let Some(cap) = softcap.filter(|cap| *cap < 0.0 || !cap.is_normal()) {
        return Err(format!("needs a soft cap above 0, has {cap}"));
    }
    let causal = call.flag("is_causal")?;
    let mask = call.optional(3).map(|mask| rank_four(call, mask, [b, h, s, t])).transpose()?;
    Ok(Heads { q, k, v, past, scale, softcap, causal, mask })
}

/// Operand `i`, `[b, h, s, d]`, or `[b, s, h * d]` with the number of heads as an attribute.
fn split(call: &mut Call, i: usize, heads: &str) -> Result<ValueId, String> {
    let x = call.float_input(i)?;
    let shape = call.shape(x);
    match shape[..] {
        [_, _, _, _] => Ok(x),
        [b, s, width] => {
            let h = u64::try_from(call.int(heads, 0)?).ok().filter(|&h| h > 0 && width % h == 0);
            let h = h.ok_or_else(|| format!("needs {heads} that divides {width}"))?;
            let x = call.reshape(x, vec![b, s, h, width / h])?;
            call.transpose(x, vec![0, 2, 1, 3])
        }
        _ => Err(format!("needs operands of rank 3 or 4, has {shape:?}")),
    }
}

fn rank_four(call: &mut Call, mask: ValueId, scores: [u64; 4]) -> Result<ValueId, String> {
    let (shape, dtype) = (call.shape(mask), call.dtype(mask));
    let fits = shape.len() <= 4 && shape.iter().rev().zip(scores.iter().rev()).all(|(&m, &s)| m == 1 || m == s);
    if !fits || !(dtype == DType::Bool || dtype.is_float()) {
        return Err(format!("needs a mask of bools or floats that broadcasts to {scores:?}, has {dtype} {shape:?}"));
    }
    call.reshape(mask, [&vec![1; 4 - shape.len()], &shape[..]].concat())
}

/// The composite operator, where it says what the model asks for.
fn composite(call: &mut Call, heads: &Heads) -> Option<Op> {
    let (queries, keys) = (call.shape(heads.q)[2], call.shape(heads.k)[2]);
    let align_end = heads.causal && heads.past > 0;
    let aligned = !align_end || keys - heads.past == queries;
    // The composite has no derivative for its bias.
    let trained = heads.mask.is_some_and(|m| call.dtype(m).is_float() && call.lowering.is_trained(m));
    let op = AttentionOp {
        scale: FloatBits(heads.scale.to_bits()),
        softcap: heads.softcap.map(|c| FloatBits(c.to_bits())),
        mask: Mask { causal: heads.causal, window: None, align_end },
        bias: heads.mask.is_some(),
    };
    (aligned && !trained && !call.wants(3)).then_some(Op::Attention(op))
}

/// Results y, keys, values, and the scores at the stage that the model asks for.
fn decomposed(call: &mut Call, heads: &Heads) -> Outcome {
    let ([b, h, s, d], [_, kh, t, _], dtype) = (four(&call.shape(heads.q))?, four(&call.shape(heads.k))?, call.dtype(heads.q));
    let q = call.reshape(heads.q, vec![b, kh, (h / kh).saturating_mul(s), d])?;
    let raw = call.one(Op::Matmul { trans_a: false, trans_b: true, dtype }, &[q, heads.k])?;
    let raw = call.reshape(raw, vec![b, h, s, t])?;
    let raw = call.with(Binary::Mul, raw, heads.scale)?;
    let capped = match heads.softcap {
        None => raw,
        Some(cap) => {
            let mut e = Scalar::default();
            let x = e.operand(0);
            let shrunk = e.with(Binary::Div, x, cap);
            let tanh = e.unary(Unary::Tanh, shrunk);
            e.with(Binary::Mul, tanh, cap);
            call.map(e.finish(), &[raw], dtype)?
        }
    };
    let bias = bias(call, heads, [s, t], dtype)?;
    let masked = match bias {
        None => capped,
        Some(bias) => call.binary(Binary::Add, capped, bias)?,
    };
    let mut p = softmax::last(call, masked, false)?;
    if let Some(bias) = bias {
        p = zero_where_all_masked(call, p, bias)?;
    }
    let stages = [raw, capped, masked, p];
    let mode = usize::try_from(call.int("qk_matmul_output_mode", 0)?).ok().filter(|&m| m < 4).ok_or("has a qk_matmul_output_mode")?;
    let grouped = call.reshape(p, vec![b, kh, (h / kh).saturating_mul(s), t])?;
    let y = call.one(Op::Matmul { trans_a: false, trans_b: false, dtype }, &[grouped, heads.v])?;
    let depth = call.shape(heads.v)[3];
    let y = call.reshape(y, vec![b, h, s, depth])?;
    Ok(vec![y, heads.k, heads.v, stages[mode]])
}

/// The mask and the causal limit together, as a float that is added.
fn bias(call: &mut Call, heads: &Heads, [s, t]: [u64; 2], dtype: DType) -> Result<Option<ValueId>, String> {
    let mut bias = match heads.mask {
        Some(mask) if call.dtype(mask) == DType::Bool => Some(excluded(call, mask, None, dtype)?),
        Some(mask) => Some(call.cast(mask, dtype)?),
        None => None,
    };
    if heads.causal {
        volume(&[s, t])?;
        let position = call.one(Op::Iota { shape: vec![s, 1], axis: 0 }, &[])?;
        let past = call.constant(ConstData::i64([], &[heads.past as i64]));
        let position = call.binary(Binary::Add, position, past)?;
        let key = call.one(Op::Iota { shape: vec![1, t], axis: 1 }, &[])?;
        let visible = call.binary(Binary::Le, key, position)?;
        bias = Some(excluded(call, visible, bias, dtype)?);
    }
    Ok(bias)
}

/// `visible ? bias : -inf`, the bias 0 if there is none.
fn excluded(call: &mut Call, visible: ValueId, bias: Option<ValueId>, dtype: DType) -> Result<ValueId, String> {
    let mut e = Scalar::default();
    let c = e.operand(0);
    let kept = if bias.is_some() { e.operand(1) } else { e.float(0.0) };
    let hidden = e.float(f32::NEG_INFINITY);
    e.select(c, kept, hidden);
    let inputs: Vec<ValueId> = [visible].into_iter().chain(bias).collect();
    call.map(e.finish(), &inputs, dtype)
}

/// A query that sees no key has probabilities 0, not the softmax's NaN.
fn zero_where_all_masked(call: &mut Call, p: ValueId, bias: ValueId) -> Result<ValueId, String> {
    let (last, dtype) = (call.rank(bias) - 1, call.dtype(p));
    let of = call.dtype(bias);
    let most = call.reduce(Fold::Max, bias, &[last], of)?;
    let mut e = Scalar::default();
    let (p0, m) = (e.operand(0), e.operand(1));
    let hidden = e.with(Binary::Eq, m, f32::NEG_INFINITY);
    let zero = e.float(0.0);
    e.select(hidden, zero, p0);
    call.map(e.finish(), &[p, most], dtype)
}
