//! The command line, defined once.

use super::number::{named, number, pace, whole};
use super::size;
use crate::quantity::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fp8c_runtime::data::TokenWidth;
use fp8c_runtime::hyper::{BETA, CLIP, EPS, LEARNING_RATE, LossScaling, Span, WEIGHT_DECAY};
use fp8c_runtime::schedule::Shape;
use fp8c_runtime::trainer::Every;
use std::path::PathBuf;

/// Most CPU threads.
const THREADS: u64 = fp8c_runtime::device::MAX_THREADS as u64;
/// Largest size of a model that is made.
const MAX_SIZE: u64 = crate::import::new::MAX_SIZE;
const DEFAULT_BETA2: f64 = 0.999;
/// What logits are divided by.
const TEMPERATURE: Span = Span { least: 1e-3, most: 1e3, zero: true };
/// A share of probability.
const SHARE: Span = Span { least: 1e-6, most: 1.0, zero: false };

/// Compiles models to training plans that fit a memory budget, and trains them.
#[derive(Parser, Debug)]
#[command(name = "fp8c", version, about, disable_help_subcommand = true, max_term_width = 110)]
pub struct Cli {
    /// Prints one JSON document on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// Prints no progress.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Compiles a model (.onnx or .json) to a plan.
    Compile(Box<Compile>),
    /// Trains a plan; resumable.
    Train(Box<Train>),
    /// Takes the loss of a plan over data, without training on it.
    Eval(Eval),
    /// Writes trained weights back into the model that they are of.
    Export(Export),
    /// Writes what a causal language model has to say.
    Generate(Generate),
    /// Runs a plan once on tensors from a file.
    Run(Run),
    /// Shows what is in a plan: memory, decisions, formats, predictions, kernels.
    Inspect(Inspect),
    /// Writes a plan as one HTML page: memory over a step, decisions, formats, times, the loss.
    Report(Report),
    /// Predicts the time of a step against the budget, from the least to the one that keeps everything.
    Curve(Curve),
    /// Lists every operator or gradient of a model that is missing, all at once.
    Check(Check),
    /// Writes a JSON model.
    New(New),
    /// Lists the devices a plan can run on here.
    Devices,
    /// Runs a part of the planner on a bare problem.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand, Debug)]
pub enum Bench {
    /// Packs buffers into the least memory.
    Pack(Pack),
    /// Finds the cheapest order of a graph's nodes within a budget, some computed again.
    Remat(Remat),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    Fp8,
    Bf16,
    F32,
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScaleArg {
    Exact,
    Pow2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OptimizerArg {
    Adamw,
    Sgd,
    Lion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateArg {
    F32,
    Bf16,
    E4m3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MasterArg {
    F32,
    Bf16Sr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FrozenArg {
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClipArg {
    Exact,
    Previous,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EmitArg {
    Graph,
    Recognised,
    Joint,
    Sections,
    Forms,
    Schedule,
    Kernels,
    Ptx,
    Plan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabelsArg {
    Auto,
    Next,
    Same,
}

/// How a model is read.
#[derive(Args, Debug, Clone)]
pub struct ModelArgs {
    /// The model: .onnx or .json.
    pub model: PathBuf,
    /// Binds a symbolic dimension: NAME=N.
    #[arg(long, value_name = "NAME=N")]
    pub dim: Vec<String>,
    /// cross-entropy:LOGITS[,LABELS] | mse:OUTPUT,TARGET | output:NAME. Default: the scalar float output, else cross-entropy of the
    /// one float output with a new input `labels`.
    #[arg(long)]
    pub loss: Option<String>,
    /// Trains only the parameters that match; repeatable.
    #[arg(long, value_name = "GLOB")]
    pub train: Vec<String>,
    /// Leaves the parameters that match as they are; repeatable.
    #[arg(long, value_name = "GLOB")]
    pub freeze: Vec<String>,
    /// Keeps merged initializers that match as one parameter.
    #[arg(long, value_name = "GLOB")]
    pub tie: Vec<String>,
    /// Gives each use of initializers that match a parameter of its own.
    #[arg(long, value_name = "GLOB")]
    pub untie: Vec<String>,
    /// Forward only: no loss, no gradients.
    #[arg(long)]
    pub infer: bool,
}

/// How numbers are computed, stored and updated.
#[derive(Args, Debug, Clone)]
pub struct NumberArgs {
    /// Number format; auto is fp8 with the default policy.
    #[arg(long, value_enum, default_value = "auto")]
    pub precision: PrecisionArg,
    /// JSON file: formats by layer glob and pass.
    #[arg(long, value_name = "FILE")]
    pub precision_policy: Option<PathBuf>,
    /// E4M3 scales: exact, or rounded up to powers of two.
    #[arg(long, value_enum, default_value = "exact")]
    pub scales: ScaleArg,
    #[arg(long, value_enum, default_value = "adamw")]
    pub optimizer: OptimizerArg,
    /// Format of the optimizer's state; default f32 under --precision f32, else bf16.
    #[arg(long, value_enum)]
    pub opt_state: Option<StateArg>,
    /// How trained parameters are stored: f32, or bf16 with stochastic rounding.
    #[arg(long, value_enum, default_value = "f32")]
    pub master: MasterArg,
    /// How weights that are not trained are stored; default f32 under --precision f32, else bf16.
    #[arg(long, value_enum)]
    pub frozen: Option<FrozenArg>,
    /// The norm that --grad-clip compares: exact, this step's, which needs all gradients at once; or previous, that of the step before, so
    /// that each parameter is updated within the backward pass and its gradient is gone with that.
    #[arg(long, value_enum, default_value = "exact")]
    pub clip: ClipArg,
    /// Micro-batches whose gradients are summed before an update.
    #[arg(long, default_value_t = 1, value_parser = whole::<u32>(1..=65536), allow_hyphen_values = true)]
    pub grad_accumulation: u32,
}

#[derive(Args, Debug)]
pub struct Compile {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The memory budget of the device: 24G, 24GiB, 24GB or bytes.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, allow_hyphen_values = true, required_unless_present_any = ["emit", "infer"])]
    pub mem: Option<Bytes>,
    /// Where the plan goes; default: the model's name with .plan.
    #[arg(short, long, value_name = "PLAN")]
    pub output: Option<PathBuf>,
    /// Whose costs to plan for and which chips to emit PTX for: auto, or a list of cpu, sm_89, sm_90a.
    #[arg(long, default_value = "auto", value_delimiter = ',')]
    pub target: Vec<String>,
    #[command(flatten)]
    pub numbers: NumberArgs,
    /// Prints a stage instead of writing a plan.
    #[arg(long, value_enum)]
    pub emit: Option<EmitArg>,
    /// CPU threads to plan scratch memory for, where the target is a CPU; default: 8.
    #[arg(long, value_parser = whole::<usize>(1..=THREADS), allow_hyphen_values = true)]
    pub threads: Option<usize>,
}

/// Where a plan runs.
#[derive(Args, Debug, Clone)]
pub struct DeviceArgs {
    /// auto | cpu | cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// CPU threads; default: what the plan was made for.
    #[arg(long, value_parser = whole::<usize>(1..=THREADS), allow_hyphen_values = true)]
    pub threads: Option<usize>,
}

#[derive(Args, Debug)]
pub struct Train {
    pub plan: PathBuf,
    /// tokens.txt (bytes) | tokens.bin | NAME=FILE.npy, one for each input.
    #[arg(long, required = true)]
    pub data: Vec<String>,
    #[arg(long, value_parser = whole::<u64>(1..=u64::MAX), allow_hyphen_values = true)]
    pub steps: u64,
    /// What `labels` gets from a token file: the next tokens, or the same tokens for a model that shifts them itself. auto: what the
    /// model's loss wants.
    #[arg(long, value_enum, default_value = "auto")]
    pub labels: LabelsArg,
    /// Bits of a token in a .bin file without a header: 16 or 32. Default: the one that is possible.
    #[arg(long, value_name = "BITS", value_parser = named::<TokenWidth>)]
    pub token_width: Option<TokenWidth>,
    /// Step i takes rows [i*B, (i+1)*B), wrapping around.
    #[arg(long)]
    pub no_shuffle: bool,
    /// Parameters that match are not decayed; repeatable.
    #[arg(long, value_name = "GLOB")]
    pub no_decay: Vec<String>,
    #[arg(long, default_value_t = 3e-4, value_parser = number(LEARNING_RATE), allow_hyphen_values = true)]
    pub lr: f64,
    /// constant | cosine | linear | wsd
    #[arg(long, default_value = "constant", value_parser = named::<Shape>)]
    pub schedule: Shape,
    /// Steps of linear warm-up.
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX), allow_hyphen_values = true)]
    pub warmup: u64,
    #[arg(long, default_value_t = 0.01, value_parser = number(WEIGHT_DECAY), allow_hyphen_values = true)]
    pub weight_decay: f64,
    /// Decay of the first and the second moment.
    #[arg(long, value_name = "B1,B2", default_value = "0.9,0.999", value_parser = betas, allow_hyphen_values = true)]
    pub betas: [f64; 2],
    #[arg(long, default_value_t = 1e-8, value_parser = number(EPS), allow_hyphen_values = true)]
    pub eps: f64,
    /// Largest gradient norm; none by default.
    #[arg(long, value_parser = number(CLIP), allow_hyphen_values = true)]
    pub grad_clip: Option<f64>,
    /// none | dynamic | a number. Default: none for f32 plans, dynamic for others.
    #[arg(long, value_parser = named::<LossScaling>, allow_hyphen_values = true)]
    pub loss_scale: Option<LossScaling>,
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX), allow_hyphen_values = true)]
    pub seed: u64,
    /// One JSON object a step; default: the plan's name with .jsonl.
    #[arg(long, value_name = "FILE.jsonl")]
    pub log: Option<PathBuf>,
    /// Folder for checkpoints; default: beside the plan, its name with .checkpoints.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Steps between checkpoints, or time: 500, 10min, 2h. 0: only at the end.
    #[arg(long, value_name = "N|TIME", default_value = "0", value_parser = pace, allow_hyphen_values = true)]
    pub every: Every,
    /// Checkpoints to keep.
    #[arg(long, default_value_t = 2, value_parser = whole::<usize>(0..=u64::MAX), allow_hyphen_values = true)]
    pub keep: usize,
    /// Goes on from the newest sound checkpoint of the folder.
    #[arg(long)]
    pub resume: bool,
    /// Steps between lines where there is no terminal; default: a line each ten seconds.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1..=u64::MAX), allow_hyphen_values = true)]
    pub print_every: Option<u64>,
    /// Data to take the loss of without training on it, given as --data is.
    #[arg(long, value_name = "SPEC")]
    pub eval_data: Vec<String>,
    /// Steps between evaluations; 0: only at the end.
    #[arg(long, default_value_t = 0, requires = "eval_data", value_parser = whole::<u64>(0..=u64::MAX), allow_hyphen_values = true)]
    pub eval_every: u64,
    /// Batches of an evaluation; default: all of the data.
    #[arg(long, requires = "eval_data", value_parser = whole::<u64>(1..=u64::MAX), allow_hyphen_values = true)]
    pub eval_batches: Option<u64>,
    #[command(flatten)]
    pub on: DeviceArgs,
}

#[derive(Args, Debug)]
pub struct Eval {
    pub plan: PathBuf,
    /// tokens.txt (bytes) | tokens.bin | NAME=FILE.npy, one for each input, and labels for an inference plan.
    #[arg(long, required = true)]
    pub data: Vec<String>,
    /// Parameters from a checkpoint, a folder of checkpoints or a safetensors file instead of the plan's.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Batches to evaluate; default: all of the data.
    #[arg(long, value_parser = whole::<u64>(1..=u64::MAX), allow_hyphen_values = true)]
    pub batches: Option<u64>,
    /// What `labels` gets from a token file, as in train.
    #[arg(long, value_enum, default_value = "auto")]
    pub labels: LabelsArg,
    /// Bits of a token in a .bin file without a header: 16 or 32. Default: the one that is possible.
    #[arg(long, value_name = "BITS", value_parser = named::<TokenWidth>)]
    pub token_width: Option<TokenWidth>,
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX), allow_hyphen_values = true)]
    pub seed: u64,
    #[command(flatten)]
    pub on: DeviceArgs,
}

