//! `fp8c new`.

use super::args::New;
use super::failure::Failure;
use super::{Done, print};
use crate::Error;
use crate::import::json;
use crate::import::new::{Family, Request, Sizes, new as make};
use fp8c_runtime::files::{Replaces, write_aside};
use std::io::Write;

/// Writes a JSON model of a family.
pub fn new(a: &New) -> Done {
    let hint = "write fp8c new gpt2|llama [--preset 125m|7b|42b] [--layers N --dim N --heads N ...]";
    let family: Family = a.family.parse().map_err(|e: String| Failure::usage(e, hint))?;
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
    let text = json::write(&make(family, &sizes)).map_err(Error::Usage)?;
    match &a.output {
        Some(path) => {
            Replaces::Model.check(path)?;
            let io = |source| fp8c_runtime::Error::Io { path: path.clone(), source };
            write_aside(path, |out| out.write_all(text.as_bytes()).map_err(io)).map_err(Failure::from)
        }
        None => print(text.trim_end()),
    }
}
