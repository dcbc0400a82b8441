//! `fp8c train`.

use super::args::{LabelsArg, Train};
use super::failure::{Failure, any_of};
use super::progress::Progress;
use super::{Done, Output, print};
use crate::quantity::Bytes;
use fp8c_runtime::Error;
use fp8c_runtime::data::{DataOptions, Loader, Order};
use fp8c_runtime::device::DeviceChoice;
use fp8c_runtime::files::Replaces;
use fp8c_runtime::hyper::{Hyper, LossScaling};
use fp8c_runtime::plan::{Labels, Plan, PlanFile};
use fp8c_runtime::schedule::LrSchedule;
use fp8c_runtime::session::{Session, SessionOptions};
use fp8c_runtime::trainer::{CheckpointOptions, Earlier, Event, Every, Summary, TrainOptions, Validation, train as run_train};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Trains a plan.
pub fn train(a: &Train, output: Output) -> Done {
    let file = PlanFile::open(&a.plan)?;
    let plan = file.plan();
    let device: DeviceChoice = a.on.device.parse()?;
    let mut options = options(a, plan.precision.as_str())?;
    if let Some(log) = &options.log {
        // Before the work is done for it.
        Replaces::Log.check(log)?;
    }
    let loader = Loader::open(plan, &a.data, data_options(a))?;
    loader.notes().iter().for_each(|note| output.say(format!("note: {note}")));
    options.validation = validation(a, plan)?;
    let mut session = Session::new(&file, SessionOptions { device, threads: a.on.threads, seed: a.seed })?;
    let stop = stop_flag()?;
    let mut progress = Progress::new(a.steps, a.print_every, output);
    let summary = run_train(&mut session, &loader, &options, &stop, &mut |event| match event {
        Event::Step(m) => progress.step(m),
        Event::Note(note) => progress.note(format!("note: {note}")),
    });
    progress.finish();
    let summary = summary.map_err(|e| calmer(e, &options))?;
    report(&summary, plan, &session.device(), &options, output)
}

/// A failure; of a training that diverged with what else would steady it.
fn calmer(e: Error, options: &TrainOptions) -> Failure {
    let diverged = matches!(e, Error::Diverged(_));
    let mut failure = Failure::from(e);
    let steadier = [
        ("a lower --lr", true),
        ("a longer --warmup", true),
        ("--grad-clip 1", options.hyper.clip.is_none()),
        ("--loss-scale dynamic", options.hyper.loss_scaling != LossScaling::Dynamic),
    ];
    if diverged {
        let ways: Vec<String> = steadier.iter().filter(|(_, applies)| *applies).map(|(way, _)| way.to_string()).collect();
        failure.hint = Some(format!("train with {}", any_of(&ways)));
    }
    failure
}

fn data_options(a: &Train) -> DataOptions {
    let order = if a.no_shuffle { Order::Sequential } else { Order::Shuffled { seed: a.seed } };
    DataOptions { order, labels: labels(a.labels), width: a.token_width }
}

/// What was asked for as labels.
pub fn labels(asked: LabelsArg) -> Option<Labels> {
    match asked {
        LabelsArg::Auto => None,
        LabelsArg::Next => Some(Labels::Next),
        LabelsArg::Same => Some(Labels::Same),
    }
}

fn validation(a: &Train, plan: &Plan) -> Result<Option<Validation>, Failure> {
    if a.eval_data.is_empty() {
        return Ok(None);
    }
    let loader = Loader::open(plan, &a.eval_data, DataOptions { order: Order::Sequential, ..data_options(a) })?;
    Ok(Some(Validation { loader: Arc::new(loader), every: (a.eval_every > 0).then_some(a.eval_every), batches: a.eval_batches }))
}