#[derive(Args, Debug)]
pub struct Export {
    pub plan: PathBuf,
    /// A checkpoint, a folder of checkpoints (its newest sound one), or a safetensors file.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// The ONNX file to write.
    #[arg(short, long, value_name = "MODEL.onnx", required_unless_present = "hf")]
    pub output: Option<PathBuf>,
    /// The Hugging Face folder to write, of a model that came from one.
    #[arg(long, value_name = "DIR")]
    pub hf: Option<PathBuf>,
    /// The model that the plan was compiled from; default: the one of that name beside the plan or here.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// As it was given to compile.
    #[arg(long, value_name = "GLOB")]
    pub tie: Vec<String>,
    /// As it was given to compile.
    #[arg(long, value_name = "GLOB")]
    pub untie: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Generate {
    pub plan: PathBuf,
    /// Parameters from a checkpoint, a folder of checkpoints or a safetensors file instead of the plan's.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// The text to go on from.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_tokens")]
    pub prompt: Option<String>,
    /// The tokens to go on from, as numbers.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', conflicts_with = "prompt")]
    pub prompt_tokens: Vec<i64>,
    /// Most tokens to write.
    #[arg(long, default_value_t = 100, value_parser = whole::<usize>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub tokens: usize,
    /// What logits are divided by; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.0, value_parser = number(TEMPERATURE), allow_hyphen_values = true)]
    pub temperature: f64,
    /// Draws from the likeliest tokens that have this probability together.
    #[arg(long, default_value_t = 1.0, value_parser = number(SHARE), allow_hyphen_values = true)]
    pub top_p: f64,
    /// Turns text into tokens; default: tokenizer.json of the model's folder or beside the plan.
    #[arg(long, value_name = "tokenizer.json")]
    pub tokenizer: Option<PathBuf>,
    /// The model that a training plan was compiled from; default: the one of that name beside the plan or here.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX), allow_hyphen_values = true)]
    pub seed: u64,
    #[command(flatten)]
    pub on: DeviceArgs,
}

#[derive(Args, Debug)]
pub struct Run {
    pub plan: PathBuf,
    /// Tensors by the model's input names (.safetensors).
    #[arg(long)]
    pub inputs: PathBuf,
    #[arg(long)]
    pub outputs: PathBuf,
    /// Also writes every gradient, as grad.NAME.
    #[arg(long)]
    pub grads: bool,
    /// Parameters from a checkpoint folder instead of the plan's.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX), allow_hyphen_values = true)]
    pub seed: u64,
    #[command(flatten)]
    pub on: DeviceArgs,
}

#[derive(Args, Debug)]
pub struct Inspect {
    pub plan: PathBuf,
}

#[derive(Args, Debug)]
pub struct Report {
    pub plan: PathBuf,
    /// The log of a training of it, for the loss.
    #[arg(long, value_name = "FILE.jsonl")]
    pub log: Option<PathBuf>,
    /// Where the page goes.
    #[arg(short, long, value_name = "FILE.html")]
    pub output: PathBuf,
}

#[derive(Args, Debug)]
pub struct Curve {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Whose costs to predict with: auto, or a list of cpu, sm_89, sm_90a.
    #[arg(long, default_value = "auto", value_delimiter = ',')]
    pub target: Vec<String>,
    #[command(flatten)]
    pub numbers: NumberArgs,
    /// Where a drawing goes.
    #[arg(short, long, value_name = "FILE.svg")]
    pub output: Option<PathBuf>,
}

impl Curve {
    /// The compilation for one of its targets.
    pub fn at(&self, target: &str) -> Compile {
        Compile {
            model: self.model.clone(),
            mem: None,
            output: None,
            target: vec![target.into()],
            numbers: self.numbers.clone(),
            emit: None,
            threads: None,
        }
    }
}

#[derive(Args, Debug)]
pub struct Check {
    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Args, Debug)]
