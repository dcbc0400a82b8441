//! The choice among ways as a linear program.
//!
//! Variables: `k` in [0, 1] for each value that may be late (how much of it is kept) and `r` in [0, 1] for each launch that may run
//! again. Rows: a value read by the backward pass is kept or made again, `k + r >= 1`; a launch that runs again finds its inputs,
//! `k_p + r_p >= r`; at every event of the backward pass, what is kept and still read, what was made again and is still read and what
//! lives anyway fits the budget; and at the end of the forward pass, what is kept fits. The objective is the time of the launches.
//!
//! What waits for its first read only shrinks as the backward pass goes on. So the waiting bytes between two first reads are one
//! variable, `h_i = h_(i+1) + (kept bytes whose first read is the i-th)`, and all memory rows of that stretch are its upper bound.
//!
//! Every row counts at most what an exact schedule needs, so the optimum bounds the recomputation of every plan of the same order.

use super::late::Ways;
use super::search::Costed;
use crate::Error;
use crate::graph::Epoch;
use crate::plan::schedule::{Schedule, Slot, aligned};
use crate::quantity::{Bytes, Seconds};
use crate::units::BufferId;
use good_lp::{Expression, ProblemVariables, ResolutionError, Solution, SolverModel, Variable, constraint, default_solver, variable};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A solution of the relaxation.
#[derive(Clone, Debug)]
pub struct Relaxed {
    /// Kept share of each buffer that may be late.
    pub keep: HashMap<BufferId, f64>,
    /// Time of recomputation: no plan needs less.
    pub seconds: Seconds,
}

/// What the program needs whatever is decided, read off the schedule that keeps everything. Events count from the end of the
/// forward pass on.
pub struct Timeline {
    /// For each event: bytes alive whatever is decided, those of candidates between their first and last reads included.
    always: Vec<Bytes>,
    /// For each candidate that the backward pass reads directly: the event of its first read.
    first_read: HashMap<BufferId, usize>,
}

/// Reads the timeline off the schedule in which every candidate is kept.
pub fn timeline(costed: &Costed, ways: &Ways, kept: &Schedule) -> Timeline {
    let late = |unit: u32| costed.program.units[unit as usize].epoch != Epoch::Forward;
    let start = kept.events.iter().position(|e| late(e.unit)).unwrap_or(kept.events.len());
    let candidates: HashSet<BufferId> = ways.recompute.iter().map(|(b, _)| *b).collect();
    let mut reads: HashMap<BufferId, (usize, usize)> = HashMap::new();
    for (t, e) in kept.events.iter().enumerate().skip(start) {
        for (touch, slot) in costed.facts.touches(e.unit).iter().zip(kept.args(e)) {
            if touch.reads && matches!(slot, Slot::Instance(_)) && candidates.contains(&touch.buffer) {
                reads.entry(touch.buffer).or_insert((t - start, t - start)).1 = t - start;
            }
        }
    }
    let mut change = vec![(Bytes(0), Bytes(0)); kept.events.len() - start + 2];
    let mut span = |first: usize, last: usize, bytes: Bytes| {
        change[first].0 += bytes;
        change[last + 1].1 += bytes;
    };
    for i in kept.instances.iter().filter(|i| !i.buffer.is_some_and(|b| candidates.contains(&b)) && i.last as usize >= start) {
        span((i.first as usize).max(start) - start, i.last as usize - start, i.bytes);
    }
    reads.iter().for_each(|(b, &(first, last))| span(first, last, candidate_bytes(costed, *b)));
    let mut live = Bytes(0);
    let turn = |&(born, died): &(Bytes, Bytes)| {
        live = live + born - died;
        live
    };
    let always = change[..change.len() - 2].iter().map(turn).collect();
    Timeline { always, first_read: reads.into_iter().map(|(b, (first, _))| (b, first)).collect() }
}

fn candidate_bytes(costed: &Costed, b: BufferId) -> Bytes {
    aligned(costed.program.buffers[b.0 as usize].bytes())
}

fn mebibytes(bytes: Bytes) -> f64 {
    bytes.0 as f64 / (1 << 20) as f64
}