fn options(a: &Train, precision: &str) -> Result<TrainOptions, Failure> {
    let loss_scaling = a.loss_scale.unwrap_or_else(|| LossScaling::default_for(precision));
    let hyper = Hyper { learning_rate: a.lr, betas: a.betas, eps: a.eps, weight_decay: a.weight_decay, clip: a.grad_clip, loss_scaling };
    hyper.validate()?;
    // The result is kept in any case. Where nobody named a place for it, an earlier one must not be in the way.
    let earlier = match (a.resume, &a.checkpoint) {
        (true, _) => Earlier::Resume,
        (false, Some(_)) => Earlier::Refuse,
        (false, None) => Earlier::SetAside,
    };
    let checkpoint = CheckpointOptions {
        folder: a.checkpoint.clone().unwrap_or_else(|| a.plan.with_file_name(named_after(&a.plan, ".checkpoints"))),
        every: (a.every != Every::Steps(0)).then_some(a.every),
        keep: (a.keep > 0).then_some(a.keep),
        earlier,
    };
    let log = a.log.clone().unwrap_or_else(|| named_after(&a.plan, ".jsonl").into());
    Ok(TrainOptions {
        hyper,
        schedule: LrSchedule { shape: a.schedule, peak: a.lr, warmup: a.warmup, steps: a.steps },
        no_decay: a.no_decay.clone(),
        data: describe(a),
        log: Some(log),
        checkpoint: Some(checkpoint),
        validation: None,
    })
}

/// The plan's name with another ending, without its folder.
fn named_after(plan: &Path, ending: &str) -> OsString {
    let mut name = plan.file_stem().unwrap_or(plan.as_os_str()).to_os_string();
    name.push(ending);
    name
}

/// The data by name and size, so that other data is noticed when a training is resumed.
fn describe(a: &Train) -> String {
    let one = |spec: &String| {
        let path = Path::new(spec.split_once('=').map_or(spec.as_str(), |(_, file)| file));
        let bytes = std::fs::metadata(path).map_or(0, |about| about.len());
        format!("{} ({bytes} bytes)", path.file_name().unwrap_or(path.as_os_str()).display())
    };
    let order = if a.no_shuffle { "in order" } else { "shuffled" };
    format!("{} {order}", a.data.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Set by the first SIGINT or SIGTERM: the step under way is finished and saved. A second signal ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).map_err(|e| Failure { message: format!("cannot listen for signals: {e}"), hint: None, status: 1 })?;
    Ok(stop)
}

fn report(s: &Summary, plan: &Plan, device: &str, options: &TrainOptions, output: Output) -> Done {
    if output.json {
        return print(serde_json::json!({
            "step": s.step, "first_loss": s.first_loss, "last_loss": s.last_loss, "eval_loss": s.eval_loss, "skipped": s.skipped, "seconds": s.seconds,
            "planned_peak_bytes": plan.arena_bytes, "arena_peak_bytes": s.arena_peak_bytes, "peak_rss_bytes": s.peak_rss_bytes,
            "stopped": s.stopped, "resumed_from": s.resumed_from, "log": options.log, "checkpoint": s.checkpoint,
        }));
    }
    let loss = |l: Option<f64>| l.map_or("-".into(), |l| format!("{l:.4}"));
    let word = if s.stopped { "stopped" } else { "done" };
    output.say(format!("{word} at step {} on {device} in {:.1} s", s.step, s.seconds));
    output.say(format!("  loss        {} -> {}", loss(s.first_loss), loss(s.last_loss)));
    if s.eval_loss.is_some() {
        output.say(format!("  evaluated   {}", loss(s.eval_loss)));
    }
    if s.skipped > 0 {
        output.say(format!("  skipped     {} steps (gradient not finite)", s.skipped));
    }
    let rss = s.peak_rss_bytes.map_or(String::new(), |b| format!("; the whole process {}", Bytes(b)));
    output.say(format!("  memory      {} planned, {} used{rss}", Bytes(plan.arena_bytes), Bytes(s.arena_peak_bytes)));
    if let Some(log) = &options.log {
        output.say(format!("  log         {}", log.display()));
    }
    if let Some(checkpoint) = &s.checkpoint {
        output.say(format!("  checkpoint  {}", checkpoint.display()));
    }
    Ok(())
}
