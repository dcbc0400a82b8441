//! What is printed: data on stdout, messages on stderr.

use super::Done;
use crate::Error;
use std::io::{ErrorKind, Write};

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
}

impl Output {
    /// Prints a message to stderr unless quiet.
    pub fn say(&self, message: impl std::fmt::Display) {
        if !self.quiet {
            tell(message);
        }
    }
}

/// Prints a message to stderr. That nobody reads messages is no reason to end.
pub fn tell(message: impl std::fmt::Display) {
    drop(writeln!(std::io::stderr().lock(), "{message}"));
}

/// Prints data to stdout, all of it.
///
/// # Errors
/// As [`printed`].
pub fn print(text: impl std::fmt::Display) -> Done {
    let mut out = std::io::stdout().lock();
    printed(writeln!(out, "{text}"))
}

/// Completes what was printed to stdout. A reader that has gone away ends the process with status 1 and without a word, as it ends other tools.
///
/// # Errors
/// [`Error::Io`] when it could not be written, to a disk that is full for instance.
pub fn printed(result: std::io::Result<()>) -> Done {
    match result.and_then(|()| std::io::stdout().flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(1),
        Err(source) => Err(Error::Io { path: "the standard output".into(), source }.into()),
        Ok(()) => Ok(()),
    }
}
