//! The plan: what the compiler decided, as data.
//!
//! A plan file is a zip archive of uncompressed entries: `plan.json` (a [`Plan`]), `kernels/<name>.<arch>.ptx`, and
//! `constants.safetensors` / `weights.safetensors` for what is not referenced in place. Same input, same bytes.

mod file;
mod verify;

pub(crate) use file::Section;
pub use file::{Contents, PlanFile, StoredTensor};
pub use verify::verify;

use fp8c_kernels::DType;
use fp8c_kernels::launch::Launch;
pub use fp8c_kernels::program::Control;
use fp8c_kernels::program::{Kernel, Mode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// Version of the JSON below; a runtime refuses others.
pub const SCHEMA: u32 = 1;

/// Alignment of every tensor in the arena, bytes.
pub const ALIGN: u64 = 256;

/// Most micro-batches of a step.
pub const MAX_ACCUMULATION: u32 = 1 << 16;

/// A complete training (or inference) plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub schema: u32,
    /// Name of the model (file stem).
    pub model: String,
    pub fingerprint: Fingerprint,
    pub purpose: Purpose,
    /// Whose costs it was planned for: `cpu`, `sm_89`, `sm_90a`.
    pub target: String,
    /// `f32`, `bf16` or `fp8`.
    pub precision: String,
    pub budget_bytes: u64,
    /// Bytes of the device arena: the planned and the executed peak.
    pub arena_bytes: u64,
    /// Micro-batches whose gradients are summed before an update.
    pub accumulation: u32,
    /// What clips gradients, and so when parameters are updated.
    #[serde(default)]
    pub clip: Clip,
    pub tensors: Vec<Tensor>,
    pub kernels: Vec<KernelEntry>,
    pub schedule: Schedule,
    pub parameters: Vec<Parameter>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// The scalar f32 loss tensor; absent for inference.
    pub loss: Option<TensorId>,
    /// The control block ([`Control`]); absent for inference.
    pub control: Option<TensorId>,
    pub optimizer: Option<String>,
    pub report: Report,
}

/// Index into [`Plan::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TensorId(pub u32);

/// What a plan was made from; a checkpoint names the model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// SHA-256 of the model file, hexadecimal.
    pub model: String,
    pub compiler: String,
    pub target: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    Train,
    Infer,
}

/// Whose norm gradients are clipped by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// Their own: parameters are updated when all gradients are there. One that is not finite leaves every parameter as it is.
    #[default]
    Exact,
    /// That of the step before: a parameter is updated within the backward pass, as soon as nothing needs its old value, and its gradient is
    /// gone with that. One that is not finite leaves its parameter as it is, and all whose gradients come after it.
    Previous,
}

impl Clip {
    /// The name on the command line and in plans.
    pub const fn name(self) -> &'static str {
        match self {
            Clip::Exact => "exact",
            Clip::Previous => "previous",
        }
    }
}

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Device,
    Host,
    Disk,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Input,
    Parameter,
    State,
    Gradient,
    Constant,
    Control,
    Activation,
    Output,
    Scratch,
}

/// A place in a tier for a span of the schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub role: Role,
    pub tier: Tier,
    /// Bytes from the tier's start, a multiple of [`ALIGN`].
    pub offset: u64,
    pub bytes: u64,
    /// First and last position in the flattened schedule (micro, then update) at which the bytes are in use, inclusive;
    /// persistent tensors span it whole.
    pub first: u32,
    pub last: u32,
}

/// One distinct kernel; steps that differ only in the tensors they bind share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelEntry {
    pub name: String,
    pub kernel: Kernel,
    /// For each chip (`sm_90a`): the launches of the entry `kernels/<name>.<arch>.ptx`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub launches: BTreeMap<String, Vec<Launch>>,
}

/// The order of execution. A training step runs `micro` once for each micro-batch, then `update` once. Parameters and their state change in
/// `update` alone; under [`Clip::Previous`] it holds what of the backward pass comes behind the first update, too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub micro: Vec<Step>,
    pub update: Vec<Step>,
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Index into [`Plan::kernels`].
    pub kernel: u32,
    /// A tensor for each argument of the kernel. The tensor's bytes may exceed the argument's.
    pub args: Vec<TensorId>,
    pub scratch: Option<TensorId>,
    pub epoch: StepEpoch,
    /// Where in the model it comes from.
    pub site: String,
    /// Predicted, for the target.
    pub seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepEpoch {
    Forward,
    Backward,
    Recompute,
    Update,
}

/// A trained tensor or a buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// PyTorch's name; checkpoints use it.
    pub name: String,
    /// Shape outside (PyTorch's orientation).
    pub shape: Vec<u64>,
    /// `Some(perm)`: the plan's tensor is `outside.transpose(perm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perm: Option<Vec<usize>>,
    pub trainable: bool,
    pub tensor: TensorId,
    /// It lives until the end of `micro` at least, or, under [`Clip::Previous`], until the parameter's update. Where its first use in
    /// `micro` reads it (it is accumulated into), the runtime zeroes it before a step's first micro-batch; it then lives from position 0.
    pub gradient: Option<TensorId>,
    /// Optimizer state, in slot order.
    pub state: Vec<TensorId>,
    /// f32 scalar: weight-decay multiplier.
    pub decay: Option<TensorId>,
    pub init: Init,
}

