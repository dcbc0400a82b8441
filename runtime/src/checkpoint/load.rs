//! Loading: every byte passes its checksum as it is used.

use super::store::checkpoints;
use super::sums::{SUMS, Sums};
use super::{MODEL, OPTIMIZER, STATE, Standing, State, VERSION, state_name};
use crate::Error;
use crate::files::Input;
use crate::plan::{Plan, TensorId};
use crate::session::Session;
use crate::tensors::{HostTensor, TensorFile, View};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::Path;

/// Why a checkpoint was not loaded.
pub(super) enum Fault {
    /// It is not what was saved; an older one may do.
    Damaged(String),
    /// It is sound, and not for this session; or the system would not let it be read.
    Refused(Error),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        match e {
            Error::Io { path, source } if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
                Fault::Damaged(format!("{}: {source}", path.file_name().unwrap_or_default().display()))
            }
            Error::Data { name, reason, .. } => Fault::Damaged(format!("{name}: {reason}")),
            Error::Misplaced { .. } => Fault::Damaged(e.to_string()),
            other => Fault::Refused(other),
        }
    }
}

impl Fault {
    fn of(self, path: &Path) -> Error {
        match self {
            Fault::Damaged(reason) => Error::Unsound { path: path.to_path_buf(), reason: format!("the checkpoint is damaged ({reason})") },
            Fault::Refused(e) => e,
        }
    }
}

/// Loads a checkpoint into a session: parameters, optimizer state, loss scale.
///
/// # Errors
/// [`Error::Checkpoint`] for a checkpoint of another model, seed or version: the session is untouched. [`Error::Unsound`] for one that is
/// damaged, [`Error::Io`]: the session's values are not to be used then.
pub fn load(session: &mut Session, path: &Path) -> Result<Standing, Error> {
    load_or_fault(session, path).map_err(|fault| fault.of(path))
}

pub(super) fn load_or_fault(session: &mut Session, path: &Path) -> Result<Standing, Fault> {
    let refused = |reason: String| Fault::Refused(Error::Checkpoint { path: path.to_path_buf(), reason });
    let (sums, state) = read_state(path)?;
    let plan = session.shared_plan();
    if state.fingerprint.model != plan.fingerprint.model {
        return Err(refused(format!("the checkpoint belongs to another model ({})", state.model)));
    }
    if state.seed != session.seed() {
        return Err(refused(format!("the checkpoint was made with seed {}, this training has seed {}", state.seed, session.seed())));
    }
    let model = TensorFile::open(&path.join(MODEL))?;
    let optimizer = TensorFile::open(&path.join(OPTIMIZER))?;
    // Another optimizer's state means something else; this one's begins anew.
    let same_optimizer = state.optimizer == plan.optimizer;
    let fits = parameters_fit(&plan, &model).and_then(|()| if same_optimizer { states_fit(&plan, &optimizer) } else { Ok(()) });
    if let Err(reason) = fits {
        // Only of a sound file can be said that it does not fit.
        pass(&sums, MODEL, &model, &mut |_, _| Ok(()))?;
        pass(&sums, OPTIMIZER, &optimizer, &mut |_, _| Ok(()))?;
        return Err(refused(reason));
    }
    take_parameters(&plan, &sums, &model, &mut |name, view| session.set_parameter(name, view))?;
    let mut slots: HashMap<String, TensorId> = HashMap::new();
    for p in &plan.parameters {
        for (slot, &id) in p.state.iter().enumerate() {
            slots.insert(state_name(&p.name, slot), id);
            session.zero_tensor(id)?;
        }
    }
    pass(&sums, OPTIMIZER, &optimizer, &mut |name, view| match slots.get(name).filter(|_| same_optimizer) {
        Some(&id) => session.write_tensor(id, view.bytes),
        None => Ok(()),
    })?;
    session.set_progress(state.loss_scale, if same_optimizer { state.updates } else { 0 }, state.grad_norm);
    Ok(state.standing)
}

