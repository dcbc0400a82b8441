//! Checkpoints: a folder for each, complete or absent.
//!
//! `DIR/step-000123/` holds `model.safetensors` (every parameter and buffer by PyTorch's name, in its orientation, floats as f32),
//! `optimizer.safetensors` (state by `NAME.SLOT`, as the plan stores it) and `state.json` (the rest, and the sizes of the other two).
//! A checkpoint is written into a hidden sibling, synced and renamed, so a crash at any point leaves the previous ones as they were.

use crate::Error;
use crate::files::{sync_folder, write_aside};
use crate::plan::{Fingerprint, Plan};
use crate::session::{Scaler, Session};
use crate::tensors::{Entry, TensorFile, View, write_entries};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Version of `state.json`.
const VERSION: u32 = 1;

/// Where a training stands: what `state.json` holds beside the loss scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Samples consumed.
    pub samples: u64,
    /// Steps skipped.
    pub skipped: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    #[serde(flatten)]
    position: Position,
    /// Updates made; the bias corrections' number.
    updates: u64,
    loss_scale: Scaler,
    seed: u64,
    model: String,
    fingerprint: Fingerprint,
    /// Bytes of each file, by which a complete checkpoint is known.
    files: BTreeMap<String, u64>,
}

/// Saves a checkpoint and gives its folder.
///
/// # Errors
/// [`Error::Io`]; the checkpoints that were there stay as they were.
pub fn save(session: &Session, folder: &Path, position: Position) -> Result<PathBuf, Error> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    remove_leftovers(folder);
    let name = format!("step-{:06}", position.step);
    let aside = folder.join(format!(".{name}.partial"));
    fs::create_dir(&aside).map_err(|e| Error::io(&aside, e))?;
    write(session, &aside, position).inspect_err(|_| drop(fs::remove_dir_all(&aside)))?;
    sync_folder(&aside).map_err(|e| Error::io(&aside, e))?;
    let place = folder.join(&name);
    let old = folder.join(format!("{name}.old"));
    if place.exists() {
        // A crash between the two renames leaves `.old`, which `latest` also finds.
        fs::rename(&place, &old).map_err(|e| Error::io(&place, e))?;
    }
    fs::rename(&aside, &place).map_err(|e| Error::io(&place, e))?;
    sync_folder(folder).map_err(|e| Error::io(folder, e))?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(|e| Error::io(&old, e))?;
    }
    Ok(place)
}

fn write(session: &Session, folder: &Path, position: Position) -> Result<(), Error> {
    let plan = session.plan();
    let mut files = BTreeMap::new();
    for (name, entries) in [(MODEL, parameter_entries(session)), (OPTIMIZER, state_entries(session))] {
        let path = folder.join(name);
        write_aside(&path, |out| write_entries(out, &path, entries))?;
        files.insert(name.to_string(), fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len());
    }
    let (loss_scale, updates) = session.progress();
    let state = State {
        version: VERSION,
        position,
        updates,
        loss_scale,
        seed: session.seed(),
        model: plan.model.clone(),
        fingerprint: plan.fingerprint.clone(),
        files,
    };
    let path = folder.join(STATE);
    let json = serde_json::to_vec_pretty(&state).map_err(|e| Error::io(&path, std::io::Error::other(e)))?;
    write_aside(&path, |out| std::io::Write::write_all(out, &json).map_err(|e| Error::io(&path, e)))
}

fn parameter_entries(session: &Session) -> Vec<Entry<'_>> {
    let entry = |p| {
        let p: &crate::plan::Parameter = p;
        let read = move || Ok(Cow::Owned(session.read_parameter(p)?.bytes));
        Entry { name: p.name.clone(), dtype: session.outside_dtype(p), shape: p.shape.clone(), data: Box::new(read) }
    };
    session.plan().parameters.iter().map(entry).collect()
}

fn state_entries(session: &Session) -> Vec<Entry<'_>> {
    let plan = session.plan();
    let mut entries: Vec<Entry<'_>> = vec![];
    for p in &plan.parameters {
        for (slot, &id) in p.state.iter().enumerate() {
            let t = plan.tensor(id);
            let data = Box::new(move || Ok(Cow::Owned(session.read_tensor(id)?)));
            let (name, dtype) = (state_name(&p.name, slot), crate::convert::file_dtype(t.dtype));
            entries.push(Entry { name, dtype, shape: t.shape.clone(), data });
        }
    }
    entries
}

fn state_name(parameter: &str, slot: usize) -> String {
    format!("{parameter}.{slot}")
}

/// The newest complete checkpoint of a folder; `None` when there is none, or no folder.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>, Error> {
    Ok(complete(folder)?.pop().map(|(_, path)| path))
}

/// Complete checkpoints, oldest first.
fn complete(folder: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io(folder, e)),
    };
    let mut found = vec![];
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("step-") else { continue };
        let number = rest.strip_suffix(".old").unwrap_or(rest);
        if let (Ok(step), Ok(_)) = (number.parse::<u64>(), read_state(&entry.path())) {
            // At one step the plain name sorts after `.old`.
            found.push((step, !rest.ends_with(".old"), entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(step, _, path)| (step, path)).collect())
}

