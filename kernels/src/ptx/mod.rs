//! Kernel programs to PTX, through LLVM.
//!
//! One generator a family. Each writes LLVM IR with the helpers of `build`, `value` and `math`; LLVM's NVPTX back end prints it.
//! Grids are one-dimensional; entry parameters are the kernel's arguments, in order. Kernels use no scratch memory: whatever is
//! needed twice is computed twice, or travels through an output argument from one launch to the next.
//!
//! The text is a function of kernel, name and chip alone: the same call gives the same bytes.

mod attention;
mod build;
mod contract;
mod contract_f32;
mod conv;
mod direct;
mod epilogue;
mod heuristics;
mod math;
mod module;
mod ops;
mod pool;
mod quantize;
mod row;
mod scaled_contract;
mod scan;
mod scatter_add;
mod sm90;
#[cfg(test)]
mod tests;
mod tiles;
mod update;
mod value;
mod window;

use crate::KernelError;
use crate::launch::Launch;
use crate::program::Kernel;
pub use heuristics::{Problem, Tile};
use inkwell::context::Context;
use module::Emitter;

/// A chip to generate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    Sm89,
    Sm90a,
}

/// PTX text of one kernel and how to launch it. Several launches run in order.
#[derive(Clone, Debug)]
pub struct Module {
    pub text: String,
    pub launches: Vec<Launch>,
}

/// Generates PTX for a kernel; `name` prefixes its entry points and is an identifier of ASCII letters, digits and `_`.
///
/// There are no launches where the kernel has nothing to compute. Threads that need more shared memory than the device grants by
/// default ask for it as [`Launch::shared_bytes`], which the launcher has to permit (`CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`).
///
/// # Errors
/// [`KernelError::Invalid`] for a program that breaks its family's rules or a name that is not an identifier,
/// [`KernelError::Unsupported`] for one that this chip has no code for.
pub fn generate(kernel: &Kernel, name: &str, arch: Arch) -> Result<Module, KernelError> {
    generate_with(kernel, name, arch, None)
}

/// [`generate`] of a matrix product for sm_90a with a tile that the heuristics need not choose, for tests and measurements of tiles.
///
/// # Errors
/// As [`generate`].
pub fn generate_tiled(kernel: &Kernel, name: &str, tile: Tile) -> Result<Module, KernelError> {
    generate_with(kernel, name, Arch::Sm90a, Some(tile))
}

fn generate_with(kernel: &Kernel, name: &str, arch: Arch, tile: Option<Tile>) -> Result<Module, KernelError> {
    kernel.verify()?;
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !name.starts_with(first) || !name.chars().all(|c| first(c) || c.is_ascii_digit()) {
        return Err(KernelError::Invalid { family: kernel.family(), reason: format!("{name:?} is not an entry point's name") });
    }
    let ctx = Context::create();
    let e = Emitter::new(&ctx, arch, tile)?;
    match kernel {
        Kernel::Row(k) => row::generate(&e, k, name)?,
        Kernel::Contract(k) => contract::generate(&e, k, name)?,
        Kernel::ScaledContract(k) => scaled_contract::generate(&e, k, name)?,
        Kernel::Quantize(k) => quantize::generate(&e, k, name)?,
        Kernel::Conv(k) => conv::generate(&e, k, name)?,
        Kernel::Pool(k) => pool::generate(&e, k, name)?,
        Kernel::ScatterAdd(k) => scatter_add::generate(&e, k, name)?,
        Kernel::Scan(k) => scan::generate(&e, k, name)?,
        Kernel::Update(k) => update::generate(&e, k, name)?,
        Kernel::Attention(k) => attention::generate(&e, k, name)?,
        Kernel::AttentionGrad(k) => attention::generate_grad(&e, k, name)?,
    }
    e.finish()
}