pub struct New {
    /// llama | gpt2, with random weights
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    pub family: Option<String>,
    /// A Hugging Face folder: config.json and safetensors, which stay where they are.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["preset", "layers", "dim", "heads", "kv_heads", "ffn", "vocab"])]
    pub from: Option<PathBuf>,
    /// 125m | 7b | 42b
    #[arg(long)]
    pub preset: Option<String>,
    #[arg(long, value_parser = whole::<u64>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub layers: Option<u64>,
    #[arg(long, value_parser = whole::<u64>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub dim: Option<u64>,
    #[arg(long, value_parser = whole::<u64>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub heads: Option<u64>,
    #[arg(long, value_parser = whole::<u64>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub kv_heads: Option<u64>,
    #[arg(long, value_parser = whole::<u64>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub ffn: Option<u64>,
    #[arg(long, value_parser = whole::<u64>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub vocab: Option<u64>,
    #[arg(long, value_parser = whole::<u64>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub seq: Option<u64>,
    #[arg(long, value_parser = whole::<u64>(1..=MAX_SIZE), allow_hyphen_values = true)]
    pub batch: Option<u64>,
    /// Where the model goes; default: stdout.
    #[arg(short, long)]
    pub output: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Pack {
    /// CSV with the columns id, lower, upper and size: a buffer is alive in [lower, upper).
    pub buffers: PathBuf,
    /// Searches until they fit this, instead of the least memory.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, allow_hyphen_values = true)]
    pub capacity: Option<Bytes>,
    /// Where the offsets go, a CSV with the columns id and offset; default: stdout.
    #[arg(short, long)]
    pub output: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Remat {
    /// JSON: nodes with id, cost and bytes, and edges [from, to]; ids are an order in which the nodes can run.
    pub graph: PathBuf,
    /// A share of the peak of computing everything once, up to 1, or bytes.
    #[arg(long, value_name = "FRACTION|BYTES", value_parser = named::<Budget>, allow_hyphen_values = true)]
    pub budget: Budget,
    /// Where the schedule goes, as JSON; default: stdout.
    #[arg(short, long)]
    pub output: Option<PathBuf>,
}

/// Memory for a bare graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Of the peak of computing everything once.
    Share(f64),
    Bytes(Bytes),
}

impl Budget {
    /// The budget in bytes, given that peak: a share is rounded up.
    pub fn of(self, peak: u64) -> u64 {
        match self {
            Budget::Share(share) => (peak as f64 * share).ceil() as u64,
            Budget::Bytes(bytes) => bytes.0,
        }
    }
}

impl std::str::FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = || "must be a share above 0 up to 1, such as 0.8, or a size such as 24G".to_string();
        match text.trim().parse::<f64>() {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(Budget::Share(share)),
            _ => size::parse(text).map(Budget::Bytes).map_err(|_| rule()),
        }
    }
}

/// Both moments' decay, or the first's alone.
fn betas(text: &str) -> Result<[f64; 2], String> {
    let parsed: Result<Vec<f64>, String> = text.split(',').map(|b| BETA.parse(b)).collect();
    match parsed.as_deref() {
        Ok([first]) => Ok([*first, DEFAULT_BETA2]),
        Ok([first, second]) => Ok([*first, *second]),
        _ => Err(format!("must be two numbers such as 0.9,0.999, each {BETA}")),
    }
}
