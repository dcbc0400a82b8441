//! Checkpoints: a folder for each, whole or absent.
//!
//! `DIR/step-000123/` holds `model.safetensors` (every parameter and buffer by PyTorch's name, in its orientation, floats as f32),
//! `optimizer.safetensors` (state by `NAME.SLOT`, as the plan stores it), `state.json` (the rest) and, written last, `SHA256SUMS`, which covers
//! every byte of the others and which `sha256sum -c` reads.
//!
//! A checkpoint is written into a hidden sibling, synced and renamed; it is renamed away before it is deleted. So a name `step-N` never stands
//! for half a checkpoint, whenever the process is killed. Hidden siblings that a killed process left are swept when the next one takes the
//! folder, which one process at a time has ([`Store`]).

mod load;
mod lock;
mod store;
mod sums;

use crate::plan::Fingerprint;
use crate::session::Scaler;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use load::{load, load_parameters, read_parameters};
use lock::Lock;
pub(crate) use lock::take;
pub use store::{Store, latest};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Version of `state.json`.
const VERSION: u32 = 2;

/// Where a training stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Samples consumed.
    pub samples: u64,
    /// Steps skipped.
    pub skipped: u64,
}

/// What a training was told, by name; differences are told when it is resumed.
pub type Settings = BTreeMap<String, String>;

/// What a checkpoint holds beside the session's own state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    #[serde(flatten)]
    pub position: Position,
    /// Loss of the last step, absent when it was not finite: by it a training knows its own log.
    pub last_loss: Option<f64>,
    pub settings: Settings,
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    #[serde(flatten)]
    standing: Standing,
    /// Updates made; the bias corrections' number.
    updates: u64,
    loss_scale: Scaler,
    /// Norm of the last finite gradient.
    #[serde(default)]
    grad_norm: Option<f32>,
    seed: u64,
    model: String,
    /// `adamw`, `sgd`, ..: whose state `optimizer.safetensors` is.
    optimizer: Option<String>,
    fingerprint: Fingerprint,
}

fn state_name(parameter: &str, slot: usize) -> String {
    format!("{parameter}.{slot}")
}
