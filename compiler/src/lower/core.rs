//! The graph that lowering works on: the compiler's graph with composites written out, each node and value tied to where it comes from.

use crate::Error;
use crate::graph::{Epoch, Expr, ExprNode, Gradient, Graph, NodeId, Op, Output, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Kind, Literal, Unary};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A graph without row composites, and its ties to the graph it was made from.
#[derive(Clone, Debug, Default)]
pub(super) struct Core {
    pub graph: Graph,
    /// For each node: the node of the source graph that it is, or is part of.
    pub origin: Vec<NodeId>,
    /// For each value: the value of the source graph that it holds, or helps to compute.
    pub holds: Vec<ValueId>,
    /// For each node: whether it is a copy that lowering made, which must end in a buffer.
    pub copy: Vec<bool>,
}

/// A [`Core`] being made from a graph, node by node.
pub(super) struct Writer<'a> {
    pub from: &'a Graph,
    pub core: Core,
    /// The new counterpart of each value of `from`.
    map: Vec<Option<ValueId>>,
    epoch: Epoch,
    site: Arc<str>,
    origin: NodeId,
    holds: ValueId,
    copying: bool,
}

impl<'a> Writer<'a> {
    pub fn new(from: &'a Graph) -> Self {
        let mut core = Core::default();
        core.graph.parameters = from.parameters.clone();
        let map = vec![None; from.values.len()];
        let (epoch, origin, holds) = (Epoch::Forward, NodeId(0), ValueId(0));
        Writer { from, core, map, epoch, site: Arc::from(""), origin, holds, copying: false }
    }

    /// Starts on a node of `from`: what is added next belongs to `origin` and helps to compute `holds`.
    pub fn begin(&mut self, node: NodeId, origin: NodeId, holds: ValueId) {
        let n = self.from.node(node);
        (self.epoch, self.site, self.origin, self.holds) = (n.epoch, n.site.clone(), origin, holds);
    }

    /// The counterpart of a value of `from`.
    pub fn get(&self, v: ValueId) -> Result<ValueId, Error> {
        let missing = || Error::Verify { pass: "lower", reason: format!("value {} is read before it is defined", v.0) };
        self.map[v.index()].ok_or_else(missing)
    }

    /// States that `new` is the counterpart of `old`, which holds the source graph's value `holds`.
    pub fn bind(&mut self, old: ValueId, new: ValueId, holds: ValueId) {
        self.map[old.index()] = Some(new);
        self.core.holds[new.index()] = holds;
    }

    pub fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, Error> {
        let out = self.core.graph.add(op, inputs, self.epoch, &self.site)?;
        self.note();
        Ok(out)
    }

    pub fn one(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, Error> {
        Ok(self.add(op, inputs)?[0])
    }

    /// Adds a source of the type that `old` has.
    pub fn source(&mut self, op: Op, old: ValueId) -> ValueId {
        let v = self.core.graph.add_source(op, self.from.ty(old).clone(), &self.site.clone());
        self.note();
        v
    }

    /// A copy of a value in a buffer of its own.
    pub fn copy(&mut self, v: ValueId) -> Result<ValueId, Error> {
        self.copying = true;
        let holds = std::mem::replace(&mut self.holds, self.core.holds[v.index()]);
        let dtype = self.dtype(v);
        let out = self.one(Op::Map(Expr::identity(), dtype), &[v]);
        (self.copying, self.holds) = (false, holds);
        out
    }

    /// Adds a Map whose expression `f` writes, given the operands' positions.
    pub fn map(&mut self, dtype: DType, inputs: &[ValueId], f: impl FnOnce(&mut Formula, &[u32]) -> u32) -> Result<ValueId, Error> {
        let mut formula = Formula::default();
        let operands: Vec<u32> = (0..inputs.len() as u32).map(|i| formula.push(ExprNode::Operand(i))).collect();
        let result = f(&mut formula, &operands);
        debug_assert_eq!(result as usize + 1, formula.body.len(), "the result of an expression is its last node");
        self.one(Op::Map(Expr { body: formula.body }, dtype), inputs)
    }

    pub fn reshape(&mut self, v: ValueId, shape: &[u64]) -> Result<ValueId, Error> {
        if self.shape(v) == shape { Ok(v) } else { self.one(Op::Reshape(shape.to_vec()), &[v]) }
    }

    pub fn shape(&self, v: ValueId) -> &[u64] {
        &self.core.graph.ty(v).shape
    }

    pub fn dtype(&self, v: ValueId) -> DType {
        self.core.graph.ty(v).dtype
    }

    fn note(&mut self) {
        self.core.origin.push(self.origin);
        self.core.copy.push(self.copying);
        self.core.holds.resize(self.core.graph.values.len(), self.holds);
    }

    /// States whether the nodes added next are copies.
    pub fn copying(&mut self, copying: bool) {
        self.copying = copying;
    }

    /// The finished core, with the outputs, loss and gradients of `from`, or what `instead` has in their place.
    pub fn finish(mut self, instead: &BTreeMap<ValueId, ValueId>) -> Result<Core, Error> {
        let mut graph = std::mem::take(&mut self.core.graph);
        let get = |v: ValueId| instead.get(&v).copied().map_or_else(|| self.get(v), Ok);
        for o in &self.from.outputs {
            graph.outputs.push(Output { name: o.name.clone(), value: get(o.value)? });
        }
        graph.loss = self.from.loss.map(get).transpose()?;
        for g in &self.from.gradients {
            graph.gradients.push(Gradient { parameter: g.parameter, value: get(g.value)? });
        }
        self.core.graph = graph;
        Ok(self.core)
    }
}

/// The body of an expression being written; methods return positions in it.
#[derive(Default)]
pub(super) struct Formula {
    body: Vec<ExprNode>,
}

impl Formula {
    fn push(&mut self, node: ExprNode) -> u32 {
        self.body.push(node);
        self.body.len() as u32 - 1
    }

    pub fn float(&mut self, x: f32) -> u32 {
        self.push(ExprNode::Const { kind: Kind::Float, value: Literal::float(x) })
    }

    pub fn int(&mut self, x: i64) -> u32 {
        self.push(ExprNode::Const { kind: Kind::Int, value: Literal::Int(x) })
    }

    pub fn un(&mut self, op: Unary, x: u32) -> u32 {
        self.push(ExprNode::Unary(op, x))
    }

    pub fn bin(&mut self, op: Binary, x: u32, y: u32) -> u32 {
        self.push(ExprNode::Binary(op, x, y))
    }

    pub fn add(&mut self, x: u32, y: u32) -> u32 {
        self.bin(Binary::Add, x, y)
    }

    pub fn sub(&mut self, x: u32, y: u32) -> u32 {
        self.bin(Binary::Sub, x, y)
    }

    pub fn mul(&mut self, x: u32, y: u32) -> u32 {
        self.bin(Binary::Mul, x, y)
    }

    pub fn div(&mut self, x: u32, y: u32) -> u32 {
        self.bin(Binary::Div, x, y)
    }

    pub fn select(&mut self, c: u32, x: u32, y: u32) -> u32 {
        self.push(ExprNode::Select(c, x, y))
    }
}
