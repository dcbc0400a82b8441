//! Files that appear whole or not at all.

use crate::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes a file aside in the folder of `path`, syncs it and renames it into place.
///
/// # Errors
/// [`Error::Io`] naming `path`, or what `fill` gives; nothing is left behind in either case.
pub fn write_aside(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<(), Error>) -> Result<(), Error> {
    let io = |e| Error::io(path, e);
    let folder = parent(path);
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temp = builder.prefix(".fp8c-").tempfile_in(folder).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, temp.as_file());
    fill(&mut out)?;
    out.flush().map_err(io)?;
    drop(out);
    temp.as_file().sync_all().map_err(io)?;
    temp.persist(path).map_err(|e| io(e.error))?;
    sync_folder(folder).map_err(io)
}

/// The folder that holds `path`; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes renames in a folder survive a power cut. A no-op where folders cannot be opened.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}
