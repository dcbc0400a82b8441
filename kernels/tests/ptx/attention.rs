//! Attention through ptxas.

use super::assembler::check;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Attention, Bias, FloatBits, Heads, Kernel, Mask};

/// `[batch, heads, positions, depth]`, contiguous.
fn heads(batch: u64, heads: u64, positions: u64, depth: u64) -> Heads {
    let elements = batch * heads * positions * depth;
    Heads { elements, offset: 0, batch: heads * positions * depth, head: positions * depth, position: depth }
}

/// The sizes of an attention.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub batch: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub q_len: u64,
    pub kv_len: u64,
    pub depth: u64,
    pub v_depth: u64,
}

pub fn attention(s: Sizes, dtype: DType) -> Attention {
    let (q, k) = (heads(s.batch, s.heads, s.q_len, s.depth), heads(s.batch, s.kv_heads, s.kv_len, s.depth));
    let (v, o) = (heads(s.batch, s.kv_heads, s.kv_len, s.v_depth), heads(s.batch, s.heads, s.q_len, s.v_depth));
    Attention {
        batch: s.batch,
        heads: s.heads,
        kv_heads: s.kv_heads,
        q_len: s.q_len,
        kv_len: s.kv_len,
        depth: s.depth,
        v_depth: s.v_depth,
        scale: FloatBits((1.0 / (s.depth as f32).sqrt()).to_bits()),
        softcap: None,
        mask: Mask::default(),
        bias: None,
        dtype,
        q,
        k,
        v,
        o,
        grads: [o, q, k, v],
    }
}

/// Cases by name; each stands for a forward and a backward kernel.
pub fn cases() -> Vec<(String, Attention)> {
    let square = Sizes { batch: 1, heads: 2, kv_heads: 2, q_len: 128, kv_len: 128, depth: 64, v_depth: 64 };
    let odd = Sizes { q_len: 70, kv_len: 83, depth: 20, v_depth: 37, ..square };
    let grouped = Sizes { batch: 2, heads: 4, kv_heads: 2, q_len: 65, kv_len: 130, depth: 32, v_depth: 48 };
    let causal = Mask { causal: true, window: None, align_end: false };
    let window = Mask { causal: true, window: Some(40), align_end: true };
    let mut all = vec![];
    for dtype in [DType::F32, DType::Bf16] {
        all.push((format!("plain_{dtype}"), attention(square, dtype)));
        all.push((format!("causal_{dtype}"), Attention { mask: causal, ..attention(square, dtype) }));
        all.push((format!("odd_{dtype}"), attention(odd, dtype)));
        all.push((format!("grouped_window_{dtype}"), Attention { mask: window, ..attention(grouped, dtype) }));
        let capped = Attention { softcap: Some(FloatBits(2f32.to_bits())), mask: causal, ..attention(odd, dtype) };
        all.push((format!("capped_{dtype}"), capped));
        let bias = |format, s: Sizes| Bias {
            dtype: format,
            elements: s.batch * s.q_len * s.kv_len,
            batch: s.q_len * s.kv_len,
            head: 0,
            query: s.kv_len,
            key: 1,
        };
        all.push((format!("biased_{dtype}"), Attention { bias: Some(bias(DType::F32, odd)), ..attention(odd, dtype) }));
        all.push((format!("padded_{dtype}"), Attention { bias: Some(bias(DType::Bool, grouped)), ..attention(grouped, dtype) }));
        let deep = Sizes { heads: 1, kv_heads: 1, q_len: 64, depth: 128, v_depth: 128, ..square };
        all.push((format!("deep_{dtype}"), Attention { mask: causal, ..attention(deep, dtype) }));
        let deepest = Sizes { heads: 1, kv_heads: 1, q_len: 20, kv_len: 40, depth: 256, v_depth: 256, ..square };
        all.push((format!("deepest_{dtype}"), attention(deepest, dtype)));
    }
    all
}

#[test]
fn attention_assembles_without_spills() {
    for (name, k) in cases() {
        check(&format!("attention_{name}"), &Kernel::Attention(k.clone()));
        check(&format!("attention_grad_{name}"), &Kernel::AttentionGrad(k));
    }
}
