//! E4M3 and its scales, bf16, and the vector loops over them.

mod bf16;
mod e4m3;
mod expansion;
mod philox;
mod scale;
pub(crate) mod simd;

pub use bf16::{bf16_to_f32, f32_to_bf16, f32_to_bf16_stochastic, round_bf16, widen_bf16};
pub use e4m3::{E4M3_MAX, decode_e4m3, e4m3_to_f32, encode_e4m3, f32_to_e4m3};
#[cfg(feature = "ptx")]
pub(crate) use expansion::{EXPONENT, LARGEST, LN_RANGE};
pub(crate) use expansion::{Expansion, compress, expand};
pub use philox::philox;
#[cfg(feature = "ptx")]
pub(crate) use philox::{MULTIPLIERS, ROUNDS, WEYL};
pub use scale::{AMAX_FLOOR, ScaleMode, amax, quantize_group, scale_of};
pub(crate) use scale::{amax_inline, larger};
