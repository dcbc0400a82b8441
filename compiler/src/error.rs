//! The compiler's one error type.

use crate::quantity::Bytes;
use std::path::PathBuf;

/// Everything that can go wrong between a model file and a plan. The message is one sentence; hints are the command line's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model file is damaged or not a model: the file's fault.
    #[error("{path}: {reason}")]
    Model { path: String, reason: String },
    /// The model asks for something that is not supported: one line for each gap.
    #[error("{0} of the model's operators cannot be compiled: {1}", gaps.len(), gaps.join("; "))]
    Unsupported { gaps: Vec<String> },
    /// A node does not fit its inputs: the model's fault when importing, ours afterwards.
    #[error("{site}: {reason}")]
    Graph { site: String, reason: String },
    /// An invariant does not hold after a pass: our fault.
    #[error("internal error after {pass}: {reason}")]
    Verify { pass: &'static str, reason: String },
    /// A request that contradicts itself or the model: the user's fault.
    #[error("{0}")]
    Usage(String),
    /// The budget cannot be met.
    #[error("no plan fits {} bytes; the smallest budget that does is {} bytes, bound by {event}", .budget.0, .least.0)]
    Infeasible { budget: Bytes, least: Bytes, event: String, live: Vec<(String, Bytes)> },
    /// The solver of linear programs gave no answer: our fault, or that of a library.
    #[error("the planner's linear program was not solved: {0}")]
    Solver(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Kernel(#[from] fp8c_kernels::KernelError),
    #[error(transparent)]
    Runtime(#[from] fp8c_runtime::Error),
}

impl Error {
    pub fn graph(site: &str, reason: impl Into<String>) -> Self {
        Error::Graph { site: site.to_string(), reason: reason.into() }
    }
}
