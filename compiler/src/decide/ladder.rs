//! The plans of a program, from the least memory to the least time.
//!
//! The plans depend on the program alone, never on the budget asked for: relaxations at a fixed series of budgets, rounded, with every
//! step of the searches between them. A budget takes the fastest plan that fits. Hence a larger budget never takes longer, and a
//! smaller one never needs more.

use super::late::{Ways, ways};
use super::lp::{self, Timeline};
use super::search::{Candidate, Costed, Scorer};
use crate::Error;
use crate::graph::Epoch;
use crate::plan::assemble::{persistent_bytes, spans};
use crate::plan::offsets::{Packing, pack};
use crate::plan::schedule::{Schedule, build};
use crate::quantity::{Bytes, Seconds};
use rayon::prelude::*;

/// Budgets between the least and the largest peak that get a relaxation of their own.
const ANCHORS: u64 = 12;

/// Halvings of the distance between the least peak found and what no plan can fall below.
const HALVINGS: usize = 8;

/// A plan with its addresses.
#[derive(Clone, Debug)]
pub struct Rung {
    pub candidate: Candidate,
    pub schedule: Schedule,
    pub packing: Packing,
    /// Persistent bytes and the packed height together.
    pub arena_bytes: Bytes,
}

/// The plans of a program that no other beats in both peak and seconds, fewest bytes first, with what bounds them.
pub struct Ladder {
    pub plans: Vec<Candidate>,
    pub ways: Ways,
    timeline: Timeline,
    persistent: Bytes,
    /// Predicted time of the schedule that recomputes nothing.
    base_seconds: Seconds,
}

/// Builds the ladder.
///
/// # Errors
/// [`Error::Solver`], or [`Error::Verify`] when the ways were not all found.
pub fn ladder(costed: &Costed) -> Result<Ladder, Error> {
    let ways = ways(costed.program, costed.facts)?;
    let scorer = Scorer::new(*costed, &ways);
    let (all, kept) = scorer.score(scorer.uniform(true));
    let timeline = lp::timeline(costed, &ways, &kept);
    let relax = |budget| lp::solve(costed, &ways, &timeline, budget);
    let mut plans = least(&scorer, &relax, &all)?;
    let low = plans.iter().map(|c| c.peak).min().unwrap_or(all.peak);
    let step = |i: u64| low + Bytes(((all.peak - low).0 as u128 * i as u128 / ANCHORS as u128) as u64);
    let between = (0..ANCHORS).into_par_iter().map(|i| {
        let mut met = vec![];
        if let Some(relaxed) = relax(step(i))? {
            let fitting = scorer.shrink(scorer.rounded(&relaxed), step(i), &mut met);
            let full = scorer.fill(fitting, step(i), &mut met);
            scorer.fill(full, step(i + 1), &mut met);
        }
        Ok::<_, Error>(met)
    });
    plans.extend(between.collect::<Result<Vec<_>, _>>()?.into_iter().flatten());
    pareto(&mut plans);
    Ok(Ladder { plans, timeline, persistent: persistent_bytes(costed.program), base_seconds: all.seconds, ways })
}

/// Solves the relaxation for a budget.
type Relax<'a> = dyn Fn(Bytes) -> Result<Option<lp::Relaxed>, Error> + Sync + 'a;

/// What is met on the way to the smallest peak: from nothing kept, from everything kept, and from the tightest relaxations.
fn least(scorer: &Scorer, relax: &Relax, all: &Candidate) -> Result<Vec<Candidate>, Error> {
    let (mut floor, mut feasible) = (Bytes(0), all.peak);
    let mut tightest = None;
    while feasible - floor > all.peak / 512 + Bytes(1) {
        let middle = floor + (feasible - floor) / 2;
        match relax(middle)? {
            Some(relaxed) => (feasible, tightest) = (middle, Some(relaxed)),
            None => floor = middle,
        }
    }
    let starts = [Some(scorer.uniform(false)), Some(scorer.uniform(true)), tightest.map(|r| scorer.rounded(&r))];
    let paths = starts.into_par_iter().flatten().map(|start| {
        let mut met = vec![];
        scorer.shrink(start, floor, &mut met);
        met
    });
    let mut met: Vec<Candidate> = paths.collect::<Vec<_>>().into_iter().flatten().collect();
    met.push(all.clone());
    for _ in 0..HALVINGS {
        let Some(best) = met.iter().min_by_key(|c| (c.peak, c.seconds)).cloned() else { break };
        if best.peak - floor <= best.peak / 512 {
            break;
        }
        let target = floor + (best.peak - floor) / 2;
        let relaxed = relax(target)?.map(|r| scorer.rounded(&r));
        let starts = [Some(best.decisions), relaxed];
        let reached = starts.into_iter().flatten().any(|start| scorer.shrink(start, target, &mut met).peak <= target);
        floor = if reached { floor } else { target };
    }
    Ok(met)
}

