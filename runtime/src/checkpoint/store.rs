//! A folder of checkpoints and its one writer.

use super::load::{Fault, load_or_fault};
use super::lock::NAME as LOCK;
use super::sums::Sums;
use super::{Lock, MODEL, OPTIMIZER, STATE, Standing, State, VERSION, state_name};
use crate::Error;
use crate::files::{make_folder, misplaced, set_aside, sync_folder};
use crate::session::Session;
use crate::tensors::{Entry, FOR_TRANSFORMERS, write_entries};
use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

/// Being written; half of it may be there.
const PARTIAL: &str = "partial";
/// Being deleted; half of it may be gone.
const DELETED: &str = "deleted";
/// Whole, while a new one is put into its place.
const REPLACED: &str = "replaced";

/// A folder of checkpoints that this process alone writes to, for as long as this lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Nobody else had made it before.
    made: bool,
    lock: Lock,
}

impl Store {
    /// Takes a folder, making it if need be, and sweeps what a killed process left in it.
    ///
    /// # Errors
    /// [`Error::Locked`] when another training has it, [`Error::Misplaced`] when it is no folder, [`Error::Io`].
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let made = make_folder(folder)?;
        let store = Store { made, lock: Lock::of_folder(folder)?, folder: folder.to_path_buf() };
        store.sweep()?;
        Ok(store)
    }

    /// Takes a folder for a new training: one that holds checkpoints is renamed, and its new name given.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_anew(folder: &Path) -> Result<(Self, Option<PathBuf>), Error> {
        let mut earlier = Self::open(folder)?;
        if earlier.is_empty()? {
            return Ok((earlier, None));
        }
        // Under its lock, so that no other training is in there.
        let aside = set_aside(folder)?;
        earlier.folder = aside.clone();
        earlier.lock.moved(&aside);
        Ok((Self::open(folder)?, Some(aside)))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is no checkpoint, sound or not.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(checkpoints(&self.folder)?.is_empty())
    }

    /// Saves a checkpoint and gives its folder. One of the same step is replaced.
    ///
    /// # Errors
    /// [`Error::Io`]; the checkpoints that were there stay as they were.
    pub fn save(&self, session: &Session, standing: &Standing) -> Result<PathBuf, Error> {
        let name = format!("step-{:06}", standing.position.step);
        let [place, aside, old] = [name.clone(), hidden(&name, PARTIAL), hidden(&name, REPLACED)].map(|n| self.folder.join(n));
        if let Some(about) = place.symlink_metadata().ok().filter(|about| !about.is_dir()) {
            return Err(misplaced(&place, about.file_type(), "a folder"));
        }
        remove(&aside)?;
        fs::create_dir(&aside).map_err(|e| Error::io(&aside, e))?;
        write(session, &aside, standing).inspect_err(|_| drop(remove(&aside)))?;
        let renamed = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| Error::io(&place, e));
        if place.is_dir() {
            remove(&old)?;
            renamed(&place, &old)?;
        }
        renamed(&aside, &place)?;
        sync_folder(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        remove(&old)?;
        Ok(place)
    }

    /// Deletes the oldest checkpoints until `keep` are left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn prune(&self, keep: usize) -> Result<(), Error> {
        let all = checkpoints(&self.folder)?;
        for (_, path) in all.iter().take(all.len().saturating_sub(keep.max(1))) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = self.folder.join(hidden(&name, DELETED));
            remove(&aside)?;
            fs::rename(path, &aside).map_err(|e| Error::io(path, e))?;
            remove(&aside)?;
        }
        Ok(())
    }

    /// Loads the newest sound checkpoint; `None` when the folder holds none at all. Damaged ones that are newer are set aside, and `say` is
    /// told so.
    ///
    /// # Errors
    /// [`Error::Unsound`] when there are checkpoints and none is sound; [`Error::Checkpoint`] when the newest sound one is of another model or
    /// seed; [`Error::Io`]. The session's values are not to be used then.
    pub fn resume(&self, session: &mut Session, say: &mut dyn FnMut(String)) -> Result<Option<(PathBuf, Standing)>, Error> {
        let mut damaged: Vec<(PathBuf, String)> = vec![];
        for (_, path) in checkpoints(&self.folder)?.into_iter().rev() {
            match load_or_fault(session, &path) {
                Ok(standing) => {
                    for (path, reason) in damaged {
                        let aside = self.set_aside(&path)?;
                        say(format!("{} is damaged ({reason}); it was set aside as {}", path.display(), aside.display()));
                    }
                    return Ok(Some((path, standing)));
                }
                Err(Fault::Damaged(reason)) => damaged.push((path, reason)),
                Err(Fault::Refused(e)) => return Err(e),
            }
        }
        match damaged.first() {
            None => Ok(None),
            Some((path, reason)) => Err(Error::Unsound {
                path: self.folder.clone(),
                reason: format!(
                    "none of its {} checkpoints is sound (the newest, {}: {reason}), so there is nothing to resume from",
                    damaged.len(),
                    path.file_name().unwrap_or_default().display()
                ),
            }),
        }
    }

    /// Renames a damaged checkpoint, so that it neither counts as one nor is lost.
    fn set_aside(&self, path: &Path) -> Result<PathBuf, Error> {
        let name = format!("damaged-{}", path.file_name().unwrap_or_default().display());
        let names = std::iter::once(name.clone()).chain((2u32..).map(|n| format!("{name}.{n}")));
        let free = names.map(|n| self.folder.join(n)).find(|p| p.symlink_metadata().is_err());
        let free = free.unwrap_or_else(|| self.folder.join(&name));
        fs::rename(path, &free).map_err(|e| Error::io(path, e))?;
        Ok(free)
    }

    /// Removes what killed processes left, and puts back what one was about to replace.
    fn sweep(&self) -> Result<(), Error> {
        for entry in fs::read_dir(&self.folder).map_err(|e| Error::io(&self.folder, e))? {
            let entry = entry.map_err(|e| Error::io(&self.folder, e))?;
            let name = entry.file_name();
            let Some((step, state)) = name.to_str().and_then(|n| n.strip_prefix('.')).and_then(|n| n.rsplit_once('.')) else { continue };
            let place = self.folder.join(step);
            match state {
                _ if number(step).is_none() => {}
                REPLACED if place.symlink_metadata().is_err() => fs::rename(entry.path(), &place).map_err(|e| Error::io(&place, e))?,
                PARTIAL | DELETED | REPLACED => remove(&entry.path())?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // A folder that was made for nothing goes again; the lock's file is all that an empty one holds.
        let only_lock = || fs::read_dir(&self.folder).is_ok_and(|mut all| all.all(|e| e.is_ok_and(|e| e.file_name() == LOCK)));
        if self.made && only_lock() {
            drop(fs::remove_file(self.folder.join(LOCK)));
            drop(fs::remove_dir(&self.folder));
        }
    }
}

/// The newest checkpoint of a folder by its name, sound or not; `None` when there is none, or no folder.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>, Error> {
    Ok(checkpoints(folder)?.pop().map(|(_, path)| path))
}

