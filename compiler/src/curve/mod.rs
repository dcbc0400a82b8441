//! Predicted time of a step against the budget, from the least to the one that keeps everything.

mod svg;

pub use svg::svg;

use crate::Error;
use crate::compile::{CompileOptions, Lowered, stages};
use crate::plan::assemble::persistent_bytes;
use crate::plan::offsets::pack;
use crate::quantity::{Bytes, Seconds};
use std::path::Path;

/// Budgets of a curve.
const BUDGETS: u64 = 13;

/// The plan for a budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub budget: Bytes,
    /// What its plan takes of it.
    pub planned: Bytes,
    pub step: Seconds,
    /// The part of the step that computes values again.
    pub again: Seconds,
    /// No plan within the budget takes less.
    pub bound: Seconds,
}

/// The plans of a model for a target, by rising budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    pub target: String,
    pub points: Vec<Point>,
}

/// Plans a model for the target of `options` at budgets from the least to the one that keeps everything.
///
/// # Errors
/// Those of the passes.
pub fn curve(model: &Path, options: &CompileOptions) -> Result<Curve, Error> {
    let lowered = Lowered::new(stages(model, options)?.joint, options)?;
    let planner = lowered.planner()?;
    let persistent = persistent_bytes(&lowered.program);
    let least = planner.least()?.map_or(persistent, |rung| rung.arena_bytes);
    let most = (persistent + pack(&planner.everything_kept(), Bytes(0)).height).max(least);
    let mut points: Vec<Point> = vec![];
    for i in 0..BUDGETS {
        let budget = least + (most - least) / (BUDGETS - 1) * i;
        let budget = if i + 1 == BUDGETS { most } else { budget };
        let rung = planner.choose(budget)?;
        let (step, again) = rung.schedule.seconds(&lowered.seconds);
        let bound = planner.lower_bound(budget)?;
        points.push(Point { budget, planned: rung.arena_bytes, step, again, bound });
    }
    points.dedup_by_key(|p| p.budget);
    Ok(Curve { target: options.target.clone(), points })
}
