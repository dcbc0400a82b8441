//! The control block: numbers that the trainer sets, or the update reports, at every step.

/// Positions in the f32 control tensor.
pub struct Control;

impl Control {
    /// Elements of the tensor.
    pub const LEN: usize = 16;

    // ---- written by the trainer before a step
    pub const LEARNING_RATE: usize = 0;
    pub const BETA1: usize = 1;
    pub const BETA2: usize = 2;
    pub const EPS: usize = 3;
    pub const WEIGHT_DECAY: usize = 4;
    /// 1 - beta1^t, with t the update's number from 1.
    pub const CORRECTION1: usize = 5;
    /// sqrt(1 - beta2^t).
    pub const CORRECTION2: usize = 6;
    /// The loss gradient is seeded with this; the update divides by it (and by the number of micro-batches).
    pub const LOSS_SCALE: usize = 7;
    /// Largest gradient norm; infinity clips nothing.
    pub const CLIP: usize = 8;
    /// Four words, not floats: the key of the step's random numbers and their stream, which no other step has. See [`crate::numerics::philox`].
    pub const RANDOM: usize = 12;

    // ---- written by the trainer, and again by what forms the gradient's norm
    /// Norm of the unscaled gradient before clipping.
    pub const GRAD_NORM: usize = 9;
    /// 1 where the norm is finite, else 0: an update that finds 0 leaves everything untouched.
    pub const FINITE: usize = 10;
    /// What each stored gradient is multiplied by: clip coefficient / (loss scale * micro-batches).
    pub const GRAD_MULTIPLIER: usize = 11;
}
