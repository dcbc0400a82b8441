//! Plan files: zip archives of uncompressed entries, mapped.

use super::{Plan, SCHEMA, verify};
use crate::Error;
use crate::convert::file_dtype;
use crate::files::write_aside;
use crate::tensors::{Directory, Entry, View, write_entries};
use fp8c_kernels::DType;
use memmap2::Mmap;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

const PLAN: &str = "plan.json";
const WEIGHTS: &str = "weights.safetensors";
const CONSTANTS: &str = "constants.safetensors";

/// Bytes of an entry that are worth a 64-bit size field.
const LARGE: u64 = 0xF000_0000;

/// What goes into a plan file.
pub struct Contents<'a> {
    pub plan: &'a Plan,
    /// PTX by kernel name and chip (`sm_90a`); one for each of the plan's `launches`.
    pub ptx: &'a BTreeMap<(String, String), String>,
    /// What `Init::Stored` names, in the plan's orientation.
    pub weights: &'a [StoredTensor<'a>],
    /// The value of each tensor of role `Constant`, by its name.
    pub constants: &'a [StoredTensor<'a>],
}

/// A tensor to be stored in a plan file; little-endian, row-major.
#[derive(Clone, Debug)]
pub struct StoredTensor<'a> {
    pub name: &'a str,
    pub dtype: DType,
    pub shape: &'a [u64],
    pub bytes: &'a [u8],
}

/// An open plan file: the verified plan, and its stored tensors and PTX in place. Cheap to clone.
#[derive(Clone)]
pub struct PlanFile {
    plan: Arc<Plan>,
    path: PathBuf,
    map: Arc<Mmap>,
    entries: Arc<BTreeMap<String, Range<usize>>>,
    weights: Option<Directory>,
    constants: Option<Directory>,
}

impl PlanFile {
    /// Maps a plan file, reads its plan and verifies it. Checksums of all entries but the weights are compared.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Plan`] with one sentence about what is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: the mapping is read-only; a file truncated by another process while mapped ends this one with SIGBUS, as for
        // every mapped reader. Plans are replaced by renaming, which leaves the old mapping whole.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let fault = |reason| Error::Plan { path: path.display().to_string(), reason };
        let entries = read_entries(&map).map_err(fault)?;
        let json = entries.get(PLAN).ok_or_else(|| fault(format!("the archive holds no {PLAN}")))?;
        let plan = parse(&map[json.clone()]).map_err(fault)?;
        verify(&plan).map_err(|reason| fault(format!("the plan is invalid: {reason}")))?;
        let directory = |name: &str| match entries.get(name) {
            Some(range) => Directory::read(&map[range.clone()], range.start).map(Some).map_err(|e| fault(format!("{name}: {e}"))),
            None => Ok(None),
        };
        let (weights, constants) = (directory(WEIGHTS)?, directory(CONSTANTS)?);
        let opened =
            PlanFile { plan: Arc::new(plan), path: path.to_path_buf(), map: Arc::new(map), entries: Arc::new(entries), weights, constants };
        opened.check_ptx().map_err(fault)?;
        Ok(opened)
    }

    /// Verifies and writes a plan file, aside and renamed. Same contents, same bytes.
    ///
    /// # Errors
    /// [`Error::Plan`] when the plan does not verify or lacks PTX that it refers to, [`Error::Io`]; nothing is written then.
    pub fn write(path: impl AsRef<Path>, contents: &Contents<'_>) -> Result<(), Error> {
        let path = path.as_ref();
        let fault = |reason| Error::Plan { path: path.display().to_string(), reason };
        verify(contents.plan).map_err(|reason| fault(format!("the plan is invalid: {reason}")))?;
        let json = serde_json::to_vec(contents.plan).map_err(|e| fault(e.to_string()))?;
        for (kernel, arch) in launches(contents.plan) {
            let key = (kernel.to_string(), arch.to_string());
            contents.ptx.get(&key).ok_or_else(|| fault(format!("there is no PTX of kernel {kernel} for {arch}")))?;
        }
        write_aside(path, |out| {
            let mut zip = ZipWriter::new(out);
            add(&mut zip, path, PLAN, json.len() as u64, |out| out.write_all(&json).map_err(|e| Error::io(path, e)))?;
            for ((kernel, arch), text) in contents.ptx {
                let name = ptx_name(kernel, arch);
                add(&mut zip, path, &name, text.len() as u64, |out| out.write_all(text.as_bytes()).map_err(|e| Error::io(path, e)))?;
            }
            for (name, tensors) in [(CONSTANTS, contents.constants), (WEIGHTS, contents.weights)] {
                if !tensors.is_empty() {
                    let size = tensors.iter().map(|t| t.bytes.len() as u64).sum();
                    add(&mut zip, path, name, size, |out| write_entries(out, path, tensors.iter().map(entry).collect()))?;
                }
            }
            zip.finish().map_err(|e| Error::io(path, std::io::Error::other(e)))?;
            Ok(())
        })
    }

    /// The plan. It has passed [`verify`].
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn shared_plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The PTX of a kernel for a chip.
    pub fn ptx(&self, kernel: &str, arch: &str) -> Option<&str> {
        let range = self.entries.get(&ptx_name(kernel, arch))?;
        std::str::from_utf8(&self.map[range.clone()]).ok()
    }

    /// A stored weight, in the plan's orientation, in place.
    pub fn weight(&self, name: &str) -> Option<View<'_>> {
        self.weights.as_ref()?.view(&self.map, name)
    }

    /// A stored constant, in place.
    pub fn constant(&self, name: &str) -> Option<View<'_>> {
        self.constants.as_ref()?.view(&self.map, name)
    }

    /// Bytes of each entry of the archive.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        self.entries.iter().map(|(name, range)| (name.as_str(), range.len() as u64))
    }

    /// Compares the checksum of the stored weights, which [`PlanFile::open`] leaves alone because it reads all of them.
    ///
    /// # Errors
    /// [`Error::Plan`] for damaged weights.
    pub fn check_weights(&self) -> Result<(), Error> {
        if self.weights.is_none() {
            return Ok(());
        }
        let fault = |reason: String| Error::Plan { path: self.path.display().to_string(), reason };
        let mut archive = ZipArchive::new(Cursor::new(&self.map[..])).map_err(|e| fault(e.to_string()))?;
        let mut entry = archive.by_name(WEIGHTS).map_err(|e| fault(e.to_string()))?;
        checksum(&mut entry).map_err(|e| fault(format!("{WEIGHTS} is damaged ({e})")))
    }

    /// Lets go of the mapping's pages: what has been copied to a device need not stay in memory. They are read again when touched.
    pub(crate) fn release_pages(&self) {
        // SAFETY: the mapping is read-only and backed by the file, so dropped pages come back with the same contents. Where the
        // system refuses, the pages stay.
        #[cfg(unix)]
        drop(unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) });
    }

    fn check_ptx(&self) -> Result<(), String> {
        for (kernel, arch) in launches(&self.plan) {
            self.ptx(kernel, arch).ok_or_else(|| format!("the archive holds no PTX of kernel {kernel} for {arch}"))?;
        }
        Ok(())
    }
}

