//! The weights of a folder.

use crate::Error;
use crate::graph::Init;
use crate::import::json::{Places, safetensor};
use crate::import::onnx::external::ExternalFiles;
use fp8c_runtime::files::{Input, parent};
use fp8c_runtime::tensors::TensorFile;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Modules that a model may be saved with or without.
const OUTERMOST: [&str; 5] = ["model.", "transformer.", "gpt_neox.", "bert.", "roberta."];

/// Where the tensors of a folder lie, and which of them a model has taken.
pub struct Weights {
    /// The file of each tensor, as seen from the JSON model's folder.
    tensors: BTreeMap<String, String>,
    files: ExternalFiles,
    places: Places,
}

impl Weights {
    /// Opens a folder's weights for a JSON model that will lie in `place`.
    ///
    /// # Errors
    /// [`Error::Model`] for a folder without safetensors, [`Error::Usage`] when they are not inside `place`, [`Error::Runtime`].
    pub fn open(folder: &Path, place: &Path) -> Result<Self, Error> {
        let io = |path: &Path, source| Error::Io { path: path.into(), source };
        let inside = place.canonicalize().map_err(|e| io(place, e))?;
        let mut tensors = BTreeMap::new();
        for (file, names) in files(folder)? {
            // A link of a download cache leads to where the file really is.
            let real = file.canonicalize().map_err(|e| io(&file, e))?;
            let seen = real.strip_prefix(&inside).map_err(|_| {
                let (real, place) = (parent(&real).display(), inside.display());
                Error::Usage(format!("the weights lie in {real}, and the JSON model would lie in {place}; a model refers to weights in its own folder or in one below it"))
            })?;
            let seen = seen.to_string_lossy().into_owned();
            tensors.extend(names.into_iter().map(|name| (name, seen.clone())));
        }
        Ok(Weights { tensors, files: ExternalFiles::new(place), places: Places::new() })
    }

    /// The first value of a parameter.
    ///
    /// # Errors
    /// A sentence without a subject, when no tensor has its name or the one that has is of another shape.
    pub fn take(&mut self, name: &str, shape: &[u64]) -> Result<Init, String> {
        let tensor = self.tensor(name).ok_or_else(|| format!("has no weight {name} in its safetensors files"))?;
        let file = self.tensors[&tensor].clone();
        let init = safetensor(&file, &tensor, shape, &mut self.files).map_err(|e| format!("has the weight {name} that {e}"))?;
        self.places.insert(name.to_string(), (file, tensor));
        Ok(init)
    }

    /// Whether there is a tensor for a parameter.
    pub fn has(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }

    /// The tensor that a parameter is stored as: with its outermost module, or without.
    fn tensor(&self, name: &str) -> Option<String> {
        let bare = OUTERMOST.iter().find_map(|prefix| name.strip_prefix(prefix)).map(str::to_string);
        let candidates = std::iter::once(name.to_string()).chain(bare);
        candidates.into_iter().find(|candidate| self.tensors.contains_key(candidate))
    }

    /// Where the parameters that were taken lie.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// What of the folder is not used.
    pub fn note(&self) -> Option<String> {
        const SHOWN: usize = 3;
        let used: BTreeSet<&str> = self.places.values().map(|(_, tensor)| tensor.as_str()).collect();
        let idle: Vec<&str> = self.tensors.keys().map(String::as_str).filter(|name| !used.contains(name)).collect();
        let shown = idle.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        let more = idle.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!idle.is_empty()).then(|| format!("of the folder's tensors these are not used: {shown}{more}"))
    }
}

/// The safetensors files of a folder, each with the names of its tensors.
fn files(folder: &Path) -> Result<Vec<(PathBuf, Vec<String>)>, Error> {
    let index = folder.join(INDEX);
    let fail = |reason: String| Error::Model { path: folder.display().to_string(), reason };
    if !index.is_file() {
        let single = folder.join(SINGLE);
        if !single.is_file() {
            return Err(fail(format!("has no {SINGLE}; weights in other formats have to be saved as safetensors first")));
        }
        let names = TensorFile::open(&single)?.names();
        return Ok(vec![(single, names)]);
    }
    let json: serde_json::Value =
        serde_json::from_slice(&Input::open(&index)?.read_all()?).map_err(|e| fail(format!("has a {INDEX} that cannot be read: {e}")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| fail(format!("has a {INDEX} without a weight_map")))?;
    let mut files: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|f| !f.contains(['/', '\\']) && *f != "..");
        let file = file.ok_or_else(|| fail(format!("has a {INDEX} that puts {tensor} outside of it")))?;
        files.entry(file).or_default().push(tensor.clone());
    }
    Ok(files.into_iter().map(|(file, names)| (folder.join(file), names)).collect())
}
