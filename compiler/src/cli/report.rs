//! `fp8c report`.

use super::Done;
use super::Output;
use super::args::Report;
use super::failure::Failure;
use super::text::{read, write, wrong};
use crate::page::{Losses, page};
use fp8c_runtime::files::Replaces;
use fp8c_runtime::plan::PlanFile;

/// Writes the page of a plan.
pub fn report(a: &Report, output: Output) -> Done {
    Replaces::Page.check(&a.output)?;
    let file = PlanFile::open(&a.plan)?;
    let hint = "give the file that `fp8c train --log FILE` wrote";
    let losses = |path: &std::path::PathBuf| -> Result<Losses, Failure> { Losses::parse(&read(path)?).map_err(|e| wrong(path, e, hint)) };
    let losses = a.log.as_ref().map(losses).transpose()?;
    write(&a.output, &page(file.plan(), losses.as_ref()))?;
    output.say(format!("{} -> {}", a.plan.display(), a.output.display()));
    Ok(())
}
