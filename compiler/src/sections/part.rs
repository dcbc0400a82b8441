//! A section's forward nodes as a graph of their own.
//!
//! Parameters and the carried values are numbered in the order of their first use, so that equal sections make equal graphs. Values that no
//! trained parameter goes into (masks, positions) are not carried over a cut: every section that reads them has them whole, so that no
//! fact about them is lost.

use super::cut::Whole;
use crate::Error;
use crate::graph::{Graph, Op, Output, Parameter, TensorType, ValueId};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// What makes two sections the same: everything but names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    sources: Vec<(Op, TensorType)>,
    nodes: Vec<(Op, Vec<ValueId>)>,
    gives: Vec<ValueId>,
}

/// A range of a graph's forward nodes.
pub struct Part {
    pub graph: Graph,
    pub shape: Shape,
    /// Values of the whole graph that the part's inputs stand for.
    pub inputs: Vec<ValueId>,
    /// Values of the whole graph that the part's parameters stand for.
    pub parameters: Vec<ValueId>,
    /// Values of the whole graph that the part's outputs stand for.
    pub gives: Vec<ValueId>,
}

/// Cuts a range out of a graph.
///
/// # Errors
/// [`Error::Graph`] for nodes that do not type.
pub(super) fn part(whole: &Whole, range: Range<usize>) -> Result<Part, Error> {
    let graph = whole.graph;
    let members = whole.members(range.clone());
    let made: HashSet<ValueId> = members.iter().flat_map(|&n| graph.nodes[n].results.iter().copied()).collect();
    let shape = Shape { sources: vec![], nodes: vec![], gives: vec![] };
    let mut part = Part { graph: Graph::default(), shape, inputs: vec![], parameters: vec![], gives: vec![] };
    let mut local: HashMap<ValueId, ValueId> = HashMap::new();
    for &v in members.iter().flat_map(|&n| &graph.nodes[n].inputs).filter(|v| !made.contains(v)) {
        local.entry(v).or_insert_with(|| part.source(graph, v));
    }
    for &n in &members {
        let node = &graph.nodes[n];
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| local[v]).collect();
        let results = part.graph.add_forward(node.op.clone(), &inputs, &node.site)?;
        local.extend(node.results.iter().copied().zip(results));
        part.shape.nodes.push((node.op.clone(), inputs));
    }
    let read_later = |v: &ValueId| whole.root[v.index()] || (whole.carried[v.index()] && whole.last_use[v.index()] >= range.end);
    let nodes = graph.nodes[range.clone()].iter().filter(|n| !n.op.is_source());
    part.gives = nodes.flat_map(|n| n.results.iter().copied()).filter(read_later).collect();
    part.shape.gives = part.gives.iter().map(|v| local[v]).collect();
    let output = |(i, &value): (usize, &ValueId)| Output { name: format!("o{i}"), value };
    part.graph.outputs = part.shape.gives.iter().enumerate().map(output).collect();
    Ok(part)
}

impl Part {
    /// Adds what stands for a value from outside.
    fn source(&mut self, whole: &Graph, v: ValueId) -> ValueId {
        let (node, ty) = (whole.def(v), whole.ty(v));
        let op = match &node.op {
            Op::Parameter(p) => {
                let name = format!("p{}", self.parameters.len());
                self.graph.parameters.push(Parameter { name: name.clone(), source: name, ..whole.parameters[*p].clone() });
                self.parameters.push(v);
                Op::Parameter(self.parameters.len() - 1)
            }
            Op::Constant(data) => Op::Constant(data.clone()),
            _ => {
                self.inputs.push(v);
                Op::Input { name: format!("i{}", self.inputs.len() - 1) }
            }
        };
        self.shape.sources.push((op.clone(), ty.clone()));
        self.graph.add_source(op, ty.clone(), &node.site)
    }
}
