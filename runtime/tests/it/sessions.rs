use crate::fixtures::*;
use fp8c_kernels::DType;
use fp8c_runtime::Error;
use fp8c_runtime::convert::permuted;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::device::DeviceChoice;
use fp8c_runtime::hyper::{Hyper, LossScaling};
use fp8c_runtime::plan::*;
use fp8c_runtime::session::{Batch, Session, SessionOptions, StepResult};
use fp8c_runtime::tensors::HostTensor;
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

fn options() -> SessionOptions {
    SessionOptions { device: DeviceChoice::Cpu, threads: Some(2), seed: 7 }
}

fn session(plan: &Plan, folder: &Path) -> Session {
    Session::new(&opened(plan, folder), options()).unwrap()
}

fn hyper() -> Hyper {
    Hyper { learning_rate: 0.05, weight_decay: 0.1, ..Hyper::default() }
}

fn weight(s: &Session) -> Vec<f32> {
    s.parameter("layer.weight").unwrap().as_f32().unwrap()
}

fn steps(s: &mut Session, folder: &Path, from: u64, count: u64, hyper: &Hyper) -> Vec<StepResult> {
    let specs = teacher(folder, 12);
    let loader = Loader::open(s.plan(), &specs, Order::Sequential).unwrap();
    let mut batch = Batch::new(s.plan());
    (from..from + count)
        .map(|i| {
            loader.fill(i * loader.samples_per_step(), &mut batch).unwrap();
            s.step(&batch, hyper).unwrap()
        })
        .collect()
}

/// The same training in f64: weight `[OUT, WIDTH]`, batches of `rows`.
fn reference(mut w: Vec<f64>, rows: u64, count: u64, hyper: &Hyper) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (n, width, out) = (12u64, WIDTH as usize, OUT as usize);
    let x: Vec<f64> = (0..n * WIDTH).map(|i| ((i * 37 + 11) % 17) as f64 / 8.0 - 1.0).collect();
    let target = |s: usize, k: usize| -> f64 {
        (0..width).map(|d| x[s * width + d] * (f64::from(((k as u32) * 5 + (d as u32) * 3) % 7) / 3.0 - 1.0)).sum()
    };
    let (mut m, mut v) = (vec![0f64; w.len()], vec![0f64; w.len()]);
    let (mut losses, mut norms) = (vec![], vec![]);
    for step in 0..count {
        let mut g = vec![0f64; w.len()];
        let mut loss = 0f64;
        for r in 0..rows {
            let s = ((step * rows + r) % n) as usize;
            for k in 0..out {
                let error: f64 = (0..width).map(|d| x[s * width + d] * w[k * width + d]).sum::<f64>() - target(s, k);
                loss += error * error / (rows * OUT) as f64;
                (0..width).for_each(|d| g[k * width + d] += 2.0 * error * x[s * width + d] / (rows * OUT) as f64);
            }
        }
        let norm = g.iter().map(|v| v * v).sum::<f64>().sqrt();
        let clip = hyper.clip.map_or(1.0, |c| (c / norm).min(1.0));
        let t = step as i32 + 1;
        for i in 0..w.len() {
            let gi = g[i] * clip;
            m[i] = hyper.betas[0] * m[i] + (1.0 - hyper.betas[0]) * gi;
            v[i] = hyper.betas[1] * v[i] + (1.0 - hyper.betas[1]) * gi * gi;
            let root = v[i].sqrt() / (1.0 - hyper.betas[1].powi(t)).sqrt() + hyper.eps;
            w[i] -= hyper.learning_rate * (m[i] / (1.0 - hyper.betas[0].powi(t)) / root + hyper.weight_decay * w[i]);
        }
        losses.push(loss);
        norms.push(norm);
    }
    (losses, norms, w)
}

