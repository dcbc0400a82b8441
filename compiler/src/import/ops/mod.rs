//! ONNX operators (opset 13 to 23) to graph operators.
//!
//! One file a family; each exports a table `OPS` of operator names and lowering rules, and [`FAMILIES`] lists the tables. A rule reads
//! its node through a [`Call`] and appends nodes to the graph; whatever has constant operands alone is folded on the way (`fold.rs`), so
//! that the shape arithmetic of a dynamic export is gone once its dimensions are bound.

mod activation;
mod attention;
mod call;
mod constant;
mod conv;
mod einsum;
mod elementwise;
mod expr;
mod gather;
mod loss;
mod matmul;
mod norm;
mod pad;
mod pool;
mod reduce;
mod rotary;
mod scatter;
mod shape;
mod softmax;
#[cfg(test)]
mod tests;

use super::model::{Model, ModelNode};
use crate::graph::{ConstData, Graph, ValueId};
use call::Call;
use fp8c_kernels::program::{Binary, Unary};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Lowers the nodes of a model, one after another, into a graph.
///
/// The driver adds the sources (inputs, parameters, constants) to `graph` and `values`, calls [`Lowering::node`] for each node in
/// topological order, and ends with [`Lowering::finish`].
#[derive(Debug, Default)]
pub struct Lowering {
    pub graph: Graph,
    /// The value of each tensor name so far.
    pub values: HashMap<String, ValueId>,
    /// Version of the default operator set.
    pub opset: i64,
    /// Names that have no value because of a gap that has been reported, or an output that is not computed.
    missing: HashMap<String, Missing>,
    /// Equal constants are one node.
    pub(super) constants: HashMap<Arc<ConstData>, ValueId>,
    /// Constants without the axes along which they only repeat.
    pub(super) compacted: HashMap<ValueId, ValueId>,
    /// Bytes of folded results so far.
    pub(super) folded_bytes: u64,
    /// Whether a value depends on a trainable parameter; memo of [`Lowering::is_trained`].
    trained: HashMap<ValueId, bool>,
}

/// Why a name has no value.
#[derive(Debug)]
enum Missing {
    /// Its node was reported; what depends on it is skipped silently.
    Reported,
    /// An output that the lowering does not produce: a gap where it is used.
    NotComputed(String),
}

/// An operator application that cannot be compiled, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub node: String,
    pub op: String,
    /// A sentence without its subject: "needs ...", "cannot ...".
    pub reason: String,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.node, self.op, self.reason)
    }
}

/// Values of a node's outputs, or the reason why there are none.
type Outcome = Result<Vec<ValueId>, String>;

/// How an operator is lowered.
#[derive(Clone, Copy)]
enum Rule {
    /// One scalar function of one float operand.
    Unary(Unary),
    /// One scalar function of two operands of one type.
    Binary(Binary),
    /// Anything else.
    Call(fn(&mut Call) -> Outcome),
    /// Known, and refused for this reason.
    Refused(&'static str),
}

type Table = &'static [(&'static str, Rule)];

/// All accepted operators, and those that are refused with a reason of their own.
const FAMILIES: &[Table] = &[
    activation::OPS,
    attention::OPS,
    constant::OPS,
    conv::OPS,
    einsum::OPS,
    elementwise::OPS,
    gather::OPS,
    loss::OPS,
    matmul::OPS,
    norm::OPS,
    pad::OPS,
    pool::OPS,
    reduce::OPS,
    rotary::OPS,
    scatter::OPS,
    shape::OPS,
    softmax::OPS,
];

/// The names of the operators that import accepts, sorted.
pub fn accepted() -> Vec<&'static str> {
    let all = FAMILIES.iter().flat_map(|t| t.iter());
    let mut names: Vec<_> = all.filter(|(_, rule)| !matches!(rule, Rule::Refused(_))).map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

fn rule(op: &str) -> Option<Rule> {
    FAMILIES.iter().flat_map(|t| t.iter()).find(|(name, _)| *name == op).map(|(_, rule)| *rule)
}

impl Lowering {
    /// Starts an empty graph for a model of this opset.
    pub fn new(model: &Model) -> Self {
        Lowering { opset: model.opset, ..Lowering::default() }
    }

    /// Lowers one node: afterwards its outputs are in `values`.
    ///
    /// A node that reads what a reported gap left undefined is skipped, so that each gap is reported once.
    ///
    /// # Errors
    /// The gap, when the node cannot be lowered. Its outputs are then undefined; lowering may go on, to find the other gaps.
    pub fn node(&mut self, node: &ModelNode) -> Result<(), Gap> {
        let outcome = self.lower(node);
        if !matches!(outcome, Ok(true)) {
            self.missing.extend(node.outputs.iter().map(|name| (name.clone(), Missing::Reported)));
        }
        outcome.map(|_| ()).map_err(|reason| Gap { node: title(node), op: full_name(node), reason })
    }

