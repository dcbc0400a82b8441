use crate::fixtures::*;
use fp8c_runtime::Error;
use fp8c_runtime::checkpoint;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::device::DeviceChoice;
use fp8c_runtime::hyper::{Hyper, LossScaling};
use fp8c_runtime::plan::Plan;
use fp8c_runtime::schedule::{LrSchedule, Shape};
use fp8c_runtime::session::{Session, SessionOptions};
use fp8c_runtime::tensors::TensorFile;
use fp8c_runtime::trainer::{CheckpointOptions, Summary, TrainOptions, train};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn session(plan: &Plan, folder: &Path, seed: u64) -> Session {
    let options = SessionOptions { device: DeviceChoice::Cpu, threads: Some(1), seed };
    Session::new(&opened(plan, folder), options).unwrap()
}

fn options(folder: &Path, steps: u64) -> TrainOptions {
    TrainOptions {
        hyper: Hyper { loss_scaling: LossScaling::Dynamic, ..Hyper::default() },
        schedule: LrSchedule { shape: Shape::Cosine, peak: 0.05, warmup: 3, steps },
        no_decay: vec![],
        log: Some(folder.join("metrics.jsonl")),
        checkpoint: Some(CheckpointOptions { folder: folder.join("checkpoints"), every: Some(5), keep: Some(2), resume: true }),
    }
}

/// Trains, stopping after `stop` steps of this run.
fn run(folder: &Path, plan: &Plan, options: &TrainOptions, stop: u64) -> Result<(Session, Summary), Error> {
    let mut s = session(plan, folder, 7);
    let loader = Loader::open(plan, &teacher(folder, 12), Order::Shuffled { seed: 7 }).unwrap();
    let flag = AtomicBool::new(false);
    let mut done = 0;
    let summary = train(&mut s, &loader, options, &flag, &mut |_| {
        done += 1;
        flag.store(done >= stop, Ordering::Relaxed);
    })?;
    Ok((s, summary))
}

fn losses(folder: &Path) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |l: &str| {
        let v: serde_json::Value = serde_json::from_str(l).unwrap();
        (v["step"].as_u64().unwrap(), v["loss"].as_f64().unwrap())
    };
    text.lines().map(line).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(folder.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap() {
        let e = e.unwrap();
        std::fs::copy(e.path(), to.join(e.file_name())).unwrap();
    }
}

#[test]
fn a_training_that_was_interrupted_ends_bit_for_bit_like_one_that_was_not() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = regression(2);
    let (s, summary) = run(whole.path(), &plan, &options(whole.path(), 20), u64::MAX).unwrap();
    assert_eq!((summary.step, summary.stopped, summary.resumed_from), (20, false, None));
    let (_, first) = run(parts.path(), &plan, &options(parts.path(), 20), 8).unwrap();
    assert_eq!((first.step, first.stopped), (8, true));
    // A stop that was not graceful: the checkpoint of step 8 never came to be, the log ran ahead of the one of step 5.
    std::fs::remove_dir_all(parts.path().join("checkpoints/step-000008")).unwrap();
    let (t, second) = run(parts.path(), &plan, &options(parts.path(), 20), u64::MAX).unwrap();
    assert_eq!((second.resumed_from, second.step), (Some(5), 20));
    assert_eq!(losses(whole.path()), losses(parts.path()));
    assert_eq!(s.parameter("layer.weight").unwrap(), t.parameter("layer.weight").unwrap());
    let file = |folder: &Path, name: &str| std::fs::read(folder.join("checkpoints/step-000020").join(name)).unwrap();
    for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        assert_eq!(file(whole.path(), name), file(parts.path(), name), "{name}");
    }
}

