//! Reading.

use super::misplaced;
use crate::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes that are read at a time.
const CHUNK: u64 = 4 << 20;

/// Takes the next bytes of a part, by its number.
pub type Take<'a> = dyn FnMut(usize, &[u8]) -> Result<(), Error> + 'a;

/// A regular file that is open for reading, of the length that it had when it was opened.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Input {
    /// Opens a regular file; never waits.
    ///
    /// # Errors
    /// [`Error::Misplaced`] for a folder, FIFO, socket or device, [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e);
        // Looked at first: a socket cannot be opened, and opening a device can have effects.
        let about = std::fs::metadata(path).map_err(io)?;
        if !about.is_file() {
            return Err(misplaced(path, about.file_type(), "a file"));
        }
        // Should a FIFO have come into its place meanwhile, this does not wait for its writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if !about.is_file() {
            return Err(misplaced(path, about.file_type(), "a file"));
        }
        Ok(Input { path: path.to_path_buf(), file, bytes: about.len() })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `out` from the bytes at `offset`.
    ///
    /// # Errors
    /// [`Error::Io`], also for a file that has become shorter.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(out, offset).map_err(|e| self.explain(e))
    }

    /// The bytes of a range, which must lie inside the file.
    ///
    /// # Errors
    /// As [`Input::read_at`]; also when there is no memory for them.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let inside = range.end.checked_sub(range.start).filter(|_| range.end <= self.bytes);
        let bytes = inside.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| Error::io(&self.path, cut_short()))?;
        let mut out = vec![];
        out.try_reserve_exact(bytes).map_err(|e| Error::io(&self.path, io::Error::new(io::ErrorKind::OutOfMemory, e)))?;
        out.resize(bytes, 0);
        self.read_at(range.start, &mut out)?;
        Ok(out)
    }

    /// The whole file.
    ///
    /// # Errors
    /// As [`Input::read`].
    pub fn read_all(&self) -> Result<Vec<u8>, Error> {
        self.read(0..self.bytes)
    }

    /// Reads `range` once, from its beginning to its end: every byte goes to `digest`, and those of each of `parts` to `take` with the part's
    /// number, piece by piece in order. So what is taken is what was digested, whatever happens to the file meanwhile.
    ///
    /// # Errors
    /// As [`Input::read_at`], or what `take` gives.
    pub fn pass(&self, range: Range<u64>, digest: &mut dyn FnMut(&[u8]), parts: &[Range<u64>], take: &mut Take<'_>) -> Result<(), Error> {
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by_key(|&i| parts[i].start);
        let mut waiting = order.into_iter().peekable();
        let mut open: Vec<usize> = vec![];
        let mut buffer = vec![0; CHUNK.min(range.end.saturating_sub(range.start)) as usize];
        let mut at = range.start;
        while at < range.end {
            let bytes = CHUNK.min(range.end - at);
            let chunk = &mut buffer[..bytes as usize];
            self.read_at(at, chunk)?;
            digest(chunk);
            let end = at + bytes;
            open.extend(std::iter::from_fn(|| waiting.next_if(|&i| parts[i].start < end)));
            for &i in &open {
                let (from, to) = (parts[i].start.max(at), parts[i].end.min(end));
                if from < to {
                    take(i, &chunk[(from - at) as usize..(to - at) as usize])?;
                }
            }
            open.retain(|&i| parts[i].end > end);
            at = end;
        }
        Ok(())
    }

    /// A reader of a range.
    pub fn section(&self, range: Range<u64>) -> Section<'_> {
        Section { input: self, at: 0, range }
    }

    fn explain(&self, e: io::Error) -> Error {
        Error::io(&self.path, if e.kind() == io::ErrorKind::UnexpectedEof { cut_short() } else { e })
    }
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut short while it was read")
}

/// A range of an [`Input`] as a reader of its own.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    input: &'a Input,
    at: u64,
    range: Range<u64>,
}

impl Read for Section<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = (self.range.end - self.range.start).saturating_sub(self.at);
        let bytes = left.min(out.len() as u64) as usize;
        self.input.file.read_exact_at(&mut out[..bytes], self.range.start + self.at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => cut_short(),
            _ => e,
        })?;
        self.at += bytes as u64;
        Ok(bytes)
    }
}

impl Seek for Section<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let moved = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
            SeekFrom::End(n) => (self.range.end - self.range.start).checked_add_signed(n),
        };
        self.at = moved.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_named() {
        let (folder, path) = file(b"");
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        let said = |p: &Path| Input::open(p).unwrap_err().to_string();
        assert!(said(&fifo).ends_with("fifo is a FIFO, not a file"));
        assert!(said(&link).ends_with("link is a FIFO, not a file"));
        assert!(said(&socket).ends_with("is a socket, not a file"));
        assert!(said(folder.path()).ends_with("is a folder, not a file"));
        assert!(said(Path::new("/dev/zero")).ends_with("is a device, not a file"));
        Input::open(path).unwrap();
    }

    #[test]
    fn a_file_cut_short_after_it_was_opened_gives_an_error() {
        let (_folder, path) = file(&[1; 9000]);
        let input = Input::open(&path).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert_eq!(input.read(0..100).unwrap(), [1; 100]);
        assert!(input.read_all().unwrap_err().to_string().contains("cut short"));
        assert!(input.pass(0..9000, &mut |_| {}, &[], &mut |_, _| Ok(())).is_err());
        assert!(input.section(0..9000).read_to_end(&mut vec![]).unwrap_err().to_string().contains("cut short"));
    }

    #[test]
    fn one_pass_gives_every_part_its_bytes_in_order_though_parts_overlap_and_cross_chunks() {
        let bytes: Vec<u8> = (0..2 * CHUNK + 77).map(|i| (i * 31 % 251) as u8).collect();
        let (_folder, path) = file(&bytes);
        let input = Input::open(&path).unwrap();
        let parts = [CHUNK - 3..2 * CHUNK + 5, 10..20, 0..2 * CHUNK + 77, 15..15, CHUNK..CHUNK + 1];
        let (mut taken, mut all) = (vec![vec![]; parts.len()], vec![]);
        input
            .pass(0..input.bytes(), &mut |b| all.extend_from_slice(b), &parts, &mut |i, b| {
                taken[i].extend_from_slice(b);
                Ok(())
            })
            .unwrap();
        assert_eq!(all, bytes);
        for (range, taken) in parts.iter().zip(&taken) {
            assert_eq!(taken, &bytes[range.start as usize..range.end as usize], "{range:?}");
        }
    }

    #[test]
    fn a_section_reads_and_seeks_inside_its_range() {
        let (_folder, path) = file(b"0123456789");
        let input = Input::open(&path).unwrap();
        let mut section = input.section(2..8);
        section.seek(SeekFrom::End(-2)).unwrap();
        let mut out = String::new();
        section.read_to_string(&mut out).unwrap();
        assert_eq!(out, "67");
        assert!(section.seek(SeekFrom::Current(-9)).is_err());
    }
}
