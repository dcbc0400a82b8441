//! Models whose loss shifts its labels and models whose loss does not, trained on a file of tokens: the losses are PyTorch's.

use fp8c::precision::Precision;
use fp8c_runtime::data::{DataOptions, Loader, Order};
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::plan::{Labels, PlanFile};
use fp8c_runtime::session::Batch;
use fp8c_tests::{options, session, text};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/labels")
}

fn reference() -> serde_json::Value {
    let text = std::fs::read_to_string(folder().join("reference.json")).expect("the reference is there");
    serde_json::from_str(&text).expect("the reference is JSON")
}

/// Losses of training on consecutive windows of the text, with labels as asked for or as the plan says.
fn losses(name: &str, labels: Option<Labels>, steps: usize) -> Vec<f64> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut compiled = fp8c::compile::compile(&folder().join(format!("{name}.onnx")), &options(Precision::F32, Some(1 << 30)))
        .expect("a model that compiles");
    let path = dir.path().join("m.plan");
    fp8c::emit::write(&mut compiled, &path).expect("the plan can be written");
    let file = PlanFile::open(&path).expect("a plan that was just written");
    let data = DataOptions { labels, ..Order::Sequential.into() };
    let loader = Loader::open(file.plan(), &[text().display().to_string()], data).expect("the text fits");
    let hyper = Hyper { learning_rate: 1e-3, weight_decay: 0.01, ..Hyper::default() };
    let (mut session, mut batch) = (session(&file), Batch::new(file.plan()));
    let step = |i: usize| {
        loader.fill(i as u64 * loader.samples_per_step(), &mut batch).expect("the text is in range");
        session.step(&batch, &hyper).expect("a step runs").loss
    };
    (0..steps).map(step).collect()
}

/// The largest relative difference.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y).abs() / y.abs()).fold(0.0, f64::max)
}

#[test]
fn training_on_tokens_gives_pytorchs_losses_whichever_way_the_loss_takes_its_labels() {
    let reference = reference();
    for name in ["inside", "sliced", "hidden", "outside"] {
        let expected: Vec<f64> = reference[name]["losses"].as_array().expect("losses").iter().filter_map(|l| l.as_f64()).collect();
        let found = losses(name, None, expected.len());
        assert!(apart(&found, &expected) < 1e-5, "{name}: {found:?} where PyTorch has {expected:?}");
        let other = if reference[name]["labels"] == "same" { Labels::Next } else { Labels::Same };
        let wrong = losses(name, Some(other), 1);
        assert!(apart(&wrong, &expected) > 1e-4, "{name}: other labels are another loss");
    }
}
