/// What can go wrong in this crate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum KernelError {
    /// A kernel program breaks an invariant: the fault of whoever made it (the compiler, or a damaged plan).
    #[error("invalid {family} kernel: {reason}")]
    Invalid { family: &'static str, reason: String },
    /// Data holds an index outside its axis: the user's data.
    #[error("index {index} is out of range for an axis of {bound}")]
    IndexOutOfRange { index: i64, bound: i64 },
    /// A launch was given buffers that do not fit the kernel's arguments.
    #[error("argument {arg} has {have} bytes, needs {need}")]
    Binding { arg: usize, have: usize, need: u64 },
    /// A kernel that a device has no code for.
    #[error("{0}")]
    Unsupported(String),
    /// LLVM refused: our fault.
    #[error("code generation failed: {0}")]
    Codegen(String),
    /// Text that is not a kernel program.
    #[error("line {line}: {reason}")]
    Parse { line: usize, reason: String },
}
