use crate::fixtures::*;
use fp8c_runtime::Error;
use fp8c_runtime::checkpoint::{self, Standing, Store};
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::device::DeviceChoice;
use fp8c_runtime::hyper::{Hyper, LossScaling};
use fp8c_runtime::plan::Plan;
use fp8c_runtime::schedule::{LrSchedule, Shape};
use fp8c_runtime::session::{Session, SessionOptions};
use fp8c_runtime::tensors::TensorFile;
use fp8c_runtime::trainer::{CheckpointOptions, Earlier, Event, Every, Summary, TrainOptions, train};
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
        data: "teacher".into(),
        log: Some(folder.join("metrics.jsonl")),
        checkpoint: Some(CheckpointOptions {
            folder: folder.join("checkpoints"),
            every: Some(Every::Steps(5)),
            keep: Some(2),
            earlier: Earlier::Resume,
        }),
        validation: None,
    }
}

/// Trains, stopping after `stop` steps of this run.
fn run(folder: &Path, plan: &Plan, options: &TrainOptions, stop: u64) -> Result<(Session, Summary), Error> {
    let flag = AtomicBool::new(false);
    let mut done = 0;
    watched(folder, plan, options, &flag, &mut |event| {
        done += u64::from(matches!(event, Event::Step(_)));
        flag.store(done >= stop, Ordering::Relaxed);
    })
}

fn watched(
    folder: &Path,
    plan: &Plan,
    options: &TrainOptions,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<(Session, Summary), Error> {
    let mut s = session(plan, folder, 7);
    let loader = Loader::open(plan, &teacher(folder, 12), Order::Shuffled { seed: 7 }).unwrap();
    let summary = train(&mut s, &loader, options, stop, tell)?;
    Ok((s, summary))
}

/// What a training says beside its steps.
fn notes(folder: &Path, plan: &Plan, options: &TrainOptions) -> (Vec<String>, Result<Summary, Error>) {
    let mut notes = vec![];
    let ended = watched(folder, plan, options, &AtomicBool::new(false), &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note.replace(folder.to_str().unwrap(), "HERE"));
        }
    });
    (notes, ended.map(|(_, summary)| summary))
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
    let names = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    assert_eq!(names(whole.path()), names(parts.path()), "one log, whatever was interrupted");
    assert_eq!(s.parameter("layer.weight").unwrap(), t.parameter("layer.weight").unwrap());
    let file = |folder: &Path, name: &str| std::fs::read(folder.join("checkpoints/step-000020").join(name)).unwrap();
    for name in ["model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"] {
        assert_eq!(file(whole.path(), name), file(parts.path(), name), "{name}");
    }
}

#[test]
fn checkpoints_have_pytorchs_names_and_orientation() {
    let folder = tempfile::tempdir().unwrap();
    let (s, summary) = run(folder.path(), &regression(1), &options(folder.path(), 3), u64::MAX).unwrap();
    let path = summary.checkpoint.unwrap();
    let model = TensorFile::open(&path.join("model.safetensors")).unwrap().read_all().unwrap();
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
fn what_killed_trainings_left_is_swept_and_a_checkpoint_that_was_being_replaced_is_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    run(folder.path(), &plan, &options(folder.path(), 5), u64::MAX).unwrap();
    let all = folder.path().join("checkpoints");
    let good = all.join("step-000005");
    copy(&good, &all.join(".step-000009.partial"));
    copy(&good, &all.join(".step-000003.deleted"));
    std::fs::remove_file(all.join(".step-000003.deleted/model.safetensors")).unwrap();
    std::fs::rename(&good, all.join(".step-000005.replaced")).unwrap();
    copy(&all.join(".step-000005.replaced"), &all.join(".step-000005.partial"));
    // Of nobody's making.
    std::fs::write(all.join(".step-notes.partial"), b"").unwrap();
    let (_, summary) = run(folder.path(), &plan, &options(folder.path(), 7), u64::MAX).unwrap();
    assert_eq!(summary.resumed_from, Some(5));
    assert_eq!(names(folder.path()), [".step-notes.partial", "step-000005", "step-000007"]);
}

