//! Turns a graph into kernel launches over buffers.
//!
//! A graph's values are rounded to their dtypes, and a row program rounds a fused value where the graph does, so that fusing changes no
//! bit. What crosses from the forward to the backward pass is always a buffer, but for index patterns and short expressions of small
//! sources, which are computed again wherever they are read.

mod absorb;
mod access;
mod assemble;
mod core;
mod early;
mod expand;
mod fuse;
mod kernels;
mod legal;
mod places;
mod row_builder;
mod scene;
#[cfg(test)]
mod tests;
mod text;
mod tidy;

pub use row_builder::Limits;
pub use text::print;

use crate::Error;
use crate::graph::Graph;
use crate::units::Program;

/// How to lower.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Puts several nodes into one row program where that saves memory traffic.
    pub fuse: bool,
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Options { fuse: true, limits: Limits::default() }
    }
}

/// Lowers a joint or a forward graph.
///
/// # Errors
/// [`Error::Graph`] where a node's operands have formats that its kernel does not take, [`Error::Verify`] where a pass broke an
/// invariant, [`Error::Kernel`] where a kernel does.
pub fn lower(graph: &Graph, options: Options) -> Result<Program, Error> {
    let core = expand::expand(graph)?;
    let core = legal::legalise(core)?;
    let scene = scene::Scene::new(&core);
    let groups = fuse::groups(&scene, options.fuse, options.limits).map_err(|(n, refusal)| Error::Verify {
        pass: "fuse",
        reason: format!("{} makes no program: {refusal:?}", core.graph.node(n).site),
    })?;
    let program = assemble::assemble(&scene, graph, groups)?;
    verify(&program)?;
    Ok(program)
}

/// Checks every kernel, and that its buffers hold its arguments.
fn verify(program: &Program) -> Result<(), Error> {
    for unit in program.units.iter().chain(&program.again) {
        unit.kernel.verify()?;
        let args = unit.kernel.args();
        let fits = args.len() == unit.args.len()
            && args.iter().zip(&unit.args).all(|(a, b)| {
                let ty = &program.buffers[b.0 as usize].ty;
                ty.dtype == a.dtype && ty.elements() >= a.elements
            });
        if !fits {
            return Err(Error::Verify { pass: "lower", reason: format!("the buffers of {} do not fit its kernel", unit.site) });
        }
    }
    Ok(())
}
