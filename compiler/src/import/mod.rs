//! Model files to graphs.

mod fold;
pub mod model;
pub mod onnx;
pub mod ops;
pub mod parameters;
mod sort;
mod torch;
mod wire;