#[test]
fn training_follows_a_reference_in_double_precision() {
    for accumulation in [1, 3] {
        for clip in [None, Some(0.5)] {
            let folder = tempfile::tempdir().unwrap();
            let mut s = session(&regression(accumulation), folder.path());
            let hyper = Hyper { clip, loss_scaling: LossScaling::Dynamic, ..hyper() };
            let start = weight(&s).into_iter().map(f64::from).collect();
            let done = steps(&mut s, folder.path(), 0, 40, &hyper);
            let (losses, norms, w) = reference(start, BATCH * u64::from(accumulation), 40, &hyper);
            for (i, r) in done.iter().enumerate() {
                assert!((r.loss - losses[i]).abs() < 1e-3 * losses[i] + 1e-7, "step {i}: {} {}", r.loss, losses[i]);
                assert!((r.grad_norm - norms[i]).abs() < 1e-3 * norms[i] + 1e-6, "step {i}: {} {}", r.grad_norm, norms[i]);
            }
            assert!(weight(&s).iter().zip(&w).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
            assert!(done[39].loss < 0.5 * done[0].loss, "it learns");
        }
    }
}

#[test]
fn the_first_step_of_adam_is_the_learning_rate_whatever_betas_round_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut s = session(&regression(1), folder.path());
    let before = weight(&s);
    // 1 - 0.999f32 is off by 1.3e-5, which a correction of 1 - 0.999 would leave in the step.
    let hyper = Hyper { learning_rate: 1.0, weight_decay: 0.0, betas: [0.9, 0.999], ..hyper() };
    steps(&mut s, folder.path(), 0, 1, &hyper);
    let moved = weight(&s).iter().zip(&before).map(|(a, b)| f64::from((a - b).abs())).collect::<Vec<_>>();
    assert!(moved.iter().all(|m| (m - 1.0).abs() < 2e-6), "{moved:?}");
}

#[test]
fn the_executed_peak_is_the_planned_one() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(2);
    let mut s = session(&plan, folder.path());
    steps(&mut s, folder.path(), 0, 1, &hyper());
    assert_eq!(s.arena_peak_bytes(), plan.arena_bytes);
}

#[test]
fn a_step_that_is_not_finite_changes_nothing_and_halves_the_scale() {
    let folder = tempfile::tempdir().unwrap();
    let hyper = Hyper { loss_scaling: LossScaling::Dynamic, ..hyper() };
    let mut s = session(&regression(1), folder.path());
    steps(&mut s, folder.path(), 0, 3, &hyper);
    let (before, updates) = (weight(&s), s.updates());
    // The first batch overflows the loss, the second only the gradient.
    for x in [f32::INFINITY, 1e18] {
        let mut batch = Batch::new(s.plan());
        batch.input_mut(0).copy_from_slice(&f32_bytes([x; 8]));
        let scale = s.step(&batch, &Hyper { learning_rate: 0.0, ..hyper.clone() }).unwrap().loss_scale;
        let r = s.step(&batch, &hyper).unwrap();
        assert!(r.skipped);
        assert_eq!(r.loss_scale, scale / 2.0);
        assert_eq!(r.loss.is_finite(), x.is_finite());
        assert!(!r.grad_norm.is_finite());
    }
    assert_eq!((weight(&s), s.updates()), (before, updates));
    let mut other = session(&regression(1), tempfile::tempdir().unwrap().path());
    let clean = steps(&mut other, folder.path(), 0, 6, &Hyper { loss_scaling: LossScaling::None, ..hyper.clone() });
    let after = steps(&mut s, folder.path(), 3, 3, &hyper);
    assert!(after.iter().all(|r| !r.skipped && r.skipped_in_row == 0));
    // Power-of-two scales change no bit of these small numbers, so a training that skipped goes on as if it had not.
    assert_eq!(after.iter().map(|r| r.loss).collect::<Vec<_>>(), clean[3..].iter().map(|r| r.loss).collect::<Vec<_>>());
}

#[test]
fn skipped_steps_in_a_row_are_counted_without_loss_scaling_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut s = session(&regression(1), folder.path());
    let mut batch = Batch::new(s.plan());
    batch.input_mut(0).copy_from_slice(&f32_bytes([f32::NAN; 8]));
    let counts: Vec<u32> = (0..3).map(|_| s.step(&batch, &hyper()).unwrap().skipped_in_row).collect();
    assert_eq!(counts, [1, 2, 3]);
}

