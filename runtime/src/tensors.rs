//! Named tensors on the host and their safetensors files.

use crate::Error;
use crate::convert::file_dtype_size;
use crate::files::{Input, Replaces, write_aside};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Longest header that the safetensors library itself reads.
const MAX_HEADER: u64 = 100_000_000;

/// What marks files of [`write_tensors`] in their header, and no others.
pub(crate) const MADE_BY: &str = "\"made_by\":\"fp8c\"";

/// What is said of a file in its header. One pair, because the header has them in any order.
pub(crate) type About = (&'static str, &'static str);

/// What transformers asks for before it loads a file.
pub(crate) const FOR_TRANSFORMERS: About = ("format", "pt");

/// A tensor in host memory: row-major, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl HostTensor {
    /// The elements of an f32 tensor; `None` for other formats.
    pub fn as_f32(&self) -> Option<Vec<f32>> {
        let word = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        (self.dtype == Dtype::F32).then(|| self.bytes.chunks_exact(4).map(word).collect())
    }

    fn entry(&self) -> Entry<'_> {
        let (name, shape) = (self.name.clone(), self.shape.clone());
        Entry { name, dtype: self.dtype, shape, data: Box::new(|| Ok(Cow::Borrowed(&self.bytes))) }
    }
}

/// One tensor of a file that is being written; its bytes are asked for once, when their turn comes.
pub(crate) struct Entry<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub data: Box<dyn FnOnce() -> Result<Cow<'a, [u8]>, Error> + 'a>,
}

/// Writes a safetensors document with one tensor in memory at a time; same entries, same bytes, whatever their order.
pub(crate) fn write_entries(out: &mut dyn Write, path: &Path, about: About, mut entries: Vec<Entry<'_>>) -> Result<(), Error> {
    entries.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let mut infos = Vec::with_capacity(entries.len());
    let mut at = 0usize;
    for e in &entries {
        let shape: Vec<usize> = e.shape.iter().map(|&d| d as usize).collect();
        let bytes = shape.iter().product::<usize>() * file_dtype_size(e.dtype) as usize;
        infos.push((e.name.clone(), TensorInfo { dtype: e.dtype, shape, data_offsets: (at, at + bytes) }));
        at += bytes;
    }
    let lengths: Vec<usize> = infos.iter().map(|(_, i)| i.data_offsets.1 - i.data_offsets.0).collect();
    let about = HashMap::from([(about.0.to_string(), about.1.to_string())]);
    let invalid = |e: &dyn std::fmt::Display| Error::io(path, std::io::Error::other(e.to_string()));
    let metadata = Metadata::new(Some(about), infos).map_err(|e| invalid(&e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| invalid(&e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let io = |e| Error::io(path, e);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    for (e, length) in entries.into_iter().zip(lengths) {
        let name = e.name;
        let bytes = (e.data)()?;
        if bytes.len() != length {
            return Err(Error::data(name, format!("{} bytes where its shape needs {length}", bytes.len())));
        }
        out.write_all(&bytes).map_err(io)?;
    }
    Ok(())
}

/// Writes tensors as one safetensors file, aside and renamed. Replaces only what it wrote itself.
///
/// # Errors
/// [`Error::Kept`] or [`Error::Misplaced`] where something else has that name, [`Error::Io`], [`Error::Data`] for a tensor whose bytes do
/// not fit its shape.
pub fn write_tensors(path: &Path, tensors: &[HostTensor]) -> Result<(), Error> {
    Replaces::Tensors.check(path)?;
    write_aside(path, |out| write_entries(out, path, ("made_by", "fp8c"), tensors.iter().map(HostTensor::entry).collect()))
}

/// Writes tensors as a safetensors file that transformers loads, aside and renamed; a file that is there is replaced.
///
/// # Errors
/// [`Error::Misplaced`], [`Error::Io`], [`Error::Data`] for a tensor whose bytes do not fit its shape.
pub fn write_for_transformers(path: &Path, tensors: &[HostTensor]) -> Result<(), Error> {
    write_aside(path, |out| write_entries(out, path, FOR_TRANSFORMERS, tensors.iter().map(HostTensor::entry).collect()))
}

/// An open safetensors file; tensors are read when they are asked for.
#[derive(Debug)]
pub struct TensorFile {
    input: Input,
    directory: Directory,
}

/// Where the tensors of a safetensors document lie in a file.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    start: u64,
    metadata: Metadata,
}

/// A tensor's place in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub range: Range<u64>,
}

/// A tensor in memory that belongs to somebody else.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: &'a [u8],
}

