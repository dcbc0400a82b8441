//! Errors as users see them: one sentence, a blank line, a hint.

use crate::Error;
use std::fmt;

const PATH_HINT: &str = "check the path, its permissions and the free space";

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
}

impl From<clap::Error> for Failure {
    fn from(e: clap::Error) -> Self {
        // The first paragraph says what is wrong, the others how the command is used.
        let text = e.render().to_string();
        let first = text.split("\n\n").next().unwrap_or_default();
        let words: Vec<&str> = first.trim_start_matches("error:").split_whitespace().collect();
        Failure::usage(words.join(" "), "see `fp8c --help`, or `fp8c COMMAND --help`")
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let (message, hint, status) = match e {
            Error::Infeasible { budget, least, event, live } => {
                let alive: Vec<String> = live.iter().map(|(name, bytes)| format!("  {bytes:>10}  {name}")).collect();
                let message = format!(
                    "no plan fits {budget} ({} bytes); the smallest budget that can be met is {least} ({} bytes), bound by {event}, where these are alive:\n{}",
                    budget.0,
                    least.0,
                    alive.join("\n")
                );
                let hint = format!("compile with --mem {} or more, a smaller batch, --opt-state bf16, or --precision fp8", least.0);
                return Failure { message, hint: Some(hint), status: 1 };
            }
            Error::Unsupported { gaps } => {
                let n = gaps.len();
                let message = format!("{n} of the model's operators cannot be compiled:\n  {}", gaps.join("\n  "));
                return Failure { message, hint: Some("`fp8c check MODEL` lists every gap of a model at once".into()), status: 1 };
            }
            Error::Usage(m) => (m, Some("see `fp8c --help` and the user guide in docs/guide.md".to_string()), 2),
            Error::Runtime(e) => return e.into(),
            Error::Verify { pass, reason } => (
                format!("internal error after {pass}: {reason}"),
                Some("this is a fault of fp8c; please report it with the model".into()),
                1,
            ),
            Error::Model { path, reason } => {
                (format!("{path}: {reason}"), Some("export the model again; `fp8c check MODEL` tells whether it can be compiled".into()), 1)
            }
            Error::Io { .. } => (e.to_string(), Some(PATH_HINT.into()), 1),
            Error::Solver(_) => (e.to_string(), Some("try another --mem; please report this with the model".into()), 1),
            other => (other.to_string(), Some("`fp8c check MODEL` lists what a model needs".into()), 1),
        };
        Failure { message, hint, status }
    }
}

impl From<fp8c_runtime::Error> for Failure {
    fn from(e: fp8c_runtime::Error) -> Self {
        use fp8c_runtime::Error as E;
        let (hint, status) = match &e {
            E::Plan { .. } => (Some("compile the model again with this version of fp8c"), 1),
            E::Data { .. } => (Some("`fp8c inspect PLAN` lists the inputs, their types and shapes"), 1),
            E::Checkpoint { .. } => (Some("`--checkpoint DIR` must name a folder of checkpoints of the same model"), 1),
            E::Unsound { .. } => (Some("restore it from a copy, or begin anew in another folder with --checkpoint"), 1),
            E::Misplaced { .. } => {
                (Some("name a regular file (of a pipe, save the contents first), for checkpoints a folder; of a link, its target"), 1)
            }
            E::Kept { .. } => (Some("choose another name, or move that file away"), 1),
            E::Locked { .. } => (Some("wait until it has ended, or name a place of this training's own with --checkpoint and --log"), 1),
            E::Device(_) => (Some("`fp8c devices` lists what is here; --device cpu always works"), 1),
            E::Diverged(_) => (Some("lower --lr, raise --warmup, set --grad-clip 1, or use --loss-scale dynamic"), 1),
            E::Usage(_) => (Some("see `fp8c train --help`"), 2),
            E::Io { .. } => (Some(PATH_HINT), 1),
            _ => (Some("compile the model again with this version of fp8c"), 1),
        };
        Failure { message: e.to_string(), hint: hint.map(str::to_string), status }
    }
}