/// Solves the relaxation for a budget of transient bytes; `None` when even fractions do not fit.
///
/// # Errors
/// [`Error::Solver`] when the solver gives no answer, which says nothing about the budget.
pub fn solve(costed: &Costed, ways: &Ways, timeline: &Timeline, budget: Bytes) -> Result<Option<Relaxed>, Error> {
    if ways.recompute.is_empty() {
        // Nothing to decide, and solvers take a program without variables for a mistake.
        let fits = timeline.always.iter().all(|&bytes| bytes <= budget);
        return Ok(fits.then(|| Relaxed { keep: HashMap::new(), seconds: Seconds(0.0) }));
    }
    let mut vars = ProblemVariables::new();
    let keep: HashMap<BufferId, Variable> = ways.recompute.iter().map(|(b, _)| (*b, vars.add(variable().min(0).max(1)))).collect();
    let mut units: Vec<u32> = ways.recompute.iter().flat_map(|(_, w)| w.units.iter().copied()).collect();
    units.sort_unstable();
    units.dedup();
    let again: HashMap<u32, Variable> = units.iter().map(|&u| (u, vars.add(variable().min(0).max(1)))).collect();
    let Some(mut rows) = memory_rows(costed, ways, timeline, &mut vars, &keep, budget) else { return Ok(None) };
    let way_of: HashMap<BufferId, &super::late::Recompute> = ways.recompute.iter().map(|(b, w)| (*b, w)).collect();
    for root in &ways.roots {
        rows.extend(way_of.get(root).into_iter().flat_map(|w| &w.units).map(|u| constraint!(keep[root] + again[u] >= 1)));
    }
    for (_, way) in &ways.recompute {
        for (u, need) in way.units.iter().flat_map(|u| way.needs.iter().map(move |n| (u, n))) {
            let makers = way_of.get(need).map(|w| w.units.as_slice()).unwrap_or(&[]);
            rows.extend(makers.iter().map(|maker| constraint!(keep[need] + again[maker] >= again[u])));
        }
    }
    // Milliseconds and mebibytes: coefficients near one keep the solver's tolerances meaningful.
    let objective: Expression = units.iter().map(|u| 1e3 * costed.unit_seconds[*u as usize].0 * again[u]).sum();
    let mut model = vars.minimise(objective.clone()).using(default_solver).set_threads(1);
    model.set_verbose(false);
    let solution = match rows.into_iter().fold(model, |m, row| m.with(row)).solve() {
        Ok(solution) => solution,
        Err(ResolutionError::Infeasible) => return Ok(None),
        Err(other) => return Err(Error::Solver(other.to_string())),
    };
    let share = keep.iter().map(|(b, v)| (*b, solution.value(*v))).collect();
    Ok(Some(Relaxed { keep: share, seconds: Seconds((solution.eval(&objective) / 1e3).max(0.0)) }))
}

/// The waiting bytes of each stretch between two first reads, bounded by the least room of its events.
fn memory_rows(
    costed: &Costed,
    ways: &Ways,
    timeline: &Timeline,
    vars: &mut ProblemVariables,
    keep: &HashMap<BufferId, Variable>,
    budget: Bytes,
) -> Option<Vec<good_lp::Constraint>> {
    let bytes = |b: BufferId| mebibytes(candidate_bytes(costed, b));
    let mut read_at: BTreeMap<usize, Vec<BufferId>> = BTreeMap::new();
    ways.recompute
        .iter()
        .filter_map(|(b, _)| timeline.first_read.get(b).map(|&t| (t, *b)))
        .for_each(|(t, b)| read_at.entry(t).or_default().push(b));
    let room = |events: &[Bytes]| events.iter().max().map_or(Some(f64::INFINITY), |&most| budget.checked_sub(most).map(mebibytes));
    let mut rows = vec![];
    let mut end = timeline.always.len();
    let mut waiting = Expression::from(0.0);
    for (&first, read) in read_at.iter().rev() {
        room(&timeline.always[first..end])?;
        // Events before `first`, down to the read before it, have these bytes waiting.
        let start = read_at.range(..first).next_back().map_or(0, |(&t, _)| t);
        let h = vars.add(variable().min(0).max(room(&timeline.always[start..first])?));
        rows.push(constraint!(h == waiting + read.iter().map(|&b| bytes(b) * keep[&b]).sum::<Expression>()));
        waiting = h.into();
        end = first;
    }
    // What only recomputation reads is there at least when the backward pass begins.
    let hidden = ways.recompute.iter().filter(|(b, _)| !timeline.first_read.contains_key(b));
    if let Some(&at_start) = timeline.always.first() {
        let hidden: Expression = hidden.map(|(b, _)| bytes(*b) * keep[b]).sum();
        let room = mebibytes(budget.checked_sub(at_start)?);
        rows.push(constraint!(waiting + hidden <= room));
    }
    Some(rows)
}