#[test]
fn checkpoints_have_pytorchs_names_and_orientation() {
    let folder = tempfile::tempdir().unwrap();
    let (s, summary) = run(folder.path(), &regression(1), &options(folder.path(), 3), u64::MAX).unwrap();
    let path = summary.checkpoint.unwrap();
    let model = TensorFile::open(&path.join("model.safetensors")).unwrap().read_all();
    assert_eq!(model, [s.parameter("layer.weight").unwrap()]);
    assert_eq!(model[0].shape, [OUT, WIDTH]);
    let mut state = TensorFile::open(&path.join("optimizer.safetensors")).unwrap().names();
    state.sort();
    assert_eq!(state, ["layer.weight.0", "layer.weight.1"]);
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &regression(1), &options(folder.path(), 17), u64::MAX).unwrap();
    assert_eq!(names(folder.path()), ["step-000015", "step-000017"]);
}

#[test]
fn partial_checkpoints_are_passed_over_and_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    run(folder.path(), &plan, &options(folder.path(), 5), u64::MAX).unwrap();
    let all = folder.path().join("checkpoints");
    let good = all.join("step-000005");
    // Killed while writing aside.
    copy(&good, &all.join(".step-000009.partial"));
    std::fs::remove_file(all.join(".step-000009.partial/state.json")).unwrap();
    // Damaged otherwise: a file cut off, a state that is no JSON, an empty folder, a foreign file.
    copy(&good, &all.join("step-000010"));
    std::fs::write(all.join("step-000010/model.safetensors"), b"short").unwrap();
    copy(&good, &all.join("step-000011"));
    std::fs::write(all.join("step-000011/state.json"), b"{").unwrap();
    std::fs::create_dir(all.join("step-000012")).unwrap();
    std::fs::write(all.join("step-notes.txt"), b"").unwrap();
    assert_eq!(checkpoint::latest(&all).unwrap(), Some(good));
    let (_, summary) = run(folder.path(), &plan, &options(folder.path(), 7), u64::MAX).unwrap();
    assert_eq!(summary.resumed_from, Some(5));
    assert!(!all.join(".step-000009.partial").exists());
}

#[test]
fn a_checkpoint_between_its_two_renames_is_still_found() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &regression(1), &options(folder.path(), 5), u64::MAX).unwrap();
    let all = folder.path().join("checkpoints");
    std::fs::rename(all.join("step-000005"), all.join("step-000005.old")).unwrap();
    assert_eq!(checkpoint::latest(&all).unwrap(), Some(all.join("step-000005.old")));
    copy(&all.join("step-000005.old"), &all.join("step-000005"));
    assert_eq!(checkpoint::latest(&all).unwrap(), Some(all.join("step-000005")));
}

#[test]
fn saving_the_same_step_again_replaces_it() {
    let folder = tempfile::tempdir().unwrap();
    let s = session(&regression(1), folder.path(), 1);
    let position = checkpoint::Position { step: 4, samples: 8, skipped: 0 };
    let all = folder.path().join("checkpoints");
    let first = checkpoint::save(&s, &all, position).unwrap();
    let second = checkpoint::save(&s, &all, position).unwrap();
    assert_eq!(first, second);
    assert_eq!(names(folder.path()), ["step-000004"]);
}

#[test]
fn checkpoints_of_another_model_seed_or_shape_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let (_, summary) = run(folder.path(), &plan, &options(folder.path(), 2), u64::MAX).unwrap();
    let path = summary.checkpoint.unwrap();
    let fails = |plan: &Plan, seed| {
        let mut s = session(plan, folder.path(), seed);
        let before = s.parameter(&plan.parameters[0].name).unwrap();
        let reason = checkpoint::load(&mut s, &path).unwrap_err().to_string();
        assert_eq!(s.parameter(&plan.parameters[0].name).unwrap(), before, "the session is untouched");
        reason
    };
    let mut other = plan.clone();
    other.fingerprint.model = "00".repeat(32);
    assert!(fails(&other, 7).contains("another model"));
    assert!(fails(&plan, 8).contains("seed 7"));
    let mut other = plan.clone();
    other.parameters[0].shape = vec![2, 6];
    assert!(fails(&other, 7).contains("shape"));
    let mut other = plan.clone();
    other.parameters[0].name = "other.weight".into();
    assert!(fails(&other, 7).contains("other.weight is missing"));
    let mut same = session(&plan, folder.path(), 9);
    checkpoint::load_parameters(&mut same, &folder.path().join("checkpoints")).unwrap();
    checkpoint::load_parameters(&mut same, &path.join("model.safetensors")).unwrap();
    assert!(checkpoint::load_parameters(&mut same, folder.path()).is_err());
    let mut same = session(&plan, folder.path(), 7);
    assert_eq!(checkpoint::load(&mut same, &path).unwrap().step, 2);
}

