//! Writes composites out as maps and reductions along rows, so that one fusion pass sees them all.
//!
//! Intermediate values are f32, as the composites' arithmetic is, and only results have the composite's dtype: nothing is rounded
//! that the composite does not round.

mod loss;
mod norm;
mod reduce;
mod rotary;
mod softmax;
mod squares;

use super::core::{Core, Writer};
use crate::Error;
use crate::graph::{Graph, Node, NodeId, Op, ValueId};

/// Makes the core graph of a graph: live nodes, composites written out, sources first.
///
/// # Errors
/// [`Error::Graph`] where an operator does not fit its inputs, which a verified graph excludes.
pub(super) fn expand(graph: &Graph) -> Result<Core, Error> {
    let live = live(graph);
    let (users, mut running) = (graph.users(), squares::Running::default());
    let mut w = Writer::new(graph);
    for (n, node) in graph.nodes.iter().enumerate().filter(|(n, node)| live[*n] && node.op.is_source()) {
        w.begin(NodeId(n as u32), NodeId(n as u32), node.results[0]);
        let v = w.source(node.op.clone(), graph.ty(node.results[0]));
        w.bind(node.results[0], v, node.results[0]);
    }
    for (n, node) in graph.nodes.iter().enumerate().filter(|(n, node)| live[*n] && !node.op.is_source()) {
        w.begin(NodeId(n as u32), NodeId(n as u32), node.results[0]);
        if node.op == Op::SumSquares {
            let sum = node.results[0];
            let continues = |u: &Node| u.op == Op::SumSquares && u.inputs[1] == sum && u.inputs[0] != sum;
            let goes_on = matches!(users[sum.index()][..], [u] if continues(graph.node(u)));
            if let Some(total) = running.add(&mut w, node, goes_on)? {
                w.bind(sum, total, sum);
            }
            continue;
        }
        let inputs = node.inputs.iter().map(|&v| w.get(v)).collect::<Result<Vec<_>, _>>()?;
        let results = one(&mut w, node, &inputs)?;
        for (&old, new) in node.results.iter().zip(results) {
            w.bind(old, new, old);
        }
    }
    w.finish()
}

fn one(w: &mut Writer, node: &Node, x: &[ValueId]) -> Result<Vec<ValueId>, Error> {
    Ok(match &node.op {
        Op::Reduce { op, axes, dtype } => vec![reduce::reduce(w, *op, x[0], axes, *dtype)?],
        Op::Norm(n) => norm::norm(w, n, x)?,
        Op::NormGrad(n) => norm::norm_grad(w, n, x)?,
        Op::Softmax { log } => vec![softmax::softmax(w, *log, x[0])?],
        Op::SoftmaxGrad { log } => vec![softmax::softmax_grad(w, *log, x[0], x[1])?],
        Op::Rotary { rotated, interleaved, inverse } => {
            vec![rotary::rotary(w, rotary::Form { rotated: *rotated, interleaved: *interleaved, inverse: *inverse }, x)?]
        }
        Op::CrossEntropy(c) => loss::cross_entropy(w, c, x)?,
        Op::CrossEntropyGrad(c) => vec![loss::cross_entropy_grad(w, c, x)?],
        op => w.add(op.clone(), x)?,
    })
}

/// The nodes that a result of the graph or an update needs, their origins, and every source but constants.
fn live(graph: &Graph) -> Vec<bool> {
    let mut live = vec![false; graph.nodes.len()];
    let node_of = |v: &ValueId| graph.values[v.index()].node.index();
    let roots = graph.outputs.iter().map(|o| &o.value).chain(&graph.loss).chain(graph.gradients.iter().map(|g| &g.value));
    roots.for_each(|v| live[node_of(v)] = true);
    for n in (0..graph.nodes.len()).rev() {
        let node = &graph.nodes[n];
        live[n] |= !node.op.aliases().is_empty() || (node.op.is_source() && !matches!(node.op, Op::Constant(_)));
        if live[n] {
            live[node.origin.index()] = true;
            node.inputs.iter().for_each(|v| live[node_of(v)] = true);
        }
    }
    live
}
