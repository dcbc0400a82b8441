//! Mistakes on the command line, in the words of the other messages.

use super::args::Cli;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::error::Error;

/// A sentence about a mistake, and a hint.
pub fn explain(e: &clap::Error) -> (String, String) {
    let arg = text(e, ContextKind::InvalidArg).unwrap_or_default();
    let flag = arg.split([' ', '=']).next().unwrap_or_default().to_string();
    let value = text(e, ContextKind::InvalidValue).unwrap_or_default();
    let help = format!("see `{} --help`", command());
    match e.kind() {
        ErrorKind::ValueValidation if e.source().is_some() => {
            let rule = e.source().map(ToString::to_string).unwrap_or_default();
            (format!("{flag} {rule}, not '{value}'"), help)
        }
        ErrorKind::InvalidValue if value.is_empty() => (format!("{flag} needs a value"), help),
        ErrorKind::InvalidValue => {
            let choices = text(e, ContextKind::ValidValue).unwrap_or_default();
            (format!("{flag} must be one of {choices}, not '{value}'"), help)
        }
        ErrorKind::UnknownArgument => match text(e, ContextKind::SuggestedArg) {
            Some(near) => (format!("there is no flag {flag}"), format!("did you mean {near}? {help}")),
            None if flag.starts_with('-') => (format!("there is no flag {flag}"), help),
            None => (format!("'{arg}' is one argument too many"), help),
        },
        ErrorKind::InvalidSubcommand => {
            let given = text(e, ContextKind::InvalidSubcommand).unwrap_or_default();
            let near = text(e, ContextKind::SuggestedSubcommand).map_or(String::new(), |near| format!("did you mean {near}? "));
            (format!("there is no command '{given}'"), format!("{near}{help}"))
        }
        ErrorKind::MissingRequiredArgument => (format!("this is missing: {arg}"), help),
        ErrorKind::ArgumentConflict => match text(e, ContextKind::PriorArg) {
            Some(prior) if prior != arg => (format!("{flag} and {prior} cannot be given together"), help),
            _ => (format!("{flag} is given twice"), help),
        },
        _ => {
            let rendered = e.render().to_string();
            let first = rendered.split("\n\n").next().unwrap_or_default().trim_start_matches("error:");
            (first.split_whitespace().collect::<Vec<_>>().join(" "), help)
        }
    }
}

fn text(e: &clap::Error, kind: ContextKind) -> Option<String> {
    match e.get(kind)? {
        ContextValue::String(s) => Some(s.clone()),
        ContextValue::Strings(list) => Some(list.join(", ")),
        _ => None,
    }
}

/// The command whose help has the answer, if there is one among the arguments.
fn command() -> String {
    let known = Cli::command();
    let named = std::env::args().skip(1).find(|word| known.find_subcommand(word).is_some());
    named.map_or("fp8c".into(), |name| format!("fp8c {name}"))
}
