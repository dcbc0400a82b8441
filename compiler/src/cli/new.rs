//! `fp8c new`.

use super::args::New;
use super::failure::Failure;
use super::{Done, Output, print};
use crate::Error;
use crate::hf::{self, Shape};
use crate::import::json;
use crate::import::new::{Family, Request, Sizes, new as make};
use fp8c_runtime::files::{Replaces, parent, write_aside};
use std::io::Write;
use std::path::Path;

/// Writes a JSON model of a family, or of a Hugging Face folder.
pub fn new(a: &New, output: Output) -> Done {
    if let Some(path) = &a.output {
        Replaces::Model.check(path)?;
    }
    let text = match &a.from {
        Some(folder) => from_folder(a, folder, output)?,
        None => made_to_measure(a)?,
    };
    match &a.output {
        Some(path) => {
            let io = |source| fp8c_runtime::Error::Io { path: path.clone(), source };
            write_aside(path, |out| out.write_all(text.as_bytes()).map_err(io)).map_err(Failure::from)
        }
        None => print(text.trim_end()),
    }
}

fn made_to_measure(a: &New) -> Result<String, Failure> {
    let hint = "write fp8c new gpt2|llama [--preset 125m|7b|42b] [--layers N --dim N --heads N ...]";
    let family: Family = a.family.as_deref().unwrap_or_default().parse().map_err(|e: String| Failure::usage(e, hint))?;
    let request = Request {
        preset: a.preset.clone(),
        layers: a.layers,
        dim: a.dim,
        heads: a.heads,
        kv_heads: a.kv_heads,
        ffn: a.ffn,
        vocab: a.vocab,
        seq: a.seq,
        batch: a.batch,
        tied: None,
    };
    let sizes = Sizes::of(family, &request).map_err(|e| Failure::usage(e, hint))?;
    Ok(json::write(&make(family, &sizes)).map_err(Error::Usage)?)
}

fn from_folder(a: &New, folder: &Path, output: Output) -> Result<String, Failure> {
    let place = a.output.as_deref().map_or(Path::new("."), parent);
    let made = hf::model(folder, place, Shape { batch: a.batch, seq: a.seq }).map_err(|e| match e {
        Error::Usage(message) if message.starts_with("--seq") => Failure::usage(message, "choose a shorter sequence, or leave --seq out"),
        Error::Usage(message) => Failure::usage(message, "write the model into that folder or one around it: -o DIR/model.json"),
        Error::Model { path, reason } => Failure::refused(
            format!("{path} {reason}"),
            "`fp8c new --from` reads the folders of causal language models; other models can be exported to ONNX",
        ),
        other => other.into(),
    })?;
    made.notes.iter().for_each(|note| output.say(format!("note: {note}")));
    Ok(made.text)
}
