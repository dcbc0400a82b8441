//! Named tensors on the host and their safetensors files.

use crate::Error;
use crate::convert::file_dtype_size;
use crate::files::write_aside;
use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

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
pub(crate) fn write_entries(out: &mut dyn Write, path: &Path, mut entries: Vec<Entry<'_>>) -> Result<(), Error> {
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
    // `format: pt` is what transformers asks for before it loads a file.
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
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

/// Writes tensors as one safetensors file, aside and renamed.
///
/// # Errors
/// [`Error::Io`], or [`Error::Data`] for a tensor whose bytes do not fit its shape.
pub fn write_tensors(path: &Path, tensors: &[HostTensor]) -> Result<(), Error> {
    write_aside(path, |out| write_entries(out, path, tensors.iter().map(HostTensor::entry).collect()))
}

/// A mapped safetensors file.
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    directory: Directory,
}

/// Where the tensors of a safetensors document lie in a larger buffer.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    start: usize,
    metadata: Metadata,
}

/// A tensor inside a mapped file.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: &'a [u8],
}

impl Directory {
    /// Reads the header of the document at `offset..` of a buffer, to its end.
    pub fn read(document: &[u8], offset: usize) -> Result<Self, String> {
        let (header, metadata) = SafeTensors::read_metadata(document).map_err(|e| format!("not a safetensors file ({e})"))?;
        Ok(Directory { start: offset + header + 8, metadata })
    }

    /// A tensor by name, out of the buffer that the document was read from.
    pub fn view<'a>(&self, buffer: &'a [u8], name: &str) -> Option<View<'a>> {
        let info = self.metadata.info(name)?;
        let (from, to) = info.data_offsets;
        let bytes = buffer.get(self.start.checked_add(from)?..self.start.checked_add(to)?)?;
        Some(View { dtype: info.dtype, shape: info.shape.iter().map(|&d| d as u64).collect(), bytes })
    }

    /// The names, in the order of the data.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }
}

impl TensorFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] for a file that is not safetensors.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: the mapping is read-only; a file truncated by another process while mapped ends this one with SIGBUS, as for
        // every mapped reader.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let directory = Directory::read(&map, 0).map_err(|reason| Error::data(path.display().to_string(), reason))?;
        Ok(TensorFile { path: path.to_path_buf(), map, directory })
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> Option<View<'_>> {
        self.directory.view(&self.map, name)
    }

    /// The names, in the order of the data.
    pub fn names(&self) -> Vec<String> {
        self.directory.names()
    }

    /// Copies every tensor.
    pub fn read_all(&self) -> Vec<HostTensor> {
        let named = |name: String| self.get(&name).map(|v| HostTensor { name, dtype: v.dtype, shape: v.shape, bytes: v.bytes.to_vec() });
        self.names().into_iter().filter_map(named).collect()
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
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
        assert_eq!(TensorFile::open(&a).unwrap().read_all(), [y, x]);
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
}
