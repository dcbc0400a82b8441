//! The master program: a form for each section, under memory at every event.
//!
//! A plan is a path along the chain: each step takes one section, or a few that run as one, in one form. With `k` the bytes that the steps
//! before keep, a step fits where `k` and its own worst event are within the budget, and adds what it keeps to `k`. The cheapest path
//! is what we want.
//!
//! Its linear relaxation is solved by column generation. The dual prices (seconds a byte of room in each section) turn every form into a
//! length, the shortest path under these lengths bounds every plan from below, and its forms join the program until the bound no longer
//! rises. With the prices known, a plan's distance from the bound can be told from its beginning: so the best path is found exactly, by
//! following all beginnings that are not too far from the bound.

mod follow;
mod relaxation;
#[cfg(test)]
mod tests;

use super::forms::Form;
use crate::Error;
use crate::quantity::{Bytes, Seconds};
use std::sync::Arc;

/// The first distance from the bound that a path may have, as a share of a step, by how much it grows when that is too little, and where it ends.
const NEAR: f64 = 2e-5;
const WIDER: f64 = 6.0;
const WIDEST: f64 = 64.0;

/// Sections from `start` on that may run in one of some forms.
#[derive(Clone, Debug)]
pub struct Steps {
    pub start: usize,
    pub sections: usize,
    pub forms: Arc<Vec<Form>>,
    /// The least that is alive around them, forward and backward.
    pub around: (Bytes, Bytes),
}

impl Steps {
    fn end(&self) -> usize {
        self.start + self.sections
    }

    fn worst(&self, form: &Form) -> Bytes {
        (form.forward + self.around.0).max(form.backward + self.around.1)
    }
}

/// A form of some steps: which of [`Master::steps`], and which of its forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Choice {
    pub steps: u32,
    pub form: u32,
}

/// A path and what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    pub choices: Vec<Choice>,
    /// Transient bytes at the worst event.
    pub peak: Bytes,
    /// Time of recomputation.
    pub again: Seconds,
    /// No path within the budget takes less.
    pub bound: Seconds,
}

/// The steps that a program's plans are made of.
pub struct Master {
    pub steps: Vec<Steps>,
    /// Of the chain.
    pub sections: usize,
    /// What is needed whatever is chosen.
    pub floor: Bytes,
    /// Time of a step without recomputation.
    pub base: Seconds,
    /// For each section, the steps that begin there.
    from: Vec<Vec<u32>>,
}

impl Master {
    pub fn new(steps: Vec<Steps>, sections: usize, floor: Bytes, base: Seconds) -> Self {
        let mut from = vec![vec![]; sections + 1];
        steps.iter().enumerate().for_each(|(i, s)| from[s.start].push(i as u32));
        Master { steps, sections, floor, base, from }
    }

    pub fn form(&self, c: Choice) -> &Form {
        &self.steps[c.steps as usize].forms[c.form as usize]
    }

    fn choices_from(&self, section: usize) -> impl Iterator<Item = Choice> + '_ {
        let of = |&steps: &u32| (0..self.steps[steps as usize].forms.len() as u32).map(move |form| Choice { steps, form });
        self.from[section].iter().flat_map(of)
    }

    /// Transient bytes at the worst event of a path.
    fn peak(&self, choices: &[Choice]) -> Bytes {
        let (mut kept, mut peak) = (Bytes(0), self.floor);
        for &c in choices {
            peak = peak.max(kept + self.steps[c.steps as usize].worst(self.form(c)));
            kept += self.form(c).kept;
        }
        peak
    }

    /// The path that keeps the least at every section; `None` where none fits the budget.
    fn leanest(&self, budget: Bytes) -> Option<Vec<Choice>> {
        let mut best: Vec<Option<(Bytes, usize, Choice)>> = vec![None; self.sections + 1];
        if self.floor > budget {
            return None;
        }
        for s in 0..self.sections {
            let kept = match best[s] {
                Some((kept, ..)) => kept,
                None if s == 0 => Bytes(0),
                None => continue,
            };
            for c in self.choices_from(s) {
                let steps = &self.steps[c.steps as usize];
                let next = kept + self.form(c).kept;
                let better = best[steps.end()].is_none_or(|(k, ..)| next < k);
                if kept + steps.worst(self.form(c)) <= budget && better {
                    best[steps.end()] = Some((next, s, c));
                }
            }
        }
        let (mut at, mut path) = (self.sections, vec![]);
        while at > 0 {
            let (_, from, c) = best[at]?;
            path.push(c);
            at = from;
        }
        path.reverse();
        Some(path)
    }

    /// The least budget that a path fits.
    pub fn least(&self) -> Bytes {
        let fits = |b: Bytes| self.leanest(b).map(|path| self.peak(&path));
        let Some(mut high) = fits(Bytes::MAX) else { return Bytes::MAX };
        let mut low = self.floor;
        while low < high {
            let middle = low + (high - low) / 2;
            match fits(middle) {
                Some(peak) => high = peak,
                None => low = middle + Bytes(1),
            }
        }
        high
    }

    /// The path that computes least again; without a budget there is none faster.
    fn quickest(&self) -> Vec<Choice> {
        let quick = |c: &Choice| (self.form(*c).seconds, self.form(*c).kept);
        (0..self.sections).filter_map(|s| self.choices_from(s).filter(|c| self.is_single(*c)).min_by_key(quick)).collect()
    }

    fn is_single(&self, c: Choice) -> bool {
        self.steps[c.steps as usize].sections == 1
    }

    fn again(&self, choices: &[Choice]) -> f64 {
        choices.iter().map(|&c| self.form(c).seconds.0).sum()
    }

    /// The transient bytes of the path that computes least again.
    pub fn full(&self) -> Bytes {
        self.peak(&self.quickest())
    }

    /// The fastest path within a budget of transient bytes; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Solver`] when the solver fails, which is no statement about the budget.
    pub fn solve(&self, budget: Bytes) -> Result<Option<Path>, Error> {
        let Some(lean) = self.leanest(budget) else { return Ok(None) };
        let quickest = self.quickest();
        if self.peak(&quickest) <= budget {
            let again = self.again(&quickest);
            return Ok(Some(self.path(quickest, again, again)));
        }
        let (prices, bound) = self.relaxed(budget, &lean)?;
        let mut near = NEAR * self.base.0;
        while near < WIDEST * self.base.0 {
            if let Some((choices, again, exact)) = self.follow(budget, &prices, bound, near) {
                // What lies nearer to the bound than `near` was looked at without exception.
                let bound = if exact { again } else { bound.min(again) };
                return Ok(Some(self.path(choices, again, bound)));
            }
            near *= WIDER;
        }
        let again = self.again(&lean);
        Ok(Some(self.path(lean, again, bound)))
    }

    fn path(&self, choices: Vec<Choice>, again: f64, bound: f64) -> Path {
        Path { peak: self.peak(&choices), choices, again: Seconds(again), bound: Seconds(bound.max(0.0)) }
    }
}
