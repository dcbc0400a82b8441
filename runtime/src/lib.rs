//! Loads a plan and trains it. Knows nothing of e-graphs, ONNX or LLVM.

pub mod convert;
mod error;
mod files;
pub mod plan;
pub mod tensors;

pub use error::Error;
pub use files::write_aside;
