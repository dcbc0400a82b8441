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

use super::forms::Form;
use crate::Error;
use crate::quantity::{Bytes, Seconds};
use good_lp::solvers::highs::highs;
use good_lp::{Expression, ProblemVariables, SolverModel, Variable, constraint, variable};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rounds of column generation.
const ROUNDS: usize = 30;

/// Beginnings of paths that are followed at one section.
const BEAM: usize = 20_000;

/// The first distance from the bound that a path may have, as a share of a step, and by how much it grows when that is too little.
const NEAR: f64 = 2e-5;
const WIDER: f64 = 6.0;

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

/// Prices of room: seconds a byte at each section, and what they say of the rest of a path.
struct Prices {
    /// For each section, the price of a byte at it and all later ones.
    tail: Vec<f64>,
    price: Vec<f64>,
    /// For each section, the length of the shortest path from there to the end.
    rest: Vec<f64>,
}

/// A beginning of a path.
#[derive(Clone, Copy)]
struct Beginning {
    kept: Bytes,
    seconds: f64,
    /// The section it comes from, the beginning there, and the choice that was made.
    from: (u32, u32, Choice),
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

    /// The transient bytes of the path that computes nothing again; without a budget there is none faster.
    pub fn full(&self) -> Bytes {
        let mut choices = vec![];
        let mut at = 0;
        while at < self.sections {
            let single = |c: &Choice| self.steps[c.steps as usize].sections == 1;
            let quick = |c: &Choice| (self.form(*c).seconds, self.form(*c).kept);
            let Some(c) = self.choices_from(at).filter(single).min_by_key(quick) else { break };
            choices.push(c);
            at += 1;
        }
        self.peak(&choices)
    }

    /// The fastest path within a budget of transient bytes; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Verify`] when the solver fails, which is no statement about the budget.
    pub fn solve(&self, budget: Bytes) -> Result<Option<Path>, Error> {
        let Some(lean) = self.leanest(budget) else { return Ok(None) };
        if self.full() <= budget {
            let found = self.follow(budget, &self.prices(vec![0.0; self.sections]), 0.0, f64::INFINITY);
            return Ok(found.map(|(choices, again, _)| self.path(choices, again, again)));
        }
        let (prices, bound) = self.relaxed(budget, lean)?;
        let mut near = NEAR * self.base.0;
        loop {
            let everything = near > 16.0 * self.base.0;
            if let Some((choices, again, exact)) = self.follow(budget, &prices, bound, near) {
                // What lies nearer to the bound than `near` was looked at without exception.
                let bound = if exact { again } else { bound.min(again) };
                return Ok(Some(self.path(choices, again, bound)));
            }
            if everything {
                return Ok(None);
            }
            near *= WIDER;
        }
    }

    fn path(&self, choices: Vec<Choice>, again: f64, bound: f64) -> Path {
        Path { peak: self.peak(&choices), choices, again: Seconds(again), bound: Seconds(bound.max(0.0)) }
    }

    /// The length of a choice under prices, without the rest of the path.
    fn length(&self, c: Choice, price: &[f64], tail: &[f64]) -> f64 {
        let (steps, form) = (&self.steps[c.steps as usize], self.form(c));
        let over: f64 = price[steps.start..steps.end()].iter().sum();
        let later = tail.get(steps.end()).copied().unwrap_or(0.0);
        form.seconds.0 + form.kept.0 as f64 * later + steps.worst(form).0 as f64 * over
    }

    fn prices(&self, price: Vec<f64>) -> Prices {
        let mut tail = vec![0.0; self.sections + 1];
        let mut rest = vec![0.0; self.sections + 1];
        for s in (0..self.sections).rev() {
            tail[s] = tail[s + 1] + price[s];
        }
        for s in (0..self.sections).rev() {
            let ahead = |c: Choice| self.length(c, &price, &tail) + rest[self.steps[c.steps as usize].end()];
            rest[s] = self.choices_from(s).map(ahead).fold(f64::INFINITY, f64::min);
        }
        Prices { tail, price, rest }
    }

