//! Plans: valid ones are bent field by field, and those that the verifier still accepts are executed.
//!
//! The bytes of an input are choices: which plan, how often and where it is bent, and how. An accepted plan runs on the CPU, with pages
//! that fault around the arena and poison in every byte of it that no live tensor owns, twice with different poison: a step that reads or
//! writes what is not its own is killed, leaves a mark in the poison, or gives two results.

mod bend;
mod execute;

use crate::{options, plan_constants};
use bend::{Choices, bend};
use execute::execute;
use fp8c::compile::{CompileOptions, Compiled, compile};
use fp8c::differentiate::Optimizer;
use fp8c::import::new::{Family, Request, Sizes, new};
use fp8c::import::{ImportOptions, json};
use fp8c::precision::Precision;
use fp8c_kernels::DType;
use fp8c_runtime::plan::{Clip, Plan, verify};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::OnceLock;

/// A sound plan, and the values of its constants by name.
pub struct Base {
    pub plan: Plan,
    pub constants: HashMap<String, Vec<u8>>,
}

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The verifier said no.
    Refused,
    /// Accepted, and too large to be run here.
    TooLarge,
    /// Accepted and run.
    Ran,
}

/// Bends a plan as the input says, and runs it if it is accepted.
///
/// # Panics
/// When an accepted plan touches what is not its own.
pub fn plan(data: &[u8]) {
    outcome(data);
}

/// The plan that an input chooses, as it was and bent.
fn chosen(data: &[u8]) -> (&'static Base, Plan) {
    let mut choices = Choices::new(data);
    let base = &bases()[choices.below(bases().len())];
    let mut bent = base.plan.clone();
    for _ in 0..1 + choices.below(4) {
        bend(&mut bent, &mut choices);
    }
    (base, bent)
}

/// What an input bends, one change a line.
pub fn describe(data: &[u8]) -> String {
    let (base, bent) = chosen(data);
    let mut lines = vec![];
    let json = |plan: &Plan| serde_json::to_value(plan).unwrap_or_default();
    differences(&json(&base.plan), &json(&bent), &mut String::new(), &mut lines);
    lines.join("\n")
}

fn differences(a: &Value, b: &Value, at: &mut String, out: &mut Vec<String>) {
    let mut inside = |key: &str, a: &Value, b: &Value| {
        let length = at.len();
        at.push('/');
        at.push_str(key);
        differences(a, b, at, out);
        at.truncate(length);
    };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => a.iter().for_each(|(k, x)| inside(k, x, &b[k])),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => (0..a.len()).for_each(|i| inside(&i.to_string(), &a[i], &b[i])),
        (Value::Array(a), Value::Array(b)) => out.push(format!("{at}: {} entries, now {}", a.len(), b.len())),
        _ if a == b => {}
        _ => out.push(format!("{at}: {a}, now {b}")),
    }
}

/// As [`plan`], with what became of the input.
pub fn outcome(data: &[u8]) -> Outcome {
    let (base, bent) = chosen(data);
    match verify(&bent) {
        Err(reason) => {
            assert!(!reason.is_empty());
            Outcome::Refused
        }
        Ok(()) if !execute::is_small(&bent) => Outcome::TooLarge,
        Ok(()) => {
            execute(&bent, &base.constants);
            Outcome::Ran
        }
    }
}

/// The plans that are bent.
pub fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let mut all = vec![];
        for (precision, optimizer, accumulation) in
            [(Precision::Fp8, Optimizer::AdamW, 1), (Precision::F32, Optimizer::Sgd, 2), (Precision::Bf16, Optimizer::Lion, 3)]
        {
            let given = CompileOptions { optimizer, accumulation, ..options(precision, Some(1 << 40)) };
            for family in [Family::Gpt2, Family::Llama] {
                all.extend(roomy_and_tight(&language_model(family), &given));
            }
        }
        let (master, state, clip) = (DType::Bf16, DType::E4m3, Clip::Previous);
        let least = CompileOptions { master, state, clip, ..options(Precision::Fp8, Some(1 << 40)) };
        all.extend(roomy_and_tight(&language_model(Family::Gpt2), &least));
        let f32 = options(Precision::F32, Some(1 << 40));
        all.extend(roomy_and_tight(IMAGES, &f32));
        all.push(compiled(IMAGES, &CompileOptions { import: ImportOptions { infer: true, ..ImportOptions::default() }, ..f32 }));
        all.into_iter().map(|c| Base { constants: plan_constants(&c), plan: c.plan }).collect()
    })
}

/// With everything kept, and with as little as can be.
fn roomy_and_tight(model: &str, options: &CompileOptions) -> [Compiled; 2] {
    let roomy = compiled(model, options);
    let least = Some(fp8c::quantity::Bytes(roomy.plan.report.least_budget_bytes));
    let tight = compiled(model, &CompileOptions { budget: least, ..options.clone() });
    [roomy, tight]
}

fn compiled(model: &str, options: &CompileOptions) -> Compiled {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.json");
    std::fs::write(&path, model).expect("the file is written");
    compile(&path, options).expect("the model compiles")
}

fn language_model(family: Family) -> String {
    let [layers, dim, heads, ffn, vocab, seq, batch] = [2, 8, 2, 12, 16, 6, 2].map(Some);
    let request = Request { layers, dim, heads, kv_heads: Some(2), ffn, vocab, seq, batch, ..Request::default() };
    json::write(&new(family, &Sizes::of(family, &request).expect("the sizes fit"))).expect("the model has a JSON form")
}

/// Convolution, pooling, and concatenations that read concatenations.
const IMAGES: &str = include_str!("../../../testdata/importing/concatenations.json");
