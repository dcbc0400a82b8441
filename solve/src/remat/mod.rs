//! Rematerialization: an order of execution within a memory budget in which values may be computed again.
//!
//! Nodes are first computed in the order given. Before each of these first computations stands a *stage*: there, values that are gone may be
//! computed again, in the same order. Among all schedules of this form the cheapest is found, and a bound on them is proven.

mod program;
mod search;
#[cfg(test)]
mod tests;

pub use search::{Failure, Limits, solve};

/// A graph of computations in an order in which they can run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Time of each node, in any unit.
    pub cost: Vec<f64>,
    /// Bytes of each node's output.
    pub bytes: Vec<u64>,
    /// The nodes that each one reads: earlier ones, ascending, each once.
    pub inputs: Vec<Vec<usize>>,
}

/// An order of execution and what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Nodes, again where they are computed again.
    pub order: Vec<usize>,
    pub peak: u64,
    pub cost: f64,
    /// No schedule of this form within the budget costs less.
    pub bound: f64,
}

impl Graph {
    pub fn len(&self) -> usize {
        self.cost.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cost.is_empty()
    }

    /// The nodes that read each one, ascending.
    pub(crate) fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![vec![]; self.len()];
        for (node, inputs) in self.inputs.iter().enumerate() {
            inputs.iter().for_each(|&i| readers[i].push(node));
        }
        readers
    }

    /// Cost of computing everything once.
    pub fn once(&self) -> f64 {
        self.cost.iter().sum()
    }

    /// Bytes in memory while each step of an order runs: its output, and the newest copy of whatever a later step or itself still reads.
    /// `None` where a step reads what is not there.
    pub fn replay(&self, order: &[usize]) -> Option<Vec<u64>> {
        let mut newest: Vec<Option<usize>> = vec![None; self.len()];
        let mut last: Vec<usize> = (0..order.len()).collect();
        for (step, &node) in order.iter().enumerate() {
            for &input in &self.inputs[node] {
                last[newest[input]?] = step;
            }
            newest[node] = Some(step);
        }
        let mut change = vec![(0u64, 0u64); order.len() + 1];
        for (step, &node) in order.iter().enumerate() {
            change[step].0 += self.bytes[node];
            change[last[step] + 1].1 += self.bytes[node];
        }
        change.pop();
        let mut live = 0;
        let turn = |(born, died): (u64, u64)| {
            live = live + born - died;
            live
        };
        Some(change.into_iter().map(turn).collect())
    }

    /// The peak of computing everything once, in the order given.
    pub fn plain_peak(&self) -> u64 {
        let order: Vec<usize> = (0..self.len()).collect();
        self.replay(&order).and_then(|live| live.into_iter().max()).unwrap_or(0)
    }
}
