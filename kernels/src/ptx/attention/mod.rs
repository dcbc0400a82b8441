//! Attention without materialised scores.
//!
//! Scores are computed 64 queries by 64 keys at a time and live in shared memory or in registers only. The backward pass is two
//! launches, each of which computes the probabilities again from `lse`: one over query tiles for dq, one over key tiles for dk and
//! dv, which walks the queries (and the heads of a group) in a fixed order. Neither needs scratch memory or atomic operations:
//! `delta` is recomputed from o and do where it is needed.

mod backward;
mod forward;
mod score;
mod tile;

use super::module::Emitter;
use crate::KernelError;
use crate::program::Attention;

/// Rows of a tile of queries and of a tile of keys.
const SIDE: i64 = 64;

/// Depth beyond which a thread's share of the results does not fit into registers.
const DEEPEST: u64 = 256;

fn check(k: &Attention) -> Result<(), KernelError> {
    score::check_bias(k)?;
    let deepest = k.depth.max(k.v_depth);
    if deepest > DEEPEST {
        return Err(KernelError::Unsupported(format!("attention heads of depth {deepest} on a GPU; {DEEPEST} is the most")));
    }
    match [k.q_len, k.kv_len].iter().any(|&n| n >= 1 << 30) {
        true => Err(KernelError::Unsupported(format!("attention over {} by {} positions", k.q_len, k.kv_len))),
        false => Ok(()),
    }
}

/// Generates the single entry of the forward pass.
pub fn generate(e: &Emitter<'_>, k: &Attention, name: &str) -> Result<(), KernelError> {
    check(k)?;
    forward::generate(e, k, name)
}

/// Generates the two entries of the backward pass.
pub fn generate_grad(e: &Emitter<'_>, k: &Attention, name: &str) -> Result<(), KernelError> {
    check(k)?;
    backward::queries(e, k, &format!("{name}_dq"))?;
    backward::keys(e, k, &format!("{name}_dkv"))
}
