//! A series of plans from the least memory to the least time.
//!
//! The rungs depend on the program alone, never on the budget asked for, and only plans that no other beats in both bytes and
//! seconds stay. A budget takes the fastest plan that fits. Hence a larger budget never takes longer, and a smaller one never
//! needs more.

use super::late::{Ways, ways};
use super::lp::{self, Timeline};
use super::search::{Candidate, Scorer};
use crate::Error;
use crate::graph::Epoch;
use crate::plan::assemble::{persistent_bytes, spans};
use crate::plan::offsets::{Packing, pack};
use crate::plan::schedule::{Decisions, Facts, Schedule, build};
use crate::units::Program;
use rayon::prelude::*;

/// Budgets tried between the least and the largest peak.
const RUNGS: u64 = 12;

/// Rounds of local search that each packing gets.
const PACKING_ROUNDS: usize = 200;

/// A plan that no other of its program beats.
#[derive(Clone, Debug)]
pub struct Rung {
    pub candidate: Candidate,
    pub schedule: Schedule,
    pub packing: Packing,
    /// Persistent bytes and the packed height together.
    pub arena_bytes: u64,
}

/// The rungs of a program, fewest bytes first, with what bounds them.
pub struct Ladder {
    pub rungs: Vec<Rung>,
    pub ways: Ways,
    timeline: Timeline,
    persistent: u64,
    /// Seconds of the schedule that recomputes nothing.
    base_seconds: f64,
}

/// Builds the ladder.
pub fn ladder(program: &Program, facts: &Facts, unit_seconds: &[f64]) -> Ladder {
    let ways = ways(program, facts);
    let scorer = Scorer { program, facts, ways: &ways, unit_seconds };
    let (all, kept) = scorer.score(scorer.uniform(true));
    let timeline = lp::timeline(program, facts, &ways, &kept);
    let least = least(&scorer, &timeline, &all);
    let (low, high) = (least.peak, all.peak.max(least.peak));
    let step = |i: u64| low + ((high - low) as u128 * i as u128 / RUNGS as u128) as u64;
    let between = (1..RUNGS).into_par_iter().filter_map(|i| {
        let relaxed = lp::solve(program, &ways, &timeline, unit_seconds, step(i))?;
        scorer.round(&relaxed, step(i))
    });
    let mut candidates: Vec<Candidate> = between.collect();
    candidates.extend([least, all.clone()]);
    let persistent = persistent_bytes(program);
    let mut rungs: Vec<Rung> = candidates.into_par_iter().map(|c| packed(program, facts, c, persistent)).collect();
    pareto(&mut rungs);
    Ladder { rungs, timeline, persistent, base_seconds: all.seconds, ways }
}

/// The smallest peak that the search finds: from nothing kept, from everything kept, and from the tightest relaxation.
fn least(scorer: &Scorer, timeline: &Timeline, all: &Candidate) -> Candidate {
    let mut starts = vec![scorer.uniform(false), scorer.uniform(true)];
    let (mut low, mut high) = (0u64, all.peak);
    while high - low > all.peak / 256 + 1 {
        let middle = low + (high - low) / 2;
        match lp::solve(scorer.program, scorer.ways, timeline, scorer.unit_seconds, middle) {
            Some(relaxed) => {
                let mut d = scorer.uniform(false);
                relaxed.keep.iter().for_each(|(b, share)| d.keep[b.0 as usize] = *share > 0.5);
                starts.push(d);
                high = middle;
            }
            None => low = middle,
        }
    }
    let found = starts.into_par_iter().map(|s| scorer.shrink(s, 0).0);
    let all_found: Vec<Candidate> = found.collect();
    let best = all_found.into_iter().min_by(|a, b| a.peak.cmp(&b.peak).then(a.seconds.total_cmp(&b.seconds)));
    best.unwrap_or_else(|| all.clone())
}

fn packed(program: &Program, facts: &Facts, candidate: Candidate, persistent: u64) -> Rung {
    let schedule = build(program, facts, &candidate.decisions);
    let packing = pack(&spans(&schedule), 0, PACKING_ROUNDS);
    Rung { candidate, schedule, arena_bytes: persistent + packing.height, packing }
}

/// Sorts by bytes and drops every rung that another beats or equals in both bytes and seconds.
fn pareto(rungs: &mut Vec<Rung>) {
    rungs.sort_by(|a, b| a.arena_bytes.cmp(&b.arena_bytes).then(a.candidate.seconds.total_cmp(&b.candidate.seconds)));
    let mut fastest = f64::INFINITY;
    rungs.retain(|r| {
        let better = r.candidate.seconds < fastest;
        fastest = fastest.min(r.candidate.seconds);
        better
    });
}

impl Ladder {
    /// The fastest rung that fits a budget.
    ///
    /// # Errors
    /// [`Error::Infeasible`] with the least budget, the event that binds it and what is alive there.
    pub fn choose(&self, program: &Program, budget: u64) -> Result<&Rung, Error> {
        match self.rungs.iter().rev().find(|r| r.arena_bytes <= budget) {
            Some(rung) => Ok(rung),
            None => Err(self.infeasible(program, budget)),
        }
    }

    /// Bytes of the smallest arena.
    pub fn least_bytes(&self) -> u64 {
        self.rungs.first().map_or(self.persistent, |r| r.arena_bytes)
    }

    /// No plan within `budget` takes fewer seconds a step than this, in this order of launches and by these costs.
    pub fn lower_bound(&self, program: &Program, unit_seconds: &[f64], budget: u64) -> f64 {
        let transient = budget.saturating_sub(self.persistent);
        let relaxed = lp::solve(program, &self.ways, &self.timeline, unit_seconds, transient);
        self.base_seconds + relaxed.map_or(0.0, |r| r.seconds)
    }

    /// The schedule that recomputes nothing.
    pub fn everything_kept(&self, program: &Program, facts: &Facts) -> Schedule {
        let mut decisions = Decisions { keep: vec![false; program.buffers.len()] };
        self.ways.recompute.iter().for_each(|(b, _)| decisions.keep[b.0 as usize] = true);
        build(program, facts, &decisions)
    }

    fn infeasible(&self, program: &Program, budget: u64) -> Error {
        let Some(rung) = self.rungs.first() else {
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
        let mut transient: Vec<(String, u64)> =
            alive.map(|i| (i.buffer.map_or("scratch".to_string(), |b| program.buffers[b.0 as usize].name.clone()), i.bytes)).collect();
        transient.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        live.extend(transient.into_iter().take(6));
        Error::Infeasible { budget, least: rung.arena_bytes, event, live }
    }
}
