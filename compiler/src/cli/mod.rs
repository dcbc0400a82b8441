//! The `fp8c` command: a thin shell over the two libraries.

mod args;
mod bench;
mod compile;
mod curve;
mod eval;
mod export;
mod failure;
mod generate;
mod inspect;
mod new;
mod number;
mod output;
mod progress;
mod report;
mod run;
mod size;
mod source;
mod text;
mod train;
mod usage;

use args::{Cli, Command};
use clap::Parser;
use clap::error::ErrorKind;
use failure::Failure;
use output::{Output, print, printed, tell};
use std::process::ExitCode;

/// Parses the command line and runs it.
///
/// Exit status: 0 done, 1 the request cannot be met, 2 usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                // Help and version are answers.
                return status(printed(e.print()));
            }
            return status(Err(Failure::from(e)));
        }
    };
    let output = Output { json: cli.json, quiet: cli.quiet || cli.json };
    let done = match &cli.command {
        Command::Compile(a) => compile::compile(a, output),
        Command::Train(a) => train::train(a, output),
        Command::Eval(a) => eval::eval(a, output),
        Command::Export(a) => export::export(a, output),
        Command::Generate(a) => generate::generate(a, output),
        Command::Run(a) => run::run(a, output),
        Command::Inspect(a) => inspect::inspect(a, output),
        Command::Curve(a) => curve::run(a, output),
        Command::Report(a) => report::report(a, output),
        Command::Check(a) => compile::check(a, output),
        Command::New(a) => new::new(a, output),
        Command::Devices => run::devices(output),
        Command::Bench(a) => bench::bench(a, output),
    };
    status(done)
}

fn status(done: Done) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure);
            ExitCode::from(failure.status)
        }
    }
}

type Done = Result<(), Failure>;