/// How a parameter's or constant's first value comes to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// A tensor of this name, in the plan's orientation, in the plan's own `weights.safetensors`.
    Stored {
        name: String,
    },
    /// Bytes of a file beside the plan: relative path, size and SHA-256 of the whole file.
    File {
        path: String,
        offset: u64,
        bytes: u64,
        dtype: String,
        file_bytes: u64,
        sha256: String,
    },
    Normal {
        std: f32,
        stream: u64,
    },
    Uniform {
        low: f32,
        high: f32,
        stream: u64,
    },
    Zeros,
    Ones,
}

/// An input or output of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub tensor: TensorId,
    /// Integer inputs that index an axis: values must be in `[least, bound)` (or equal `ignore`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<i64>,
    /// Below 0 where an index may count from the end, as ONNX lets it; never in a training.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub least: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<i64>,
    /// The labels of a language model: which tokens they are. Absent where the graph does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Which tokens of a text a language model wants as its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// The tokens that follow: the loss compares a position with the label at it.
    Next,
    /// The tokens themselves: the model shifts them by one position.
    Same,
}

impl Port {
    /// Whether an integer may stand in this input.
    pub fn allows(&self, value: i64) -> bool {
        self.bound.is_none_or(|bound| (self.least..bound).contains(&value)) || self.ignore == Some(value)
    }

    /// The values that may stand in this input, for messages: `0 to 255, or -100`.
    pub fn allowed(&self) -> String {
        let Some(bound) = self.bound else { return "any".into() };
        let ignore = self.ignore.map_or(String::new(), |v| format!(", or {v}"));
        format!("{} to {}{ignore}", self.least, bound.saturating_sub(1))
    }
}

/// What `inspect` prints and nothing executes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub baseline_peak_bytes: u64,
    pub saved_bytes: u64,
    pub baseline_saved_bytes: u64,
    /// Bytes by way: keep, keep_e4m3, offload, recompute.
    pub decisions: BTreeMap<String, u64>,
    pub by_layer: Vec<LayerReport>,
    pub matmuls: Vec<MatmulReport>,
    pub predicted: Predicted,
    pub certificate: Certificate,
    /// The least budget that a plan exists for.
    pub least_budget_bytes: u64,
    /// Notes of the compiler for the user (untied initializers, added loss, ...).
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    pub layer: String,
    pub values: Vec<ValueReport>,
}

/// One value that the backward pass reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValueReport {
    pub name: String,
    pub bytes: u64,
    /// `keep` or `recompute`.
    pub way: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatmulReport {
    pub site: String,
    /// `fprop`, `dgrad`, `wgrad`.
    pub pass: String,
    /// `e4m3`, `bf16`, `f32`.
    pub format: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    pub step_seconds: f64,
    pub recompute_seconds: f64,
    pub transfer_seconds: f64,
}

/// The planner's claim: no plan of the same model takes less than the bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    pub lower_bound_seconds: f64,
    pub step_seconds: f64,
    pub gap: f64,
}

impl Plan {
    /// A tensor by index. Plans that pass [`verify`] hold only indices that exist.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0 as usize]
    }

    /// True for a plan whose arena has the scratch memory that kernels need on a CPU.
    pub fn is_for_cpu(&self) -> bool {
        self.target == "cpu"
    }

    /// The gradients that are accumulated into, and so must be zero before a step's first micro-batch: those of a parameter whose
    /// first use in `micro` reads them. Indices out of range are passed over.
    pub fn zeroed_gradients(&self) -> Vec<TensorId> {
        let mut waiting: HashSet<TensorId> = self.parameters.iter().filter_map(|p| p.gradient).collect();
        let mut zeroed = vec![];
        for step in &self.schedule.micro {
            let Some(entry) = self.kernels.get(step.kernel as usize) else { continue };
            for (&id, arg) in step.args.iter().zip(entry.kernel.args()) {
                if waiting.remove(&id) && arg.mode != Mode::Write {
                    zeroed.push(id);
                }
            }
        }
        zeroed
    }
}

impl Parameter {
    /// The shape in the plan's orientation; `None` when `perm` is no permutation of the axes.
    pub fn inside_shape(&self) -> Option<Vec<u64>> {
        let Some(perm) = &self.perm else { return Some(self.shape.clone()) };
        let mut sorted = perm.clone();
        sorted.sort_unstable();
        let is_permutation = sorted.into_iter().eq(0..self.shape.len());
        is_permutation.then(|| perm.iter().map(|&k| self.shape[k]).collect())
    }
}
