//! Ways to store and update what is trained: each resumes bit for bit, and leaves alone what it should. How they learn is measured over long
//! runs (`tests/measure/state.py`): short ones of this model part by more than what is asked about.

use fp8c::compile::CompileOptions;
use fp8c::precision::Precision;
use fp8c_kernels::DType;
use fp8c_runtime::checkpoint::{Standing, Store, load};
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::hyper::{Hyper, LossScaling};
use fp8c_runtime::plan::{Clip, Plan, PlanFile};
use fp8c_runtime::session::{Batch, Session};
use fp8c_runtime::tensors::TensorFile;
use fp8c_tests::{compiled, options, plan_file, session, text, train};
use std::path::Path;

fn ways() -> Vec<(&'static str, CompileOptions)> {
    let plain = |precision| options(precision, Some(1 << 30));
    let fp8 = plain(Precision::Fp8);
    let e4m3 = CompileOptions { state: DType::E4m3, ..fp8.clone() };
    let stochastic = CompileOptions { master: DType::Bf16, ..fp8.clone() };
    let least = CompileOptions { state: DType::E4m3, clip: Clip::Previous, ..stochastic.clone() };
    let f32 = CompileOptions { master: DType::Bf16, state: DType::E4m3, ..plain(Precision::F32) };
    vec![("e4m3", e4m3), ("bf16-sr", stochastic), ("bf16-sr, e4m3, previous", least), ("f32, bf16-sr, e4m3", f32)]
}

fn clipped() -> Hyper {
    Hyper { learning_rate: 1e-3, clip: Some(0.5), ..Hyper::default() }
}

fn file(case: &str, options: &CompileOptions, dir: &Path) -> PlanFile {
    plan_file(case, options, dir).expect("the model compiles")
}

/// Takes steps, each on the data that belongs to it.
fn steps(s: &mut Session, numbers: std::ops::Range<u64>, hyper: &Hyper) -> Vec<f64> {
    let loader = Loader::open(s.plan(), &[text().display().to_string()], Order::Shuffled { seed: 3 }).expect("the data fits");
    let mut batch = Batch::new(s.plan());
    let mut step = |i: u64| {
        loader.fill(i * loader.samples_per_step(), &mut batch).expect("the data is in range");
        s.step(&batch, hyper).expect("a step runs").loss
    };
    numbers.map(&mut step).collect()
}

#[test]
fn every_way_to_store_what_is_trained_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, options) in ways() {
        let file = file("gpt2", &options, dir.path());
        let mut once = session(&file);
        let whole = steps(&mut once, 0..8, &clipped());
        let mut first = session(&file);
        steps(&mut first, 0..4, &clipped());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(folder.path()).expect("the folder is there");
        let path = store.save(&first, &Standing::default()).expect("the checkpoint is written");
        let mut second = session(&file);
        load(&mut second, &path).expect("the checkpoint loads");
        assert_eq!(steps(&mut second, 4..8, &clipped()), whole[4..], "{name}");
        for p in &file.plan().parameters {
            assert!(once.parameter(&p.name).ok() == second.parameter(&p.name).ok(), "{name}: {}", p.name);
        }
    }
}

#[test]
fn updates_within_the_backward_pass_change_no_bit_without_clipping_and_need_less_memory() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for case in ["gpt2", "llama23", "cnn"] {
        let exact = CompileOptions { budget: None, ..options(Precision::Fp8, Some(1 << 30)) };
        let least = |clip| {
            let roomy = compiled(case, &CompileOptions { clip, ..exact.clone() }).expect("the model compiles").plan;
            roomy.report.least_budget_bytes
        };
        let (late, early) = (least(Clip::Exact), least(Clip::Previous));
        // A model of a few parameters has its peak elsewhere.
        assert!(early < late || case == "cnn", "{case}: {early} and {late}");
        // The least budgets compute most again, out of parameters that must not have changed.
        let budget = |bytes| Some(fp8c::quantity::Bytes(bytes));
        let late = file(case, &CompileOptions { budget: budget(late), ..exact.clone() }, dir.path());
        let losses = |file: &PlanFile| {
            let data = if case == "cnn" { fp8c_tests::samples(case) } else { vec![text().display().to_string()] };
            train(file, &data, Order::Shuffled { seed: 2 }, &Hyper { learning_rate: 1e-3, ..Hyper::default() }, 6)
        };
        let expected = losses(&late);
        let early = file(case, &CompileOptions { budget: budget(early), clip: Clip::Previous, ..exact.clone() }, dir.path());
        assert_eq!(losses(&early), expected, "{case}");
    }
}

/// Parameters in the order in which a step updates them.
fn in_order(plan: &Plan) -> Vec<&str> {
    let of = |id| plan.parameters.iter().find(|p| p.tensor == id && p.trainable).map(|p| p.name.as_str());
    let steps = plan.schedule.update.iter().filter(|s| plan.kernels[s.kernel as usize].kernel.family() == "update");
    steps.filter_map(|s| of(s.args[0])).collect()
}

/// What a checkpoint holds, by name: parameters, and states as the plan stores them.
fn stored(s: &Session) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = Store::open(folder.path()).and_then(|store| store.save(s, &Standing::default())).expect("the checkpoint is written");
    let mut all = vec![];
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let file = TensorFile::open(&path.join(name)).expect("the file is there");
        let mut take = |name: &str, view: &fp8c_runtime::tensors::View<'_>| {
            all.push((name.to_string(), view.bytes.to_vec()));
            Ok(())
        };
        file.each(&mut |_| (), &mut take).expect("the file is sound");
    }
    all
}

#[test]
fn an_overflow_late_in_the_backward_pass_leaves_what_comes_behind_it_alone_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let ways = ways();
    let file = file("gpt2", &CompileOptions { precision: Precision::F32, ..ways[2].1.clone() }, dir.path());
    // The norm of the second step's gradient, from a training that takes it.
    let mut probe = session(&file);
    steps(&mut probe, 0..1, &Hyper::default());
    let mut s = session(&file);
    let loader = Loader::open(s.plan(), &[text().display().to_string()], Order::Shuffled { seed: 3 }).expect("the data fits");
    let mut batch = Batch::new(s.plan());
    loader.fill(0, &mut batch).expect("the data is in range");
    assert!(!s.step(&batch, &Hyper::default()).expect("a step runs").skipped);
    let norm = probe.step(&batch, &Hyper::default()).expect("a step runs").grad_norm;
    let before = stored(&s);
    // The sum of squares passes the largest f32 with the last few gradients.
    let scale = f64::from(f32::MAX).sqrt() / norm * 1.02;
    let hyper = Hyper { loss_scaling: LossScaling::Fixed(scale as f32), ..Hyper::default() };
    let bad = s.step(&batch, &hyper).expect("a step runs");
    assert!(bad.skipped && s.updates() == 1, "{bad:?}");
    let after = stored(&s);
    let of =
        |name: &str, parameter: &str| name == parameter || name.strip_prefix(parameter).is_some_and(|n| n.starts_with('.') && n.len() == 2);
    let changed = |parameter: &&&str| before.iter().zip(&after).any(|(a, b)| of(&a.0, parameter) && a.1 != b.1);
    let order = in_order(file.plan());
    let updated = order.iter().take_while(changed).count();
    assert!(updated > 0 && updated < order.len(), "{updated} of {}", order.len());
    assert_eq!(order.iter().skip(updated).filter(changed).count(), 0, "nothing behind the overflow has changed");
    // The step is not counted, and the next one is made as if it had not been tried.
    assert!(!s.step(&batch, &Hyper::default()).expect("a step runs").skipped);
}
