//! Repeated layers, found by their structure, so that each kind is saturated once.
//!
//! A forward graph is cut where one value alone carries what was computed so far: at residual additions. Each section between two cuts
//! becomes a graph of its own, in which parameters and the carried value are numbered in the order of their first use; sections that
//! are equal then have the same rewriting. Values that no trained parameter goes into (masks, positions) are not carried over a cut:
//! every section that reads them has them whole, so that no fact about them is lost.
//!
//! Small e-graphs matter twice. Saturation grows faster than its e-graph, and a term's cost counts shared operands at each use:
//! over a hundred residual additions it would outgrow a float's digits.

use crate::Error;
use crate::graph::{Epoch, Expr, ExprNode, Graph, Node, Op, Output, Parameter, TensorType, ValueId};
use fp8c_kernels::program::Binary;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What makes two sections the same: everything but names.
#[derive(PartialEq, Eq, Hash)]
pub struct Shape {
    sources: Vec<(Op, TensorType)>,
    nodes: Vec<(Op, Vec<ValueId>)>,
    gives: Vec<ValueId>,
}

/// A range of a graph's nodes.
pub struct Section {
    pub graph: Graph,
    pub shape: Shape,
    /// Values of the whole graph that the section's inputs and parameters stand for.
    inputs: Vec<ValueId>,
    parameters: Vec<ValueId>,
    /// Values of the whole graph that the section's outputs stand for.
    gives: Vec<ValueId>,
}

/// Facts about the whole graph.
struct Whole<'a> {
    graph: &'a Graph,
    /// For each value: whether a trained parameter goes into it.
    carried: Vec<bool>,
    /// For each value: the last node that reads it; 0 where none does.
    last_use: Vec<usize>,
    root: Vec<bool>,
}

/// Cuts a forward graph into sections; their nodes in order are the graph's.
///
/// # Errors
/// [`Error::Graph`] for nodes that do not type.
pub fn sections(graph: &Graph) -> Result<Vec<Section>, Error> {
    let mut whole = Whole {
        graph,
        carried: vec![false; graph.values.len()],
        last_use: vec![0; graph.values.len()],
        root: vec![false; graph.values.len()],
    };
    super::encode::roots(graph).iter().for_each(|v| whole.root[v.index()] = true);
    for (n, node) in graph.nodes.iter().enumerate() {
        let trained = matches!(node.op, Op::Parameter(p) if graph.parameters[p].trainable);
        let carried = trained || node.inputs.iter().any(|v| whole.carried[v.index()]);
        node.results.iter().for_each(|r| whole.carried[r.index()] = carried);
        node.inputs.iter().for_each(|v| whole.last_use[v.index()] = n);
    }
    let mut starts = vec![0];
    starts.extend(whole.cuts());
    let ends = starts[1..].iter().copied().chain([graph.nodes.len()]);
    starts.iter().zip(ends).map(|(&start, end)| whole.section(start, end)).collect()
}

