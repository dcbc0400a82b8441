//! The loss over data that is not trained on.
//!
//! Data is taken in order and once. What does not fill the last batch is filled up with labels that count for nothing where the plan's loss
//! ignores some value; where it ignores none, it is left out and counted.

mod classes;
mod labels;

pub use classes::{Classes, judged};

use crate::Error;
use crate::data::Loader;
use crate::plan::Plan;
use crate::session::{Batch, Session};
use classes::Score;
use labels::LabelPort;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What an evaluation came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean over every label that counts; over samples where the loss has no label that may be ignored.
    pub loss: f64,
    /// Share of the labels that are the likeliest class; absent where the plan gives no classes.
    pub accuracy: Option<f64>,
    /// Samples that the loss is of.
    pub samples: u64,
    /// Labels that the loss is the mean over, where it is one over labels.
    pub labels: Option<u64>,
    /// Samples at the end that did not fill a batch and were left out.
    pub left_out: u64,
    pub seconds: f64,
}

/// Sums on the way to an [`Evaluation`].
#[derive(Default)]
struct Sums {
    loss: f64,
    weight: u64,
    correct: u64,
    samples: u64,
    left_out: u64,
}

/// Evaluates a plan over all of the data, or over its first `batches` steps' worth; `None` when `stop` was set on the way.
///
/// A training plan's own loss is what is evaluated. An inference plan is judged as [`judged`] says, by `loader` filling the batches of the plan
/// that it gives.
///
/// # Errors
/// [`Error::Usage`] for data that fills no batch, or an inference plan without classes; those of [`Loader::fill`] and [`Session::evaluate`].
pub fn evaluate(session: &mut Session, loader: &Loader, batches: Option<u64>, stop: &AtomicBool) -> Result<Option<Evaluation>, Error> {
    let started = Instant::now();
    let plan = session.shared_plan();
    let judge = Judge::of(&plan)?;
    let mut batch = Batch::new(judge.fed(&plan));
    let rows = loader.samples_per_step() / u64::from(plan.accumulation);
    let all = batches.map_or(u64::MAX, |n| n.saturating_mul(loader.samples_per_step())).min(loader.samples());
    let mut sums = Sums::default();
    let mut at = 0;
    while at < all {
        loader.fill(at, &mut batch)?;
        for micro in 0..plan.accumulation as usize {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            judge.micro_batch(session, &mut batch, micro, (all - at).min(rows), rows, &mut sums)?;
            at += rows.min(all - at);
            if at == all {
                break;
            }
        }
    }
    if sums.weight == 0 {
        let why = if sums.samples > 0 { "no label that counts".into() } else { format!("fewer samples than one batch of {rows}") };
        return Err(Error::Usage(format!("the data has {why}, so there is nothing to evaluate")));
    }
    Ok(Some(Evaluation {
        loss: sums.loss / sums.weight as f64,
        accuracy: judge.classes.is_some().then(|| sums.correct as f64 / sums.weight as f64),
        samples: sums.samples,
        labels: judge.labels.map(|_| sums.weight),
        left_out: sums.left_out,
        seconds: started.elapsed().as_secs_f64(),
    }))
}

/// How the loss of a micro-batch is had.
struct Judge {
    /// Of an inference plan: the plan with the labels that its output is compared with.
    classes: Option<Classes>,
    labels: Option<LabelPort>,
}

impl Judge {
    fn of(plan: &Plan) -> Result<Self, Error> {
        if plan.loss.is_some() {
            return Ok(Judge { classes: None, labels: LabelPort::of(plan) });
        }
        let classes = judged(plan)?;
        let labels = LabelPort::of(&classes.plan);
        Ok(Judge { classes: Some(classes), labels })
    }

    fn fed<'a>(&'a self, plan: &'a Plan) -> &'a Plan {
        self.classes.as_ref().map_or(plan, |c| &c.plan)
    }

    /// Adds a micro-batch of which `valid` of `rows` samples count.
    fn micro_batch(
        &self,
        session: &mut Session,
        batch: &mut Batch,
        micro: usize,
        valid: u64,
        rows: u64,
        sums: &mut Sums,
    ) -> Result<(), Error> {
        let weight = match &self.labels {
            Some(labels) => {
                labels.ignore_from(batch, micro, valid, rows);
                labels.count(batch, micro)
            }
            None if valid < rows => {
                sums.left_out += valid;
                return Ok(());
            }
            None => valid,
        };
        sums.samples += valid;
        if weight == 0 {
            return Ok(());
        }
        sums.weight += weight;
        match (&self.classes, &self.labels) {
            (Some(classes), Some(labels)) => {
                let Score { loss, correct } = classes.score(&session.forward(batch, micro)?, &labels.values(batch, micro))?;
                sums.loss += loss;
                sums.correct += correct;
            }
            _ => sums.loss += session.evaluate(batch, micro)? * weight as f64,
        }
        Ok(())
    }
}
