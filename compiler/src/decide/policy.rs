//! Which products may run in which format.

use crate::Error;
use crate::graph::Pass;
use fp8c_runtime::files::Input;
use globset::{Glob, GlobMatcher};
use serde::Deserialize;
use std::path::Path;

/// What a linear layer is for, as far as the default policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Gives the logits, or shares its weight with an embedding.
    Head,
    /// Reads an attention's output.
    AttentionOutput,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    E4m3,
    Bf16,
    F32,
}

/// One line of a policy file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// Glob over module paths.
    layer: String,
    /// All three where absent.
    pass: Option<Pass>,
    format: Format,
}

/// The default policy, and the user's lines over it; the last line that matches wins.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    lines: Vec<(GlobMatcher, Option<Pass>, Format)>,
}

impl Policy {
    /// Reads a policy file: a JSON list of `{"layer": GLOB, "pass": "fprop|dgrad|wgrad", "format": "e4m3|bf16|f32"}`.
    ///
    /// # Errors
    /// [`Error::Runtime`] without the file, [`Error::Usage`] for what is no policy.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = Input::open(path)?.read_all()?;
        let usage = |reason: String| Error::Usage(format!("{}: {reason}", path.display()));
        let lines: Vec<Line> = serde_json::from_slice(&text).map_err(|e| usage(format!("is no precision policy: {e}")))?;
        let compiled = lines.into_iter().map(|line| match (Glob::new(&line.layer), line.format) {
            (_, Format::F32) => Err(usage("asks for f32 in an fp8 plan; use bf16, or compile with --precision f32".into())),
            (Ok(glob), format) => Ok((glob.compile_matcher(), line.pass, format)),
            (Err(e), _) => Err(usage(format!("has a glob that is none: {e}"))),
        });
        Ok(Policy { lines: compiled.collect::<Result<_, _>>()? })
    }

    /// Refuses a line whose glob matches none of these layers.
    ///
    /// # Errors
    /// [`Error::Usage`] with the layers most like it.
    pub fn check(&self, layers: &[&str]) -> Result<(), Error> {
        let Some((idle, ..)) = self.lines.iter().find(|(glob, ..)| !layers.iter().any(|l| glob.is_match(l))) else { return Ok(()) };
        let glob = idle.glob().glob();
        let near = fp8c_runtime::names::nearest(glob, layers.iter().copied());
        Err(Error::Usage(format!("the precision policy's layer {glob:?} matches no linear layer of the model{near}")))
    }

    /// The format of a product: `layer` is the module path, `first_block` as in [`super::sites::Site`].
    pub fn format(&self, layer: &str, kind: LayerKind, first_block: bool, pass: Pass) -> Format {
        let pass = if pass == Pass::Loss { Pass::Fprop } else { pass };
        let user = self.lines.iter().rev().find(|(glob, p, _)| p.is_none_or(|p| p == pass) && glob.is_match(layer));
        match (user, kind, pass) {
            (Some((_, _, format)), _, _) => *format,
            (None, LayerKind::Head, _) => Format::Bf16,
            (None, LayerKind::AttentionOutput, Pass::Dgrad | Pass::Wgrad) => Format::Bf16,
            // What E4M3 costs in loss, it costs there for the most part: see `docs/decisions.md`.
            (None, _, Pass::Fprop) if first_block => Format::Bf16,
            _ => Format::E4m3,
        }
    }
}
