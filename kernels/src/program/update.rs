//! Optimizer steps: one parameter and its moments, in place, in one pass over them and the gradient.
//!
//! With `g` the stored gradient times [`Control::GRAD_MULTIPLIER`], `rate` the learning rate, `decay` the weight decay times the parameter's
//! own multiplier, all in f32, each operation rounded:
//!
//! * AdamW: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g²`, `p = p (1 - rate decay) - m (rate / c1) / (sqrt(v) (1 / c2) + eps)`;
//! * SGD: `m = b1 m + g + decay p`, `p = p - rate m`;
//! * Lion: `p = p (1 - rate decay) - rate sign(b1 m + (1 - b1) g)`, then `m = b2 m + (1 - b2) g`.
//!
//! Where [`Control::FINITE`] is 0, or the sum of squares that a guarded step reads is not finite, nothing is written.
//!
//! **Master.** An f32 parameter is stored as it is. A bf16 one is rounded to one of its two neighbours, up with the probability of its distance
//! from the lower: the bits above the sixteenth of `bits(p) + noise`, where `noise` is the half word `element % 8` of the block that
//! [`crate::numerics::philox`] gives for (`element / 8`, site, stream) under the step's key.
//!
//! **Moments.** f32 and bf16 ones are stored rounded to nearest even. An E4M3 one has groups of [`GROUP`] elements, the last one shorter,
//! and a word for each group that holds the largest magnitude `s` and an exponent `k` ([`crate::numerics::Expansion`]); the code of `x` is
//! `e4m3(448 sign(x) (|x| / s)^k)`. AdamW's second moment is stored so as its square root.

use super::{Arg, Control, GROUP, Mode, groups};
use crate::{DType, KernelError};
use serde::{Deserialize, Serialize};

/// Which optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    AdamW,
    Sgd,
    Lion,
}

impl Rule {
    /// The name that the command line and plans use.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::AdamW => "adamw",
            Rule::Sgd => "sgd",
            Rule::Lion => "lion",
        }
    }

    /// How many moments it keeps of each element.
    pub const fn moments(self) -> usize {
        match self {
            Rule::AdamW => 2,
            Rule::Sgd | Rule::Lion => 1,
        }
    }
}

/// An optimizer step. Arguments: parameter, gradient, each moment (E4M3: codes, words), control block, weight-decay multiplier, \[site\]
/// where the master is bf16, \[sum of squares\] where it is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Update {
    pub rule: Rule,
    pub elements: u64,
    /// f32 or bf16.
    pub gradient: DType,
    /// f32, or bf16 with stochastic rounding.
    pub master: DType,
    /// f32, bf16 or E4M3.
    pub moments: DType,
    /// Reads the sum of squares of the gradients so far, and does nothing where it is not finite.
    pub guarded: bool,
}

impl Update {
    /// Arguments that hold one moment.
    pub fn moment_args(&self) -> usize {
        if self.moments == DType::E4m3 { 2 } else { 1 }
    }

    /// Position of the control block among the arguments; what is the parameter's own comes behind it.
    pub fn control_arg(&self) -> usize {
        2 + self.rule.moments() * self.moment_args()
    }

    /// Position of the sum of squares among the arguments.
    pub fn sum_arg(&self) -> usize {
        self.control_arg() + if self.master == DType::Bf16 { 3 } else { 2 }
    }

    pub(super) fn args(&self) -> Vec<Arg> {
        let arg = |dtype, elements, mode| Arg { dtype, elements, mode };
        let mut args = vec![arg(self.master, self.elements, Mode::Update), arg(self.gradient, self.elements, Mode::Read)];
        for _ in 0..self.rule.moments() {
            args.push(arg(self.moments, self.elements, Mode::Update));
            if self.moments == DType::E4m3 {
                args.push(arg(DType::F32, groups(self.elements), Mode::Update));
            }
        }
        args.push(arg(DType::F32, Control::LEN as u64, Mode::Read));
        args.push(arg(DType::F32, 1, Mode::Read));
        args.extend((self.master == DType::Bf16).then(|| arg(DType::I32, 1, Mode::Read)));
        args.extend(self.guarded.then(|| arg(DType::F32, 1, Mode::Read)));
        args
    }

    pub(super) fn verify(&self) -> Result<(), KernelError> {
        super::verify::update(self)
    }

    /// Most elements: blocks of random numbers are counted in 32 bits.
    pub const MAX_ELEMENTS: u64 = 1 << 35;
    /// Elements that share a word of an E4M3 moment.
    pub const GROUP: usize = GROUP as usize;
}
