//! A model whose vocabulary is large against everything else, trained with its loss head in slices.

use fp8c::compile::{CompileOptions, Compiled, compile_imported};
use fp8c::import::import_model;
use fp8c::import::new::{Family, Request, Sizes, new};
use fp8c::precision::Precision;
use fp8c_kernels::DType;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::plan::{PlanFile, Role};
use fp8c_runtime::session::Batch;
use fp8c_runtime::tensors::HostTensor;
use fp8c_tests::{options, session};
use std::path::{Path, PathBuf};

const VOCABULARY: u64 = 20_000;
const SEQUENCE: u64 = 128;

fn compiled(family: Family, batch: u64, options: &CompileOptions) -> Compiled {
    let [layers, dim, heads, vocab, seq, batch] = [1, 32, 2, VOCABULARY, SEQUENCE, batch].map(Some);
    let request = Request { layers, dim, heads, vocab, seq, batch, ..Request::default() };
    let path = Path::new("model.json");
    let model = new(family, &Sizes::of(family, &request).expect("sizes that fit"));
    compile_imported(import_model(model, path, &options.import).expect("it imports"), path, options).expect("it compiles")
}

fn plan_of(mut compiled: Compiled, folder: &Path) -> PlanFile {
    let path = folder.join("model.plan");
    fp8c::emit::write(&mut compiled, &path).expect("the plan can be written");
    PlanFile::open(&path).expect("the plan verifies")
}

/// Tokens of 16 bits, all over the vocabulary, and some of them often.
fn tokens(folder: &Path) -> PathBuf {
    let mut random = fastrand::Rng::with_seed(1);
    let often = |r: &mut fastrand::Rng| if r.bool() { r.u64(0..50) } else { r.u64(0..VOCABULARY) };
    let bytes: Vec<u8> = (0..16 * SEQUENCE).flat_map(|_| (often(&mut random) as u16).to_le_bytes()).collect();
    let path = folder.join("tokens.bin");
    std::fs::write(&path, bytes).expect("the folder can be written to");
    path
}

fn losses(file: &PlanFile, data: &Path, hyper: &Hyper, between: bool) -> Vec<f64> {
    let loader = Loader::open(file.plan(), &[data.display().to_string()], Order::Sequential).expect("the data fits");
    let (mut session, mut batch) = (session(file), Batch::new(file.plan()));
    let ids = |name: &str| HostTensor {
        name: name.into(),
        dtype: safetensors::Dtype::I64,
        shape: file.plan().inputs[0].shape.clone(),
        bytes: vec![0; file.plan().tensor(file.plan().inputs[0].tensor).bytes as usize],
    };
    let run = (0..3).map(|i| {
        loader.fill(i * loader.samples_per_step(), &mut batch).expect("the data is in range");
        if between {
            session.run(&[ids("input_ids"), ids("labels")], false).expect("a pass runs");
        }
        session.step(&batch, hyper).expect("a step runs").loss
    });
    let run = run.collect();
    assert_eq!(session.arena_peak_bytes(), file.plan().arena_bytes, "executed peak is planned peak");
    run
}

#[test]
fn no_plan_holds_the_logits_of_more_than_a_slice() {
    for (family, precision) in [(Family::Gpt2, Precision::F32), (Family::Llama, Precision::Bf16), (Family::Gpt2, Precision::Fp8)] {
        let plan = compiled(family, 4, &options(precision, Some(1 << 30))).plan;
        let size = if precision == Precision::F32 { DType::F32.size() } else { DType::Bf16.size() };
        let logits = plan.tensors.iter().filter(|t| t.role == Role::Activation && t.shape.contains(&VOCABULARY) && !t.shape.contains(&32));
        let sizes: Vec<u64> = logits.map(|t| t.bytes).collect();
        assert_eq!(sizes.len(), 8, "logits and gradients of four slices: {sizes:?}");
        assert!(sizes.iter().all(|&b| b == SEQUENCE * VOCABULARY * size), "{sizes:?}");
    }
}

#[test]
fn a_budget_changes_no_bit_of_a_sliced_head_and_neither_does_a_pass_between_steps() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = tokens(dir.path());
    for (precision, accumulation) in [(Precision::F32, 1), (Precision::F32, 2), (Precision::Fp8, 1)] {
        let at = |budget| CompileOptions { accumulation, ..options(precision, Some(budget)) };
        let all = compiled(Family::Gpt2, 4, &at(1 << 40));
        let least = all.plan.report.least_budget_bytes;
        let kept = losses(&plan_of(all, dir.path()), &data, &Hyper::default(), false);
        let tight = plan_of(compiled(Family::Gpt2, 4, &at(least)), dir.path());
        assert_eq!(losses(&tight, &data, &Hyper::default(), true), kept);
        assert!((kept[0] - (VOCABULARY as f64).ln()).abs() < 0.1, "training starts at chance: {kept:?}");
    }
}

#[test]
fn micro_batches_sum_to_the_gradient_of_the_batch() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = tokens(dir.path());
    let train = |batch, accumulation| {
        let options = CompileOptions { accumulation, ..options(Precision::F32, Some(1 << 40)) };
        let hyper = Hyper { learning_rate: 1e-2, ..Hyper::default() };
        losses(&plan_of(compiled(Family::Gpt2, batch, &options), dir.path()), &data, &hyper, false)
    };
    let (whole, parts) = (train(8, 1), train(4, 2));
    assert!(whole[2] < whole[0] - 0.1, "it learns: {whole:?}");
    let apart = whole.iter().zip(&parts).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    assert!(apart < 1e-5, "{whole:?} and {parts:?}");
}
