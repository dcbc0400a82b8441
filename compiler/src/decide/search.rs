//! Exact scoring of decisions, and the moves between them.
//!
//! Every set of decisions that a search meets is a valid plan with a peak and a time of its own; all are collected, since each may
//! be the best for some budget.

use super::late::{Recompute, Ways};
use super::lp::Relaxed;
use crate::graph::Epoch;
use crate::plan::schedule::{Decisions, Facts, Schedule, build};
use crate::quantity::{Bytes, Seconds};
use crate::units::{BufferId, Program};

/// Flips scored exactly before the best of them is taken.
const TRIED: usize = 10;

/// Values in a row that may fail to fit before the rest is taken to fail too.
const FAILURES: usize = 32;

/// A set of decisions with what its schedule needs and takes.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub decisions: Decisions,
    /// Transient bytes at the worst event.
    pub peak: Bytes,
    /// Predicted time of a step.
    pub seconds: Seconds,
}

/// A program and what its launches cost.
#[derive(Clone, Copy)]
pub struct Costed<'a> {
    pub program: &'a Program,
    pub facts: &'a Facts,
    /// Predicted time of each unit.
    pub unit_seconds: &'a [Seconds],
}

/// Scores decisions exactly.
pub struct Scorer<'a> {
    costed: Costed<'a>,
    ways: &'a Ways,
    /// For each candidate of [`Ways::recompute`]: the time of its own launches, what keeping it saves at most.
    worth: Vec<Seconds>,
    /// Candidates by seconds saved per byte, best first.
    by_density: Vec<BufferId>,
}

impl<'a> Scorer<'a> {
    pub fn new(costed: Costed<'a>, ways: &'a Ways) -> Self {
        let seconds = |w: &Recompute| w.units.iter().map(|&u| costed.unit_seconds[u as usize]).sum();
        let worth: Vec<Seconds> = ways.recompute.iter().map(|(_, w)| seconds(w)).collect();
        let bytes = |b: &BufferId| costed.program.buffers[b.0 as usize].bytes();
        let mut dense: Vec<(f64, BufferId)> = ways.recompute.iter().zip(&worth).map(|((b, _), w)| (w.per_byte(bytes(b)), *b)).collect();
        dense.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let by_density = dense.into_iter().map(|(_, b)| b).collect();
        Scorer { costed, ways, worth, by_density }
    }

    /// Builds the schedule and reads off its peak and time.
    pub fn score(&self, decisions: Decisions) -> (Candidate, Schedule) {
        let schedule = build(self.costed.facts, &decisions);
        let (peak, seconds) = (schedule.peak().0, schedule.seconds(self.costed.unit_seconds).0);
        (Candidate { decisions, peak, seconds }, schedule)
    }

    /// Nothing kept, or everything that can be.
    pub fn uniform(&self, keep: bool) -> Decisions {
        self.ways.uniform(self.costed.program, keep)
    }

    /// What a relaxation keeps for the most part.
    pub fn rounded(&self, relaxed: &Relaxed) -> Decisions {
        let mut decisions = self.uniform(false);
        relaxed.keep.iter().for_each(|(b, share)| decisions.keep[b.0 as usize] = *share > 0.5);
        decisions
    }

    fn flipped(&self, decisions: &Decisions, flips: &[BufferId]) -> (Candidate, Schedule) {
        let mut d = decisions.clone();
        flips.iter().for_each(|b| d.keep[b.0 as usize] ^= true);
        self.score(d)
    }

