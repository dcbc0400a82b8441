//! Matrix products for sm_90a, on `wgmma`.
//!
//! One warpgroup brings operand tiles to shared memory, the others multiply: the tiles of a ring of stages pass from the former to the
//! latter and back through pairs of `mbarrier`s. Blocks are persistent: each walks over tiles of the result, and the ring goes on over
//! the end of one tile into the next.

mod bf16_contract;
mod e4m3_contract;
mod instructions;
mod pipeline;

pub use bf16_contract::generate as bf16_contract;
pub use e4m3_contract::generate as e4m3_contract;
