//! Which nodes may be computed again, widened until no other could help.
//!
//! A schedule that computes a node of cost `c` again costs at least `c` more. So when the best schedule whose nodes computed again are all within
//! some cost adds no more than that, it is the best of all: programs stay small.

use super::program::Program;
use super::{Graph, Schedule};

/// How far the search goes; counts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Relative distance from the bound that ends it, as a share of what everything costs once.
    pub gap: f64,
    /// Nodes of the solver's tree, for each program.
    pub nodes: u64,
    /// Programs solved.
    pub programs: u32,
    /// Pairs of a stage and a node that may be held there: the size of a program.
    pub pairs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { gap: 1e-5, nodes: 20_000, programs: 200, pairs: 100_000 }
    }
}

/// Why there is no schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// No schedule of this form is within the budget.
    Infeasible,
    /// The search ended before it had one.
    Limit,
    Solver(String),
}

/// The cheapest schedule whose memory is within `budget` bytes.
///
/// # Errors
/// [`Failure::Infeasible`] where there is none; [`Failure::Limit`] and [`Failure::Solver`] say nothing about the budget.
pub fn solve(graph: &Graph, budget: u64, limits: Limits) -> Result<Schedule, Failure> {
    let once = graph.once();
    if graph.plain_peak() <= budget {
        return Ok(Schedule { order: (0..graph.len()).collect(), peak: graph.plain_peak(), cost: once, bound: once });
    }
    let mut costs = graph.cost.clone();
    costs.sort_by(f64::total_cmp);
    costs.dedup();
    let mut programs = limits.programs;
    let mut widest = costs.len().min(1);
    loop {
        let dearest = costs.get(widest.saturating_sub(1)).copied().unwrap_or(0.0);
        let next = costs.get(widest).copied();
        match cheapest(graph, budget, dearest, limits, &mut programs)? {
            None if next.is_none() => return Err(Failure::Infeasible),
            None => widest = (widest + 1).max(widest * 3 / 2).min(costs.len()),
            Some(found) => {
                let extra = found.cost - once;
                if next.is_none_or(|next| next >= extra) {
                    return Ok(found);
                }
                // Whatever is dearer than what is known is no part of anything better.
                let wider = costs.partition_point(|&c| c <= extra);
                if programs == 0 {
                    return Ok(Schedule { bound: found.bound.min(once + next.unwrap_or(extra)), ..found });
                }
                widest = wider.max(widest + 1);
            }
        }
    }
}

/// The cheapest schedule that computes nothing again that costs more than `dearest`.
fn cheapest(graph: &Graph, budget: u64, dearest: f64, limits: Limits, programs: &mut u32) -> Result<Option<Schedule>, Failure> {
    let mut program = Program::new(graph, budget, dearest);
    if program.pairs() == 0 {
        return Ok(None);
    }
    if program.pairs() > limits.pairs {
        return Err(Failure::Limit);
    }
    while *programs > 0 {
        *programs -= 1;
        let Some(found) = program.solve(limits.gap, limits.nodes)? else { return Ok(None) };
        let order = found.stages.concat();
        let live = graph.replay(&order).ok_or_else(|| Failure::Solver("its schedule reads what is not there".into()))?;
        let stage_of = found.stages.iter().enumerate().flat_map(|(t, stage)| stage.iter().map(move |_| t));
        let broken: Vec<_> = stage_of.zip(&order).zip(&live).filter(|(_, bytes)| **bytes > budget).map(|((t, &k), _)| (t, k)).collect();
        if broken.is_empty() {
            let order = pruned(graph, order, budget);
            let cost = order.iter().map(|&i| graph.cost[i]).sum::<f64>();
            let peak = graph.replay(&order).and_then(|live| live.into_iter().max()).unwrap_or(0);
            let bound = (graph.once() + found.bound).min(cost);
            return Ok(Some(Schedule { order, peak, cost, bound }));
        }
        let before = program.events.len();
        program.events.extend(broken.into_iter().filter(|&(t, k)| t != k));
        if program.events.len() == before {
            return Err(Failure::Solver("its schedule breaks a row of the program".into()));
        }
    }
    Err(Failure::Limit)
}

/// A schedule without what it computes again for nothing, which may be where that costs nothing.
fn pruned(graph: &Graph, mut order: Vec<usize>, budget: u64) -> Vec<usize> {
    let fits = |order: &[usize]| graph.replay(order).is_some_and(|live| live.into_iter().all(|bytes| bytes <= budget));
    loop {
        let before = order.len();
        let again = again(graph.len(), &order);
        // From the end on, so that earlier places stay as they are.
        for at in (0..before).rev().filter(|&at| again[at]) {
            let node = order.remove(at);
            if !fits(&order) {
                order.insert(at, node);
            }
        }
        if order.len() == before {
            return order;
        }
    }
}

/// For each step of an order, whether its node was computed before.
fn again(nodes: usize, order: &[usize]) -> Vec<bool> {
    let mut seen = vec![false; nodes];
    order.iter().map(|&i| std::mem::replace(&mut seen[i], true)).collect()
}