/// The folders `step-N`, oldest first.
pub(super) fn checkpoints(folder: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io(folder, e)),
    };
    let mut found = vec![];
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        if let Some(step) = entry.file_name().to_str().and_then(number).filter(|_| entry.path().is_dir()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The step of a name `step-N`.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-").filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

fn hidden(name: &str, state: &str) -> String {
    format!(".{name}.{state}")
}

/// Deletes a folder, if it is there.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Writes the files of a checkpoint into an empty folder, all synced.
fn write(session: &Session, folder: &Path, standing: &Standing) -> Result<(), Error> {
    let mut sums = Sums::default();
    for (name, entries) in [(MODEL, parameter_entries(session)), (OPTIMIZER, state_entries(session))] {
        let path = folder.join(name);
        sums.add(folder, name, |out| write_entries(out, &path, FOR_TRANSFORMERS, entries))?;
    }
    let plan = session.plan();
    let (loss_scale, updates, grad_norm) = session.progress();
    let state = State {
        version: VERSION,
        standing: standing.clone(),
        updates,
        loss_scale,
        grad_norm,
        seed: session.seed(),
        model: plan.model.clone(),
        optimizer: plan.optimizer.clone(),
        fingerprint: plan.fingerprint.clone(),
    };
    let path = folder.join(STATE);
    let json = serde_json::to_vec_pretty(&state).map_err(|e| Error::io(&path, std::io::Error::other(e)))?;
    sums.add(folder, STATE, |out| out.write_all(&json).map_err(|e| Error::io(&path, e)))?;
    sums.write(folder)?;
    sync_folder(folder).map_err(|e| Error::io(folder, e))
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
