//! Errors as users see them: one sentence, a blank line, a hint.

use super::usage;
use crate::Error;
use crate::quantity::Bytes;
use fp8c_runtime::{DataFault, Error as RuntimeError};
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

/// An error with its hint and exit status.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub hint: Option<String>,
    pub status: u8,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl Failure {
    /// The command line asks for what makes no sense.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { message: message.into(), hint: Some(hint.into()), status: 2 }
    }

    /// The request cannot be met.
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { message: message.into(), hint: Some(hint.into()), status: 1 }
    }
}

impl From<clap::Error> for Failure {
    fn from(e: clap::Error) -> Self {
        let (message, hint) = usage::explain(&e);
        Failure::usage(message, hint)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        match e {
            Error::Infeasible { budget, least, event, live } => infeasible(budget, least, &event, &live),
            Error::Unsupported { gaps } => {
                Failure::refused(unsupported(&gaps), "`fp8c check MODEL` lists every gap of a model at once, without a budget")
            }
            Error::Usage(m) => Failure::usage(m, "see `fp8c compile --help`, or the user guide in docs/guide.md"),
            Error::Runtime(e) => e.into(),
            Error::Verify { pass, reason } => {
                let message = format!("internal error after {pass}: {reason}");
                Failure::refused(message, "this is a fault of fp8c; please report it with the model")
            }
            Error::Model { path, .. } if has_extension(&path, &["plan"]) => {
                let hint = "give the model that it was compiled from; `fp8c inspect PLAN` shows what is in a plan";
                Failure::refused(format!("{path} is a plan, not a model"), hint)
            }
            Error::Model { path, reason } => Failure::refused(format!("{path}: {reason}"), "export the model again"),
            Error::Io { path, source } => io(&path, &source),
            Error::Solver(_) => Failure::refused(e.to_string(), "try another --mem; please report this with the model"),
            Error::Graph { .. } | Error::Kernel(_) => Failure::refused(e.to_string(), "`fp8c check MODEL` lists what a model needs"),
        }
    }
}

impl From<RuntimeError> for Failure {
    fn from(e: RuntimeError) -> Self {
        let hint = match &e {
            RuntimeError::Plan { path, .. } if has_extension(path, &["onnx", "json"]) => {
                let hint = format!("compile it first: fp8c compile {path} --mem SIZE");
                return Failure::refused(format!("{path} is a model, not a plan"), hint);
            }
            RuntimeError::Plan { .. } => "compile the model again with this version of fp8c",
            RuntimeError::Data { fault, .. } => data_hint(*fault),
            RuntimeError::Checkpoint { .. } => "`--checkpoint DIR` must name a folder of checkpoints of the same model",
            RuntimeError::Unsound { .. } => "restore it from a copy, or begin anew in another folder with --checkpoint",
            RuntimeError::Misplaced { wanted: "a folder", .. } => "name a folder, or a name that is free",
            RuntimeError::Misplaced { is: "a folder", .. } => "name a file in it",
            RuntimeError::Misplaced { is: "a symbolic link", .. } => "name the file that the link leads to",
            RuntimeError::Misplaced { .. } => "name a regular file; what comes through a pipe can be saved into one first",
            RuntimeError::Kept { .. } => "choose another name, or move that file away",
            RuntimeError::Locked { .. } => "wait until it has ended, or name a place of this training's own with --checkpoint and --log",
            RuntimeError::Device(_) => "`fp8c devices` lists what is here; --device cpu always works",
            RuntimeError::Diverged(_) => "lower --lr or raise --warmup",
            RuntimeError::Usage(m) => {
                return Failure::usage(m, "see `fp8c train --help`; `fp8c inspect PLAN` lists a plan's inputs and parameters");
            }
            RuntimeError::Io { path, source } => return io(path, source),
            RuntimeError::Kernel(_) => "compile the model again with this version of fp8c",
        };
        Failure::refused(e.to_string(), hint)
    }
}

fn infeasible(budget: Bytes, least: Bytes, event: &str, live: &[(String, Bytes)]) -> Failure {
    let alive: Vec<String> = live.iter().map(|(name, bytes)| format!("  {bytes:>10}  {name}")).collect();
    let message = format!(
        "no plan fits {budget} ({} bytes); the smallest budget that can be met is {least} ({} bytes), bound by {event}, where these are alive:\n{}",
        budget.0,
        least.0,
        alive.join("\n")
    );
    let ways = [format!("--mem {} or more", least.0), "a smaller batch".into()];
    Failure::refused(message, format!("compile with {}", any_of(&ways)))
}

/// `a, b or c`.
pub fn any_of(ways: &[String]) -> String {
    match ways {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// All gaps, a line each.
pub fn unsupported(gaps: &[String]) -> String {
    match gaps {
        [one] => format!("one of the model's operators cannot be compiled:\n  {one}"),
        _ => format!("{} of the model's operators cannot be compiled:\n  {}", gaps.len(), gaps.join("\n  ")),
    }
}

fn data_hint(fault: DataFault) -> &'static str {
    match fault {
        DataFault::Misfit => "`fp8c inspect PLAN` lists the inputs, their types and shapes",
        DataFault::Range => "use data made for this model: tokens of its own vocabulary, labels of its own classes",
        DataFault::Text => "turn the text into tokens with the model's tokenizer, and give them as a .bin file of 16- or 32-bit numbers",
        DataFault::Width => "add --token-width 32, or --token-width 16",
        DataFault::Labels => {
            "add --labels same if the model shifts its labels itself (as Hugging Face's do when given labels), else --labels next"
        }
    }
}

fn io(path: &Path, source: &std::io::Error) -> Failure {
    let (what, hint) = match source.kind() {
        ErrorKind::NotFound => ("there is no such file or folder".into(), "check the path"),
        ErrorKind::PermissionDenied => ("permission denied".into(), "check who may read or write it"),
        ErrorKind::StorageFull => ("the disk is full".into(), "free some space, or write elsewhere"),
        ErrorKind::IsADirectory => ("this is a folder, not a file".into(), "name a file in it"),
        _ => (source.to_string(), "check the path, its permissions and the free space"),
    };
    Failure::refused(format!("{}: {what}", path.display()), hint)
}

fn has_extension(path: &str, extensions: &[&str]) -> bool {
    Path::new(path).extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x)))
}
