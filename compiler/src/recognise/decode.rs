//! E-graph to graph: the cheapest form of every root.

use super::term::{Cost, Term, Terms, is_scalar, is_test, op_of};
use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::{ConstData, Expr, ExprNode, Graph, NodeId, Op, ValueId};
use crate::sections::roots;
use egg::{Extractor, Id};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, FloatBits, Kind, Literal, Named, Unary};
use std::collections::HashMap;
use std::sync::Arc;

type Best<'e> = Extractor<'e, Cost<'e>, Term, super::term::TermAnalysis>;

/// Builds the graph of the cheapest terms. Inputs and parameters keep their order and are all there; constants only where used.
///
/// # Errors
/// [`Error::Graph`] when a term does not type.
pub fn decode(old: &Graph, egraph: &Terms, best: &Best, encoded_roots: &[Id], sites: &[(Id, Arc<str>)]) -> Result<Graph, Error> {
    let mut site_of = HashMap::new();
    for (id, site) in sites {
        site_of.entry(egraph.find(*id)).or_insert_with(|| site.clone());
    }
    let mut d = Decoder { old, egraph, best, site_of, rewrite: Rewrite::new(old), done: HashMap::new() };
    d.sources(encoded_roots);
    for (&root, value) in encoded_roots.iter().zip(roots(old)) {
        let new = d.value(root, &old.def(value).site)?;
        d.rewrite.set(value, new);
    }
    // Literals that became constants stand where they were first read.
    d.rewrite.finish()?.0.without_dead_code().map(|(graph, _)| graph)
}

struct Decoder<'a, 'e> {
    old: &'a Graph,
    egraph: &'a Terms,
    best: &'a Best<'e>,
    site_of: HashMap<Id, Arc<str>>,
    rewrite: Rewrite<'a>,
    done: HashMap<Id, ValueId>,
}

impl Decoder<'_, '_> {
    /// Adds the sources: all inputs and parameters, and the constants that the chosen terms reach.
    fn sources(&mut self, from: &[Id]) {
        let mut reached = std::collections::HashSet::new();
        let mut open: Vec<Id> = from.to_vec();
        let mut used = std::collections::HashSet::new();
        while let Some(id) = open.pop() {
            if !reached.insert(self.egraph.find(id)) {
                continue;
            }
            match self.best.find_best_node(id) {
                Term::Source(v) => drop(used.insert(*v)),
                term => open.extend(egg::Language::children(term)),
            }
        }
        for (n, node) in (0..).map(NodeId).zip(&self.old.nodes).filter(|(_, n)| n.op.is_source()) {
            let v = node.results[0];
            if !matches!(node.op, Op::Constant(_)) || used.contains(&v.0) {
                self.rewrite.begin(n);
                let new = self.rewrite.add_source(node.op.clone(), self.old.ty(v).clone());
                if let Some(id) = self.egraph.lookup(Term::Source(v.0)) {
                    self.done.insert(self.egraph.find(id), new);
                }
            }
        }
    }

    /// The value of a class, built with everything below it, without recursion: models are deep.
    fn value(&mut self, id: Id, site: &Arc<str>) -> Result<ValueId, Error> {
        let mut stack = vec![(self.egraph.find(id), site.clone(), false)];
        while let Some((id, site, ready)) = stack.pop() {
            if self.done.contains_key(&id) {
                continue;
            }
            let site = self.site_of.get(&id).cloned().unwrap_or(site);
            let term = self.best.find_best_node(id).clone();
            if ready {
                let v = self.build(&term, &site)?;
                self.done.insert(id, v);
                continue;
            }
            stack.push((id, site.clone(), true));
            let operands = egg::Language::children(&term).iter().rev();
            stack.extend(operands.filter(|c| !self.is_leaf(**c)).map(|c| (self.egraph.find(*c), site.clone(), false)));
        }
        Ok(self.done[&self.egraph.find(id)])
    }

    /// Attributes and literals are part of their reader.
    fn is_leaf(&self, id: Id) -> bool {
        matches!(self.best.find_best_node(id), Term::Attribute(_) | Term::Scalar(_) | Term::Integer(..))
    }

    fn build(&mut self, term: &Term, site: &Arc<str>) -> Result<ValueId, Error> {
        match term {
            Term::Source(v) => {
                let node = self.old.def(ValueId(*v));
                self.one(node.op.clone(), &[], site)
            }
            Term::Scalar(x) => self.constant(ConstData::f32([], &[f32::from_bits(x.0)]), site),
            Term::Integer(i, true) => {
                self.constant(ConstData { ty: crate::graph::TensorType::new(DType::Bool, []), bytes: vec![(*i != 0) as u8] }, site)
            }
            Term::Integer(i, false) => self.constant(ConstData::i64([], &[*i]), site),
            Term::Attribute(_) => Err(Error::graph(site, "an attribute is no value")),
            Term::Apply(name, children) => self.apply(name.as_str(), children, site),
        }
    }

