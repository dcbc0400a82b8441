//! Kernel programs to PTX, through LLVM.

use crate::KernelError;
use crate::launch::Launch;
use crate::program::Kernel;

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

/// Generates PTX for a kernel; `name` prefixes its entry points.
pub fn generate(kernel: &Kernel, name: &str, arch: Arch) -> Result<Module, KernelError> {
    let _ = (kernel, name, arch);
    unimplemented!()
}
