use crate::fixtures::*;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::device::DeviceChoice;
use fp8c_runtime::evaluation::{Evaluation, evaluate};
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::plan::Plan;
use fp8c_runtime::schedule::{LrSchedule, Shape};
use fp8c_runtime::session::{Session, SessionOptions};
use fp8c_runtime::trainer::{CheckpointOptions, Earlier, Event, TrainOptions, Validation, train};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn session(plan: &Plan, folder: &Path) -> Session {
    let options = SessionOptions { device: DeviceChoice::Cpu, threads: Some(1), seed: 7 };
    Session::new(&opened(plan, folder), options).unwrap()
}

fn over(session: &mut Session, folder: &Path, samples: u64, batches: Option<u64>) -> Result<Evaluation, String> {
    let loader = Loader::open(session.plan(), &teacher(folder, samples), Order::Sequential).unwrap();
    evaluate(session, &loader, batches, &AtomicBool::new(false)).map(|e| e.expect("nobody stopped it")).map_err(|e| e.to_string())
}

/// The loss of samples `[0, n)` under the session's weights.
fn by_hand(session: &Session, n: u64) -> f64 {
    let w = session.parameter("layer.weight").unwrap().as_f32().unwrap();
    let x = |s: u64, d: u64| f64::from((((s * WIDTH + d) * 37 + 11) % 17) as f32 / 8.0 - 1.0);
    let teach = |k: u64, d: u64| f64::from(((k * 5 + d * 3) % 7) as f32 / 3.0 - 1.0);
    let error = |s, k| (0..WIDTH).map(|d| x(s, d) * (f64::from(w[(k * WIDTH + d) as usize]) - teach(k, d))).sum::<f64>();
    let places = (0..n).flat_map(|s| (0..OUT).map(move |k| (s, k)));
    places.map(|(s, k)| error(s, k) * error(s, k)).sum::<f64>() / (n * OUT) as f64
}

#[test]
fn the_loss_is_the_mean_over_the_data_and_what_fills_no_batch_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    for accumulation in [1, 3] {
        let mut s = session(&regression(accumulation), folder.path());
        let e = over(&mut s, folder.path(), 11, None).unwrap();
        assert_eq!((e.samples, e.left_out, e.labels, e.accuracy), (10, 1, None, None), "accumulation {accumulation}");
        assert!((e.loss / by_hand(&s, 10) - 1.0).abs() < 1e-6, "{} against {}", e.loss, by_hand(&s, 10));
        let e = over(&mut s, folder.path(), 11, Some(1)).unwrap();
        assert_eq!(e.samples, 2 * u64::from(accumulation));
        assert!((e.loss / by_hand(&s, e.samples) - 1.0).abs() < 1e-6);
        assert!(over(&mut s, folder.path(), 1, None).unwrap_err().contains("fewer samples than one batch of 2"));
    }
}

#[test]
fn an_inference_plan_without_classes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(2, 3, 256, &[]);
    let mut s = session(&plan, folder.path());
    std::fs::write(folder.path().join("a.txt"), b"abcdefghijklm").unwrap();
    let loader = Loader::open(&plan, &[folder.path().join("a.txt").display().to_string()], Order::Sequential).unwrap();
    let refused = evaluate(&mut s, &loader, None, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(refused.contains("no output of classes"), "{refused}");
}

/// Loss of a step, and the one evaluated after it.
type Losses = (f64, Option<f64>);

/// Losses of a training, and the bytes of its last checkpoint.
fn trained(every: Option<u64>) -> (Vec<Losses>, Vec<Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(2);
    let mut s = session(&plan, folder.path());
    let loader = Loader::open(&plan, &teacher(folder.path(), 12), Order::Shuffled { seed: 7 }).unwrap();
    let other = tempfile::tempdir().unwrap();
    let held_out = Arc::new(Loader::open(&plan, &teacher(other.path(), 9), Order::Sequential).unwrap());
    let checkpoints = folder.path().join("checkpoints");
    let options = TrainOptions {
        hyper: Hyper::default(),
        schedule: LrSchedule { shape: Shape::Cosine, peak: 0.05, warmup: 3, steps: 14 },
        no_decay: vec![],
        data: "teacher".into(),
        log: None,
        checkpoint: Some(CheckpointOptions { folder: checkpoints.clone(), every: None, keep: None, earlier: Earlier::Refuse }),
        validation: every.map(|n| Validation { loader: held_out, every: Some(n), batches: None }),
    };
    let mut losses = vec![];
    train(&mut s, &loader, &options, &AtomicBool::new(false), &mut |event| {
        if let Event::Step(m) = event {
            losses.push((m.loss, m.eval_loss));
        }
    })
    .unwrap();
    let names = ["model.safetensors", "optimizer.safetensors", "state.json"];
    (losses, names.map(|n| std::fs::read(checkpoints.join("step-000014").join(n)).unwrap()).into())
}

#[test]
fn evaluating_in_the_middle_of_a_training_changes_not_one_bit_of_it() {
    let (without, files) = trained(None);
    let (with, same_files) = trained(Some(4));
    let losses = |all: &[Losses]| all.iter().map(|(l, _)| l.to_bits()).collect::<Vec<_>>();
    assert_eq!(losses(&without), losses(&with));
    assert!(files == same_files, "checkpoints differ");
    let evaluated: Vec<usize> = with.iter().enumerate().filter(|(_, (_, e))| e.is_some()).map(|(i, _)| i + 1).collect();
    assert_eq!(evaluated, [4, 8, 12, 14], "every fourth step and the last");
    assert!(with[13].1 < with[3].1, "the held-out loss falls as the teacher is learnt");
    assert!(without.iter().all(|(_, e)| e.is_none()));
}
