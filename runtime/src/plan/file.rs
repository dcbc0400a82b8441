//! Plan files: zip archives of uncompressed entries.

use super::{Plan, SCHEMA, verify};
use crate::Error;
use crate::convert::file_dtype;
use crate::files::{Input, Replaces, Take, write_aside};
use crate::tensors::{Directory, Entry, FOR_TRANSFORMERS, Place, write_entries};
use fp8c_kernels::DType;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufReader, Seek, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

const PLAN: &str = "plan.json";
const WEIGHTS: &str = "weights.safetensors";
const CONSTANTS: &str = "constants.safetensors";

/// Bytes of an entry that are worth a 64-bit size field.
const LARGE: u64 = 0xF000_0000;
/// Most bytes of the plan or of one kernel's PTX; real ones stay far below.
const MAX_TEXT: u64 = 1 << 30;

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

/// An open plan file: the verified plan, its PTX, and the places of its stored tensors. Cheap to clone.
#[derive(Clone)]
pub struct PlanFile {
    plan: Arc<Plan>,
    input: Arc<Input>,
    entries: Arc<BTreeMap<String, Stored>>,
    /// By the entry's name.
    ptx: Arc<BTreeMap<String, String>>,
    weights: Option<Directory>,
    constants: Option<Directory>,
}

/// An entry of the archive.
#[derive(Clone, Debug)]
struct Stored {
    range: Range<u64>,
    crc32: u32,
}

/// The tensors that a plan file stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// What `Init::Stored` names.
    Weights,
    /// Tensors of role `Constant`.
    Constants,
}

impl Section {
    fn entry(self) -> &'static str {
        match self {
            Section::Weights => WEIGHTS,
            Section::Constants => CONSTANTS,
        }
    }
}