impl Directory {
    /// Reads the header of the document that fills a range of a file.
    ///
    /// # Errors
    /// [`Error::Io`]; inside, what is wrong with the document.
    pub fn read(input: &Input, document: Range<u64>) -> Result<Result<Self, String>, Error> {
        let fault = |e: &dyn std::fmt::Display| Ok(Err(format!("not a safetensors file ({e})")));
        let bytes = document.end - document.start;
        if bytes < 8 {
            return fault(&"it is shorter than a header");
        }
        let mut length = [0; 8];
        input.read_at(document.start, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER.min(bytes - 8) {
            return fault(&"its header is longer than it is");
        }
        let start = document.start + 8 + length;
        let header = input.read(document.start + 8..start)?;
        let metadata: Metadata = match serde_json::from_slice(&header) {
            Ok(metadata) => metadata,
            Err(e) => return fault(&e),
        };
        if start.checked_add(metadata.data_len() as u64) != Some(document.end) {
            return fault(&"it is longer or shorter than its header says");
        }
        Ok(Ok(Directory { start, metadata }))
    }

    /// A tensor by name.
    pub fn place(&self, name: &str) -> Option<Place> {
        let info = self.metadata.info(name)?;
        let (from, to) = info.data_offsets;
        let range = self.start + from as u64..self.start + to as u64;
        Some(Place { dtype: info.dtype, shape: info.shape.iter().map(|&d| d as u64).collect(), range })
    }

    /// The names, in the order of the data.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Misplaced`], [`Error::Data`] for a file that is not safetensors.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let input = Input::open(path)?;
        let directory = Directory::read(&input, 0..input.bytes())?.map_err(|reason| Error::data(path.display().to_string(), reason))?;
        Ok(TensorFile { input, directory })
    }

    /// The names, in the order of the data.
    pub fn names(&self) -> Vec<String> {
        self.directory.names()
    }

    /// Element format and shape of a tensor.
    pub fn about(&self, name: &str) -> Option<(Dtype, Vec<u64>)> {
        self.directory.place(name).map(|p| (p.dtype, p.shape))
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`Error::Data`] when there is none of this name, [`Error::Io`].
    pub fn read(&self, name: &str) -> Result<HostTensor, Error> {
        let missing = || Error::data(self.input.path().display().to_string(), format!("there is no tensor {name}"));
        let Place { dtype, shape, range } = self.directory.place(name).ok_or_else(missing)?;
        Ok(HostTensor { name: name.to_string(), dtype, shape, bytes: self.input.read(range)? })
    }

    /// Reads every tensor.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_all(&self) -> Result<Vec<HostTensor>, Error> {
        self.names().iter().map(|name| self.read(name)).collect()
    }

    /// Reads the file once from its beginning to its end, one tensor in memory at a time: every byte goes to `digest`, every tensor to `take`.
    ///
    /// # Errors
    /// [`Error::Io`], or what `take` gives; the digest is then unfinished.
    pub fn each(&self, digest: &mut dyn FnMut(&[u8]), take: &mut dyn FnMut(&str, &View<'_>) -> Result<(), Error>) -> Result<(), Error> {
        digest(&self.input.read(0..self.directory.start)?);
        for name in self.names() {
            let HostTensor { dtype, shape, bytes, .. } = self.read(&name)?;
            digest(&bytes);
            take(&name, &View { dtype, shape, bytes: &bytes })?;
        }
        Ok(())
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.input.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> HostTensor {
        HostTensor { name: name.into(), dtype, shape: shape.to_vec(), bytes }
    }

    #[test]
    fn tensors_written_are_read_back_and_order_does_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let x = tensor("x", Dtype::U8, &[3], vec![1, 2, 3]);
        let y = tensor("y", Dtype::F32, &[2, 1], [1f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect());
        write_tensors(&a, &[x.clone(), y.clone()]).unwrap();
        write_tensors(&b, &[y.clone(), x.clone()]).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(TensorFile::open(&a).unwrap().read_all().unwrap(), [y, x]);
    }

    #[test]
    fn a_file_that_is_no_safetensors_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("garbage");
        std::fs::write(&path, b"not at all what it should be").unwrap();
        assert!(matches!(TensorFile::open(&path), Err(Error::Data { .. })));
        std::fs::write(&path, b"").unwrap();
        assert!(TensorFile::open(&path).is_err());
    }

    #[test]
    fn a_foreign_file_is_not_replaced_and_an_own_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let x = tensor("x", Dtype::U8, &[3], vec![1, 2, 3]);
        write_aside(&path, |out| write_entries(out, &path, FOR_TRANSFORMERS, vec![x.entry()])).unwrap();
        assert!(matches!(write_tensors(&path, &[]), Err(Error::Kept { .. })));
        assert_eq!(TensorFile::open(&path).unwrap().read("x").unwrap(), x);
        let own = folder.path().join("out.safetensors");
        write_tensors(&own, &[]).unwrap();
        write_tensors(&own, std::slice::from_ref(&x)).unwrap();
        assert_eq!(TensorFile::open(&own).unwrap().read_all().unwrap(), [x]);
    }

    #[test]
    fn one_reading_gives_every_byte_to_the_digest_and_every_tensor_to_its_taker() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let all = [tensor("x", Dtype::U8, &[3], vec![1, 2, 3]), tensor("none", Dtype::U8, &[0], vec![])];
        write_tensors(&path, &all).unwrap();
        let (mut digested, mut taken) = (vec![], vec![]);
        let file = TensorFile::open(&path).unwrap();
        file.each(&mut |b| digested.extend_from_slice(b), &mut |name, v| {
            taken.push(tensor(name, v.dtype, &v.shape, v.bytes.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!(digested, std::fs::read(&path).unwrap());
        taken.sort_by(|a, b| b.name.cmp(&a.name));
        assert_eq!(taken, all);
    }
}