    /// Flips values that are alive at the worst event until the peak fits the budget or no flip lowers the bytes above it, summed
    /// over the events. Adds every step to `met`; the last is the result.
    pub fn shrink(&self, start: Decisions, budget: Bytes, met: &mut Vec<Candidate>) -> Candidate {
        let (mut best, mut schedule) = self.score(start);
        met.push(best.clone());
        while best.peak > budget {
            let over = schedule.over(budget);
            // The bytes above the budget that a second buys decide.
            let rate = |(c, s): &(Candidate, Schedule)| {
                let less = over.saturating_sub(s.over(budget));
                (less > 0).then(|| less as f64 / (c.seconds - best.seconds).0.max(1e-9))
            };
            let flips = self.flips(&schedule);
            let better = flips.chunks(TRIED).find_map(|some| {
                let tried = some.iter().map(|&b| (b, self.flipped(&best.decisions, &[b])));
                let mut less: Vec<_> = tried.filter_map(|(b, s)| Some((rate(&s)?, b, s))).collect();
                less.sort_by(|a, b| b.0.total_cmp(&a.0));
                (!less.is_empty()).then_some(less)
            });
            let Some(better) = better else { break };
            let together: Vec<BufferId> = better.iter().map(|(_, b, _)| *b).take(self.stride()).collect();
            let Some((first_rate, _, first)) = better.into_iter().next() else { break };
            let several = (together.len() > 1).then(|| self.flipped(&best.decisions, &together));
            (best, schedule) = several.filter(|s| rate(s).is_some_and(|r| r >= 0.9 * first_rate)).unwrap_or(first);
            met.push(best.clone());
        }
        best
    }

    /// Values that may change in one step: steps of about one percent of all.
    fn stride(&self) -> usize {
        1 + self.worth.len() / 100
    }

    /// Candidates alive at the worst event, those first whose bytes are cheap to make again.
    fn flips(&self, schedule: &Schedule) -> Vec<BufferId> {
        let at = schedule.peak().1;
        let alive = schedule.instances.iter().filter(|i| i.first <= at && at <= i.last);
        let mut found: Vec<(f64, BufferId)> = alive
            .filter_map(|i| {
                let b = i.buffer?;
                let known = self.ways.recompute.binary_search_by_key(&b, |(x, _)| *x).ok()?;
                Some((self.worth[known].per_byte(i.bytes), b))
            })
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        found.dedup_by_key(|f| f.1);
        found.into_iter().map(|(_, b)| b).collect()
    }

    /// Keeps more, best seconds per byte first, as long as it fits and saves time. Adds every step to `met`; the last is the result.
    pub fn fill(&self, from: Candidate, budget: Bytes, met: &mut Vec<Candidate>) -> Candidate {
        let mut best = from;
        let mut room = self.room(&build(self.costed.facts, &best.decisions), budget);
        let (mut at, mut stride, mut failures) = (0, 1, 0);
        while at < self.by_density.len() && failures < FAILURES {
            let some = &self.by_density[at..(at + stride).min(self.by_density.len())];
            let more: Vec<BufferId> = some.iter().copied().filter(|&b| !best.decisions.keep[b.0 as usize] && self.fits(&room, b)).collect();
            let next = (!more.is_empty()).then(|| self.flipped(&best.decisions, &more));
            match next {
                Some((next, schedule)) if next.peak <= budget && (next.seconds, next.peak) < (best.seconds, best.peak) => {
                    best = next;
                    met.push(best.clone());
                    room = self.room(&schedule, budget);
                    (at, stride, failures) = (at + stride, (2 * stride).min(self.stride()), 0);
                }
                Some(_) if more.len() > 1 => stride = 1,
                Some(_) => (at, failures) = (at + stride, failures + 1),
                None => at += stride,
            }
        }
        best
    }

    /// For each buffer that the backward pass makes again: bytes that were free from the beginning of that pass until then.
    fn room(&self, schedule: &Schedule, budget: Bytes) -> Vec<Bytes> {
        let live = schedule.live();
        let late = |unit: u32| self.costed.program.units[unit as usize].epoch != Epoch::Forward;
        let start = schedule.events.iter().position(|e| e.recompute || late(e.unit)).unwrap_or(live.len());
        let mut most = vec![Bytes(0); live.len()];
        for t in start..live.len() {
            most[t] = live[t].max(if t > start { most[t - 1] } else { Bytes(0) });
        }
        let mut room = vec![Bytes::MAX; self.costed.program.buffers.len()];
        for i in schedule.instances.iter().filter(|i| i.recomputed) {
            let Some(b) = i.buffer.filter(|_| i.first as usize > start) else { continue };
            room[b.0 as usize] = budget - most[i.first as usize - 1];
        }
        room
    }

    /// False for what would exceed the room while it waits. What it makes superfluous is not counted, so a rare fit is missed.
    fn fits(&self, room: &[Bytes], b: BufferId) -> bool {
        self.costed.program.buffers[b.0 as usize].bytes() <= room[b.0 as usize]
    }
}
