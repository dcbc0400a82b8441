//! Where the loss heads of a joint graph run: each slice forward and backward at once, between the two passes.

use crate::Error;
use crate::graph::*;

/// Moves each slice of a loss head to the backward nodes that read it. The values of a head whose gradient takes the loss itself, or that
/// has none, stay at the end of the forward pass.
///
/// # Errors
/// As [`Graph::select`].
pub fn turn(mut joint: Graph) -> Result<Graph, Error> {
    if joint.nodes.iter().all(|n| n.pass != Pass::Loss) {
        return Ok(joint);
    }
    if !known_beforehand(&joint) {
        joint.nodes.iter_mut().filter(|n| n.pass == Pass::Loss).for_each(|n| n.pass = Pass::Fprop);
        return Ok(joint);
    }
    let order = Order::of(&joint);
    let mut place = vec![0; joint.nodes.len()];
    order.iter().enumerate().for_each(|(at, n)| place[n.index()] = at);
    for n in 0..joint.nodes.len() {
        // A gradient that now comes before the value that it is of belongs to itself.
        if place[n] < place[joint.nodes[n].origin.index()] {
            joint.nodes[n].origin = NodeId(n as u32);
        }
    }
    Ok(joint.select(&order)?.0)
}

/// True where the gradient of every slice's loss is had without computing any slice.
fn known_beforehand(joint: &Graph) -> bool {
    // For each value: whether logits go into it.
    let mut behind = vec![false; joint.values.len()];
    let mut gradients = 0;
    for node in &joint.nodes {
        let logits = node.pass == Pass::Loss && matches!(node.op, Op::Matmul { .. });
        let of = logits || node.inputs.iter().any(|v| behind[v.index()]);
        node.results.iter().for_each(|v| behind[v.index()] = of);
        if let Op::CrossEntropyGrad(_) = node.op
            && joint.def(node.inputs[3]).pass == Pass::Loss
        {
            gradients += 1;
            if behind[node.inputs[0].index()] {
                return false;
            }
        }
    }
    gradients > 0
}

/// An order of a joint graph's nodes in the making.
struct Order<'a> {
    joint: &'a Graph,
    done: Vec<bool>,
    /// Nodes of loss heads, in order.
    late: Vec<NodeId>,
    /// Losses of slices that are not computed yet.
    waiting: usize,
    out: Vec<NodeId>,
}

impl Order<'_> {
    fn of(joint: &Graph) -> Vec<NodeId> {
        let all = || (0..joint.nodes.len() as u32).map(NodeId);
        let late: Vec<NodeId> = all().filter(|&n| joint.node(n).pass == Pass::Loss).collect();
        let waiting = late.iter().filter(|&&n| matches!(joint.node(n).op, Op::CrossEntropy(_))).count();
        let mut order = Order { joint, done: vec![false; joint.nodes.len()], late, waiting, out: vec![] };
        for n in all().filter(|&n| joint.node(n).pass != Pass::Loss) {
            if joint.node(n).epoch() == Epoch::Update {
                order.rest();
            }
            order.place(n);
        }
        order.rest();
        order.out
    }

    /// Places a node behind what it reads of loss heads, and behind that the sums that go on with it.
    fn place(&mut self, n: NodeId) {
        let (mut open, before) = (vec![n], self.out.len());
        while let Some(&n) = open.last() {
            let missing = self.inputs(n).find(|m| !self.done[m.index()]);
            match missing {
                Some(m) => open.push(m),
                None => {
                    open.pop();
                    self.emit(n);
                }
            }
        }
        if self.out.len() > before + 1 {
            self.sums();
        }
        if self.waiting == 0 {
            self.rest();
        }
    }

    fn inputs(&self, n: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.joint.node(n).inputs.iter().map(|v| self.joint.values[v.index()].node)
    }

    fn emit(&mut self, n: NodeId) {
        if !std::mem::replace(&mut self.done[n.index()], true) {
            self.out.push(n);
            let node = self.joint.node(n);
            self.waiting -= usize::from(node.pass == Pass::Loss && matches!(node.op, Op::CrossEntropy(_)));
        }
    }

    /// Places what of the losses is one number and can be had.
    fn sums(&mut self) {
        let scalar = |n: NodeId| self.joint.node(n).results.iter().all(|&v| self.joint.ty(v).elements() == 1);
        for n in self.late.clone().into_iter().filter(|&n| scalar(n)) {
            if self.inputs(n).all(|m| self.done[m.index()]) {
                self.emit(n);
            }
        }
    }

    /// Places what is left of the loss heads.
    fn rest(&mut self) {
        for n in std::mem::take(&mut self.late) {
            self.emit(n);
        }
    }
}
