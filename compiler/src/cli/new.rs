//! `fp8c new`.

use super::Done;
use super::args::New;
use super::failure::Failure;
use crate::Error;
use crate::import::json;
use crate::import::new::{Family, Request, Sizes, new as make};

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
        Some(path) => std::fs::write(path, text).map_err(|source| Error::Io { path: path.clone(), source }.into()),
        None => {
            super::inspect::print(&text);
            Ok(())
        }
    }
}
