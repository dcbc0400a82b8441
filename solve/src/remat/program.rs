//! The integer program of a graph's schedules.
//!
//! `held[t, i]`: the output of `i` is there when stage `t` begins, and needed later. `again[t, i]`: stage `t` computes `i` again. What is in memory
//! while stage `t` computes `k` are the values that have a reason to be: a reader in the rest of the stage, or being held when the next
//! one begins. The rows of the first computations are there from the start, those of the others are added where a solution breaks them: there
//! are as many as pairs of nodes, and few of them bind. After Checkmate (Jain et al., MLSys 2020), without its bookkeeping of what is freed.

use super::{Failure, Graph};
use highs::{Col, HighsModelStatus, RowProblem, Sense};
use std::collections::{BTreeSet, HashMap};

/// A stage, and the node that it computes again.
pub(super) type Event = (usize, usize);

/// The schedules that compute only cheap nodes again.
pub(super) struct Program<'a> {
    graph: &'a Graph,
    readers: Vec<Vec<usize>>,
    budget: u64,
    /// Most that a node may cost which is computed again.
    dearest: f64,
    /// The last stage in which each node may be read.
    last: Vec<usize>,
    /// Events that memory is counted at beside the first computations.
    pub events: BTreeSet<Event>,
}

/// What the solver found.
pub(super) struct Found {
    /// The nodes of each stage, its own at the end.
    pub stages: Vec<Vec<usize>>,
    /// Bound on the cost of what is computed again.
    pub bound: f64,
}

/// The variables of a program.
struct Columns {
    held: HashMap<Event, Col>,
    again: HashMap<Event, Col>,
}

impl<'a> Program<'a> {
    pub fn new(graph: &'a Graph, budget: u64, dearest: f64) -> Self {
        let readers = graph.readers();
        let mut last: Vec<usize> = (0..graph.len()).collect();
        for i in (0..graph.len()).rev() {
            let stages = readers[i].iter().map(|&r| if graph.cost[r] <= dearest { last[r] } else { r });
            last[i] = stages.max().unwrap_or(i);
        }
        Program { graph, readers, budget, dearest, last, events: BTreeSet::new() }
    }

    /// Pairs of a stage and a node that may be held there: the program has up to two variables for each.
    pub fn pairs(&self) -> usize {
        self.last.iter().enumerate().map(|(i, last)| last - i).sum()
    }

    /// The cheapest schedule, `None` where there is none; at most `nodes` of the solver's tree are visited.
    pub fn solve(&self, gap: f64, nodes: u64) -> Result<Option<Found>, Failure> {
        let unit = 1e3 / self.graph.once().max(1e-300);
        let mut rows = RowProblem::default();
        let columns = self.columns(&mut rows, unit);
        self.availability(&mut rows, &columns);
        (0..self.graph.len()).for_each(|t| self.first_computation(&mut rows, &columns, t));
        self.events.iter().for_each(|&event| self.computed_again(&mut rows, &columns, event));
        let mut model = rows.try_optimise(Sense::Minimise).map_err(|s| Failure::Solver(format!("{s:?}")))?;
        model.make_quiet();
        model.set_option("threads", 1);
        model.set_option("random_seed", 1);
        model.set_option("mip_rel_gap", gap);
        // A thousandth of a step is one.
        model.set_option("mip_abs_gap", gap);
        model.set_option("mip_max_nodes", i32::try_from(nodes).unwrap_or(i32::MAX));
        model.set_option("mip_feasibility_tolerance", 1e-9);
        model.set_option("primal_feasibility_tolerance", 1e-9);
        let solved = model.try_solve().map_err(|s| Failure::Solver(format!("{s:?}")))?;
        let bound = || solved.double_info_value(c"mip_dual_bound").unwrap_or(0.0).max(0.0) / unit;
        match solved.status() {
            HighsModelStatus::Infeasible => return Ok(None),
            HighsModelStatus::Optimal => {}
            HighsModelStatus::ReachedSolutionLimit if solved.objective_value().is_finite() => {}
            HighsModelStatus::ReachedSolutionLimit => return Err(Failure::Limit),
            other => return Err(Failure::Solver(format!("{other:?}"))),
        }
        let solution = solved.get_solution();
        let value = |col: &Col| solution[*col];
        let mut stages: Vec<Vec<usize>> = (0..self.graph.len()).map(|_| vec![]).collect();
        for (&(t, i), col) in &columns.again {
            if value(col) > 0.5 {
                stages[t].push(i);
            }
        }
        for (t, stage) in stages.iter_mut().enumerate() {
            stage.sort_unstable();
            stage.push(t);
        }
        Ok(Some(Found { stages, bound: bound() }))
    }

