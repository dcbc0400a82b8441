//! The training loop.
//!
//! A training keeps its result: a checkpoint is made at the end, when it is stopped, when it diverges, and when its data fails it.

mod pace;
mod settings;

pub use pace::Every;

use crate::Error;
use crate::checkpoint::{Position, Settings, Standing, Store};
use crate::data::Loader;
use crate::device::peak_rss_bytes;
use crate::evaluation::evaluate;
use crate::hyper::Hyper;
use crate::metrics::{Continued, MetricsLog, StepMetrics};
use crate::names::globs;
use crate::schedule::LrSchedule;
use crate::session::{Batch, SKIPS_THAT_DIVERGE, Session};
use std::path::PathBuf;
use std::sync::Arc;
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
    /// Describes the data; a change is told when the training is resumed.
    pub data: String,
    pub log: Option<PathBuf>,
    pub checkpoint: Option<CheckpointOptions>,
    pub validation: Option<Validation>,
}

/// Data that the loss is taken of now and then, and at the end, without training on it.
#[derive(Clone, Debug)]
pub struct Validation {
    /// In order.
    pub loader: Arc<Loader>,
    /// Steps between evaluations.
    pub every: Option<u64>,
    /// How many steps' worth of the data; all of it when absent.
    pub batches: Option<u64>,
}

/// When checkpoints are made. One is always made at the end.
#[derive(Clone, Debug)]
pub struct CheckpointOptions {
    pub folder: PathBuf,
    pub every: Option<Every>,
    /// How many are kept; all when absent.
    pub keep: Option<usize>,
    pub earlier: Earlier,
}

/// What becomes of checkpoints that are in the folder already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// The training goes on from the newest sound one; without any it begins at the beginning.
    Resume,
    /// The folder is renamed.
    SetAside,
    /// The training is refused.
    Refuse,
}

