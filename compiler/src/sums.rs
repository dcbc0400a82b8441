//! Sums of products in place.
//!
//! A parameter that several products read has the sum of as many products as its gradient. Each is added to the one before where that
//! lies, so that no second tensor of the parameter's size is there; with several micro-batches, where the sum over those lies.

use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::*;
use fp8c_kernels::DType;
use fp8c_kernels::program::Binary;
use std::collections::HashMap;

/// Lets every sum of f32 products of a joint graph grow in place.
///
/// # Errors
/// What [`Graph::add`] says, which is a fault of this pass.
pub fn in_place(graph: Graph) -> Result<Graph, Error> {
    let sums = Sums::of(&graph);
    if sums.grows.iter().all(|&g| !g) {
        return Ok(graph);
    }
    let starts = sums.starts();
    let mut rewrite = Rewrite::new(&graph);
    for n in (0..graph.nodes.len() as u32).map(NodeId) {
        let node = graph.node(n);
        if sums.grows[n.index()] {
            rewrite.begin(n);
            let mut sum = rewrite.get(node.inputs[0])?;
            if let Some(&buffer) = starts.get(&node.inputs[0]) {
                sum = rewrite.add(Op::AccumulateGradient, &[rewrite.get(buffer)?, sum])?[0];
            }
            let sum = rewrite.add(Op::AccumulateGradient, &[sum, rewrite.get(node.inputs[1])?])?[0];
            rewrite.set(node.results[0], sum);
        } else if sums.finishes(n) {
            rewrite.set(node.results[0], rewrite.get(node.inputs[1])?);
        } else {
            rewrite.copy(n)?;
        }
    }
    Ok(rewrite.finish()?.0)
}

struct Sums<'a> {
    graph: &'a Graph,
    /// By value: who reads it.
    users: Vec<Vec<NodeId>>,
    /// By node: a sum that grows in place by a product.
    grows: Vec<bool>,
}

impl<'a> Sums<'a> {
    fn of(graph: &'a Graph) -> Self {
        let mut sums = Sums { graph, users: graph.users(), grows: vec![false; graph.nodes.len()] };
        for n in 0..graph.nodes.len() {
            sums.grows[n] = sums.adds(NodeId(n as u32));
        }
        sums
    }

    /// True for the f32 sum of a product, or of such a sum, and a product that nothing else reads.
    fn adds(&self, n: NodeId) -> bool {
        let node = self.graph.node(n);
        let [a, b] = node.inputs[..] else { return false };
        let ty = self.graph.ty(node.results[0]);
        let sum = node.op == Op::Map(Expr::binary(Binary::Add), DType::F32) && a != b;
        let alike = self.graph.ty(a) == ty && self.graph.ty(b) == ty;
        let late = node.epoch() == Epoch::Backward;
        sum && alike && late && self.alone(a, n) && self.alone(b, n) && (self.is_product(a) || self.is_sum(a)) && self.is_product(b)
    }

    fn alone(&self, v: ValueId, reader: NodeId) -> bool {
        let named = self.graph.outputs.iter().map(|o| o.value).chain(self.graph.gradients.iter().map(|g| g.value));
        self.users[v.index()] == [reader] && !named.chain(self.graph.loss).any(|o| o == v)
    }

    fn is_sum(&self, v: ValueId) -> bool {
        self.grows[self.graph.values[v.index()].node.index()]
    }

    /// True for the addition of such a sum to the buffer of earlier micro-batches.
    fn finishes(&self, n: NodeId) -> bool {
        let node = self.graph.node(n);
        node.op == Op::AccumulateGradient && self.is_sum(node.inputs[1]) && self.alone(node.inputs[1], n)
    }

    fn is_product(&self, v: ValueId) -> bool {
        let node = self.graph.def(v);
        match node.op {
            Op::Reshape(_) => {
                let by = self.graph.values[v.index()].node;
                self.alone(node.inputs[0], by) && self.is_product(node.inputs[0])
            }
            Op::Matmul { dtype, .. } => dtype == DType::F32 && node.epoch() == Epoch::Backward,
            _ => false,
        }
    }

    /// The buffers that sums over micro-batches lie in, by the product that each micro-batch's sum begins with.
    fn starts(&self) -> HashMap<ValueId, ValueId> {
        let mut starts = HashMap::new();
        for n in (0..self.graph.nodes.len() as u32).map(NodeId).filter(|&n| self.finishes(n)) {
            let node = self.graph.node(n);
            let mut first = node.inputs[1];
            while self.is_sum(first) {
                first = self.graph.def(first).inputs[0];
            }
            starts.insert(first, node.inputs[0]);
        }
        starts
    }
}