impl Whole<'_> {
    /// Nodes before which one value alone, the result of a residual addition, is carried.
    fn cuts(&self) -> Vec<usize> {
        let mut open: BTreeSet<ValueId> = BTreeSet::new();
        let (mut cuts, mut last) = (vec![], None);
        for (n, node) in self.graph.nodes.iter().enumerate() {
            open.retain(|v| self.last_use[v.index()] > n);
            let carried = |v: &&ValueId| self.carried[v.index()] && self.last_use[v.index()] > n && !node.op.is_source();
            open.extend(node.results.iter().filter(carried));
            let alone = open.first().copied().filter(|v| open.len() == 1 && self.joins(self.graph.def(*v)));
            if alone.is_some() && alone != last {
                cuts.push(n + 1);
                last = alone;
            }
        }
        cuts
    }

    /// True for the sum of two carried values that are no parameters.
    fn joins(&self, node: &Node) -> bool {
        let sum = [ExprNode::Operand(0), ExprNode::Operand(1), ExprNode::Binary(Binary::Add, 0, 1)];
        let adds = matches!(&node.op, Op::Map(Expr { body }, _) if *body == sum);
        adds && node.inputs.iter().all(|v| self.carried[v.index()] && !self.graph.def(*v).op.is_source())
    }

    /// The nodes of a section: its range, and what of uncarried values it reads from before, in order.
    fn members(&self, start: usize, end: usize) -> Vec<usize> {
        let computed = |n: &usize| !self.graph.nodes[*n].op.is_source();
        let mut members: BTreeSet<usize> = (start..end).filter(computed).collect();
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

    fn section(&self, start: usize, end: usize) -> Result<Section, Error> {
        let members = self.members(start, end);
        let made: std::collections::HashSet<ValueId> = members.iter().flat_map(|&n| self.graph.nodes[n].results.iter().copied()).collect();
        let mut s = Section {
            graph: Graph::default(),
            shape: Shape { sources: vec![], nodes: vec![], gives: vec![] },
            inputs: vec![],
            parameters: vec![],
            gives: vec![],
        };
        let mut local: HashMap<ValueId, ValueId> = HashMap::new();
        for &v in members.iter().flat_map(|&n| &self.graph.nodes[n].inputs).filter(|v| !made.contains(v)) {
            local.entry(v).or_insert_with(|| s.source(self.graph, v));
        }
        for &n in &members {
            let node = &self.graph.nodes[n];
            let inputs: Vec<ValueId> = node.inputs.iter().map(|v| local[v]).collect();
            let results = s.graph.add(node.op.clone(), &inputs, Epoch::Forward, &node.site)?;
            local.extend(node.results.iter().copied().zip(results));
            s.shape.nodes.push((node.op.clone(), inputs));
        }
        let range = self.graph.nodes[start..end].iter().filter(|n| !n.op.is_source());
        let read_later = |v: &ValueId| self.root[v.index()] || (self.carried[v.index()] && self.last_use[v.index()] >= end);
        s.gives = range.flat_map(|n| n.results.iter().copied()).filter(read_later).collect();
        s.shape.gives = s.gives.iter().map(|v| local[v]).collect();
        let output = |(i, &value): (usize, &ValueId)| Output { name: format!("o{i}"), value };
        s.graph.outputs = s.shape.gives.iter().enumerate().map(output).collect();
        Ok(s)
    }
}

impl Section {
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

/// Puts rewritten sections together to a graph that computes what the old one did.
pub struct Joiner<'a> {
    old: &'a Graph,
    graph: Graph,
    /// The new value of each old one that a section reads or gives.
    at: HashMap<ValueId, ValueId>,
    /// Equal nodes are one: each section has its own copy of what is not carried.
    seen: HashMap<(Op, Vec<ValueId>), Vec<ValueId>>,
}

impl<'a> Joiner<'a> {
    pub fn new(old: &'a Graph) -> Self {
        let mut graph = Graph { parameters: old.parameters.clone(), ..Graph::default() };
        let (mut at, mut seen) = (HashMap::new(), HashMap::new());
        for node in old.nodes.iter().filter(|n| n.op.is_source()) {
            let v = node.results[0];
            let new = graph.add_source(node.op.clone(), old.ty(v).clone(), &node.site);
            at.insert(v, new);
            seen.entry((node.op.clone(), vec![])).or_insert(vec![new]);
        }
        Joiner { old, graph, at, seen }
    }

