//! Text files that commands read and write.

use super::Done;
use super::failure::Failure;
use fp8c_runtime::files::{Input, write_aside};
use std::io::Write;
use std::path::Path;

/// The text of a file.
///
/// # Errors
/// A [`Failure`] where it cannot be read or is no text.
pub fn read(path: &Path) -> Result<String, Failure> {
    String::from_utf8(Input::open(path)?.read_all()?).map_err(|_| wrong(path, "it is not text".into(), "give a text file"))
}

/// A refusal of what a file holds.
pub fn wrong(path: &Path, reason: String, hint: &str) -> Failure {
    Failure::refused(format!("{}: {reason}", path.display()), hint)
}

/// Replaces a file by a text, all of it or nothing.
///
/// # Errors
/// As [`write_aside`].
pub fn write(path: &Path, text: &str) -> Done {
    let io = |source| fp8c_runtime::Error::Io { path: path.into(), source };
    write_aside(path, |out| out.write_all(text.as_bytes()).map_err(io)).map_err(Failure::from)
}
