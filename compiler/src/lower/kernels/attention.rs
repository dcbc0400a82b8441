//! Attention: heads are strides of whatever buffer the projections or rotary embeddings wrote.

use super::{At, Draft, Fault};
use crate::graph::{AttentionOp, ValueId};
use crate::quantity::Flops;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Attention, Bias, Heads, Kernel};

/// Where an input lies; its depth must be contiguous.
fn heads(at: At, input: usize) -> Result<(Heads, ValueId), Fault> {
    let v = at.inputs()[input];
    let (shape, Ok(r)) = (at.scene.shape(v), at.scene.resolve(v)) else { return Err(at.copy(input)) };
    let s = &r.access.strides;
    let unit = shape[3] == 1 || s[3] == 1;
    if !unit || !r.access.guards.is_empty() || r.access.offset < 0 || s.iter().any(|&s| s < 0) {
        return Err(at.copy(input));
    }
    Ok((lie(at.scene.elements(r.owner), r.access.offset, s), r.owner))
}

/// Where a result lies.
fn result(at: At, i: usize) -> (Heads, ValueId) {
    let place = at.scene.place(at.results()[i]);
    (lie(at.scene.elements(place.owner), place.offset, &place.strides), place.owner)
}

fn lie(elements: u64, offset: i64, strides: &[i64]) -> Heads {
    let [batch, head, position] = [0, 1, 2].map(|d| strides[d] as u64);
    Heads { elements, offset: offset as u64, batch, head, position }
}

/// The bias, broadcast to `[batch, heads, queries, keys]` by strides of 0.
fn bias(at: At) -> Result<(Bias, ValueId), Fault> {
    let v = at.inputs()[3];
    let (shape, Ok(r)) = (at.scene.shape(v), at.scene.resolve(v)) else { return Err(at.copy(3)) };
    let lead = 4usize.saturating_sub(shape.len());
    let stride = |d: usize| if d < lead || shape[d - lead] == 1 { 0 } else { r.access.strides[d - lead] };
    let strides = [0, 1, 2, 3].map(stride);
    let dtype = at.scene.graph().ty(v).dtype;
    if r.access.offset != 0 || !r.access.guards.is_empty() || strides.iter().any(|&s| s < 0) {
        return Err(at.copy(3));
    }
    if !matches!(dtype, DType::F32 | DType::Bf16 | DType::Bool) {
        return at.fail(format!("has an attention bias of {dtype}"));
    }
    let [batch, head, query, key] = strides.map(|s| s as u64);
    Ok((Bias { dtype, elements: at.scene.elements(r.owner), batch, head, query, key }, r.owner))
}

/// The kernel of the inputs alone: results and gradients lie nowhere yet. With the operations of one of its products, for each
/// element of depth.
fn common(at: At, a: &AttentionOp) -> Result<(Attention, Vec<ValueId>, Flops), Fault> {
    let graph = at.scene.graph();
    let dtype = graph.ty(at.inputs()[0]).dtype;
    if (1..3).any(|i| graph.ty(at.inputs()[i]).dtype != dtype) {
        return at.fail("has q, k and v of different formats");
    }
    let [(q, q_owner), (k, k_owner), (v, v_owner)] = [heads(at, 0)?, heads(at, 1)?, heads(at, 2)?];
    let bias = if a.bias { Some(bias(at)?) } else { None };
    let owners = [q_owner, k_owner, v_owner].into_iter().chain(bias.map(|b| b.1)).collect();
    let [qs, ks, vs] = [0, 1, 2].map(|i| at.scene.shape(at.inputs()[i]));
    let attention = Attention {
        batch: qs[0],
        heads: qs[1],
        kv_heads: ks[1],
        q_len: qs[2],
        kv_len: ks[2],
        depth: qs[3],
        v_depth: vs[3],
        scale: a.scale,
        softcap: a.softcap,
        mask: a.mask,
        bias: bias.map(|b| b.0),
        dtype,
        q,
        k,
        v,
        o: q,
        grads: [q, q, k, v],
    };
    // A window leaves `window` keys to a query; a causal mask leaves half of them, one operation a key instead of two.
    let query = match (a.mask.window, a.mask.causal) {
        (Some(w), _) => Flops::of_loops(&[w.min(ks[2])]),
        (None, true) => Flops(ks[2]),
        (None, false) => Flops::of_loops(&[ks[2]]),
    };
    Ok((attention, owners, query * qs[0] * qs[1] * qs[2]))
}

pub(super) fn forward(at: At, a: &AttentionOp) -> Result<Draft, Fault> {
    let (mut kernel, mut owners, per_depth) = common(at, a)?;
    let (o, o_owner) = result(at, 0);
    kernel.o = o;
    kernel.grads = [o, kernel.q, kernel.k, kernel.v];
    owners.extend([o_owner, at.result(1)?]);
    let flops = per_depth * (kernel.depth + kernel.v_depth);
    Ok(Draft { kernel: Kernel::Attention(kernel), owners, flops })
}

/// Inputs q, k, v, \[bias\], o, lse, do; results dq, dk, dv.
pub(super) fn backward(at: At, a: &AttentionOp) -> Result<Draft, Fault> {
    let (mut kernel, mut owners, per_depth) = common(at, a)?;
    let first = 3 + a.bias as usize;
    let (o, o_owner) = heads(at, first)?;
    let lse = at.whole(first + 1)?;
    let (go, go_owner) = heads(at, first + 2)?;
    let [(dq, dq_owner), (dk, dk_owner), (dv, dv_owner)] = [0, 1, 2].map(|i| result(at, i));
    (kernel.o, kernel.grads) = (o, [go, dq, dk, dv]);
    owners.extend([o_owner, lse, go_owner, dq_owner, dk_owner, dv_owner]);
    // Scores again, dp, dq, dk over the depth of q; dv and dp over that of v.
    let flops = per_depth * (3 * kernel.depth + 2 * kernel.v_depth);
    Ok(Draft { kernel: Kernel::AttentionGrad(kernel), owners, flops })
}