    fn columns(&self, rows: &mut RowProblem, unit: f64) -> Columns {
        let mut columns = Columns { held: HashMap::new(), again: HashMap::new() };
        for i in 0..self.graph.len() {
            for t in i + 1..=self.last[i] {
                columns.held.insert((t, i), rows.add_integer_column(0.0, 0..=1));
                if self.graph.cost[i] <= self.dearest {
                    columns.again.insert((t, i), rows.add_integer_column(self.graph.cost[i] * unit, 0..=1));
                }
            }
        }
        columns
    }

    /// What is read is there, and what is held was there.
    fn availability(&self, rows: &mut RowProblem, c: &Columns) {
        for i in 0..self.graph.len() {
            for t in i + 1..=self.last[i] {
                let there = c.there(t, i);
                rows.add_row(..=1.0, &there);
                if self.graph.inputs[t].contains(&i) {
                    rows.add_row(1.0.., &there);
                }
                if t > i + 1 {
                    let mut kept = c.there(t - 1, i);
                    kept.push((c.held[&(t, i)], -1.0));
                    rows.add_row(0.0.., &kept);
                }
                for &reader in self.readers[i].iter().filter(|&&r| r < t) {
                    if let Some(&again) = c.again.get(&(t, reader)) {
                        let mut read = there.clone();
                        read.push((again, -1.0));
                        rows.add_row(0.0.., &read);
                    }
                }
            }
        }
    }

    fn share(&self, node: usize) -> f64 {
        self.graph.bytes[node] as f64 / self.budget.max(1) as f64
    }

    /// Memory while a stage computes its own node: its inputs, and what is held when the next stage begins.
    fn first_computation(&self, rows: &mut RowProblem, c: &Columns, t: usize) {
        let inputs = &self.graph.inputs[t];
        let fixed: f64 = self.share(t) + inputs.iter().map(|&i| self.share(i)).sum::<f64>();
        let held = (0..t).filter(|i| !inputs.contains(i)).filter_map(|i| Some((*c.held.get(&(t + 1, i))?, self.share(i))));
        rows.add_row(..=1.0 - fixed, held.collect::<Vec<_>>());
    }

    /// Memory while a stage computes `k` again.
    fn computed_again(&self, rows: &mut RowProblem, c: &Columns, (t, k): Event) {
        let mut row: Vec<(Col, f64)> = c.there(t, k).into_iter().map(|(col, _)| (col, self.share(k))).collect();
        let mut room = 1.0;
        for i in (0..t).filter(|&i| i != k && self.last[i] >= t) {
            if i > k {
                row.push((c.held[&(t, i)], self.share(i)));
            } else if self.graph.inputs[t].contains(&i) {
                room -= self.share(i);
            } else {
                let later = self.readers[i].iter().filter(|&&r| r >= k && r < t).filter_map(|&r| c.again.get(&(t, r)));
                let reasons: Vec<Col> = later.chain(c.held.get(&(t + 1, i))).copied().collect();
                match reasons[..] {
                    [] => {}
                    [reason] => row.push((reason, self.share(i))),
                    _ => {
                        let live = rows.add_column(0.0, 0..=1);
                        reasons.iter().for_each(|&reason| rows.add_row(0.0.., [(live, 1.0), (reason, -1.0)]));
                        row.push((live, self.share(i)));
                    }
                }
            }
        }
        rows.add_row(..=room, &row);
    }
}

impl Columns {
    /// What of `i` there is in stage `t`: held, or computed again.
    fn there(&self, t: usize, i: usize) -> Vec<(Col, f64)> {
        let both = [self.held.get(&(t, i)), self.again.get(&(t, i))];
        both.into_iter().flatten().map(|&col| (col, 1.0)).collect()
    }
}