    fn constant(&mut self, data: ConstData, site: &Arc<str>) -> Result<ValueId, Error> {
        self.one(Op::Constant(Arc::new(data)), &[], site)
    }

    fn one(&mut self, op: Op, inputs: &[ValueId], site: &Arc<str>) -> Result<ValueId, Error> {
        Ok(self.rewrite.add_forward(op, inputs, site)?[0])
    }

    fn apply(&mut self, name: &str, children: &[Id], site: &Arc<str>) -> Result<ValueId, Error> {
        if is_scalar(name) {
            return self.map(name, children, site);
        }
        if name == "result" {
            let first = self.operand(children[0], site)?;
            let index = match self.best.find_best_node(children[1]) {
                Term::Integer(i, _) => *i as usize,
                _ => 0,
            };
            return self
                .rewrite
                .graph()
                .def(first)
                .results
                .get(index)
                .copied()
                .ok_or_else(|| Error::graph(site, "a result was rewritten away"));
        }
        let (last, operands) = children.split_last().ok_or_else(|| Error::graph(site, "a term without attributes"))?;
        let op = op_of(self.egraph, *last).cloned().ok_or_else(|| Error::graph(site, format!("{name} has lost its attributes")))?;
        let inputs = operands.iter().map(|c| self.operand(*c, site)).collect::<Result<Vec<_>, _>>()?;
        self.one(op, &inputs, site)
    }

    fn operand(&mut self, id: Id, site: &Arc<str>) -> Result<ValueId, Error> {
        match self.done.get(&self.egraph.find(id)) {
            Some(&v) => Ok(v),
            None => self.build(&self.best.find_best_node(id).clone(), site),
        }
    }

    /// A scalar operation as a map of its own, with literals inside (fusion joins maps later).
    fn map(&mut self, name: &str, children: &[Id], site: &Arc<str>) -> Result<ValueId, Error> {
        let (mut body, mut inputs): (Vec<ExprNode>, Vec<ValueId>) = (vec![], vec![]);
        let rank = children.iter().filter_map(|c| self.egraph[*c].data.ty.as_ref()).map(|t| t.rank()).max().unwrap_or(0);
        let all_literal = children.iter().all(|&c| self.literal(c, rank).is_some());
        for &c in children {
            let node = match self.literal(c, rank) {
                Some(literal) if !all_literal => literal,
                _ => {
                    inputs.push(self.operand(c, site)?);
                    ExprNode::Operand(inputs.len() as u32 - 1)
                }
            };
            body.push(node);
        }
        let result = match (Unary::named(name), Binary::named(name)) {
            (Some(op), _) => ExprNode::Unary(op, 0),
            (_, Some(op)) => ExprNode::Binary(op, 0, 1),
            _ => ExprNode::Select(0, 1, 2),
        };
        body.push(result);
        let last = children[children.len() - 1];
        let operand_type = self.egraph[last].data.ty.as_ref().map_or(DType::F32, |t| t.dtype);
        let dtype = if is_test(name) { DType::Bool } else { operand_type };
        self.one(Op::Map(Expr { body }, dtype), &inputs, site)
    }

    /// A class that is one number, as an expression's literal: only where that loses no axis of the result.
    fn literal(&self, id: Id, rank: usize) -> Option<ExprNode> {
        let float = |x: f32| ExprNode::Const { kind: Kind::Float, value: Literal::Float(FloatBits(x.to_bits())) };
        match self.best.find_best_node(id) {
            Term::Scalar(x) => Some(float(f32::from_bits(x.0))),
            Term::Integer(i, bool) => Some(ExprNode::Const { kind: if *bool { Kind::Bool } else { Kind::Int }, value: Literal::Int(*i) }),
            Term::Source(_) => {
                let fact = &self.egraph[id].data;
                let ty = fact.ty.as_ref()?;
                let data = fact.data.as_ref()?;
                let small = ty.elements() == 1 && ty.rank() <= rank && rank > 0;
                match (small, ty.dtype) {
                    (true, DType::F32) => fact.scalar.map(float),
                    (true, DType::I64) => Some(ExprNode::Const { kind: Kind::Int, value: Literal::Int(data.to_i64().first().copied()?) }),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}
