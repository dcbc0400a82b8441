use std::path::{Path, PathBuf};

/// What can go wrong between a plan file and a trained model. The message is one sentence; hints are the command line's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan is damaged, hostile or of another version.
    #[error("{path}: {reason}")]
    Plan { path: String, reason: String },
    /// Data that does not fit the plan: shape, dtype, range, missing inputs.
    #[error("{name}: {reason}")]
    Data { name: String, reason: String, fault: DataFault },
    /// A checkpoint of another model, seed or version.
    #[error("{path}: {reason}")]
    Checkpoint { path: PathBuf, reason: String },
    /// A checkpoint that is damaged, or a folder without a sound one.
    #[error("{path}: {reason}")]
    Unsound { path: PathBuf, reason: String },
    /// Something else is where a file or a folder should be.
    #[error("{path} is {is}, not {wanted}")]
    Misplaced { path: PathBuf, is: &'static str, wanted: &'static str },
    /// An output would replace what is no earlier result of its kind.
    #[error("{path} exists and is not {wanted}; it was left as it is")]
    Kept { path: PathBuf, wanted: &'static str },
    /// Another process writes there.
    #[error("{path} is in use by another training{holder}")]
    Locked { path: PathBuf, holder: String },
    /// No such device, or too little memory on it.
    #[error("{0}")]
    Device(String),
    /// A request that contradicts itself or the plan.
    #[error("{0}")]
    Usage(String),
    /// Training cannot go on (non-finite loss, fifty skipped steps).
    #[error("{0}")]
    Diverged(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Kernel(#[from] fp8c_kernels::KernelError),
}

/// What is wrong with data, by what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFault {
    /// Its kind, type or shape.
    Misfit,
    /// A value that an input does not take.
    Range,
    /// A text for a model whose tokens are not bytes.
    Text,
    /// Tokens whose width cannot be told.
    Width,
    /// Labels that cannot be told.
    Labels,
}

impl Error {
    /// An [`Error::Data`] of data that does not fit.
    pub fn data(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Data { name: name.into(), reason: reason.into(), fault: DataFault::Misfit }
    }

    /// An [`Error::Io`].
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source }
    }
}