#[test]
fn a_folder_beside_a_checkpoint_does_not_keep_it_from_being_saved_again() {
    let folder = tempfile::tempdir().unwrap();
    let s = session(&regression(1), folder.path(), 1);
    let store = Store::open(&folder.path().join("checkpoints")).unwrap();
    let first = store.save(&s, &standing(4)).unwrap();
    copy(&first, &first.with_file_name("step-000004.old"));
    assert_eq!(store.save(&s, &standing(4)).unwrap(), first);
    drop(store);
    assert_eq!(names(folder.path()), ["step-000004", "step-000004.old"]);
}

fn standing(step: u64) -> Standing {
    Standing { position: checkpoint::Position { step, samples: 2 * step, skipped: 0 }, ..Standing::default() }
}

#[test]
fn a_damaged_checkpoint_is_set_aside_with_a_sentence_and_the_older_one_leads_to_the_same_end() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = regression(1);
    let schedule = LrSchedule { shape: Shape::Constant, peak: 0.05, warmup: 3, steps: 0 };
    let to = |folder: &Path, steps| TrainOptions { schedule: LrSchedule { steps, ..schedule }, ..options(folder, steps) };
    run(whole.path(), &plan, &to(whole.path(), 20), u64::MAX).unwrap();
    let damage: [fn(&Path); 4] = [
        |c| std::fs::OpenOptions::new().write(true).open(c.join("model.safetensors")).unwrap().set_len(90).unwrap(),
        |c| {
            let mut bytes = std::fs::read(c.join("optimizer.safetensors")).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(c.join("optimizer.safetensors"), bytes).unwrap();
        },
        |c| std::fs::write(c.join("state.json"), b"{").unwrap(),
        |c| std::fs::read_dir(c).unwrap().for_each(|e| std::fs::remove_file(e.unwrap().path()).unwrap()),
    ];
    let said =
        ["not a safetensors file", "optimizer.safetensors does not match its checksum", "state.json does not match", "state.json: No such"];
    for (round, (damage, said)) in damage.iter().zip(said).enumerate() {
        run(parts.path(), &plan, &to(parts.path(), 10 + 2 * round as u64), u64::MAX).unwrap();
        let newest = checkpoint::latest(&parts.path().join("checkpoints")).unwrap().unwrap();
        damage(&newest);
        let (notes, ended) = notes(parts.path(), &plan, &to(parts.path(), 12 + 2 * round as u64));
        assert!(ended.unwrap().resumed_from.is_some());
        assert!(notes[0].contains("is damaged (") && notes[0].contains(said) && notes[0].contains("set aside as HERE"), "{notes:?}");
        assert!(notes[1].starts_with("resumed from step "), "{notes:?}");
    }
    run(parts.path(), &plan, &to(parts.path(), 20), u64::MAX).unwrap();
    assert_eq!(names(parts.path()).iter().filter(|n| n.starts_with("damaged-step-0000")).count(), 4);
    let model = |folder: &Path| std::fs::read(folder.join("checkpoints/step-000020/model.safetensors")).unwrap();
    assert_eq!(model(whole.path()), model(parts.path()));
    assert_eq!(losses(whole.path()), losses(parts.path()));
}

#[test]
fn a_training_without_a_sound_checkpoint_is_refused_and_nothing_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    run(folder.path(), &plan, &options(folder.path(), 10), u64::MAX).unwrap();
    for name in ["step-000005", "step-000010"] {
        let state = folder.path().join("checkpoints").join(name).join("state.json");
        let text = std::fs::read_to_string(&state).unwrap();
        std::fs::write(&state, text.replacen("\"step\": ", "\"step\": 1", 1)).unwrap();
    }
    let (notes, ended) = notes(folder.path(), &plan, &options(folder.path(), 20));
    let error = ended.unwrap_err();
    assert!(matches!(error, Error::Unsound { .. }) && error.to_string().contains("none of its 2 checkpoints is sound"), "{error}");
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!(names(folder.path()), ["step-000005", "step-000010"]);
    assert_eq!(losses(folder.path()).len(), 10);
}

