//! `fp8c export`.

use super::args::Export;
use super::failure::Failure;
use super::{Done, Output, print, source};
use crate::export::{Trained, onnx};
use crate::hf;
use crate::import::{ParameterOptions, read as read_model};
use fp8c_runtime::checkpoint::read_parameters;
use fp8c_runtime::files::Replaces;
use fp8c_runtime::plan::{Init, Parameter, Plan, PlanFile};
use std::path::{Path, PathBuf};

/// Writes trained weights back into the model that they are of.
pub fn export(a: &Export, output: Output) -> Done {
    // Before the work is done for it.
    a.output.as_deref().map_or(Ok(()), |path| Replaces::Onnx.check(path))?;
    a.hf.as_deref().map_or(Ok(()), free)?;
    let file = PlanFile::open(&a.plan)?;
    let path = source::find(file.plan(), &a.plan, a.model.as_deref())?;
    let model = read_model(&path)?;
    let folder = a.hf.as_ref().map(|_| hf::source_of(&model).ok_or_else(|| not_of_a_folder(&path))).transpose()?;
    let trained = trained(file.plan(), &a.checkpoint, output)?;
    let mut written: Vec<PathBuf> = vec![];
    if let Some(out) = &a.output {
        let mut options = source::bound_as_in(file.plan(), &model);
        options.parameters = ParameterOptions { tie: a.tie.clone(), untie: a.untie.clone(), ..ParameterOptions::default() };
        written.extend(onnx(&path, &options, &trained, out)?);
    }
    if let (Some(out), Some(folder)) = (&a.hf, &folder) {
        hf::write(folder, &model, &trained, out)?;
        written.push(out.clone());
    }
    if output.json {
        return print(serde_json::json!({ "model": path, "parameters": trained.len(), "files": written }));
    }
    for out in &written {
        output.say(format!("{} with {} parameters of {} -> {}", path.display(), trained.len(), a.checkpoint.display(), out.display()));
    }
    Ok(())
}

fn free(out: &Path) -> Done {
    hf::free(out).map_err(|e| match e {
        crate::Error::Usage(message) => Failure::refused(message, "name a folder that is not there yet"),
        other => other.into(),
    })
}

fn not_of_a_folder(model: &Path) -> Failure {
    let message = format!("{} does not come from a Hugging Face folder, so there is no configuration to write", model.display());
    Failure::refused(message, "export it as ONNX with -o MODEL.onnx; checkpoints hold safetensors by PyTorch's names")
}

/// The parameters that a training has changed or made; what it left alone is best taken from where it came.
fn trained(plan: &Plan, checkpoint: &Path, output: Output) -> Result<Trained, fp8c_runtime::Error> {
    let mut all = read_parameters(plan, checkpoint, &mut |note| output.say(format!("note: {note}")))?;
    let is_made = |p: &&Parameter| p.trainable || matches!(p.init, Init::Normal { .. } | Init::Uniform { .. });
    Ok(plan.parameters.iter().filter(is_made).filter_map(|p| all.remove_entry(&p.name)).collect())
}
