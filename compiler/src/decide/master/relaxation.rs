//! The linear relaxation and its prices.

use super::{Choice, Master};
use crate::Error;
use crate::quantity::{Bytes, Seconds};
use good_lp::solvers::highs::highs;
use good_lp::{Expression, ProblemVariables, SolverModel, Variable, constraint, variable};
use std::collections::BTreeSet;

/// Rounds of column generation.
const ROUNDS: usize = 30;

/// Prices of room: seconds a byte at each section, and what they say of the rest of a path.
pub(super) struct Prices {
    /// For each section, the price of a byte at it and all later ones.
    pub tail: Vec<f64>,
    pub price: Vec<f64>,
    /// For each section, the length of the shortest path from there to the end.
    pub rest: Vec<f64>,
}

impl Master {
    /// The length of a choice under prices, without the rest of the path.
    pub(super) fn length(&self, c: Choice, price: &[f64], tail: &[f64]) -> f64 {
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
    pub(super) fn relaxed(&self, budget: Bytes, lean: &[Choice]) -> Result<(Prices, f64), Error> {
        let mut columns: BTreeSet<Choice> = lean.iter().copied().collect();
        for s in 0..self.sections {
            let singles = || self.choices_from(s).filter(|c| self.is_single(*c));
            let least = |key: &dyn Fn(&Choice) -> (Bytes, Seconds)| singles().min_by_key(|c| key(c));
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
        let failed = |e: good_lp::ResolutionError| Error::Solver(e.to_string());
        let solution = model.solve().map_err(failed)?;
        let value = good_lp::Solution::eval(&solution, &objective) / time;
        let inner = solution.into_inner();
        // A row of the program is a row of the solver's, in the order in which they were added: the first are those of memory.
        let price = inner.dual_rows().iter().take(rows.len()).map(|d| d.abs() / time * room).collect();
        Ok((price, value))
    }
}