/// Reads `state.json` and compares the sizes it states.
fn read_state(path: &Path) -> Result<State, Error> {
    let fault = |reason: String| Error::Checkpoint { path: path.to_path_buf(), reason };
    let file = path.join(STATE);
    let json = fs::read(&file).map_err(|e| Error::io(&file, e))?;
    let state: State = serde_json::from_slice(&json).map_err(|e| fault(format!("{STATE} is damaged ({e})")))?;
    if state.version != VERSION {
        return Err(fault(format!("the checkpoint has version {}, this runtime reads {VERSION}", state.version)));
    }
    let counts = [state.position.step, state.position.samples, state.position.skipped, state.updates];
    if counts.iter().any(|&n| n > 1 << 53) || !state.loss_scale.scale.is_normal() || state.loss_scale.scale < 0.0 {
        return Err(fault(format!("{STATE} holds numbers that no training reaches")));
    }
    for name in [MODEL, OPTIMIZER] {
        let bytes = fs::metadata(path.join(name)).map(|m| m.len()).ok();
        if bytes != state.files.get(name).copied() || bytes.is_none() {
            return Err(fault(format!("{name} is missing or cut off")));
        }
    }
    Ok(state)
}

/// Loads a checkpoint into a session: parameters, optimizer state, loss scale. The session is untouched unless all of it fits.
///
/// # Errors
/// [`Error::Checkpoint`] for a checkpoint that is damaged, of another model or of another seed.
pub fn load(session: &mut Session, path: &Path) -> Result<Position, Error> {
    let fault = |reason: String| Error::Checkpoint { path: path.to_path_buf(), reason };
    let state = read_state(path)?;
    if state.fingerprint.model != session.plan().fingerprint.model {
        return Err(fault(format!("the checkpoint belongs to another model ({})", state.model)));
    }
    if state.seed != session.seed() {
        return Err(fault(format!("the checkpoint was made with seed {}, this training has seed {}", state.seed, session.seed())));
    }
    let model = TensorFile::open(&path.join(MODEL))?;
    let optimizer = TensorFile::open(&path.join(OPTIMIZER))?;
    check(session.plan(), &model, &optimizer).map_err(fault)?;
    read_model(session, &model)?;
    let plan = session.shared_plan();
    for p in &plan.parameters {
        for (slot, &id) in p.state.iter().enumerate() {
            if let Some(view) = optimizer.get(&state_name(&p.name, slot)) {
                session.write_tensor(id, view.bytes)?;
            }
        }
    }
    session.set_progress(state.loss_scale, state.updates);
    Ok(state.position)
}

/// Loads the parameters alone, for `run` and `export`: from a checkpoint, the newest of a folder of checkpoints, or any safetensors
/// file with PyTorch's names.
///
/// # Errors
/// [`Error::Data`] when a parameter is missing or does not fit.
pub fn load_parameters(session: &mut Session, path: &Path) -> Result<(), Error> {
    read_model(session, &TensorFile::open(&model_file(path)?)?)
}

/// The file that [`load_parameters`] reads.
///
/// # Errors
/// [`Error::Checkpoint`] for a folder without a complete checkpoint.
pub fn model_file(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.join(MODEL).exists() {
        return Ok(path.join(MODEL));
    }
    let none = || Error::Checkpoint { path: path.to_path_buf(), reason: "there is no complete checkpoint in this folder".into() };
    Ok(latest(path)?.ok_or_else(none)?.join(MODEL))
}

fn read_model(session: &mut Session, model: &TensorFile) -> Result<(), Error> {
    let plan = session.shared_plan();
    for p in &plan.parameters {
        let view = model.get(&p.name).ok_or_else(|| Error::data(&p.name, "this parameter is missing from the weights"))?;
        session.set_parameter(&p.name, &view)?;
    }
    Ok(())
}

/// Compares what a checkpoint holds with what the plan needs.
fn check(plan: &Plan, model: &TensorFile, optimizer: &TensorFile) -> Result<(), String> {
    let shaped = |view: Option<View<'_>>, name: &str, shape: &[u64]| match view {
        None => Err(format!("{name} is missing")),
        Some(v) if v.shape != shape => Err(format!("{name} has shape {:?}, the plan {shape:?}", v.shape)),
        Some(v) => Ok(v.dtype),
    };
    for p in &plan.parameters {
        shaped(model.get(&p.name), &p.name, &p.shape)?;
        for (slot, &id) in p.state.iter().enumerate() {
            let (name, t) = (state_name(&p.name, slot), plan.tensor(id));
            let dtype = shaped(optimizer.get(&name), &name, &t.shape)?;
            if dtype != crate::convert::file_dtype(t.dtype) {
                return Err(format!("optimizer state {name} is {dtype}, the plan's is {}", t.dtype));
            }
        }
    }
    Ok(())
}

/// Removes the oldest complete checkpoints until `keep` are left.
///
/// # Errors
/// [`Error::Io`].
pub fn prune(folder: &Path, keep: usize) -> Result<(), Error> {
    let all = complete(folder)?;
    for (_, path) in all.iter().take(all.len().saturating_sub(keep.max(1))) {
        fs::remove_dir_all(path).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}

/// Removes what interrupted saves left. Failing to is harmless.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".step-") && name.ends_with(".partial") {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
