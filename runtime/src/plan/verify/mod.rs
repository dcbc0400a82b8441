//! Checks a plan as hostile data, before anything is allocated or launched.
//!
//! Invariants, each with one sentence when it is broken:
//! 1. every index is in range; names that identify are unique;
//! 2. every tensor's bytes are its dtype times its shape, its offset is aligned and its end inside the arena;
//! 3. every kernel passes `Kernel::verify`, and every step binds as many tensors as the kernel has arguments, of the same dtype and
//!    at least as many bytes, none of which aliases one that is written; scratch memory suffices for one thread;
//! 4. a tensor is used only from its first to its last position, nothing is read before it is written, inputs and constants are
//!    never written, parameters and states only by the update;
//! 5. no two tensors whose lifetimes meet share a byte;
//! 6. the arena is exactly as large as its highest tensor needs, and within the budget.
//!
//! With these, a launch of any step stays inside the arena. The PTX of a plan is code and is not checked here: a plan from an
//! untrusted source should be run on the CPU. The compiler's own replay of a schedule shares nothing with this module.

mod dataflow;
mod space;
mod tables;

use super::Plan;

/// Checks every invariant of the module.
///
/// # Errors
/// One sentence naming the first that is broken.
pub fn verify(plan: &Plan) -> Result<(), String> {
    tables::header(plan)?;
    tables::tensors(plan)?;
    tables::ports(plan)?;
    tables::parameters(plan)?;
    tables::steps(plan)?;
    dataflow::check(plan)?;
    space::check(plan)
}

/// Fails with a sentence unless `holds`.
fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason()) }
}
