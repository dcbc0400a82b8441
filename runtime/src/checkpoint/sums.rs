//! `SHA256SUMS`: the checksum of each file of a checkpoint, in the form that `sha256sum` writes and reads.

use crate::Error;
use crate::files::Input;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The file's name.
pub(super) const SUMS: &str = "SHA256SUMS";

/// Checksums by file name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums(BTreeMap<String, String>);

impl Sums {
    /// Writes a file of a checkpoint, synced, and takes note of its checksum.
    pub fn add(&mut self, folder: &Path, name: &str, fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<(), Error> {
        let digest = write_synced(&folder.join(name), fill)?;
        self.0.insert(name.to_string(), digest);
        Ok(())
    }

    /// Writes the sums themselves.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(SUMS);
        let text: String = self.0.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
        write_synced(&path, |out| out.write_all(text.as_bytes()).map_err(|e| Error::io(&path, e))).map(|_| ())
    }

    /// Reads the sums of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`]; inside, that it is damaged.
    pub fn read(folder: &Path) -> Result<Result<Self, String>, Error> {
        let text = Input::open(folder.join(SUMS))?.read_all()?;
        let parsed = String::from_utf8(text).ok().and_then(|text| Self::parse(&text));
        Ok(parsed.ok_or_else(|| format!("{SUMS} is damaged")))
    }

    fn parse(text: &str) -> Option<Self> {
        let whole = text.strip_suffix('\n')?;
        let line = |l: &str| l.split_once("  ").map(|(sum, name)| (name.to_string(), sum.to_string()));
        whole.split('\n').map(line).collect::<Option<_>>().map(Sums)
    }

    /// Compares a digest with the one that was written down.
    ///
    /// # Errors
    /// A sentence's end that names the file.
    pub fn compare(&self, name: &str, digest: Sha256) -> Result<(), String> {
        if self.0.get(name) == Some(&hexadecimal(digest)) { Ok(()) } else { Err(format!("{name} does not match its checksum")) }
    }
}

fn write_synced(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<String, Error> {
    let io = |e| Error::io(path, e);
    let file = File::create_new(path).map_err(io)?;
    let mut out = Digesting { inner: BufWriter::with_capacity(1 << 20, &file), digest: Sha256::new() };
    fill(&mut out)?;
    out.flush().map_err(io)?;
    let digest = out.digest;
    file.sync_all().map_err(io)?;
    Ok(hexadecimal(digest))
}

fn hexadecimal(digest: Sha256) -> String {
    digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// A writer that digests what passes.
struct Digesting<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_the_sums_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut sums = Sums::default();
        for name in ["a", "b.json"] {
            sums.add(folder.path(), name, |out| out.write_all(name.as_bytes()).map_err(|e| Error::io(Path::new(name), e))).unwrap();
        }
        sums.write(folder.path()).unwrap();
        assert_eq!(Sums::read(folder.path()).unwrap(), Ok(sums));
        let sound = |folder: &Path| {
            Sums::read(folder).unwrap().and_then(|s| ["a", "b.json"].iter().try_for_each(|n| s.compare(n, Sha256::new().chain_update(n))))
        };
        sound(folder.path()).unwrap();
        let path = folder.path().join(SUMS);
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            assert!(sound(folder.path()).is_err(), "bit {bit}");
        }
    }
}
