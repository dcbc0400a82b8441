//! What the end-to-end tests share: the models of `testdata`, compiled and trained through the libraries.

pub mod hostile;
pub mod settle;

use fp8c::Error;
use fp8c::compile::{CompileOptions, Compiled, compile};
use fp8c::decide::policy::Policy;
use fp8c::differentiate::Optimizer;
use fp8c::graph::Op;
use fp8c::import::ImportOptions;
use fp8c::precision::Precision;
use fp8c::quantity::Bytes;
use fp8c_kernels::DType;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::plan::{Clip, PlanFile, Role};
use fp8c_runtime::session::{Batch, Session, SessionOptions};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Threads that plans are made for and run with.
pub const THREADS: usize = 2;

/// The models of `testdata` with a reference.
pub const CASES: [&str; 6] = ["gpt2", "llama18", "llama23", "bert", "vit", "cnn"];

/// The folder of a test model.
pub fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(case)
}

/// The text that models are trained on.
pub fn text() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/text.txt")
}

/// Options for the CPU without PTX.
pub fn options(precision: Precision, budget: Option<u64>) -> CompileOptions {
    CompileOptions {
        import: ImportOptions::default(),
        budget: budget.map(Bytes),
        target: "cpu".into(),
        archs: vec![],
        precision,
        policy: Policy::default(),
        power_of_two_scales: false,
        optimizer: Optimizer::AdamW,
        state: if precision == Precision::F32 { DType::F32 } else { DType::Bf16 },
        master: DType::F32,
        frozen: if precision == Precision::F32 { DType::F32 } else { DType::Bf16 },
        clip: Clip::Exact,
        accumulation: 1,
        threads: THREADS,
    }
}

/// Compiles a test model.
pub fn compiled(case: &str, options: &CompileOptions) -> Result<Compiled, Error> {
    compile(&folder(case).join("model.onnx"), options)
}

/// The bytes of a plan's constants, by name.
pub fn plan_constants(compiled: &Compiled) -> HashMap<String, Vec<u8>> {
    let constants = compiled.program.buffers.iter().filter(|b| b.persistent && b.role == Role::Constant);
    let value = constants.filter_map(|b| match &compiled.joint.def(b.value).op {
        Op::Constant(data) => Some((b.name.clone(), data.bytes.to_vec())),
        _ => None,
    });
    value.collect()
}

/// Compiles a test model into a plan file of a folder.
pub fn plan_file(case: &str, options: &CompileOptions, into: &Path) -> Result<PlanFile, Error> {
    let path = into.join(format!("{case}.plan"));
    fp8c::emit::write(&mut compiled(case, options)?, &path)?;
    Ok(PlanFile::open(&path)?)
}

/// The `--data` specifications of a model's recorded samples.
pub fn samples(case: &str) -> Vec<String> {
    let data = folder(case).join("data");
    let mut specs: Vec<String> = std::fs::read_dir(&data)
        .expect("every case has data")
        .filter_map(|e| e.ok())
        .map(|e| format!("{}={}", e.path().file_stem().unwrap_or_default().to_string_lossy(), e.path().display()))
        .collect();
    specs.sort();
    specs
}

/// The reference of a model: learning rate and the losses of PyTorch.
pub fn reference(case: &str) -> (Hyper, Vec<f64>) {
    let text = std::fs::read_to_string(folder(case).join("reference.json")).expect("every case has a reference");
    let json: serde_json::Value = serde_json::from_str(&text).expect("the reference is JSON");
    let losses = json["losses"].as_array().into_iter().flatten().filter_map(|l| l.as_f64()).collect();
    let hyper = Hyper {
        learning_rate: json["lr"].as_f64().unwrap_or(0.0),
        weight_decay: json["weight_decay"].as_f64().unwrap_or(0.0),
        eps: json["eps"].as_f64().unwrap_or(0.0),
        ..Hyper::default()
    };
    (hyper, losses)
}

/// A session on the CPU.
pub fn session(file: &PlanFile) -> Session {
    Session::new(file, SessionOptions { threads: Some(THREADS), ..SessionOptions::default() }).expect("the CPU is always there")
}

/// Losses of training a plan for some steps.
pub fn train(file: &PlanFile, data: &[String], order: Order, hyper: &Hyper, steps: u64) -> Vec<f64> {
    let loader = Loader::open(file.plan(), data, order).expect("the data fits");
    let mut session = session(file);
    let mut batch = Batch::new(session.plan());
    let step = |i: u64| {
        loader.fill(i * loader.samples_per_step(), &mut batch).expect("the data is in range");
        session.step(&batch, hyper).expect("a step runs").loss
    };
    (0..steps).map(step).collect()
}
