//! Loads a plan and trains it. Knows nothing of e-graphs, ONNX or LLVM.

mod error;
pub mod plan;

pub use error::Error;
