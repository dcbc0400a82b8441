//! Files that a user names: the one way they are opened and the one way they are replaced.
//!
//! 1. Only regular files are read ([`Input`]): a FIFO, a socket, a device or a folder is refused with a sentence, and nothing waits for a
//!    writer.
//! 2. Files are read by position into memory of our own, never mapped: one that is cut short meanwhile gives an error, not a signal.
//! 3. What has a checksum is used as it passes the checksum ([`Input::pass`]), not read again afterwards.
//! 4. Results appear whole or not at all ([`write_aside`]), and replace earlier results of their kind alone ([`Replaces::check`]).

mod input;
mod output;

pub use input::{Input, Section, Take};
pub(crate) use output::sync_folder;
pub use output::{EXPORTED_ONNX, EXPORTED_WEIGHTS, Replaces, is_same_file, parent, write_aside};

use crate::Error;
use std::ffi::OsStr;
use std::fs::FileType;
use std::path::{Path, PathBuf};

/// What something is that is no regular file, for messages.
fn nature(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match () {
        () if kind.is_file() => "a file",
        () if kind.is_dir() => "a folder",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

pub(crate) fn misplaced(path: &Path, kind: FileType, wanted: &'static str) -> Error {
    Error::Misplaced { path: path.to_path_buf(), is: nature(kind), wanted }
}

/// Makes a folder unless it is there; whether it was made.
///
/// # Errors
/// [`Error::Misplaced`] when something else has its name, [`Error::Io`].
pub(crate) fn make_folder(path: &Path) -> Result<bool, Error> {
    match std::fs::metadata(path) {
        Ok(about) if about.is_dir() => Ok(false),
        Ok(about) => Err(misplaced(path, about.file_type(), "a folder")),
        Err(_) => std::fs::create_dir_all(path).map(|()| true).map_err(|e| Error::io(path, e)),
    }
}

/// Renames an earlier result to the first free of `NAME.1.EXTENSION`, `NAME.2.EXTENSION`, ..; gives the new name.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let text = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, extension) = (text(path.file_stem()), path.extension().map(|e| format!(".{}", e.display())).unwrap_or_default());
    let mut number = 1u64;
    let free = loop {
        let name = path.with_file_name(format!("{stem}.{number}{extension}"));
        if name.symlink_metadata().is_err() {
            break name;
        }
        number += 1;
    };
    std::fs::rename(path, &free).map_err(|e| Error::io(path, e))?;
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_results_are_set_aside_under_names_that_are_free() {
        let folder = tempfile::tempdir().unwrap();
        for (name, aside) in [("a.jsonl", ["a.1.jsonl", "a.2.jsonl"]), ("b", ["b.1", "b.2"]), ("c.v1.log", ["c.v1.1.log", "c.v1.2.log"])] {
            for (n, want) in aside.iter().enumerate() {
                std::fs::write(folder.path().join(name), [n as u8]).unwrap();
                assert_eq!(set_aside(&folder.path().join(name)).unwrap(), folder.path().join(want));
                assert_eq!(std::fs::read(folder.path().join(want)).unwrap(), [n as u8]);
            }
        }
    }
}
