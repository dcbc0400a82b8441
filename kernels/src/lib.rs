//! Numerics, kernel programs, their CPU executor and (feature `ptx`) their PTX generator.

pub mod cpu;
mod dtype;
mod error;
pub mod launch;
pub mod numerics;
pub mod program;
#[cfg(feature = "ptx")]
pub mod ptx;

pub use dtype::DType;
pub use error::KernelError;
