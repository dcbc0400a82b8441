//! Hugging Face folders: `config.json` and safetensors to a model, and trained weights back to a folder.
//!
//! [`config`] reads what a folder says of its model, `families` turns it into a [`decoder::Decoder`], a description that all families share, and
//! `decoder` builds that node by node. Parameters have the names that transformers gives them; `weights` finds them in the folder's files.

pub mod config;
pub mod decoder;
mod families;
mod folder;
mod rotary;
mod weights;

pub use folder::{free, source_of, write};

use crate::Error;
use crate::import::json;
use config::Config;
use std::path::Path;
use weights::Weights;

/// Longest sequence that is chosen where nobody says one.
const USUAL_SEQUENCE: u64 = 1024;

/// The sizes that a folder does not say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// 1 where absent.
    pub batch: Option<u64>,
    /// The longest that the model takes, but not beyond 1024, where absent.
    pub seq: Option<u64>,
}

/// A model that was made from a folder.
#[derive(Clone, Debug)]
pub struct Made {
    /// The JSON model.
    pub text: String,
    pub notes: Vec<String>,
}

/// Makes a JSON model from a folder; `place` is the folder that the JSON file will lie in, which its weights must be inside.
///
/// # Errors
/// [`Error::Usage`] for sizes that the model does not take, or a place that its weights are not inside; [`Error::Model`] for a folder that is not of
/// a family that is read, or lacks weights; [`Error::Runtime`].
pub fn model(folder: &Path, place: &Path, shape: Shape) -> Result<Made, Error> {
    let fail = |reason: String| Error::Model { path: folder.display().to_string(), reason };
    let config = Config::read(folder)?;
    let decoder = families::decoder(&config).map_err(fail)?;
    let batch = shape.batch.unwrap_or(1);
    let seq = shape.seq.unwrap_or(decoder.longest.min(USUAL_SEQUENCE));
    if seq > decoder.longest {
        return Err(Error::Usage(format!("--seq {seq} is longer than the {} positions that this model has", decoder.longest)));
    }
    let mut weights = Weights::open(folder, place)?;
    let model = decoder::build(&decoder, batch, seq, &mut weights).map_err(fail)?;
    let text = json::write_with(&model, weights.places()).map_err(fail)?;
    let mut notes = vec![format!("input_ids [{batch}, {seq}]; --batch and --seq choose others")];
    notes.extend(weights.note());
    Ok(Made { text, notes })
}