    /// Prices of the linear relaxation, and its optimum: no path takes less.
    fn relaxed(&self, budget: Bytes, lean: Vec<Choice>) -> Result<(Prices, f64), Error> {
        let mut columns: BTreeSet<Choice> = lean.into_iter().collect();
        for s in 0..self.sections {
            let single = |c: &Choice| self.steps[c.steps as usize].sections == 1;
            let least = |key: &dyn Fn(&Choice) -> (Bytes, Seconds)| self.choices_from(s).filter(single).min_by_key(|c| key(c));
            columns.extend(least(&|c| (self.form(*c).kept, self.form(*c).seconds)));
            columns.extend(least(&|c| (Bytes(0), self.form(*c).seconds)));
        }
        let mut best: Option<(Prices, f64)> = None;
        for _ in 0..ROUNDS {
            let (price, value) = self.program(budget, &columns)?;
            let prices = self.prices(price);
            let bound = prices.rest[0] - prices.tail[0] * budget.0 as f64;
            let before = columns.len();
            for s in 0..self.sections {
                let ahead = |c: &Choice| self.length(*c, &prices.price, &prices.tail) + prices.rest[self.steps[c.steps as usize].end()];
                let mut lengths: Vec<(f64, Choice)> = self.choices_from(s).map(|c| (ahead(&c), c)).collect();
                lengths.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                columns.extend(lengths.iter().take(2).map(|l| l.1));
            }
            if best.as_ref().is_none_or(|(_, b)| bound > *b) {
                best = Some((prices, bound));
            }
            let reached = best.as_ref().map_or(f64::NEG_INFINITY, |b| b.1);
            if value - reached <= 1e-6 * self.base.0 || columns.len() == before {
                break;
            }
        }
        best.ok_or_else(|| Error::Verify { pass: "plan", reason: "the master program has no prices".into() })
    }

    /// Solves the relaxation over some columns: the price of a byte at each section, and the optimum.
    ///
    /// Seconds are thousandths of a step and bytes are shares of the budget, so that coefficients are about one.
    fn program(&self, budget: Bytes, columns: &BTreeSet<Choice>) -> Result<(Vec<f64>, f64), Error> {
        let (time, room) = (1e3 / self.base.0.max(1e-12), 1.0 / budget.0.max(1) as f64);
        let mut vars = ProblemVariables::new();
        let taken: Vec<(Choice, Variable)> = columns.iter().map(|&c| (c, vars.add(variable().min(0)))).collect();
        let kept: Vec<Variable> = (0..=self.sections).map(|_| vars.add(variable().min(0))).collect();
        let mut at = vec![Expression::from(0.0); self.sections];
        let mut into = vec![Expression::from(0.0); self.sections + 1];
        let mut out = vec![Expression::from(0.0); self.sections + 1];
        let mut added = vec![Expression::from(0.0); self.sections + 1];
        let mut objective = Expression::from(0.0);
        for &(c, x) in &taken {
            let (steps, form) = (&self.steps[c.steps as usize], self.form(c));
            objective.add_mul(form.seconds.0 * time, x);
            (steps.start..steps.end()).for_each(|s| at[s].add_mul(steps.worst(form).0 as f64 * room, x));
            out[steps.start].add_mul(1.0, x);
            into[steps.end()].add_mul(1.0, x);
            added[steps.end()].add_mul(form.kept.0 as f64 * room, x);
        }
        let mut model = vars.minimise(objective.clone()).using(highs).set_threads(1);
        model.set_verbose(false);
        let mut rows = vec![];
        for (s, worst) in at.into_iter().enumerate() {
            rows.push(model.add_constraint(constraint!(kept[s] + worst <= 1.0)));
        }
        for (s, ((into, out), added)) in into.into_iter().zip(out).zip(added).enumerate() {
            match s {
                0 => model.add_constraint(constraint!(out == 1.0)),
                s if s == self.sections => model.add_constraint(constraint!(into == 1.0)),
                _ => model.add_constraint(constraint!(into == out)),
            };
            let before = if s == 0 { Expression::from(0.0) } else { kept[s - 1].into() };
            model.add_constraint(constraint!(before + added == kept[s]));
        }
        let failed = |e: good_lp::ResolutionError| Error::Verify { pass: "plan", reason: format!("the solver failed: {e}") };
        let solution = model.solve().map_err(failed)?;
        let value = good_lp::Solution::eval(&solution, &objective) / time;
        let inner = solution.into_inner();
        // A row of the program is a row of the solver's, in the order in which they were added: the first are those of memory.
        let price = inner.dual_rows().iter().take(rows.len()).map(|d| d.abs() / time * room).collect();
        Ok((price, value))
    }

    /// The fastest path within a budget whose distance from the bound is at most `near`, its time, and whether none was passed over.
    fn follow(&self, budget: Bytes, prices: &Prices, bound: f64, near: f64) -> Option<(Vec<Choice>, f64, bool)> {
        if self.floor > budget {
            return None;
        }
        let limit = bound + near;
        let start = Beginning { kept: Bytes(0), seconds: 0.0, from: (0, 0, Choice { steps: 0, form: 0 }) };
        let mut reached: Vec<Vec<Beginning>> = vec![vec![]; self.sections + 1];
        reached[0].push(start);
        let mut exact = true;
        for s in 0..self.sections {
            let all = std::mem::take(&mut reached[s]);
            let (all, whole) = undominated(all, |b| b.seconds + prices.tail[s] * b.kept.0 as f64);
            exact &= whole;
            let near_enough = |c: &Choice| {
                let end = self.steps[c.steps as usize].end();
                self.length(*c, &prices.price, &prices.tail) + prices.rest[end] - prices.rest[s] <= near
            };
            for c in self.choices_from(s).filter(near_enough) {
                let (steps, form) = (&self.steps[c.steps as usize], self.form(c));
                let (end, worst) = (steps.end(), steps.worst(form));
                for (i, b) in all.iter().enumerate().take_while(|(_, b)| b.kept + worst <= budget) {
                    let (kept, seconds) = (b.kept + form.kept, b.seconds + form.seconds.0);
                    let at_best = seconds + prices.tail[end] * (kept.0 as f64 - budget.0 as f64) + prices.rest[end];
                    if at_best <= limit {
                        reached[end].push(Beginning { kept, seconds, from: (s as u32, i as u32, c) });
                    }
                }
            }
            reached[s] = all;
        }
        let ends = std::mem::take(&mut reached[self.sections]);
        let best = ends.into_iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.kept.cmp(&b.kept)))?;
        let (mut at, mut choices) = (best, vec![]);
        loop {
            let (section, beginning, c) = at.from;
            choices.push(c);
            if section == 0 {
                break;
            }
            at = reached[section as usize][beginning as usize];
        }
        choices.reverse();
        Some((choices, best.seconds, exact))
    }
}