/// What a training tells as it goes.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    Step(&'a StepMetrics),
    /// A sentence for whoever watches.
    Note(&'a str),
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
    /// The last loss over the data that is not trained on.
    pub eval_loss: Option<f64>,
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
/// [`Error::Usage`] for a folder that holds checkpoints where they are to be refused; [`Error::Unsound`] when none of those to resume from is
/// sound; [`Error::Locked`]; those of [`Session::step`] and [`Store::save`]; [`Error::Diverged`] when [`SKIPS_THAT_DIVERGE`] steps in a row
/// were not finite. A checkpoint has been made before any of these ends a training under way, unless the device failed.
pub fn train(
    session: &mut Session,
    loader: &Loader,
    options: &TrainOptions,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Summary, Error> {
    let plan = session.shared_plan();
    let names: Vec<&str> = plan.parameters.iter().map(|p| p.name.as_str()).collect();
    let excluded = globs("--no-decay", &options.no_decay, "parameter", &names)?;
    session.set_decay(|name| !excluded.is_match(name))?;
    let started = Instant::now();
    let mut run = Run::begin(session, loader, options, tell)?;
    let ended = run.steps(session, loader, options, stop, tell);
    match &ended {
        Ok(()) => drop(run.save(session, options)?),
        // A step that a device failed may be half done.
        Err(Error::Device(_) | Error::Kernel(_)) => {}
        Err(_) if run.position.step == 0 => {}
        Err(_) => match run.save(session, options) {
            Ok(Some(path)) => tell(Event::Note(&format!("step {} was saved before the end: {}", run.position.step, path.display()))),
            Ok(None) => {}
            Err(e) => tell(Event::Note(&format!("step {} could not be saved: {e}", run.position.step))),
        },
    }
    ended?;
    run.summary.stopped = run.position.step < options.schedule.steps;
    run.summary.step = run.position.step;
    run.summary.skipped = run.position.skipped;
    run.summary.seconds = started.elapsed().as_secs_f64();
    run.summary.arena_peak_bytes = session.arena_peak_bytes();
    run.summary.peak_rss_bytes = peak_rss_bytes();
    Ok(run.summary)
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
    last_loss: Option<f64>,
    settings: Settings,
    store: Option<Store>,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    skipped_in_row: u32,
    log: Option<MetricsLog>,
    /// Lines that the log could not take.
    unlogged: u64,
    summary: Summary,
}

impl Run {
    fn begin(session: &mut Session, loader: &Loader, options: &TrainOptions, tell: &mut dyn FnMut(Event<'_>)) -> Result<Self, Error> {
        let mut run = Run {
            position: Position::default(),
            last_loss: None,
            settings: settings::settings(session.plan(), loader, options),
            store: None,
            saved: None,
            skipped_in_row: 0,
            log: None,
            unlogged: 0,
            summary: Summary::default(),
        };
        if let Some(c) = &options.checkpoint {
            run.store = Some(run.take_folder(session, c, tell)?);
        }
        let continued = (run.position.step > 0).then_some(Continued { step: run.position.step, loss: run.last_loss });
        if let Some(path) = &options.log {
            let (log, aside) = MetricsLog::open(path, continued)?;
            if let Some(aside) = aside {
                tell(Event::Note(&format!("{} was of another training; it was renamed to {}", path.display(), aside.display())));
            }
            run.log = Some(log);
        }
        Ok(run)
    }

    /// Takes the folder of checkpoints and does with earlier ones what is to be done.
    fn take_folder(&mut self, session: &mut Session, c: &CheckpointOptions, tell: &mut dyn FnMut(Event<'_>)) -> Result<Store, Error> {
        let folder = c.folder.display();
        match c.earlier {
            Earlier::SetAside => {
                let (store, aside) = Store::open_anew(&c.folder)?;
                if let Some(aside) = aside {
                    tell(Event::Note(&format!("{folder} was of an earlier training; it was renamed to {}", aside.display())));
                }
                Ok(store)
            }
            Earlier::Refuse => {
                let store = Store::open(&c.folder)?;
                match store.is_empty()? {
                    true => Ok(store),
                    false => Err(Error::Usage(format!("{folder} already holds checkpoints of a training that is not being resumed"))),
                }
            }
            Earlier::Resume => {
                let store = Store::open(&c.folder)?;
                match store.resume(session, &mut |note| tell(Event::Note(&note)))? {
                    Some((path, standing)) => self.go_on(path, standing, tell),
                    None => tell(Event::Note(&format!("{folder} holds no checkpoint yet: the training begins with step 1"))),
                }
                Ok(store)
            }
        }
    }

    fn go_on(&mut self, path: PathBuf, standing: Standing, tell: &mut dyn FnMut(Event<'_>)) {
        let step = standing.position.step;
        tell(Event::Note(&format!("resumed from step {step} ({})", path.display())));
        for change in settings::changes(&standing.settings, &self.settings) {
            tell(Event::Note(&change));
        }
        (self.position, self.last_loss, self.saved) = (standing.position, standing.last_loss, Some(step));
        (self.summary.resumed_from, self.summary.checkpoint) = (Some(step), Some(path));
    }

    /// The steps that are left, with the checkpoints between them.
    fn steps(
        &mut self,
        session: &mut Session,
        loader: &Loader,
        options: &TrainOptions,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Error> {
        let mut batch = Batch::new(session.plan());
        let mut pace = options.checkpoint.as_ref().and_then(|c| c.every).map(Every::begin);
        while self.position.step < options.schedule.steps && !stop.load(Ordering::Relaxed) {
            let mut metrics = self.step(session, loader, options, &mut batch)?;
            metrics.eval_loss = self.validate(session, options, stop)?;
            self.write_log(&metrics, tell);
            tell(Event::Step(&metrics));
            if self.skipped_in_row >= SKIPS_THAT_DIVERGE {
                return Err(Error::Diverged(format!(
                    "training was stopped at step {}: the loss or the gradient was not finite in {SKIPS_THAT_DIVERGE} steps in a row",
                    self.position.step
                )));
            }
            if pace.as_mut().is_some_and(|pace| pace.is_due(self.position.step))
                && let Err(e) = self.save(session, options)
            {
                // Going on may yet lead to a result, and room may be made meanwhile; ending here would lose the steps for certain.
                tell(Event::Note(&format!("no checkpoint of step {} ({e}); the training goes on", self.position.step)));
            }
        }
        Ok(())
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
            eval_loss: None,
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
        self.last_loss = result.loss.is_finite().then_some(result.loss);
        self.summary.first_loss.get_or_insert(result.loss);
        self.summary.last_loss = Some(result.loss);
        Ok(metrics)
    }

    /// The loss over the data that is not trained on, where it is due: with the parameters as the step has left them.
    fn validate(&mut self, session: &mut Session, options: &TrainOptions, stop: &AtomicBool) -> Result<Option<f64>, Error> {
        let (step, last) = (self.position.step, options.schedule.steps);
        let due = options.validation.as_ref().filter(|v| step == last || v.every.is_some_and(|n| n > 0 && step.is_multiple_of(n)));
        let Some(v) = due else { return Ok(None) };
        let loss = evaluate(session, &v.loader, v.batches, stop)?.map(|e| e.loss);
        self.summary.eval_loss = loss.or(self.summary.eval_loss);
        Ok(loss)
    }

    /// Appends to the log. A disk that is full costs lines, not the training.
    fn write_log(&mut self, metrics: &StepMetrics, tell: &mut dyn FnMut(Event<'_>)) {
        if let Some(Err(e)) = self.log.as_mut().map(|log| log.append(metrics)) {
            if self.unlogged == 0 {
                tell(Event::Note(&format!("the log lacks step {} ({e}); the training goes on", metrics.step)));
            }
            self.unlogged += 1;
        }
    }

    /// Saves a checkpoint unless this step has one, and deletes those that are too many.
    fn save(&mut self, session: &Session, options: &TrainOptions) -> Result<Option<PathBuf>, Error> {
        let (Some(c), Some(store)) = (&options.checkpoint, &self.store) else { return Ok(None) };
        if self.saved == Some(self.position.step) {
            return Ok(None);
        }
        // A checkpoint that survives a power cut finds its lines in the log.
        if let Some(log) = &self.log {
            log.sync()?;
        }
        let standing = Standing { position: self.position, last_loss: self.last_loss, settings: self.settings.clone() };
        let path = store.save(session, &standing)?;
        self.summary.checkpoint = Some(path.clone());
        self.saved = Some(self.position.step);
        c.keep.map_or(Ok(()), |keep| store.prune(keep))?;
        Ok(Some(path))
    }
}
