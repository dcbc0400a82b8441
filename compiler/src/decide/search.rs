//! Rounding a relaxation against the exact schedule.

use super::late::Ways;
use super::lp::Relaxed;
use crate::plan::schedule::{Decisions, Facts, Schedule, build};
use crate::units::{BufferId, Program};

/// A set of decisions with what its schedule needs and takes.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub decisions: Decisions,
    /// Transient bytes at the worst event.
    pub peak: u64,
    pub seconds: f64,
}

/// Scores decisions exactly.
pub struct Scorer<'a> {
    pub program: &'a Program,
    pub facts: &'a Facts,
    pub ways: &'a Ways,
    pub unit_seconds: &'a [f64],
}

impl Scorer<'_> {
    /// Builds the schedule and reads off its peak and time.
    pub fn score(&self, decisions: Decisions) -> (Candidate, Schedule) {
        let schedule = build(self.program, self.facts, &decisions);
        let (peak, seconds) = (schedule.peak().0, schedule.seconds(self.unit_seconds).0);
        (Candidate { decisions, peak, seconds }, schedule)
    }

    /// Nothing kept, or everything that can be.
    pub fn uniform(&self, keep: bool) -> Decisions {
        let mut decisions = Decisions { keep: vec![false; self.program.buffers.len()] };
        self.ways.recompute.iter().for_each(|(b, _)| decisions.keep[b.0 as usize] = keep);
        decisions
    }

    /// Seconds that keeping a value saves at most: its own launches.
    fn worth(&self, b: BufferId) -> f64 {
        let way = self.ways.recompute.iter().find(|(x, _)| *x == b);
        way.map_or(0.0, |(_, w)| w.units.iter().map(|&u| self.unit_seconds[u as usize]).sum())
    }

    /// Candidates by seconds saved per byte, best first.
    fn by_density(&self) -> Vec<BufferId> {
        let mut all: Vec<(f64, BufferId)> = self
            .ways
            .recompute
            .iter()
            .map(|(b, _)| (self.worth(*b) / self.program.buffers[b.0 as usize].ty.bytes().max(1) as f64, *b))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.into_iter().map(|(_, b)| b).collect()
    }

    /// Decisions near a relaxed solution that fit a budget, improved by single flips; `None` when no flip leads under the budget.
    pub fn round(&self, relaxed: &Relaxed, budget: u64) -> Option<Candidate> {
        let mut start = self.uniform(false);
        relaxed.keep.iter().for_each(|(b, share)| start.keep[b.0 as usize] = *share > 0.5);
        let (fitting, _) = self.shrink(start, budget);
        (fitting.peak <= budget).then(|| self.fill(fitting, budget))
    }

    /// Flips one value at a time, each alive at the worst event, while the peak falls, until it fits.
    pub fn shrink(&self, start: Decisions, budget: u64) -> (Candidate, Schedule) {
        let (mut best, mut schedule) = self.score(start);
        while best.peak > budget {
            let at = schedule.peak().1;
            let alive = schedule.instances.iter().filter(|i| i.first <= at && at <= i.last);
            let mut flips: Vec<BufferId> = alive.filter_map(|i| i.buffer).filter(|b| self.is_candidate(*b)).collect();
            flips.sort();
            flips.dedup();
            let tried = flips.into_iter().map(|b| {
                let mut d = best.decisions.clone();
                d.keep[b.0 as usize] ^= true;
                self.score(d)
            });
            // The fall in bytes for each second it costs decides among those that fall.
            let rate = |c: &Candidate| (best.peak - c.peak) as f64 / (c.seconds - best.seconds).max(1e-9);
            let falls = tried.filter(|(c, _)| c.peak < best.peak).max_by(|(a, _), (b, _)| rate(a).total_cmp(&rate(b)));
            match falls {
                Some(next) => (best, schedule) = next,
                None => break,
            }
        }
        (best, schedule)
    }

    /// Keeps more, best seconds per byte first, as long as it fits and saves time.
    fn fill(&self, from: Candidate, budget: u64) -> Candidate {
        let mut best = from;
        for b in self.by_density() {
            if best.decisions.keep[b.0 as usize] {
                continue;
            }
            let mut d = best.decisions.clone();
            d.keep[b.0 as usize] = true;
            let (next, _) = self.score(d);
            if next.peak <= budget && (next.seconds < best.seconds || (next.seconds == best.seconds && next.peak < best.peak)) {
                best = next;
            }
        }
        best
    }

    fn is_candidate(&self, b: BufferId) -> bool {
        self.ways.recompute.binary_search_by_key(&b, |(x, _)| *x).is_ok()
    }
}
