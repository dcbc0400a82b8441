use std::path::PathBuf;

/// What can go wrong between a plan file and a trained model. The message is one sentence; hints are the command line's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan is damaged, hostile or of another version.
    #[error("{path}: {reason}")]
    Plan { path: String, reason: String },
    /// Data that does not fit the plan: shape, dtype, range, missing inputs.
    #[error("{name}: {reason}")]
    Data { name: String, reason: String },
    /// A checkpoint that is damaged or of another model.
    #[error("{path}: {reason}")]
    Checkpoint { path: PathBuf, reason: String },
    /// No such device, or too little memory on it.
    #[error("{0}")]
    Device(String),
    /// Training cannot go on (non-finite loss, fifty skipped steps).
    #[error("{0}")]
    Diverged(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Kernel(#[from] fp8c_kernels::KernelError),
}