#[test]
fn a_folder_with_checkpoints_is_not_overwritten_by_a_new_training() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    run(folder.path(), &plan, &options(folder.path(), 2), u64::MAX).unwrap();
    let mut fresh = options(folder.path(), 2);
    fresh.checkpoint.as_mut().unwrap().resume = false;
    assert!(matches!(run(folder.path(), &plan, &fresh, u64::MAX).err(), Some(Error::Usage(m)) if m.contains("already holds")));
}

#[test]
fn fifty_steps_that_are_not_finite_end_a_training_after_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let specs = teacher(folder.path(), 4);
    npy(&folder.path().join("x.npy"), "<f4", &[4, WIDTH], &f32_bytes([f32::NAN; 16]));
    let mut s = session(&plan, folder.path(), 7);
    let loader = Loader::open(&plan, &specs, Order::Sequential).unwrap();
    let error = train(&mut s, &loader, &options(folder.path(), 500), &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Diverged(_)), "{error}");
    assert_eq!(losses_are_null(folder.path()), 50);
    assert_eq!(names(folder.path()).last().map(String::as_str), Some("step-000050"));
}

fn losses_are_null(folder: &Path) -> usize {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    text.lines().filter(|l| l.contains("\"loss\":null") && l.contains("\"skipped\":true")).count()
}

/// Not a test of its own: the training that the next test kills.
#[test]
fn a_child_to_be_killed() {
    let Some(folder) = std::env::var_os("FP8C_TEST_KILL").map(PathBuf::from) else { return };
    let mut options = options(&folder, u64::MAX);
    options.checkpoint.as_mut().unwrap().every = Some(1);
    options.schedule = LrSchedule { shape: Shape::Constant, peak: 0.01, warmup: 0, steps: 100_000 };
    run(&folder, &regression(1), &options, u64::MAX).unwrap();
}

#[test]
fn a_training_killed_at_any_moment_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 0);
    options.checkpoint.as_mut().unwrap().every = Some(1);
    options.schedule = LrSchedule { shape: Shape::Constant, peak: 0.01, warmup: 0, steps: 100_000 };
    let all = folder.path().join("checkpoints");
    for round in 0..6u64 {
        let before = checkpoint::latest(&all).unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["a_child_to_be_killed", "--test-threads=1", "--quiet"])
            .env("FP8C_TEST_KILL", folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let patience = Instant::now() + Duration::from_secs(60);
        while checkpoint::latest(&all).unwrap() == before && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(1300 * round));
        // SIGKILL on Unix.
        child.kill().unwrap();
        child.wait().unwrap();
        assert_ne!(checkpoint::latest(&all).unwrap(), before, "the child makes checkpoints");
    }
    let latest = checkpoint::latest(&all).unwrap().unwrap();
    let name = latest.file_name().unwrap().to_str().unwrap();
    let step: u64 = name["step-".len()..].trim_end_matches(".old").parse().unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let mut again = options.clone();
    again.log = None;
    again.checkpoint = None;
    again.schedule.steps = step + 3;
    let (whole, _) = run(fresh.path(), &regression(1), &again, u64::MAX).unwrap();
    options.schedule.steps = step + 3;
    let (resumed, summary) = run(folder.path(), &regression(1), &options, u64::MAX).unwrap();
    assert_eq!(summary.resumed_from, Some(step));
    assert_eq!(whole.parameter("layer.weight").unwrap(), resumed.parameter("layer.weight").unwrap());
    let steps: Vec<u64> = losses(folder.path()).iter().map(|(s, _)| *s).collect();
    assert_eq!(steps, (1..=step + 3).collect::<Vec<_>>(), "the log has every step once");
}
