//! Model files to graphs.

pub mod model;
pub mod onnx;
pub mod parameters;
mod sort;
mod torch;
mod wire;