/// Sorts by bytes and drops every plan that another beats or equals in both bytes and seconds.
fn pareto(plans: &mut Vec<Candidate>) {
    plans.sort_by_key(|c| (c.peak, c.seconds));
    let mut fastest = Seconds(f64::INFINITY);
    plans.retain(|c| {
        let better = c.seconds < fastest;
        fastest = fastest.min(c.seconds);
        better
    });
}

impl Ladder {
    fn packed(&self, costed: &Costed, candidate: &Candidate) -> Rung {
        let schedule = build(costed.facts, &candidate.decisions);
        let packing = pack(&spans(&schedule));
        Rung { candidate: candidate.clone(), schedule, arena_bytes: self.persistent + packing.height, packing }
    }

    /// The fastest plan whose arena fits a budget.
    ///
    /// # Errors
    /// [`Error::Infeasible`] with the least budget, the event that binds it and what is alive there.
    pub fn choose(&self, costed: &Costed, budget: Bytes) -> Result<Rung, Error> {
        let room = budget - self.persistent;
        let fitting = self.plans.iter().rev().filter(|c| c.peak <= room && budget >= self.persistent);
        // An arena is its peak and what packing loses.
        let mut rungs = fitting.map(|c| self.packed(costed, c));
        rungs.find(|r| r.arena_bytes <= budget).ok_or_else(|| self.infeasible(costed, budget))
    }

    /// The plan of the smallest arena.
    pub fn least(&self, costed: &Costed) -> Option<Rung> {
        let mut best: Option<Rung> = None;
        for c in &self.plans {
            if best.as_ref().is_some_and(|b| self.persistent + c.peak >= b.arena_bytes) {
                break;
            }
            let rung = self.packed(costed, c);
            if best.as_ref().is_none_or(|b| rung.arena_bytes < b.arena_bytes) {
                best = Some(rung);
            }
        }
        best
    }

    /// No plan within `budget` takes less time a step than this, in this order of launches and by these costs.
    ///
    /// # Errors
    /// [`Error::Solver`].
    pub fn lower_bound(&self, costed: &Costed, budget: Bytes) -> Result<Seconds, Error> {
        let transient = budget - self.persistent;
        let relaxed = lp::solve(costed, &self.ways, &self.timeline, transient)?;
        Ok(self.base_seconds + relaxed.map_or(Seconds(0.0), |r| r.seconds))
    }

    /// The schedule that recomputes nothing.
    pub fn everything_kept(&self, costed: &Costed) -> Schedule {
        build(costed.facts, &self.ways.uniform(costed.program, true))
    }

    fn infeasible(&self, costed: &Costed, budget: Bytes) -> Error {
        let program = costed.program;
        let Some(rung) = self.least(costed) else {
            return Error::Infeasible { budget, least: self.persistent, event: "the persistent state".into(), live: vec![] };
        };
        let at = rung.schedule.peak().1;
        let unit = rung.schedule.events.get(at as usize).map(|e| &program.units[e.unit as usize]);
        let epoch = match unit.map(|u| u.epoch) {
            Some(Epoch::Forward) => "forward",
            Some(Epoch::Update) => "update",
            _ => "backward",
        };
        let event = format!("{} ({epoch})", unit.map_or("the step", |u| u.site.as_ref()));
        let mut live = vec![("parameters, optimizer state, inputs".to_string(), self.persistent)];
        let alive = rung.schedule.instances.iter().filter(|i| i.first <= at && at <= i.last);
        let mut transient: Vec<(String, Bytes)> =
            alive.map(|i| (i.buffer.map_or("scratch".to_string(), |b| program.buffers[b.0 as usize].name.clone()), i.bytes)).collect();
        transient.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        live.extend(transient.into_iter().take(6));
        Error::Infeasible { budget, least: rung.arena_bytes, event, live }
    }
}
