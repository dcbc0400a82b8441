//! Kernel programs: the contract between the compiler, the CPU and PTX.
//!
//! A [`Kernel`] says what one launch computes, with every extent known. It names no address: a plan's step binds its
//! arguments, in the order that [`Kernel::args`] gives, to places in the arena. The CPU executes kernels directly
//! (`crate::cpu`), the `ptx` feature turns the same value into PTX (`crate::ptx`).
//!
//! Numbers: float arithmetic is f32, integer arithmetic i64; a store rounds to nearest even into the argument's format
//! (E4M3 saturates). Each family's file states what it computes as a formula, and that formula is the specification.
//!
//! Invariants, checked by [`Kernel::verify`]:
//! 1. every access that any executor makes stays inside its argument; which those are is part of the specification (for row programs
//!    `row.rs` lists them), and an empty shape has none;
//! 2. a written argument is written at most once per element, unless the family says that it accumulates;
//! 3. what a kernel reads of an argument that it writes, it reads at the same point, before it writes it.

mod attention;
mod contract;
mod control;
mod footprint;
mod index;
mod quantize;
mod row;
mod scalar;
mod text;
mod typing;
mod update;
mod verify;
mod window;

pub use attention::*;
pub use contract::*;
pub use control::Control;
pub use footprint::{Footprint, Region};
pub use index::*;
pub use quantize::*;
pub use row::*;
pub use scalar::*;
pub use text::Named;
pub use typing::*;
pub use update::*;
pub use verify::{MAX_DIMS, MAX_LEVELS, MAX_POINTS, MAX_STATEMENTS};
pub use window::*;

use crate::{DType, KernelError};
use serde::{Deserialize, Serialize};

/// How a kernel touches an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Read,
    /// Every element that belongs to the kernel's output is overwritten; the rest is untouched.
    Write,
    /// Read and written in place.
    Update,
}

/// One argument of a kernel: a contiguous buffer of `elements` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Arg {
    pub dtype: DType,
    pub elements: u64,
    pub mode: Mode,
}

impl Arg {
    /// Bytes of the argument's buffer.
    pub fn bytes(&self) -> u64 {
        self.dtype.size().saturating_mul(self.elements)
    }
}

/// Product of extents, saturating: kernels from a damaged plan are sized before they are verified.
fn volume(extents: &[u64]) -> u64 {
    extents.iter().fold(1, |v, &e| v.saturating_mul(e))
}

/// One kernel of a plan, of one of the families.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum Kernel {
    Row(RowProgram),
    Contract(Contract),
    ScaledContract(ScaledContract),
    Quantize(Quantize),
    Attention(Attention),
    AttentionGrad(Attention),
    Conv(Conv),
    Pool(Pool),
    ScatterAdd(ScatterAdd),
    Scan(Scan),
    Update(Update),
}

impl Kernel {
    /// The arguments in binding order.
    pub fn args(&self) -> Vec<Arg> {
        match self {
            Kernel::Row(k) => k.args.clone(),
            Kernel::Contract(k) => k.args(),
            Kernel::ScaledContract(k) => k.args(),
            Kernel::Quantize(k) => k.args(),
            Kernel::Attention(k) => k.forward_args(),
            Kernel::AttentionGrad(k) => k.backward_args(),
            Kernel::Conv(k) => k.args(),
            Kernel::Pool(k) => k.args(),
            Kernel::ScatterAdd(k) => k.args(),
            Kernel::Scan(k) => k.args(),
            Kernel::Update(k) => k.args(),
        }
    }

    /// The family's name as `inspect` and plans show it.
    pub fn family(&self) -> &'static str {
        match self {
            Kernel::Row(_) => "row",
            Kernel::Contract(_) => "contract",
            Kernel::ScaledContract(_) => "scaled_contract",
            Kernel::Quantize(_) => "quantize",
            Kernel::Attention(_) => "attention",
            Kernel::AttentionGrad(_) => "attention_grad",
            Kernel::Conv(_) => "conv",
            Kernel::Pool(_) => "pool",
            Kernel::ScatterAdd(_) => "scatter_add",
            Kernel::Scan(_) => "scan",
            Kernel::Update(_) => "update",
        }
    }

    /// Checks the module's invariants.
    ///
    /// # Errors
    /// [`KernelError::Invalid`] naming the first broken one. A kernel that verifies never reads or writes outside the
    /// buffers that [`Kernel::args`] states, on any device.
    pub fn verify(&self) -> Result<(), KernelError> {
        match self {
            Kernel::Row(k) => k.verify(),
            Kernel::Contract(k) => k.verify(),
            Kernel::ScaledContract(k) => k.verify(),
            Kernel::Quantize(k) => k.verify(),
            Kernel::Attention(k) => verify::attention(k, false),
            Kernel::AttentionGrad(k) => verify::attention(k, true),
            Kernel::Conv(k) => k.verify(),
            Kernel::Pool(k) => k.verify(),
            Kernel::ScatterAdd(k) => k.verify(),
            Kernel::Scan(k) => k.verify(),
            Kernel::Update(k) => k.verify(),
        }
    }

    /// Scratch memory that a launch needs beside its arguments, in bytes, on the device named by `scratch_for`.
    ///
    /// The planner reserves it in the arena like any tensor; no back end allocates.
    pub fn scratch_bytes(&self, device: ScratchFor) -> u64 {
        match device {
            ScratchFor::Cpu { threads } => crate::cpu::scratch_bytes(self, threads),
            ScratchFor::Gpu => 0,
        }
    }
}

/// Whose scratch memory is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScratchFor {
    Cpu { threads: usize },
    Gpu,
}
