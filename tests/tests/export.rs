//! Trained weights back in the file that their model came from.

use fp8c::compile::compile;
use fp8c::export::onnx;
use fp8c::import::ImportOptions;
use fp8c::precision::Precision;
use fp8c_runtime::checkpoint::{Standing, Store, read_parameters};
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::plan::PlanFile;
use fp8c_runtime::session::{Batch, Session};
use fp8c_tests::{CASES, folder, options, plan_file, reference, samples, session};
use std::path::Path;

/// A session after some steps, and a batch that it has not seen.
fn trained(file: &PlanFile, case: &str) -> (Session, Batch) {
    let (hyper, _) = reference(case);
    let loader = Loader::open(file.plan(), &samples(case), Order::Sequential).expect("the data fits");
    let mut session = session(file);
    let mut batch = Batch::new(session.plan());
    for step in 0..5 {
        loader.fill(step * loader.samples_per_step(), &mut batch).expect("the data is in range");
        session.step(&batch, &hyper).expect("a step runs");
    }
    loader.fill(5 * loader.samples_per_step(), &mut batch).expect("the data is in range");
    (session, batch)
}

fn compiled(model: &Path, into: &Path) -> PlanFile {
    let path = into.join("again.plan");
    let mut plan = compile(model, &options(Precision::F32, None)).expect("the exported model compiles");
    fp8c::emit::write(&mut plan, &path).expect("the plan is written");
    PlanFile::open(&path).expect("the plan is sound")
}

#[test]
fn an_exported_model_is_the_trained_one_with_the_same_parameters() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for case in CASES {
        let file = plan_file(case, &options(Precision::F32, None), dir.path()).expect("the model compiles");
        let (mut session, batch) = trained(&file, case);
        let store = Store::open(&dir.path().join(case)).expect("a folder");
        store.save(&session, &Standing::default()).expect("a checkpoint");
        let weights = read_parameters(file.plan(), store.folder(), &mut |note| panic!("{note}")).expect("the checkpoint is sound");
        let out = dir.path().join(format!("{case}.onnx"));
        let model = folder(case).join("model.onnx");
        onnx(&model, &ImportOptions::default(), &weights, &out).expect("the model is written");
        let again = compiled(&out, dir.path());
        let names = |file: &PlanFile| {
            let mut names: Vec<(String, Vec<u64>)> = file.plan().parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
            names.sort();
            names
        };
        assert_eq!(names(&file), names(&again), "{case}");
        let mut other = fp8c_tests::session(&again);
        for (name, _) in names(&file) {
            assert_eq!(
                session.parameter(&name).expect("a parameter").bytes,
                other.parameter(&name).expect("a parameter").bytes,
                "{case} {name}"
            );
        }
        let [own, exported] = [&mut session, &mut other].map(|s| s.evaluate(&batch, 0).expect("it runs"));
        assert!((own - exported).abs() <= 1e-6 * own.abs(), "{case}: {own} trained, {exported} exported");
    }
}

#[test]
fn an_export_replaces_an_earlier_one_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = folder("cnn").join("model.onnx");
    let out = dir.path().join("out.onnx");
    let write = || onnx(&model, &ImportOptions::default(), &Default::default(), &out).map_err(|e| e.to_string());
    write().expect("the place is free");
    let first = std::fs::read(&out).expect("a file");
    write().expect("an earlier export");
    assert!(first == std::fs::read(&out).expect("a file"), "same weights, same bytes");
    std::fs::copy(&model, &out).expect("a copy");
    assert!(write().expect_err("a model of somebody else's").contains("is not a model that fp8c exported"));
    assert_eq!(std::fs::read(&out).expect("a file"), std::fs::read(&model).expect("a file"));
}
