//! Files that anyone may send: for each kind a function that must return whatever bytes it is given.
//!
//! The crate in `fuzz/` gives them to libFuzzer; `tests/hostile.rs` runs each on a fixed number of mutated seeds.

pub mod checkpoint;
pub mod json;
pub mod kernel;
pub mod mutate;
pub mod npy;
pub mod onnx;
pub mod place;
pub mod plan;
pub mod safetensors;
pub mod tokens;
pub mod wire;

pub use fastrand::Rng;

/// Most bytes of an input: what is slow or large because the file is, is no finding.
pub const MAX_BYTES: usize = 1 << 16;

/// A kind of input.
pub struct Target {
    pub name: &'static str,
    /// Returns, or there is a fault.
    pub run: fn(&[u8]),
    /// Well-formed inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// An input that differs a little, and is well-formed where that can be arranged.
    pub mutate: fn(&[u8], &mut Rng) -> Vec<u8>,
}

pub const TARGETS: [Target; 6] = [onnx::TARGET, json::TARGET, safetensors::TARGET, checkpoint::TARGET, npy::TARGET, tokens::TARGET];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    const ALL: &[Target] = &TARGETS;
    ALL.iter().find(|t| t.name == name)
}