    /// Appends the rewriting of a section. It may be that of an equal section, `kind`, whose names are replaced.
    ///
    /// # Errors
    /// [`Error::Graph`] when a node does not type.
    pub fn append(&mut self, section: &Section, kind: &Section, rewritten: &Graph) -> Result<(), Error> {
        let sites = kind.graph.nodes.iter().zip(&section.graph.nodes).map(|(k, s)| (&k.site, &s.site));
        let mut site_of: HashMap<&Arc<str>, &Arc<str>> = HashMap::new();
        sites.for_each(|(k, s)| {
            site_of.entry(k).or_insert(s);
        });
        let mut new: HashMap<ValueId, ValueId> = HashMap::new();
        let mut inputs = section.inputs.iter();
        for node in &rewritten.nodes {
            // Inputs and parameters keep their order and are all there.
            let outside = match &node.op {
                Op::Input { .. } => inputs.next(),
                Op::Parameter(p) => section.parameters.get(*p),
                _ => None,
            };
            if let Some(v) = outside {
                new.insert(node.results[0], self.at[v]);
                continue;
            }
            let operands: Vec<ValueId> = node.inputs.iter().map(|v| new[v]).collect();
            let key = (node.op.clone(), operands);
            let results = match self.seen.get(&key) {
                Some(results) => results.clone(),
                None => {
                    let site = site_of.get(&node.site).copied().unwrap_or(&node.site);
                    let results = self.graph.add(key.0.clone(), &key.1, Epoch::Forward, site)?;
                    self.seen.insert(key, results.clone());
                    results
                }
            };
            new.extend(node.results.iter().copied().zip(results));
        }
        self.at.extend(section.gives.iter().zip(&rewritten.outputs).map(|(v, o)| (*v, new[&o.value])));
        Ok(())
    }

    /// The whole graph.
    ///
    /// # Errors
    /// As [`Graph::without_dead_code`].
    pub fn finish(mut self) -> Result<Graph, Error> {
        let (old, at) = (self.old, &self.at);
        self.graph.outputs = old.outputs.iter().map(|o| Output { name: o.name.clone(), value: at[&o.value] }).collect();
        self.graph.loss = old.loss.map(|v| at[&v]);
        self.graph.without_dead_code().map(|(graph, _)| graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::new::{Family, Request, Sizes, new};
    use crate::import::{ImportOptions, import_model};
    use crate::recognise::recognise;
    use std::collections::HashSet;
    use std::path::Path;

    fn model(family: Family, layers: u64) -> Graph {
        let [layers, dim, heads, vocab, seq, batch] = [layers, 32, 2, 64, 16, 2].map(Some);
        let request = Request { layers, dim, heads, vocab, seq, batch, ..Request::default() };
        let sizes = Sizes::of(family, &request).unwrap();
        import_model(new(family, &sizes), Path::new("model.json"), &ImportOptions::default()).unwrap().graph
    }

    #[test]
    fn a_deeper_model_has_no_more_kinds_of_sections() {
        for family in [Family::Gpt2, Family::Llama] {
            let count = |layers| {
                let all = sections(&model(family, layers)).unwrap();
                (all.len(), all.iter().map(|s| &s.shape).collect::<HashSet<_>>().len())
            };
            let ((few, kinds), (many, same)) = (count(3), count(9));
            assert_eq!(many - few, 12, "attention and MLP of each layer");
            assert_eq!(kinds, same);
        }
    }

    #[test]
    fn every_layer_is_rewritten_and_keeps_its_own_parameters_and_names() {
        let graph = recognise(model(Family::Llama, 5)).unwrap();
        graph.verify().unwrap();
        let attention: Vec<&str> = graph.nodes.iter().filter(|n| matches!(n.op, Op::Attention(_))).map(|n| n.site.as_ref()).collect();
        assert_eq!(attention.len(), 5);
        assert_eq!(attention.iter().collect::<HashSet<_>>().len(), 5, "{attention:?}");
        let read: HashSet<ValueId> = graph.nodes.iter().flat_map(|n| n.inputs.iter().copied()).collect();
        let unread = graph.nodes.iter().filter(|n| matches!(n.op, Op::Parameter(_)) && !read.contains(&n.results[0]));
        assert_eq!(unread.count(), 0);
    }
}