#[test]
fn a_run_gives_outputs_and_gradients_in_the_outside_orientation() {
    let folder = tempfile::tempdir().unwrap();
    let mut s = session(&regression(3), folder.path());
    let x: Vec<f32> = (0..8).map(|i| i as f32 / 4.0 - 1.0).collect();
    let t = [0.5f32, -0.25, 1.0, 0.0, 2.0, -1.0];
    let inputs = [
        HostTensor { name: "t".into(), dtype: Dtype::F32, shape: vec![BATCH, OUT], bytes: f32_bytes(t) },
        HostTensor {
            name: "x".into(),
            dtype: Dtype::F64,
            shape: vec![BATCH, WIDTH],
            bytes: x.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        },
        HostTensor { name: "more".into(), dtype: Dtype::F32, shape: vec![], bytes: f32_bytes([0.0]) },
    ];
    let w = weight(&s);
    let out = s.run(&inputs, true).unwrap();
    let (mut loss, mut g) = (0f32, vec![0f32; 12]);
    for b in 0..2 {
        for k in 0..3 {
            let e = (0..4).map(|d| x[b * 4 + d] * w[k * 4 + d]).sum::<f32>() - t[b * 3 + k];
            loss += e * e / 6.0;
            (0..4).for_each(|d| g[k * 4 + d] += 2.0 / 6.0 * e * x[b * 4 + d]);
        }
    }
    assert!((out.outputs[0].as_f32().unwrap()[0] - loss).abs() < 1e-5);
    assert_eq!((out.gradients[0].name.as_str(), &out.gradients[0].shape), ("layer.weight", &vec![OUT, WIDTH]));
    assert!(out.gradients[0].as_f32().unwrap().iter().zip(&g).all(|(a, b)| (a - b).abs() < 1e-5));
    assert_eq!(out.ignored, ["more"]);
    assert_eq!(s.run(&inputs, true).unwrap(), out, "a run leaves nothing behind");
    assert_eq!(weight(&s), w);
    assert!(s.run(&inputs[1..], false).unwrap_err().to_string().contains("t: this input"));
}

#[test]
fn decay_leaves_excluded_parameters_alone() {
    let folder = tempfile::tempdir().unwrap();
    let still = Hyper { learning_rate: 0.1, weight_decay: 0.5, betas: [0.0, 0.0], eps: 1e30, ..Hyper::default() };
    let mut s = session(&regression(1), folder.path());
    let before = weight(&s);
    s.set_decay(|_| false).unwrap();
    steps(&mut s, folder.path(), 0, 1, &still);
    assert_eq!(weight(&s), before);
    s.set_decay(|name| name.ends_with("weight")).unwrap();
    steps(&mut s, folder.path(), 0, 1, &still);
    assert!(weight(&s).iter().zip(&before).all(|(a, b)| (a - 0.95 * b).abs() < 1e-6));
}

#[test]
fn initial_values_depend_on_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = opened(&regression(1), folder.path());
    let with = |seed, threads| weight(&Session::new(&file, SessionOptions { seed, threads: Some(threads), ..options() }).unwrap());
    assert_eq!(with(1, 1), with(1, 2));
    assert_ne!(with(1, 1), with(2, 1));
}

fn with_init(init: Init) -> Plan {
    let mut plan = regression(1);
    plan.parameters[0].init = init;
    plan
}

#[test]
fn stored_weights_are_read_in_the_plans_orientation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.plan");
    let plan = with_init(Init::Stored { name: "stored".into() });
    let inside = f32_bytes((0..12).map(|i| i as f32));
    let weight = StoredTensor { name: "stored", dtype: DType::F32, shape: &[WIDTH, OUT], bytes: &inside };
    PlanFile::write(&path, &Contents { plan: &plan, ptx: &BTreeMap::new(), weights: &[weight], constants: &[] }).unwrap();
    let s = Session::new(&PlanFile::open(&path).unwrap(), options()).unwrap();
    let outside = permuted(&inside, 4, &[WIDTH, OUT], &[1, 0]);
    assert_eq!(s.parameter("layer.weight").unwrap().bytes, outside);
    let missing = opened(&plan, folder.path());
    assert!(Session::new(&missing, options()).err().unwrap().to_string().contains("stored is missing"));
}

#[test]
fn stored_weights_that_are_damaged_or_cut_short_after_the_plan_was_opened_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.plan");
    let plan = with_init(Init::Stored { name: "stored".into() });
    let inside = f32_bytes((0..12).map(|i| i as f32 + 0.125));
    let weight = StoredTensor { name: "stored", dtype: DType::F32, shape: &[WIDTH, OUT], bytes: &inside };
    PlanFile::write(&path, &Contents { plan: &plan, ptx: &BTreeMap::new(), weights: &[weight], constants: &[] }).unwrap();
    let opened = PlanFile::open(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let at = whole.windows(inside.len()).position(|w| w == inside).unwrap();
    let said = || Session::new(&opened, options()).err().unwrap().to_string();
    // In place, as another program would: the open plan sees it.
    let mut bytes = whole.clone();
    bytes[at + 7] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(said().contains("weights.safetensors is damaged"), "{}", said());
    std::fs::write(&path, &whole[..at + 20]).unwrap();
    assert!(said().contains("cut short"), "{}", said());
    std::fs::write(&path, &whole).unwrap();
    Session::new(&opened, options()).unwrap();
}