/// Reads the sums and `state.json`.
fn read_state(path: &Path) -> Result<(Sums, State), Fault> {
    let json = Input::open(path.join(STATE))?.read_all()?;
    let sums = match Sums::read(path) {
        Ok(sums) => sums.map_err(Fault::Damaged)?,
        // Versions before checksums are told apart from damage.
        Err(e) => return Err(earlier_version(path, &json).unwrap_or_else(|| e.into())),
    };
    sums.compare(STATE, Sha256::new_with_prefix(&json)).map_err(Fault::Damaged)?;
    let state: State = serde_json::from_slice(&json).map_err(|e| Fault::Damaged(format!("{STATE} is no state ({e})")))?;
    let position = state.standing.position;
    let counts = [position.step, position.samples, position.skipped, state.updates];
    if state.version != VERSION
        || counts.iter().any(|&n| n > 1 << 53)
        || !state.loss_scale.scale.is_normal()
        || state.loss_scale.scale < 0.0
        || state.grad_norm.is_some_and(|norm| !norm.is_finite() || norm < 0.0)
    {
        return Err(Fault::Damaged(format!("{STATE} holds what no training writes")));
    }
    Ok((sums, state))
}

fn earlier_version(path: &Path, json: &[u8]) -> Option<Fault> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(json).ok().filter(|v: &Version| v.version != VERSION)?;
    let reason = format!("the checkpoint has version {version}, this runtime reads {VERSION}");
    Some(Fault::Refused(Error::Checkpoint { path: path.to_path_buf(), reason }))
}

