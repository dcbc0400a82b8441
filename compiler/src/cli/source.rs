//! The model that a plan was compiled from.

use super::failure::Failure;
use crate::import::ImportOptions;
use crate::import::model::{Dim, Model};
use fp8c_runtime::files::{Input, parent};
use fp8c_runtime::plan::Plan;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Finds the model of a plan by name and digest: the file that is named, else one of the plan's model's name beside the plan or in the
/// current folder.
///
/// # Errors
/// A refusal when there is none, or the named one is another.
pub fn find(plan: &Plan, plan_path: &Path, named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return match is_model_of(plan, path)? {
            true => Ok(path.to_path_buf()),
            false => Err(Failure::refused(
                format!("{} is not the model that {} was compiled from, or has changed since", path.display(), plan_path.display()),
                "name that model with --model, or compile this one",
            )),
        };
    }
    let folders = [parent(plan_path), Path::new(".")];
    let names = ["onnx", "json"].map(|extension| format!("{}.{extension}", plan.model));
    let candidates = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    for path in candidates.filter(|path| path.is_file()) {
        if is_model_of(plan, &path)? {
            return Ok(path);
        }
    }
    let message =
        format!("the model that {} was compiled from, {}, is neither beside it nor here", plan_path.display(), names.join(" or "));
    Err(Failure::refused(message, "name it with --model FILE"))
}

fn is_model_of(plan: &Plan, path: &Path) -> Result<bool, Failure> {
    let input = Input::open(path)?;
    let mut digest = Sha256::new();
    input.pass(0..input.bytes(), &mut |bytes| digest.update(bytes), &[], &mut |_, _| Ok(()))?;
    let hexadecimal: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(hexadecimal == plan.fingerprint.model)
}

/// Import options that bind a model's symbolic dimensions as they are bound in the plan.
pub fn bound_as_in(plan: &Plan, model: &Model) -> ImportOptions {
    let mut options = ImportOptions::default();
    for input in &model.inputs {
        let Some(port) = plan.inputs.iter().find(|p| p.name == input.name) else { continue };
        for (dim, extent) in input.shape.iter().zip(&port.shape) {
            if let Dim::Symbol(name) = dim {
                options.dims.insert(name.clone(), *extent);
            }
        }
    }
    options
}
