//! The training loop.

use crate::Error;
use crate::checkpoint::{self, Position};
use crate::data::Loader;
use crate::device::peak_rss_bytes;
use crate::hyper::Hyper;
use crate::metrics::{MetricsLog, StepMetrics};
use crate::schedule::LrSchedule;
use crate::session::{Batch, SKIPS_THAT_DIVERGE, Session};
use globset::{Glob, GlobSet, GlobSetBuilder};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a training is run with.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// `hyper.learning_rate` is replaced by the schedule's at each step.
    pub hyper: Hyper,
    /// `schedule.steps` is the number of the last step, counted from the very beginning.
    pub schedule: LrSchedule,
    /// Globs over parameter names that weight decay leaves alone.
    pub no_decay: Vec<String>,
    pub log: Option<PathBuf>,
    pub checkpoint: Option<CheckpointOptions>,
}

/// When checkpoints are made. One is always made at the end.
#[derive(Clone, Debug)]
pub struct CheckpointOptions {
    pub folder: PathBuf,
    /// Steps between checkpoints.
    pub every: Option<u64>,
    /// How many are kept; all when absent.
    pub keep: Option<usize>,
    /// Continue from the newest complete checkpoint, if there is one.
    pub resume: bool,
}

/// What a training came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// The step that was resumed from.
    pub resumed_from: Option<u64>,
    /// Number of the last step done.
    pub step: u64,
    /// Losses of the first and the last step of this run.
    pub first_loss: Option<f64>,
    pub last_loss: Option<f64>,
    pub skipped: u64,
    pub seconds: f64,
    pub arena_peak_bytes: u64,
    pub peak_rss_bytes: Option<u64>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The stop flag ended it.
    pub stopped: bool,
}

/// Trains until `options.schedule.steps`, or until `stop` is set: then the step under way is finished and a checkpoint made.
///
/// # Errors
/// Those of [`Session::step`] and [`checkpoint::save`]; [`Error::Usage`] for a folder that holds checkpoints when not resuming;
/// [`Error::Diverged`], after a checkpoint, when [`SKIPS_THAT_DIVERGE`] steps in a row were not finite.
pub fn train(
    session: &mut Session,
    loader: &Loader,
    options: &TrainOptions,
    stop: &AtomicBool,
    on_step: &mut dyn FnMut(&StepMetrics),
) -> Result<Summary, Error> {
    let excluded = globs(&options.no_decay)?;
    session.set_decay(|name| !excluded.is_match(name))?;
    let mut run = Run::begin(session, options)?;
    let mut batch = Batch::new(session.plan());
    let started = Instant::now();
    while run.position.step < options.schedule.steps && !stop.load(Ordering::Relaxed) {
        let metrics = run.step(session, loader, options, &mut batch)?;
        on_step(&metrics);
        if run.skipped_in_row >= SKIPS_THAT_DIVERGE {
            run.save(session, options)?;
            return Err(Error::Diverged(format!(
                "training was stopped at step {}: the loss or the gradient was not finite in {SKIPS_THAT_DIVERGE} steps in a row",
                run.position.step
            )));
        }
        let every = options.checkpoint.as_ref().and_then(|c| c.every);
        if every.is_some_and(|n| n > 0 && run.position.step.is_multiple_of(n)) {
            run.save(session, options)?;
        }
    }
    run.save(session, options)?;
    run.summary.stopped = run.position.step < options.schedule.steps;
    run.summary.step = run.position.step;
    run.summary.skipped = run.position.skipped;
    run.summary.seconds = started.elapsed().as_secs_f64();
    run.summary.arena_peak_bytes = session.arena_peak_bytes();
    run.summary.peak_rss_bytes = peak_rss_bytes();
    Ok(run.summary)
}

fn globs(patterns: &[String]) -> Result<GlobSet, Error> {
    let mut set = GlobSetBuilder::new();
    for p in patterns {
        set.add(Glob::new(p).map_err(|e| Error::Usage(format!("{p:?} is no glob ({e})")))?);
    }
    set.build().map_err(|e| Error::Usage(e.to_string()))
}

/// Says in which step a device failed.
fn at_step(e: Error, step: u64) -> Error {
    match e {
        Error::Device(reason) => Error::Device(format!("step {step}: {reason}")),
        other => other,
    }
}

/// A training under way.
struct Run {
    position: Position,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    skipped_in_row: u32,
    log: Option<MetricsLog>,
    summary: Summary,
}

impl Run {
    fn begin(session: &mut Session, options: &TrainOptions) -> Result<Self, Error> {
        let mut run = Run { position: Position::default(), saved: None, skipped_in_row: 0, log: None, summary: Summary::default() };
        if let Some(c) = &options.checkpoint {
            match checkpoint::latest(&c.folder)? {
                Some(path) if c.resume => {
                    run.position = checkpoint::load(session, &path)?;
                    run.saved = Some(run.position.step);
                    run.summary.resumed_from = Some(run.position.step);
                    run.summary.checkpoint = Some(path);
                }
                Some(_) => {
                    let folder = c.folder.display();
                    return Err(Error::Usage(format!("{folder} already holds checkpoints of a training that is not being resumed")));
                }
                None => {}
            }
        }
        run.log = options.log.as_ref().map(|path| MetricsLog::open(path, run.position.step)).transpose()?;
        Ok(run)
    }

    fn step(&mut self, session: &mut Session, loader: &Loader, options: &TrainOptions, batch: &mut Batch) -> Result<StepMetrics, Error> {
        let started = Instant::now();
        let hyper = Hyper { learning_rate: options.schedule.at(self.position.step), ..options.hyper.clone() };
        loader.fill(self.position.samples, batch)?;
        let result = session.step(batch, &hyper).map_err(|e| at_step(e, self.position.step + 1))?;
        self.position.step += 1;
        self.position.samples += loader.samples_per_step();
        self.position.skipped += u64::from(result.skipped);
        self.skipped_in_row = result.skipped_in_row;
        let seconds = started.elapsed().as_secs_f64();
        let metrics = StepMetrics {
            step: self.position.step,
            loss: result.loss,
            lr: hyper.learning_rate,
            grad_norm: result.grad_norm,
            loss_scale: result.loss_scale,
            skipped: result.skipped,
            skipped_total: self.position.skipped,
            seconds,
            tokens_per_second: loader.tokens_per_step() as f64 / seconds.max(1e-9),
            arena_peak_bytes: session.arena_peak_bytes(),
            peak_rss_bytes: peak_rss_bytes(),
        };
        self.summary.first_loss.get_or_insert(result.loss);
        self.summary.last_loss = Some(result.loss);
        if let Some(log) = &mut self.log {
            log.append(&metrics)?;
        }
        Ok(metrics)
    }

    /// Saves a checkpoint unless this step has one.
    fn save(&mut self, session: &Session, options: &TrainOptions) -> Result<(), Error> {
        let Some(c) = &options.checkpoint else { return Ok(()) };
        if self.saved == Some(self.position.step) {
            return Ok(());
        }
        self.summary.checkpoint = Some(checkpoint::save(session, &c.folder, self.position)?);
        self.saved = Some(self.position.step);
        c.keep.map_or(Ok(()), |keep| checkpoint::prune(&c.folder, keep))
    }
}