#[test]
fn a_flipped_bit_in_any_byte_of_a_checkpoint_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let (mut s, summary) = run(folder.path(), &plan, &options(folder.path(), 5), u64::MAX).unwrap();
    let path = summary.checkpoint.unwrap();
    checkpoint::load(&mut s, &path).unwrap();
    let mut files = 0;
    for file in std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()) {
        let whole = std::fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&file, &bytes).unwrap();
            let fails = checkpoint::load(&mut s, &path);
            assert!(matches!(fails, Err(Error::Unsound { .. })), "byte {at} of {}: {fails:?}", file.display());
        }
        std::fs::write(&file, &whole).unwrap();
        files += 1;
    }
    assert_eq!(files, 4);
    checkpoint::load(&mut s, &path).unwrap();
}

#[test]
fn a_folder_has_one_training_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let mut second = None;
    let ended = watched(folder.path(), &plan, &options(folder.path(), 10), &AtomicBool::new(false), &mut |event| {
        if let Event::Step(m) = event
            && m.step == 6
        {
            second = Some(run(folder.path(), &plan, &options(folder.path(), 10), u64::MAX).err().unwrap().to_string());
        }
    });
    let said = second.unwrap();
    assert!(said.contains("checkpoints is in use by another training (process "), "{said}");
    assert_eq!(ended.unwrap().1.step, 10);
    assert_eq!(names(folder.path()), ["step-000005", "step-000010"]);
    assert_eq!(losses(folder.path()).len(), 10);
}

#[test]
fn what_changed_since_the_checkpoint_is_told_when_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = regression(1);
    let mut o = options(folder.path(), 5);
    let (first, _) = notes(folder.path(), &plan, &o);
    assert_eq!(first, ["HERE/checkpoints holds no checkpoint yet: the training begins with step 1"]);
    let (same, _) = notes(folder.path(), &plan, &o);
    assert_eq!(same, ["resumed from step 5 (HERE/checkpoints/step-000005)"]);
    o.schedule = LrSchedule { shape: Shape::Constant, peak: 0.01, warmup: 3, steps: 8 };
    o.data = "other".into();
    plan.optimizer = Some("lion".into());
    plan.report.notes.push("compiled anew".into());
    let (told, ended) = notes(folder.path(), &plan, &o);
    assert_eq!(ended.unwrap().step, 8);
    let want = [
        "resumed from step 5 (HERE/checkpoints/step-000005)",
        "the data was teacher and is other from here on",
        "the learning rate was 0.05 and is 0.01 from here on",
        "the optimizer was adamw and is lion from here on; its state begins anew",
        "the plan is another one of the same model",
        "the schedule was cosine to step 5 and is constant from here on",
    ];
    assert_eq!(told, want);
}

#[test]
fn the_state_of_another_optimizer_is_not_taken_for_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = regression(1);
    let (_, summary) = run(folder.path(), &plan, &options(folder.path(), 5), u64::MAX).unwrap();
    let path = summary.checkpoint.unwrap();
    let resumed = |plan: &Plan| {
        let mut s = session(plan, folder.path(), 7);
        checkpoint::load(&mut s, &path).unwrap();
        let store = Store::open(&folder.path().join("again")).unwrap();
        let saved = TensorFile::open(&store.save(&s, &standing(1)).unwrap().join("optimizer.safetensors")).unwrap().read_all().unwrap();
        (s.updates(), saved.iter().all(|t| t.bytes.iter().all(|&b| b == 0)))
    };
    assert_eq!(resumed(&plan), (5, false));
    plan.optimizer = Some("lion".into());
    assert_eq!(resumed(&plan), (0, true));
}

#[test]
fn a_checkpoint_that_cannot_be_written_does_not_end_the_training() {
    let folder = tempfile::tempdir().unwrap();
    let (all, away) = (folder.path().join("checkpoints"), folder.path().join("away"));
    let mut notes = vec![];
    let ended = watched(folder.path(), &regression(1), &options(folder.path(), 12), &AtomicBool::new(false), &mut |event| match event {
        Event::Step(m) if m.step == 3 => std::fs::rename(&all, &away).unwrap(),
        Event::Step(m) if m.step == 8 => std::fs::rename(&away, &all).unwrap(),
        Event::Step(_) => {}
        Event::Note(note) => notes.push(note.to_string()),
    });
    assert_eq!(ended.unwrap().1.step, 12);
    assert!(notes.iter().any(|n| n.starts_with("no checkpoint of step 5 (") && n.ends_with("the training goes on")), "{notes:?}");
    assert_eq!(names(folder.path()), ["step-000010", "step-000012"]);
}