/// Reads a file of a checkpoint once: its tensors go to `take`, its bytes through the checksum.
fn pass(sums: &Sums, name: &str, file: &TensorFile, take: &mut dyn FnMut(&str, &View<'_>) -> Result<(), Error>) -> Result<(), Fault> {
    let mut digest = Sha256::new();
    // What cannot be taken may be so for damage, which the digest of the whole file tells.
    let mut first = None;
    file.each(&mut |bytes| digest.update(bytes), &mut |name, view| {
        if first.is_none() {
            first = take(name, view).err();
        }
        Ok(())
    })?;
    sums.compare(name, digest).map_err(Fault::Damaged)?;
    first.map_or(Ok(()), |e| Err(Fault::Refused(e)))
}

fn take_parameters(plan: &Plan, sums: &Sums, model: &TensorFile, take: Take<'_>) -> Result<(), Fault> {
    let known = |name: &str| plan.parameters.iter().any(|p| p.name == name);
    pass(sums, MODEL, model, &mut |name, view| if known(name) { take(name, view) } else { Ok(()) })
}

/// Loads the parameters alone, for `run` and `eval`: from a checkpoint, the newest sound one of a folder of checkpoints, or any
/// safetensors file with PyTorch's names. `say` is told of damaged ones that were passed over.
///
/// # Errors
/// [`Error::Data`] when a parameter is missing or does not fit, [`Error::Unsound`] for a checkpoint that is damaged or a folder without a
/// sound one, [`Error::Io`].
pub fn load_parameters(session: &mut Session, path: &Path, say: &mut dyn FnMut(String)) -> Result<(), Error> {
    let plan = session.shared_plan();
    each_parameter(&plan, path, say, &mut |name, view| session.set_parameter(name, view))
}

/// Reads the parameters alone, from where [`load_parameters`] takes them: in PyTorch's orientation, by name.
///
/// # Errors
/// As [`load_parameters`].
pub fn read_parameters(plan: &Plan, path: &Path, say: &mut dyn FnMut(String)) -> Result<BTreeMap<String, HostTensor>, Error> {
    let mut read = BTreeMap::new();
    each_parameter(plan, path, say, &mut |name, view| {
        let (dtype, shape, bytes) = (view.dtype, view.shape.clone(), view.bytes.to_vec());
        read.insert(name.to_string(), HostTensor { name: name.to_string(), dtype, shape, bytes });
        Ok(())
    })?;
    Ok(read)
}

/// What takes the parameters, one by one; it may be given those of a checkpoint that turns out to be damaged, and then those of an older one.
type Take<'a> = &'a mut dyn FnMut(&str, &View<'_>) -> Result<(), Error>;

fn each_parameter(plan: &Plan, path: &Path, say: &mut dyn FnMut(String), take: Take<'_>) -> Result<(), Error> {
    if !path.is_dir() {
        return parameters_of_file(plan, &TensorFile::open(path)?, take);
    }
    let holds = |name: &str| path.join(name).exists();
    if holds(STATE) || holds(SUMS) {
        return parameters_of(plan, path, take).map_err(|fault| fault.of(path));
    }
    if holds(MODEL) {
        return parameters_of_file(plan, &TensorFile::open(&path.join(MODEL))?, take);
    }
    let all = checkpoints(path)?;
    for (_, checkpoint) in all.iter().rev() {
        match parameters_of(plan, checkpoint, take) {
            Ok(()) => return Ok(()),
            Err(Fault::Damaged(reason)) => say(format!("{} is damaged ({reason}); an older one is taken", checkpoint.display())),
            Err(Fault::Refused(e)) => return Err(e),
        }
    }
    let reason = if all.is_empty() {
        "there is no checkpoint in this folder".into()
    } else {
        format!("none of its {} checkpoints is sound", all.len())
    };
    Err(Error::Unsound { path: path.to_path_buf(), reason })
}

fn parameters_of(plan: &Plan, checkpoint: &Path, take: Take<'_>) -> Result<(), Fault> {
    let (sums, state) = read_state(checkpoint)?;
    let model = TensorFile::open(&checkpoint.join(MODEL))?;
    if let Err(reason) = parameters_fit(plan, &model) {
        pass(&sums, MODEL, &model, &mut |_, _| Ok(()))?;
        let of = if state.fingerprint.model == plan.fingerprint.model { "" } else { "the checkpoint belongs to another model: " };
        return Err(Fault::Refused(Error::Checkpoint { path: checkpoint.to_path_buf(), reason: format!("{of}{reason}") }));
    }
    take_parameters(plan, &sums, &model, take)
}

fn parameters_of_file(plan: &Plan, model: &TensorFile, take: Take<'_>) -> Result<(), Error> {
    parameters_fit(plan, model).map_err(|reason| Error::data(model.path().display().to_string(), reason))?;
    for p in &plan.parameters {
        let t = model.read(&p.name)?;
        take(&p.name, &View { dtype: t.dtype, shape: t.shape, bytes: &t.bytes })?;
    }
    Ok(())
}

fn parameters_fit(plan: &Plan, model: &TensorFile) -> Result<(), String> {
    plan.parameters.iter().try_for_each(|p| shaped(model, &p.name, &p.shape).map(|_| ()))
}

fn states_fit(plan: &Plan, optimizer: &TensorFile) -> Result<(), String> {
    for p in &plan.parameters {
        for (slot, &id) in p.state.iter().enumerate() {
            let (name, t) = (state_name(&p.name, slot), plan.tensor(id));
            let dtype = shaped(optimizer, &name, &t.shape)?;
            if dtype != crate::convert::file_dtype(t.dtype) {
                return Err(format!("optimizer state {name} is {dtype}, the plan's is {}", t.dtype));
            }
        }
    }
    Ok(())
}

/// The element format of a tensor that has the shape it should have.
fn shaped(file: &TensorFile, name: &str, shape: &[u64]) -> Result<safetensors::Dtype, String> {
    match file.about(name) {
        None => Err(format!("{name} is missing")),
        Some((_, found)) if found != shape => Err(format!("{name} has shape {found:?}, the plan {shape:?}")),
        Some((dtype, _)) => Ok(dtype),
    }
}
