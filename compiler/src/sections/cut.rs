//! Where the forward pass is cut.

use crate::graph::{Expr, ExprNode, Graph, Node, Op, Pass, ValueId};
use fp8c_kernels::program::Binary;
use std::collections::BTreeSet;
use std::ops::Range;

/// The values that a graph must compute whatever else is done to it: outputs, then the loss.
pub fn roots(graph: &Graph) -> Vec<ValueId> {
    graph.outputs.iter().map(|o| o.value).chain(graph.loss).collect()
}

/// Facts about the forward pass of a graph.
pub(super) struct Whole<'a> {
    pub graph: &'a Graph,
    /// For each value: whether a trained parameter goes into it.
    pub carried: Vec<bool>,
    /// For each value: the last forward node that reads it; 0 where none does.
    pub last_use: Vec<usize>,
    pub root: Vec<bool>,
    /// For each value: whether no input of the graph reaches it.
    constant: Vec<bool>,
}

impl<'a> Whole<'a> {
    pub fn new(graph: &'a Graph) -> Self {
        let values = graph.values.len();
        let (carried, constant) = (vec![false; values], vec![false; values]);
        let mut whole = Whole { graph, carried, last_use: vec![0; values], root: vec![false; values], constant };
        roots(graph).iter().for_each(|v| whole.root[v.index()] = true);
        for (n, node) in whole.forward() {
            let trained = matches!(node.op, Op::Parameter(p) if graph.parameters[p].trainable);
            let carried = trained || node.inputs.iter().any(|v| whole.carried[v.index()]);
            let constant = !matches!(node.op, Op::Input { .. }) && node.inputs.iter().all(|v| whole.constant[v.index()]);
            node.results.iter().for_each(|r| (whole.carried[r.index()], whole.constant[r.index()]) = (carried, constant));
            node.inputs.iter().for_each(|v| whole.last_use[v.index()] = n);
        }
        whole
    }

    fn forward(&self) -> impl Iterator<Item = (usize, &'a Node)> + use<'a> {
        self.graph.nodes.iter().enumerate().filter(|(_, n)| n.pass == Pass::Fprop)
    }

    /// The forward pass in ranges of nodes.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let end = self.forward().last().map_or(0, |(n, _)| n + 1);
        let mut starts = vec![0];
        starts.extend(self.cuts().into_iter().filter(|&c| c < end));
        let ends = starts[1..].iter().copied().chain([end]);
        starts.iter().zip(ends).map(|(&start, end)| start..end).collect()
    }

    /// Nodes before which one value alone, that of a residual stream, is carried.
    fn cuts(&self) -> Vec<usize> {
        let mut open: BTreeSet<ValueId> = BTreeSet::new();
        let (mut cuts, mut last) = (vec![], None);
        for (n, node) in self.forward() {
            open.retain(|v| self.last_use[v.index()] > n);
            let carried = |v: &&ValueId| self.carried[v.index()] && self.last_use[v.index()] > n && !node.op.is_source();
            open.extend(node.results.iter().filter(carried));
            let alone = open.first().copied().filter(|v| open.len() == 1 && (self.joins(self.graph.def(*v)) || self.embeds(*v)));
            if alone.is_some() && alone != last {
                cuts.push(n + 1);
                last = alone;
            }
        }
        cuts
    }

    /// True for a sum of which one term is a carried value as it is and another is made of a different one, both as large as the sum.
    fn joins(&self, node: &Node) -> bool {
        let Op::Map(Expr { body }, _) = &node.op else { return false };
        let mut terms: Vec<usize> = vec![];
        let mut open = vec![body.len() - 1];
        while let Some(i) = open.pop() {
            match body[i] {
                ExprNode::Binary(Binary::Add, x, y) => open.extend([x as usize, y as usize]),
                _ => terms.push(i),
            }
        }
        let stream = |i: usize| match body[i] {
            ExprNode::Operand(x) => Some(x).filter(|&x| self.is_stream(node, x)),
            _ => None,
        };
        terms.iter().filter_map(|&i| stream(i)).any(|x| {
            let other = |y: u32| y != x && self.is_stream(node, y);
            terms.iter().any(|&i| operands(body, i).into_iter().any(other))
        })
    }

    /// True for an operand that is carried, computed, and as large as the result.
    fn is_stream(&self, node: &Node, operand: u32) -> bool {
        let v = node.inputs[operand as usize];
        self.carried[v.index()] && !self.graph.def(v).op.is_source() && self.graph.ty(v).shape == self.graph.ty(node.results[0]).shape
    }

    /// True for rows of a trained table, looked up by values that nothing trained goes into, alone or with what no input reaches, where
    /// several nodes read them.
    fn embeds(&self, v: ValueId) -> bool {
        let mut node = self.graph.def(v);
        while let Op::Reshape(_) | Op::Map(..) = node.op {
            let mut from = node.inputs.iter().filter(|i| !self.constant[i.index()]);
            let (Some(&only), None) = (from.next(), from.next()) else { break };
            node = self.graph.def(only);
        }
        let looked_up = node.op == Op::Take && node.inputs.get(1).is_some_and(|i| !self.carried[i.index()]);
        looked_up && self.forward().filter(|(_, n)| n.inputs.contains(&v)).take(2).count() > 1
    }

    /// The nodes of a section: its range, and what of uncarried values it reads from before, in order.
    pub fn members(&self, range: Range<usize>) -> Vec<usize> {
        let computed = |n: &usize| !self.graph.nodes[*n].op.is_source();
        let mut members: BTreeSet<usize> = range.filter(computed).collect();
        let mut open: Vec<usize> = members.iter().copied().collect();
        while let Some(n) = open.pop() {
            let uncarried = self.graph.nodes[n].inputs.iter().filter(|v| !self.carried[v.index()]);
            for maker in uncarried.map(|v| self.graph.values[v.index()].node.index()).filter(computed) {
                if members.insert(maker) {
                    open.push(maker);
                }
            }
        }
        members.into_iter().collect()
    }
}

/// The operands that a part of an expression reads.
fn operands(body: &[ExprNode], at: usize) -> Vec<u32> {
    let (mut found, mut open) = (vec![], vec![at]);
    while let Some(i) = open.pop() {
        match body[i] {
            ExprNode::Operand(x) => found.push(x),
            ExprNode::Const { .. } => {}
            ExprNode::Unary(_, x) | ExprNode::Cast(x, _) => open.push(x as usize),
            ExprNode::Binary(_, x, y) => open.extend([x as usize, y as usize]),
            ExprNode::Select(c, x, y) => open.extend([c as usize, x as usize, y as usize]),
        }
    }
    found
}