/// Beginnings that no other beats in both bytes and seconds, fewest bytes first; where they are too many, the most promising.
fn undominated(mut all: Vec<Beginning>, promise: impl Fn(&Beginning) -> f64) -> (Vec<Beginning>, bool) {
    all.sort_by(|a, b| a.kept.cmp(&b.kept).then(a.seconds.total_cmp(&b.seconds)).then(a.from.cmp(&b.from)));
    let mut least = f64::INFINITY;
    all.retain(|b| {
        let better = b.seconds < least;
        least = least.min(b.seconds);
        better
    });
    let whole = all.len() <= BEAM;
    if !whole {
        all.sort_by(|a, b| promise(a).total_cmp(&promise(b)).then(a.kept.cmp(&b.kept)));
        all.truncate(BEAM);
        all.sort_by_key(|b| b.kept);
    }
    (all, whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are the same each time.
    struct Noise(u64);

    impl Noise {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % n
        }
    }

    fn random(noise: &mut Noise, sections: usize) -> Master {
        let mut steps = vec![];
        for len in 1..=2 {
            for start in 0..=sections - len {
                let form = |noise: &mut Noise| Form {
                    keep: vec![],
                    kept: Bytes(noise.below(40)),
                    forward: Bytes(noise.below(20)),
                    backward: Bytes(40 + noise.below(40)),
                    seconds: Seconds(noise.below(1000) as f64 * 1e-6),
                };
                let forms = (0..1 + noise.below(4)).map(|_| form(noise)).collect();
                let around = (Bytes(noise.below(5)), Bytes(noise.below(5)));
                steps.push(Steps { start, sections: len, forms: Arc::new(forms), around });
            }
        }
        Master::new(steps, sections, Bytes(30), Seconds(1e-3))
    }

    /// Every path, by trying all.
    fn all(m: &Master, from: usize, path: &mut Vec<Choice>, found: &mut Vec<(Bytes, f64)>) {
        if from == m.sections {
            found.push((m.peak(path), path.iter().map(|&c| m.form(c).seconds.0).sum()));
            return;
        }
        for c in m.choices_from(from).collect::<Vec<_>>() {
            path.push(c);
            all(m, m.steps[c.steps as usize].end(), path, found);
            path.pop();
        }
    }

    #[test]
    fn the_best_path_is_found_at_every_budget_and_refused_only_where_none_fits() {
        let mut noise = Noise(7);
        for _ in 0..60 {
            let m = random(&mut noise, 5);
            let mut paths = vec![];
            all(&m, 0, &mut vec![], &mut paths);
            assert_eq!(m.least(), paths.iter().map(|p| p.0).min().unwrap());
            for budget in (30..260).step_by(5).map(Bytes) {
                let best = paths.iter().filter(|p| p.0 <= budget).map(|p| p.1).fold(f64::INFINITY, f64::min);
                match m.solve(budget).unwrap() {
                    None => assert_eq!(best, f64::INFINITY),
                    Some(path) => {
                        assert!((path.again.0 - best).abs() < 1e-12, "{path:?}, but {best} is possible");
                        assert!(path.peak <= budget && path.bound.0 <= path.again.0 + 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn the_relaxation_bounds_every_path() {
        let mut noise = Noise(11);
        for _ in 0..40 {
            let m = random(&mut noise, 4);
            let mut paths = vec![];
            all(&m, 0, &mut vec![], &mut paths);
            for budget in (60..200).step_by(10).map(Bytes) {
                let Some(lean) = m.leanest(budget) else { continue };
                let (_, bound) = m.relaxed(budget, lean).unwrap();
                let best = paths.iter().filter(|p| p.0 <= budget).map(|p| p.1).fold(f64::INFINITY, f64::min);
                assert!(bound <= best + 1e-9, "{bound} over {best}");
            }
        }
    }
}