impl PlanFile {
    /// Opens a plan file, reads its plan and verifies it. The checksums of the plan and its PTX are compared here, those of stored tensors when
    /// a session takes them.
    ///
    /// # Errors
    /// [`Error::Misplaced`], [`Error::Io`], or [`Error::Plan`] with one sentence about what is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let input = Input::open(path)?;
        let fault = |reason| Error::Plan { path: path.display().to_string(), reason };
        let entries = read_entries(&input).map_err(fault)?;
        let text = |name: &str, stored: &Stored| read_text(&input, stored)?.map_err(|e| fault(format!("entry {name} {e}")));
        let json = entries.get(PLAN).ok_or_else(|| fault(format!("the archive holds no {PLAN}")))?;
        let plan = parse(&text(PLAN, json)?).map_err(fault)?;
        verify(&plan).map_err(|reason| fault(format!("the plan is invalid: {reason}")))?;
        let directory = |name: &str| match entries.get(name) {
            Some(stored) => Directory::read(&input, stored.range.clone())?.map(Some).map_err(|e| fault(format!("{name}: {e}"))),
            None => Ok(None),
        };
        let (weights, constants) = (directory(WEIGHTS)?, directory(CONSTANTS)?);
        let mut ptx = BTreeMap::new();
        for (name, stored) in entries.iter().filter(|(name, _)| name.ends_with(".ptx")) {
            let text = String::from_utf8(text(name, stored)?).map_err(|e| fault(format!("entry {name} is no text ({e})")))?;
            ptx.insert(name.clone(), text);
        }
        let opened =
            PlanFile { plan: Arc::new(plan), input: Arc::new(input), entries: Arc::new(entries), ptx: Arc::new(ptx), weights, constants };
        opened.check_ptx().map_err(fault)?;
        Ok(opened)
    }

    /// Verifies and writes a plan file, aside and renamed. Same contents, same bytes.
    ///
    /// # Errors
    /// [`Error::Plan`] when the plan does not verify or lacks PTX that it refers to, [`Error::Kept`] or [`Error::Misplaced`] where anything
    /// but an earlier plan is, [`Error::Io`]; nothing is written then.
    pub fn write(path: impl AsRef<Path>, contents: &Contents<'_>) -> Result<(), Error> {
        let path = path.as_ref();
        let fault = |reason| Error::Plan { path: path.display().to_string(), reason };
        verify(contents.plan).map_err(|reason| fault(format!("the plan is invalid: {reason}")))?;
        let json = serde_json::to_vec(contents.plan).map_err(|e| fault(e.to_string()))?;
        for (kernel, arch) in launches(contents.plan) {
            let key = (kernel.to_string(), arch.to_string());
            contents.ptx.get(&key).ok_or_else(|| fault(format!("there is no PTX of kernel {kernel} for {arch}")))?;
        }
        Replaces::Plan.check(path)?;
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
                    add(&mut zip, path, name, size, |out| write_entries(out, path, FOR_TRANSFORMERS, tensors.iter().map(entry).collect()))?;
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
        self.input.path()
    }

    /// The PTX of a kernel for a chip.
    pub fn ptx(&self, kernel: &str, arch: &str) -> Option<&str> {
        self.ptx.get(&ptx_name(kernel, arch)).map(String::as_str)
    }

    /// Bytes of each entry of the archive.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        self.entries.iter().map(|(name, stored)| (name.as_str(), stored.range.end - stored.range.start))
    }

    /// Where a stored tensor lies, in the plan's orientation.
    pub(crate) fn place(&self, section: Section, name: &str) -> Option<Place> {
        let directory = match section {
            Section::Weights => &self.weights,
            Section::Constants => &self.constants,
        };
        directory.as_ref()?.place(name)
    }

    /// Reads stored tensors as their checksum is compared: `take` gets the number of a range and its bytes, piece by piece.
    ///
    /// # Errors
    /// [`Error::Plan`] when they are damaged: what was taken must not be used then. [`Error::Io`], or what `take` gives.
    pub(crate) fn take(&self, section: Section, parts: &[Range<u64>], take: &mut Take<'_>) -> Result<(), Error> {
        let Some(stored) = self.entries.get(section.entry()) else { return Ok(()) };
        let mut sum = crc32fast::Hasher::new();
        self.input.pass(stored.range.clone(), &mut |bytes| sum.update(bytes), parts, take)?;
        if sum.finalize() == stored.crc32 {
            return Ok(());
        }
        Err(Error::Plan { path: self.path().display().to_string(), reason: format!("entry {} is damaged", section.entry()) })
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
fn read_entries(input: &Input) -> Result<BTreeMap<String, Stored>, String> {
    let fault = |e: &dyn std::fmt::Display| format!("not a plan file ({e})");
    let mut archive = ZipArchive::new(BufReader::new(input.section(0..input.bytes()))).map_err(|e| fault(&e))?;
    let mut entries = BTreeMap::new();
    for i in 0..archive.len() {
        let file = archive.by_index(i).map_err(|e| fault(&e))?;
        let name = file.name().map_err(|e| fault(&e))?.into_owned();
        if file.compression() != CompressionMethod::Stored || file.encrypted() || file.compressed_size() != file.size() {
            return Err(format!("entry {name} is not stored as it is"));
        }
        let range = file.data_start().and_then(|start| Some(start..start.checked_add(file.size())?));
        let range = range.filter(|r| r.end <= input.bytes()).ok_or_else(|| format!("entry {name} ends outside the file"))?;
        if entries.insert(name.clone(), Stored { range, crc32: file.crc32() }).is_some() {
            return Err(format!("entry {name} is there twice"));
        }
    }
    Ok(entries)
}

/// Reads an entry; inside, what is wrong with it.
fn read_text(input: &Input, stored: &Stored) -> Result<Result<Vec<u8>, &'static str>, Error> {
    if stored.range.end - stored.range.start > MAX_TEXT {
        return Ok(Err("is larger than any plan's"));
    }
    let bytes = input.read(stored.range.clone())?;
    Ok(if crc32fast::hash(&bytes) == stored.crc32 { Ok(bytes) } else { Err("is damaged (its checksum is another)") })
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