/// The kernels and chips that a plan has launches for.
fn launches(plan: &Plan) -> impl Iterator<Item = (&str, &str)> {
    plan.kernels.iter().flat_map(|k| k.launches.keys().map(|arch| (k.name.as_str(), arch.as_str())))
}

fn ptx_name(kernel: &str, arch: &str) -> String {
    format!("kernels/{kernel}.{arch}.ptx")
}

fn entry<'a>(t: &'a StoredTensor<'a>) -> Entry<'a> {
    let (name, shape) = (t.name.to_string(), t.shape.to_vec());
    Entry { name, dtype: file_dtype(t.dtype), shape, data: Box::new(|| Ok(Cow::Borrowed(t.bytes))) }
}

/// Adds an entry: uncompressed, of a fixed time, its data aligned so that a mapping of it is.
fn add<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    path: &Path,
    name: &str,
    size: u64,
    fill: impl FnOnce(&mut ZipWriter<W>) -> Result<(), Error>,
) -> Result<(), Error> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        .large_file(size > LARGE)
        .with_alignment(64);
    zip.start_file(name, options).map_err(|e| Error::io(path, std::io::Error::other(e)))?;
    fill(zip)
}

/// Where each entry's bytes lie.
fn read_entries(map: &Mmap) -> Result<BTreeMap<String, Range<usize>>, String> {
    let fault = |e: &dyn std::fmt::Display| format!("not a plan file ({e})");
    let mut archive = ZipArchive::new(Cursor::new(&map[..])).map_err(|e| fault(&e))?;
    let mut entries = BTreeMap::new();
    for i in 0..archive.len() {
        let mut file = archive.by_index(i).map_err(|e| fault(&e))?;
        let name = file.name().map_err(|e| fault(&e))?.into_owned();
        if file.compression() != CompressionMethod::Stored || file.encrypted() || file.compressed_size() != file.size() {
            return Err(format!("entry {name} is not stored as it is"));
        }
        let start = file.data_start().and_then(|s| usize::try_from(s).ok());
        let range = start.zip(usize::try_from(file.size()).ok()).and_then(|(s, n)| Some(s..s.checked_add(n)?));
        let range = range.filter(|r| r.end <= map.len()).ok_or_else(|| format!("entry {name} ends outside the file"))?;
        if name != WEIGHTS {
            checksum(&mut file).map_err(|e| format!("entry {name} is damaged ({e})"))?;
        }
        if entries.insert(name.clone(), range).is_some() {
            return Err(format!("entry {name} is there twice"));
        }
    }
    Ok(entries)
}

/// Reads an entry to its end, where the reader compares the checksum.
fn checksum(file: &mut impl Read) -> Result<(), std::io::Error> {
    std::io::copy(file, &mut std::io::sink()).map(|_| ())
}

fn parse(json: &[u8]) -> Result<Plan, String> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u32,
    }
    // The version first: another one may differ in anything else.
    let version: Version = serde_json::from_slice(json).map_err(|e| format!("{PLAN} is no plan ({e})"))?;
    if version.schema != SCHEMA {
        return Err(format!("the plan has schema {}, this runtime reads {SCHEMA}", version.schema));
    }
    serde_json::from_slice(json).map_err(|e| format!("{PLAN} is no plan ({e})"))
}
