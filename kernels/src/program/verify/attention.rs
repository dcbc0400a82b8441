//! Attention, forward and backward.

use super::Family;
use super::overlap::{Image, Prover};
use crate::program::{Attention, Heads};
use crate::{DType, KernelError};

pub(in crate::program) fn attention(k: &Attention, backward: bool) -> Result<(), KernelError> {
    let family = Family(if backward { "attention_grad" } else { "attention" });
    family.require(k.kv_heads > 0 && k.heads.is_multiple_of(k.kv_heads), "heads must be a multiple of kv_heads")?;
    family.require(matches!(k.dtype, DType::F32 | DType::Bf16), "the dtype must be f32 or bf16")?;
    family.require(k.mask.window != Some(0), "an empty window")?;
    let cap = k.softcap.map(|c| f32::from_bits(c.0));
    family.require(cap.is_none_or(|c| c.is_normal() && c > 0.0), "a soft cap must be a positive number")?;
    family.volume(&[k.batch, k.heads, k.q_len, k.kv_len], "the scores")?;
    family.volume(&[k.batch, k.heads, k.q_len.max(k.kv_len), k.depth.max(k.v_depth)], "an operand")?;
    family.arguments(&if backward { k.backward_args() } else { k.forward_args() })?;
    let q = [k.batch, k.heads, k.q_len, k.depth];
    let kv = [k.batch, k.kv_heads, k.kv_len, k.depth];
    let v = [k.batch, k.kv_heads, k.kv_len, k.v_depth];
    let o = [k.batch, k.heads, k.q_len, k.v_depth];
    operand(family, "q", &k.q, q, false)?;
    operand(family, "k", &k.k, kv, false)?;
    operand(family, "v", &k.v, v, false)?;
    operand(family, "o", &k.o, o, !backward)?;
    if backward {
        for ((name, heads, shape), write) in [("do", o), ("dq", q), ("dk", kv), ("dv", v)]
            .into_iter()
            .zip(&k.grads)
            .map(|((name, shape), heads)| (name, heads, shape))
            .zip([false, true, true, true])
        {
            operand(family, name, heads, shape, write)?;
        }
    }
    let Some(bias) = &k.bias else { return Ok(()) };
    family.require(matches!(bias.dtype, DType::F32 | DType::Bf16 | DType::Bool), "the bias must be f32, bf16 or bool")?;
    let dims = [(k.batch, bias.batch), (k.heads, bias.head), (k.q_len, bias.query), (k.kv_len, bias.key)];
    family.strided("the bias", bias.elements, 0, &dims)
}

fn operand(family: Family, name: &str, h: &Heads, shape: [u64; 4], write: bool) -> Result<(), KernelError> {
    let strides = [h.batch, h.head, h.position, 1];
    let dims: Vec<(u64, u64)> = shape.into_iter().zip(strides).collect();
    family.strided(name, h.elements, h.offset, &dims)?;
    if !write || shape.contains(&0) {
        return Ok(());
    }
    let dims = dims.into_iter().map(|(extent, stride)| (stride.into(), 0, extent.into())).collect();
    family.require(Prover::new().one_to_one(&Image { offset: 0, dims }), &format!("{name} may be hit twice"))
}