    /// False when the node was skipped.
    fn lower(&mut self, node: &ModelNode) -> Result<bool, String> {
        let known = if matches!(node.domain.as_str(), "" | "ai.onnx") { rule(&node.op) } else { None };
        let rule = known.ok_or_else(|| unknown(node))?;
        if let Rule::Refused(reason) = rule {
            return Err(reason.into());
        }
        let Some(inputs) = self.resolve(node)? else { return Ok(false) };
        let mut call = Call::new(self, node, inputs);
        let results = match rule {
            Rule::Unary(op) => elementwise::unary(&mut call, op),
            Rule::Binary(op) => elementwise::binary(&mut call, op),
            Rule::Call(lower) => lower(&mut call),
            Rule::Refused(reason) => Err(reason.into()),
        }?;
        for (i, name) in node.outputs.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            match results.get(i) {
                Some(&v) => drop(self.values.insert(name.clone(), v)),
                None => drop(self.missing.insert(name.clone(), Missing::NotComputed(not_computed(node, i)))),
            }
        }
        Ok(true)
    }

    /// The operands of a node; `None` when one is undefined because of a reported gap.
    fn resolve(&self, node: &ModelNode) -> Result<Option<Vec<Option<ValueId>>>, String> {
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for name in &node.inputs {
            inputs.push(match (name.as_str(), self.values.get(name)) {
                ("", _) => None,
                (_, Some(&v)) => Some(v),
                (_, None) => match self.missing.get(name) {
                    Some(Missing::Reported) => return Ok(None),
                    Some(Missing::NotComputed(reason)) => return Err(reason.clone()),
                    None => return Err(format!("reads {name}, which nothing defines before it")),
                },
            });
        }
        Ok(Some(inputs))
    }

    /// Why a name has no value: for the model's outputs, after all nodes.
    pub fn why_missing(&self, name: &str) -> Option<String> {
        match self.missing.get(name)? {
            Missing::Reported => None,
            Missing::NotComputed(reason) => Some(reason.clone()),
        }
    }

    /// True if the value depends on a trainable parameter, so that it has a derivative that matters.
    fn is_trained(&mut self, v: ValueId) -> bool {
        let mut stack = vec![v];
        while let Some(&v) = stack.last() {
            let node = self.graph.def(v);
            let known = match &node.op {
                crate::graph::Op::Parameter(p) => Some(self.graph.parameters.get(*p).is_some_and(|p| p.trainable)),
                _ if node.inputs.iter().any(|i| self.trained.get(i) == Some(&true)) => Some(true),
                _ => node.inputs.iter().all(|i| self.trained.contains_key(i)).then_some(false),
            };
            match known {
                Some(known) => {
                    self.trained.insert(v, known);
                    stack.pop();
                }
                None => {
                    let open: Vec<ValueId> = node.inputs.iter().copied().filter(|i| !self.trained.contains_key(i)).collect();
                    stack.extend(open);
                }
            }
        }
        self.trained[&v]
    }

    /// Ends the lowering: drops what no output needs (inputs and parameters stay) and puts the sources first.
    ///
    /// `roots` are the values that the driver holds on to (outputs, the loss); they are renumbered in place.
    ///
    /// # Errors
    /// As [`Graph::select`].
    pub fn finish(self, roots: &mut [ValueId]) -> Result<Graph, crate::Error> {
        super::fold::compact(&self.graph, roots)
    }
}

fn unknown(node: &ModelNode) -> String {
    match node.domain.as_str() {
        "" | "ai.onnx" => "is not among the accepted operators".into(),
        domain => format!("belongs to the operator set {domain}; only ONNX's own is accepted"),
    }
}

fn not_computed(node: &ModelNode, output: usize) -> String {
    format!("reads output {output} of {} ({}), which is not computed", title(node), node.op)
}

/// The node's name, or what it defines when it has none.
fn title(node: &ModelNode) -> String {
    match (node.name.as_str(), node.outputs.first()) {
        ("", Some(output)) => output.clone(),
        ("", None) => format!("a nameless {}", node.op),
        (name, _) => name.to_string(),
    }
}

fn full_name(node: &ModelNode) -> String {
    match node.domain.as_str() {
        "" | "ai.onnx" => node.op.clone(),
        domain => format!("{domain}.{}", node.op),
    }
}

/// PyTorch's module path where the model carries it, then the node's name.
fn site(node: &ModelNode) -> Arc<str> {
    let name = title(node);
    match super::torch::module(node).filter(|path| !path.is_empty()) {
        Some(path) => format!("{path}/{name}").into(),
        None => name.into(),
    }
}
