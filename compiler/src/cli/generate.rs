//! `fp8c generate`.

use super::args::Generate;
use super::failure::Failure;
use super::{Done, Output, print, source};
use crate::compile::{CompileOptions, THREADS, compile};
use crate::decide::policy::Policy;
use crate::differentiate::Optimizer;
use crate::hf::config::Config;
use crate::hf::source_of;
use crate::import::{ImportOptions, read as read_model};
use crate::precision::Precision;
use crate::{Error, emit};
use fp8c_kernels::DType;
use fp8c_runtime::checkpoint;
use fp8c_runtime::device::DeviceChoice;
use fp8c_runtime::files::{Input, parent};
use fp8c_runtime::generation::{Generator, Sampling};
use fp8c_runtime::plan::{Clip, Plan, PlanFile};
use fp8c_runtime::session::{Session, SessionOptions};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokenizers::Tokenizer;

/// The file of a folder that turns text into tokens and back.
const TOKENIZER: &str = "tokenizer.json";
/// The vocabulary of bytes.
const BYTES: i64 = 256;

/// Writes what a causal language model has to say.
pub fn generate(a: &Generate, output: Output) -> Done {
    let file = PlanFile::open(&a.plan)?;
    let device: DeviceChoice = a.on.device.parse()?;
    let model = source::find(file.plan(), &a.plan, a.model.as_deref());
    let folder = model.as_ref().ok().and_then(|path| source_of(&read_model(path).ok()?));
    let words = Words::of(a, folder.as_deref(), file.plan())?;
    let prompt = words.tokens(a)?;
    // A training plan keeps no logits: the same model is compiled to infer, into a file that is gone afterwards.
    let scratch = tempfile::tempdir().map_err(|source| Error::Io { path: "a temporary folder".into(), source })?;
    let file = match file.plan().loss {
        None => file,
        Some(_) => inferring(&file, &model?, scratch.path())?,
    };
    let mut session = Session::new(&file, SessionOptions { device, threads: a.on.threads, seed: a.seed })?;
    if let Some(trained) = &a.checkpoint {
        checkpoint::load_parameters(&mut session, trained, &mut |note| output.say(format!("note: {note}")))?;
    }
    let mut generator = Generator::new(session)?;
    let all = prompt.len() + a.tokens;
    if all > generator.length() {
        let length = generator.length();
        output.say(format!("note: the plan's sequence has {length} positions; of {all} tokens the model sees the last {length}"));
    }
    let started = Instant::now();
    let sampling = Sampling { temperature: a.temperature, top_p: a.top_p, seed: a.seed };
    let tokens = generator.generate(&prompt, a.tokens, &ends(folder.as_deref()), sampling)?;
    let rate = tokens.len() as f64 / started.elapsed().as_secs_f64().max(1e-9);
    let text = words.text(&tokens)?;
    output.say(format!("{} tokens, {rate:.1} tokens/s", tokens.len()));
    match output.json {
        true => print(serde_json::json!({ "prompt_tokens": prompt, "tokens": tokens, "text": text, "tokens_per_second": rate })),
        false => print(text),
    }
}

/// The same model, compiled to infer in f32 for inputs of the same shapes.
fn inferring(training: &PlanFile, model: &Path, into: &Path) -> Result<PlanFile, Failure> {
    let bound = source::bound_as_in(training.plan(), &read_model(model)?);
    let options = CompileOptions {
        import: ImportOptions { infer: true, ..bound },
        budget: None,
        target: training.plan().target.clone(),
        archs: archs(training),
        precision: Precision::F32,
        policy: Policy::default(),
        power_of_two_scales: false,
        optimizer: Optimizer::AdamW,
        state: DType::F32,
        master: DType::F32,
        frozen: DType::F32,
        clip: Clip::Exact,
        accumulation: 1,
        threads: THREADS,
    };
    let path = into.join("generate.plan");
    let mut compiled = compile(model, &options)?;
    emit::write(&mut compiled, &path)?;
    Ok(PlanFile::open(&path)?)
}

/// The chips that a plan has code for.
fn archs(file: &PlanFile) -> Vec<String> {
    let mut archs: Vec<String> = file.plan().kernels.iter().flat_map(|k| k.launches.keys().cloned()).collect();
    archs.sort();
    archs.dedup();
    archs
}

/// Tokens that end a text, as the folder of the model has them.
fn ends(folder: Option<&Path>) -> Vec<i64> {
    let Some(config) = folder.and_then(|f| Config::read(f).ok()) else { return vec![] };
    let ids = config.get("eos_token_id").cloned().unwrap_or_default();
    ids.as_i64().into_iter().chain(ids.as_array().into_iter().flatten().filter_map(|id| id.as_i64())).collect()
}

/// How text becomes tokens.
enum Words {
    Tokenizer(Box<Tokenizer>),
    /// Bytes are tokens.
    Bytes,
    /// Tokens are given, and printed, as numbers.
    Numbers,
}

impl Words {
    fn of(a: &Generate, folder: Option<&Path>, plan: &Plan) -> Result<Self, Failure> {
        let beside: Vec<PathBuf> = folder.into_iter().chain([parent(&a.plan)]).map(|f| f.join(TOKENIZER)).collect();
        let Some(path) = a.tokenizer.clone().or_else(|| beside.into_iter().find(|p| p.is_file())) else {
            let bytes = plan.inputs.iter().any(|p| p.name == "input_ids" && p.bound == Some(BYTES));
            return Ok(if bytes { Words::Bytes } else { Words::Numbers });
        };
        let bytes = Input::open(&path)?.read_all()?;
        let tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|e| Failure::refused(format!("{} is no tokenizer: {e}", path.display()), "name a tokenizer.json with --tokenizer"))?;
        Ok(Words::Tokenizer(Box::new(tokenizer)))
    }

    /// The prompt.
    fn tokens(&self, a: &Generate) -> Result<Vec<i64>, Failure> {
        let Some(text) = &a.prompt else { return Ok(a.prompt_tokens.clone()) };
        match self {
            Words::Tokenizer(tokenizer) => {
                let encoded = tokenizer.encode(text.as_str(), true);
                let encoded =
                    encoded.map_err(|e| Failure::refused(format!("the prompt cannot be tokenized: {e}"), "give --prompt-tokens"))?;
                Ok(encoded.get_ids().iter().map(|&id| i64::from(id)).collect())
            }
            Words::Bytes => Ok(text.bytes().map(i64::from).collect()),
            Words::Numbers => {
                let hint = "name one with --tokenizer tokenizer.json, or give the tokens' numbers with --prompt-tokens 1,2,3";
                Err(Failure::refused("there is no tokenizer.json beside the model or the plan", hint))
            }
        }
    }

    /// What tokens say.
    fn text(&self, tokens: &[i64]) -> Result<String, Failure> {
        match self {
            Words::Tokenizer(tokenizer) => {
                let ids: Vec<u32> = tokens.iter().filter_map(|&t| u32::try_from(t).ok()).collect();
                tokenizer.decode(&ids, true).map_err(|e| Failure::refused(format!("the tokens are no text: {e}"), "see them with --json"))
            }
            Words::Bytes => {
                let bytes: Vec<u8> = tokens.iter().filter_map(|&t| u8::try_from(t).ok()).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Words::Numbers => Ok(tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        }
    }
}