#[test]
fn weights_are_checked_whole_though_only_a_part_of_their_file_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    let mut bytes = vec![3u8; 9 << 20];
    let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let file_bytes = bytes.len() as u64;
    let init = Init::File { path: "weights.bin".into(), offset: (4 << 20) - 5, bytes: 24, dtype: "f16".into(), file_bytes, sha256 };
    std::fs::write(&path, &bytes).unwrap();
    session(&with_init(init.clone()), folder.path());
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let refused = Session::new(&opened(&with_init(init), folder.path()), options()).err().unwrap().to_string();
    assert!(refused.contains("has changed"), "{refused}");
}

#[test]
fn a_number_of_threads_beyond_reason_is_refused_with_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let file = opened(&regression(1), folder.path());
    for threads in [0, 10_000_000, usize::MAX] {
        let error = Session::new(&file, SessionOptions { threads: Some(threads), ..options() }).err().unwrap();
        assert!(matches!(&error, Error::Usage(m) if m.contains("must lie in 1..=1024")), "{error}");
    }
}

#[test]
fn weight_files_beside_the_plan_are_checked_and_converted() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<u8> = (0..12).flat_map(|i| half::f16::from_f32(i as f32 / 2.0).to_le_bytes()).collect();
    let mut bytes = vec![9u8; 10];
    bytes.extend(&values);
    std::fs::write(folder.path().join("weights.bin"), &bytes).unwrap();
    let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let init = |offset, sha256: &str| Init::File {
        path: "weights.bin".into(),
        offset,
        bytes: 24,
        dtype: "f16".into(),
        file_bytes: bytes.len() as u64,
        sha256: sha256.into(),
    };
    let s = session(&with_init(init(10, &sha256)), folder.path());
    assert_eq!(weight(&s)[1], 1.5, "outside [0, 1] is inside [1, 0]");
    let fails = |plan: &Plan| Session::new(&opened(plan, folder.path()), options()).err().unwrap().to_string();
    assert!(fails(&with_init(init(11, &sha256))).contains("ends before"));
    assert!(fails(&with_init(init(10, "00"))).contains("has changed"));
    std::fs::write(folder.path().join("weights.bin"), &bytes[1..]).unwrap();
    assert!(fails(&with_init(init(10, &sha256))).contains("has changed"));
    std::fs::remove_file(folder.path().join("weights.bin")).unwrap();
    assert!(fails(&with_init(init(10, &sha256))).contains("weights.bin"));
}

#[test]
fn hyper_parameters_out_of_range_and_missing_devices_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = opened(&regression(1), folder.path());
    let mut s = Session::new(&file, options()).unwrap();
    let batch = Batch::new(s.plan());
    assert!(matches!(s.step(&batch, &Hyper { eps: -1.0, ..hyper() }), Err(Error::Usage(_))));
    let nowhere = Session::new(&file, SessionOptions { device: DeviceChoice::Cuda(99), ..options() });
    assert!(matches!(nowhere.err(), Some(Error::Device(_))));
    let mut forward = session(&language_model(1, 2, 5, &[]), folder.path());
    let batch = Batch::new(forward.plan());
    assert!(forward.step(&batch, &hyper()).unwrap_err().to_string().contains("inference"));
}

#[test]
fn two_devices_are_compared_launch_by_launch_and_a_difference_shows_where_it_arises() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let (mut a, mut b) = (session(&plan, folder.path()), session(&plan, folder.path()));
    let loader = Loader::open(&plan, &teacher(folder.path(), 12), Order::Sequential).unwrap();
    let mut batch = Batch::new(&plan);
    loader.fill(0, &mut batch).unwrap();
    let same = a.compare(&mut b, &batch, &hyper()).unwrap();
    let launches = plan.schedule.micro.len() + plan.schedule.update.len();
    assert!(same.last().is_some_and(|d| d.position + 1 == launches));
    assert!(same.iter().all(|d| d.worst == 0.0 && d.is_rounding()));
    assert_eq!(weight(&a), weight(&b));
    let mut other = weight(&a);
    other[0] += 1.0;
    let bytes = f32_bytes(other);
    let p = &plan.parameters[0];
    let view = fp8c_runtime::tensors::View { dtype: Dtype::F32, shape: p.shape.clone(), bytes: &bytes };
    b.set_parameter(&p.name, &view).unwrap();
    let apart = a.compare(&mut b, &batch, &hyper()).unwrap();
    assert!(!apart[0].is_rounding() && apart[0].position == 0, "{:?}", apart[0]);
}