#[test]
fn data_that_are_cut_short_in_mid_run_end_the_training_and_what_was_learned_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("x.npy");
    let mut notes = vec![];
    let ended = watched(folder.path(), &regression(1), &options(folder.path(), 100), &AtomicBool::new(false), &mut |event| match event {
        Event::Step(m) if m.step == 7 => std::fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(100).unwrap(),
        Event::Step(_) => {}
        Event::Note(note) => notes.push(note.to_string()),
    });
    let said = ended.err().unwrap().to_string();
    assert!(said.ends_with("x.npy: the file was cut short while it was read"), "{said}");
    assert!(notes.last().unwrap().starts_with("step 7 was saved before the end: "), "{notes:?}");
    assert_eq!(names(folder.path()), ["step-000005", "step-000007"]);
}

#[test]
fn an_earlier_result_is_set_aside_when_it_is_not_to_be_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let mut o = options(folder.path(), 2);
    o.checkpoint.as_mut().unwrap().earlier = Earlier::SetAside;
    assert_eq!(notes(folder.path(), &plan, &o).0, Vec::<String>::new());
    let want = [
        "HERE/checkpoints was of an earlier training; it was renamed to HERE/checkpoints.1",
        "HERE/metrics.jsonl was of another training; it was renamed to HERE/metrics.1.jsonl",
    ];
    assert_eq!(notes(folder.path(), &plan, &o).0, want);
    assert_eq!(names(folder.path()), ["step-000002"]);
    assert_eq!(std::fs::read_dir(folder.path().join("checkpoints.1")).unwrap().count(), 1);
}

#[test]
fn something_else_in_place_of_the_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("checkpoints"), b"mine").unwrap();
    let said = run(folder.path(), &regression(1), &options(folder.path(), 2), u64::MAX).err().unwrap().to_string();
    assert!(said.ends_with("checkpoints is a file, not a folder"), "{said}");
    assert_eq!(std::fs::read(folder.path().join("checkpoints")).unwrap(), b"mine");
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
    let mut say = |note: String| panic!("{note}");
    checkpoint::load_parameters(&mut same, &folder.path().join("checkpoints"), &mut say).unwrap();
    checkpoint::load_parameters(&mut same, &path.join("model.safetensors"), &mut say).unwrap();
    assert!(checkpoint::load_parameters(&mut same, folder.path(), &mut say).is_err());
    let mut same = session(&plan, folder.path(), 7);
    assert_eq!(checkpoint::load(&mut same, &path).unwrap().position.step, 2);
}

#[test]
fn a_folder_with_checkpoints_is_not_overwritten_by_a_new_training() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    run(folder.path(), &plan, &options(folder.path(), 2), u64::MAX).unwrap();
    let mut fresh = options(folder.path(), 2);
    fresh.checkpoint.as_mut().unwrap().earlier = Earlier::Refuse;
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
    options.checkpoint.as_mut().unwrap().every = Some(Every::Steps(1));
    options.schedule = LrSchedule { shape: Shape::Constant, peak: 0.01, warmup: 0, steps: 100_000 };
    run(&folder, &regression(1), &options, u64::MAX).unwrap();
}

#[test]
fn a_training_killed_at_any_moment_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 0);
    options.checkpoint.as_mut().unwrap().every = Some(Every::Steps(1));
    options.schedule = LrSchedule { shape: Shape::Constant, peak: 0.01, warmup: 0, steps: 100_000 };
    let all = folder.path().join("checkpoints");
    for round in 0..10u64 {
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
    let step: u64 = latest.file_name().unwrap().to_str().unwrap()["step-".len()..].parse().unwrap();
    let reached = losses(folder.path()).last().unwrap().0;
    assert!(reached <= step + 1, "at most one interval is lost: step {reached} was done, {step} is kept");
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
    let kept = [step + 2, step + 3].map(|n| format!("step-{n:06}"));
    assert_eq!(names(folder.path()), kept, "nothing else is left");
}
