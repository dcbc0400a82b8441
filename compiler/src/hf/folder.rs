//! Trained weights as a Hugging Face folder.

use super::config::Config;
use crate::Error;
use crate::export::Trained;
use crate::graph::Init;
use crate::import::model::Model;
use fp8c_runtime::files::{Input, parent};
use fp8c_runtime::tensors::{HostTensor, write_for_transformers};
use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// Endings of files that hold weights, or say where they lie: those of another training are not copied.
const OF_WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "h5", "msgpack", "gguf", "onnx", "index.json"];

/// The folder that a model's weights came from, if it is one of a Hugging Face model.
pub fn source_of(model: &Model) -> Option<PathBuf> {
    let mut folders = model.initializers.iter().filter_map(|i| match &i.init {
        Init::File { path, .. } if i.declared_parameter => Some(parent(path)),
        _ => None,
    });
    folders.find(|folder| folder.join(CONFIG).is_file()).map(Path::to_path_buf)
}

/// Writes a folder that transformers loads: the source's configuration and tokenizer, and the trained weights in f32. What was not trained
/// comes from the source. The folder appears whole or not at all.
///
/// # Errors
/// [`Error::Usage`] where something other than an empty folder is in the way, [`Error::Runtime`], [`Error::Io`].
pub fn write(source: &Path, model: &Model, trained: &Trained, out: &Path) -> Result<(), Error> {
    let io = |path: &Path, source| Error::Io { path: path.into(), source };
    free(out)?;
    let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let aside = tempfile::Builder::new().prefix(&format!(".{name}.")).tempdir_in(parent(out)).map_err(|e| io(out, e))?;
    copy_rest(source, aside.path())?;
    let config = Config::read(source)?.in_f32().map_err(|e| io(out, std::io::Error::other(e)))?;
    fs::write(aside.path().join(CONFIG), config).map_err(|e| io(out, e))?;
    write_for_transformers(&aside.path().join(WEIGHTS), &all(model, trained)?)?;
    if out.is_dir() {
        fs::remove_dir(out).map_err(|e| io(out, e))?;
    }
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(aside.path(), readable).map_err(|e| io(out, e))?;
    fs::rename(aside.keep(), out).map_err(|e| io(out, e))
}

/// Whether a folder may be written there.
///
/// # Errors
/// As [`write`].
pub fn free(out: &Path) -> Result<(), Error> {
    match fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Usage(format!("{} is a folder that holds something already", out.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { path: out.into(), source }),
    }
}

/// Copies what is no weight and no configuration: the tokenizer, and what else a folder says.
fn copy_rest(source: &Path, to: &Path) -> Result<(), Error> {
    let io = |path: &Path, source| Error::Io { path: path.into(), source };
    for entry in fs::read_dir(source).map_err(|e| io(source, e))? {
        let entry = entry.map_err(|e| io(source, e))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let of_weights = OF_WEIGHTS.iter().any(|ending| text.ends_with(&format!(".{ending}")));
        if text == CONFIG || text.starts_with('.') || of_weights || !entry.path().is_file() {
            continue;
        }
        let bytes = Input::open(entry.path())?.read_all()?;
        let place = to.join(&name);
        fs::write(&place, bytes).map_err(|e| io(&place, e))?;
    }
    Ok(())
}

/// Every parameter of the model: trained, or as it lies in the source.
fn all(model: &Model, trained: &Trained) -> Result<Vec<HostTensor>, Error> {
    let mut tensors = vec![];
    for i in model.initializers.iter().filter(|i| i.declared_parameter) {
        if let Some(t) = trained.get(&i.name) {
            tensors.push(t.clone());
            continue;
        }
        let data = crate::import::parameters::elements(i).map_err(|reason| Error::Model { path: model.name.clone(), reason })?;
        let bytes = data.to_f32().iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push(HostTensor { name: i.name.clone(), dtype: safetensors::Dtype::F32, shape: i.shape.clone(), bytes });
    }
    Ok(tensors)
}
