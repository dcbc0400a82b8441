//! Checks a plan as hostile data, before anything is allocated or launched.
//!
//! Invariants, each with one sentence when it is broken:
//! 1. every index is in range; names that identify are unique; numbers that something is allocated or repeated by are bounded;
//! 2. every tensor's bytes are its dtype times its shape, its offset is aligned and its end inside the arena;
//! 3. every kernel passes `Kernel::verify`, and every step binds as many tensors as the kernel has arguments, of the same dtype and
//!    at least as many bytes, none of which aliases one that is written; scratch memory suffices for one thread of a CPU, if the plan is
//!    for one;
//! 4. a tensor has one owner (a parameter, a gradient, a port, ..), of a role that fits; scratch memory is nothing else;
//! 5. a tensor is used only from its first to its last position;
//! 6. no two tensors whose lifetimes meet share a byte;
//! 7. an element is read only where it holds what a step has written, or the trainer: written elements are those that
//!    `Kernel::footprint` is sure of, and a tensor holds nothing before its first position;
//! 8. each trained parameter has two versions in a step, and so has each of its states: all else reads the first, one step, which reads
//!    the finished gradient, makes the second. Where gradients are applied one by one, steps are guarded, and none reads the norm that this
//!    step makes; elsewhere the norm is finished when the first step reads it. Inputs, constants and decay multipliers are never written;
//! 9. the arena is exactly as large as its highest tensor needs, and within the budget.
//!
//! With these, a launch of any step stays inside the arena and reads only bytes that it was given. The PTX of a plan is code and is not
//! checked here: a plan from an untrusted source should be run on the CPU. The compiler's own replay of a schedule shares nothing with
//! this module. All passes are near linear in the size of the plan.

mod dataflow;
mod held;
mod owners;
mod space;
mod tables;
mod versions;

use super::{Plan, Step};
use fp8c_kernels::program::{Arg, Footprint, Kernel, ScratchFor};

/// Checks every invariant of the module.
///
/// # Errors
/// One sentence naming the first that is broken.
pub fn verify(plan: &Plan) -> Result<(), String> {
    tables::header(plan)?;
    tables::tensors(plan)?;
    tables::ports(plan)?;
    tables::parameters(plan)?;
    let kernels = tables::kernels(plan)?;
    tables::steps(plan, &kernels)?;
    let owners = owners::find(plan)?;
    space::check(plan)?;
    dataflow::check(plan, &kernels, &owners)?;
    versions::check(plan, &kernels, &owners)
}

/// What the passes ask a kernel for, once.
struct Known {
    args: Vec<Arg>,
    footprint: Vec<Footprint>,
    /// Scratch bytes of one CPU thread.
    scratch: u64,
}

impl Known {
    fn new(kernel: &Kernel, on_cpu: bool) -> Self {
        let scratch = if on_cpu { kernel.scratch_bytes(ScratchFor::Cpu { threads: 1 }) } else { 0 };
        Known { args: kernel.args(), footprint: kernel.footprint(), scratch }
    }
}

/// The steps in order of position, and whether each is one of a micro-batch.
fn positions(plan: &Plan) -> impl Iterator<Item = (usize, &Step, bool)> {
    let micro = plan.schedule.micro.len();
    plan.schedule.micro.iter().chain(&plan.schedule.update).enumerate().map(move |(at, step)| (at, step, at < micro))
}

/// Fails with a sentence unless `holds`.
fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason()) }
}
