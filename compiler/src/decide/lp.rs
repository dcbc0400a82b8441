//! The choice among ways as a linear program.
//!
//! Variables: `k` in [0, 1] for each value that may be late (how much of it is kept) and `r` in [0, 1] for each launch that may run
//! again. Rows: a value read by the backward pass is kept or made again, `k + r >= 1`; a launch that runs again finds its inputs,
//! `k_p + r_p >= r`; at every event of the backward pass, what is kept and still read, what was made again and is still read and what
//! lives anyway fits the budget; and at the end of the forward pass, what is kept fits. The objective is the time of the launches.
//!
//! Every row counts at most what an exact schedule needs, so the optimum bounds the recomputation of every plan of the same order.

use super::late::Ways;
use crate::graph::Epoch;
use crate::plan::schedule::{Facts, Schedule, Slot, aligned};
use crate::units::{BufferId, Program};
use good_lp::{Expression, ProblemVariables, Solution, SolverModel, Variable, constraint, default_solver, variable};
use std::collections::HashMap;

/// A solution of the relaxation.
#[derive(Clone, Debug)]
pub struct Relaxed {
    /// Kept share of each buffer that may be late.
    pub keep: HashMap<BufferId, f64>,
    /// Seconds of recomputation: no plan needs less.
    pub seconds: f64,
}

/// What the program needs whatever is decided, read off the schedule that keeps everything.
pub struct Timeline {
    /// For each event from the end of the forward pass on: bytes alive that are no candidate.
    fixed: Vec<u64>,
    first_backward: usize,
    /// For each candidate: events of its first and last direct reads in the backward pass, counted from there.
    reads: HashMap<BufferId, (usize, usize)>,
}

/// Reads the timeline off the schedule in which every candidate is kept.
pub fn timeline(program: &Program, facts: &Facts, ways: &Ways, kept: &Schedule) -> Timeline {
    let start = kept.events.iter().position(|e| program.units[e.unit as usize].epoch != Epoch::Forward).unwrap_or(kept.events.len());
    let candidates: HashMap<BufferId, ()> = ways.recompute.iter().map(|(b, _)| (*b, ())).collect();
    let mut fixed = vec![0u64; kept.events.len() - start + 1];
    for i in kept.instances.iter().filter(|i| !i.buffer.is_some_and(|b| candidates.contains_key(&b))) {
        let (first, last) = ((i.first as usize).max(start), i.last as usize);
        (first..=last).filter(|_| last >= start).for_each(|t| fixed[t - start] += i.bytes);
    }
    let mut reads = HashMap::new();
    for (t, e) in kept.events.iter().enumerate().skip(start) {
        for (touch, slot) in facts.touches[e.unit as usize].iter().zip(&e.args) {
            if touch.reads && matches!(slot, Slot::Instance(_)) && candidates.contains_key(&touch.buffer) {
                let span = reads.entry(touch.buffer).or_insert((t - start, t - start));
                span.1 = t - start;
            }
        }
    }
    Timeline { fixed, first_backward: start, reads }
}

/// Solves the relaxation for a budget of transient bytes; `None` when even fractions do not fit.
pub fn solve(program: &Program, ways: &Ways, timeline: &Timeline, unit_seconds: &[f64], budget: u64) -> Option<Relaxed> {
    let mut vars = ProblemVariables::new();
    let keep: HashMap<BufferId, Variable> = ways.recompute.iter().map(|(b, _)| (*b, vars.add(variable().min(0).max(1)))).collect();
    let mut units: Vec<u32> = ways.recompute.iter().flat_map(|(_, w)| w.units.iter().copied()).collect();
    units.sort_unstable();
    units.dedup();
    let again: HashMap<u32, Variable> = units.iter().map(|&u| (u, vars.add(variable().min(0).max(1)))).collect();
    // Milliseconds and mebibytes: coefficients near one keep the solver's tolerances meaningful.
    let objective: Expression = units.iter().map(|u| 1e3 * unit_seconds[*u as usize] * again[u]).sum();
    let mut model = vars.minimise(objective.clone()).using(default_solver);
    model.set_verbose(false);
    let way_of: HashMap<BufferId, &super::late::Recompute> = ways.recompute.iter().map(|(b, w)| (*b, w)).collect();
    for root in &ways.roots {
        for u in way_of.get(root).into_iter().flat_map(|w| &w.units) {
            model = model.with(constraint!(keep[root] + again[u] >= 1));
        }
    }
    for (_, way) in &ways.recompute {
        for (u, need) in way.units.iter().flat_map(|u| way.needs.iter().map(move |n| (u, n))) {
            let makers = way_of.get(need).map(|w| w.units.as_slice()).unwrap_or(&[]);
            for maker in makers {
                model = model.with(constraint!(keep[need] + again[maker] >= again[u]));
            }
        }
    }
    for row in memory_rows(program, ways, timeline, &keep, budget)? {
        model = model.with(row);
    }
    let solution = model.solve().ok()?;
    let share = keep.iter().map(|(b, v)| (*b, solution.value(*v))).collect();
    Some(Relaxed { keep: share, seconds: (solution.eval(&objective) / 1e3).max(0.0) })
}

const MIB: f64 = (1 << 20) as f64;

/// One row for the end of the forward pass and one for each backward event at which the set of late values changes.
fn memory_rows(
    program: &Program,
    ways: &Ways,
    timeline: &Timeline,
    keep: &HashMap<BufferId, Variable>,
    budget: u64,
) -> Option<Vec<good_lp::Constraint>> {
    let bytes = |b: &BufferId| aligned(program.buffers[b.0 as usize].ty.bytes()) as f64 / MIB;
    let mut rows = vec![];
    let mut alive: Vec<(usize, usize, &BufferId)> =
        ways.recompute.iter().filter_map(|(b, _)| timeline.reads.get(b).map(|(first, last)| (*first, *last, b))).collect();
    alive.sort();
    let turns: std::collections::BTreeSet<usize> = alive.iter().flat_map(|(first, last, _)| [*first, *last]).collect();
    for t in 0..timeline.fixed.len().saturating_sub(1) {
        let here = timeline.fixed[t];
        // Between two turns only the largest fixed part matters; rows elsewhere are implied.
        let peak_of_stretch = t == 0 || turns.contains(&t) || timeline.fixed[t - 1] < here;
        if !peak_of_stretch {
            continue;
        }
        let room = budget.checked_sub(here)? as f64 / MIB;
        let mut used = Expression::from(0.0);
        for (first, last, b) in alive.iter().filter(|(_, last, _)| *last >= t) {
            // Before its first read a kept value counts as far as it is kept; from then to its last read it is there in any case.
            if t < *first {
                used += bytes(b) * keep[b];
            } else if t <= *last {
                used += bytes(b);
            }
        }
        if t == 0 {
            // What only recomputation reads is there at least when the backward pass begins.
            let hidden = ways.recompute.iter().filter(|(b, _)| !timeline.reads.contains_key(b));
            hidden.for_each(|(b, _)| used += bytes(b) * keep[b]);
        }
        rows.push(constraint!(used <= room));
    }
    Some(rows)
}

impl Timeline {
    /// Events of the forward pass.
    pub fn forward_events(&self) -> usize {
        self.first_backward
    }
}
