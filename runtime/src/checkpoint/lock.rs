//! One writer for a folder or a file at a time.

use crate::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file in a folder that is locked for it.
pub(super) const NAME: &str = ".lock";

/// The exclusive right to write into a folder. The operating system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    // Held for its lock.
    _file: File,
}

impl Lock {
    /// Takes a folder that is there.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process (or another training of this one) has it, [`Error::Io`].
    pub fn of_folder(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(NAME);
        let io = |e| Error::io(&path, e);
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
            let mut file = options.open(&path).map_err(io)?;
            take(&mut file, folder)?;
            // Whoever had the lock may have removed the file after we opened it; then another one is the lock by now.
            if std::fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (now.dev(), now.ino()))) {
                file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
                write!(file, "{}", std::process::id()).map_err(io)?;
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

impl Lock {
    /// Takes note that the folder was renamed.
    pub fn moved(&mut self, folder: &Path) {
        self.path = folder.join(NAME);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While the lock is held. One that stays, of a killed process, is locked by nobody and taken by the next.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Locks an open file for as long as it is open; `what` is what the message names.
///
/// # Errors
/// [`Error::Locked`], [`Error::Io`] where the file system knows no locks.
pub(crate) fn take(file: &mut File, what: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let number = file.take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
            Err(Error::Locked { path: what.to_path_buf(), holder: number.map_or(String::new(), |n| format!(" (process {n})")) })
        }
        Err(TryLockError::Error(e)) => Err(Error::io(what, e)),
    }
}
