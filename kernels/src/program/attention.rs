//! Attention, forward and backward, without materialised scores.
//!
//! For each batch, head and query row i, with `kv` = head / (heads / kv_heads):
//! `z_j = scale * sum_d q[i, d] * k[kv][j, d]`; with a soft cap c, `z_j = c * tanh(z_j / c)`; then `z_j += bias[.., i, j]`; positions that
//! the mask excludes are minus infinity. `p = softmax(z)`, zero for a row that is all minus infinity; `o[i] = sum_j p_j v[kv][j]`;
//! `lse[i] = log(sum_j exp(z_j))`. Position i of the queries is position `i + kv_len - q_len` of the keys where `align_end`, else i.
//!
//! Backward, from `lse` and `delta[i] = sum_d do[i, d] * o[i, d]`: `dv_j = sum_i p_ij do_i`, `dz_ij = p_ij (do_i . v_j - delta_i)`, through
//! the soft cap `(1 - (z/c)^2)` of the capped score, `dq_i = scale * sum_j dz_ij k_j`, `dk_j = scale * sum_i dz_ij q_i`. Grouped heads sum.

use super::{Arg, Mode, volume};
use crate::DType;
use serde::{Deserialize, Serialize};

/// Where a `[batch, heads, positions, depth]` operand lies; strides in elements, depth contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Heads {
    pub elements: u64,
    pub offset: u64,
    pub batch: u64,
    pub head: u64,
    pub position: u64,
}

/// An additive mask or bias, not trained; strides 0 broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bias {
    /// f32 or bf16 adds; bool excludes where 0.
    pub dtype: DType,
    pub elements: u64,
    pub batch: u64,
    pub head: u64,
    pub query: u64,
    pub key: u64,
}

/// Which keys a query may see, beside the bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mask {
    /// Keys after the query's position are excluded.
    pub causal: bool,
    /// Keys more than `window - 1` positions before the query's are excluded.
    pub window: Option<u64>,
    pub align_end: bool,
}

/// An attention kernel.
///
/// Forward arguments: q, k, v, [bias], o (write), lse f32 `[batch, heads, q_len]` (write).
/// Backward arguments: q, k, v, [bias], o, lse, do, dq, dk, dv (write). `do` lies like `o`, each gradient like its primal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attention {
    pub batch: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub q_len: u64,
    pub kv_len: u64,
    /// Depth of q and k.
    pub depth: u64,
    /// Depth of v and o.
    pub v_depth: u64,
    pub scale: super::FloatBits,
    pub softcap: Option<super::FloatBits>,
    pub mask: Mask,
    pub bias: Option<Bias>,
    /// f32 or bf16, of q, k, v, o and their gradients.
    pub dtype: DType,
    pub q: Heads,
    pub k: Heads,
    pub v: Heads,
    pub o: Heads,
    /// Layouts of do, dq, dk, dv; used by the backward kernel alone.
    pub grads: [Heads; 4],
}

impl Attention {
    fn operand(&self, h: &Heads, mode: Mode) -> Arg {
        Arg { dtype: self.dtype, elements: h.elements, mode }
    }

    fn inputs(&self) -> Vec<Arg> {
        let mut args: Vec<Arg> = [&self.q, &self.k, &self.v].into_iter().map(|h| self.operand(h, Mode::Read)).collect();
        args.extend(self.bias.map(|b| Arg { dtype: b.dtype, elements: b.elements, mode: Mode::Read }));
        args
    }

    fn lse(&self, mode: Mode) -> Arg {
        Arg { dtype: DType::F32, elements: volume(&[self.batch, self.heads, self.q_len]), mode }
    }

    pub(super) fn forward_args(&self) -> Vec<Arg> {
        let mut args = self.inputs();
        args.push(self.operand(&self.o, Mode::Write));
        args.push(self.lse(Mode::Write));
        args
    }

    pub(super) fn backward_args(&self) -> Vec<Arg> {
        let mut args = self.inputs();
        args.push(self.operand(&self.o, Mode::Read));
        args.push(self.lse(Mode::Read));
        args.push(self.operand(&self.grads[0], Mode::Read));
        args.extend(self.grads[1..].iter().map(|h| self.operand(h, Mode::Write)));
        args
    }
}
