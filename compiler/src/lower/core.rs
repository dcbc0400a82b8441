//! The graph that lowering works on: the compiler's graph with composites written out, each node and value tied to where it comes from.

use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::{Expr, ExprNode, Graph, NodeId, Op, TensorType, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Kind, Literal, Unary};

/// A graph without row composites, and its ties to the graph it was made from.
#[derive(Clone, Debug, Default)]
pub(super) struct Core {
    pub graph: Graph,
    /// For each node: the node of the source graph that it is, or is part of.
    pub part_of: Vec<NodeId>,
    /// For each value: the value of the source graph that it holds, or helps to compute.
    pub holds: Vec<ValueId>,
    /// For each node: whether it is a copy that lowering made, which must end in a buffer.
    pub copy: Vec<bool>,
}

/// A [`Core`] being made from a graph, node by node.
pub(super) struct Writer<'a> {
    rewrite: Rewrite<'a>,
    part_of: Vec<NodeId>,
    values: Vec<ValueId>,
    copies: Vec<bool>,
    /// What is added next belongs to this node of the source graph.
    part: NodeId,
    /// What is added next holds this value of the source graph, or helps to compute it.
    holds: ValueId,
    copying: bool,
}

impl<'a> Writer<'a> {
    pub fn new(from: &'a Graph) -> Self {
        let (part, holds) = (NodeId(0), ValueId(0));
        Writer { rewrite: Rewrite::new(from), part_of: vec![], values: vec![], copies: vec![], part, holds, copying: false }
    }

    /// The graph as far as it is written.
    pub fn graph(&self) -> &Graph {
        self.rewrite.graph()
    }

    /// Starts on a node of `from`: what is added next belongs to `part` and helps to compute `holds`.
    pub fn begin(&mut self, node: NodeId, part: NodeId, holds: ValueId) {
        self.rewrite.begin(node);
        (self.part, self.holds) = (part, holds);
    }

    /// The counterpart of a value of `from`.
    pub fn get(&self, v: ValueId) -> Result<ValueId, Error> {
        self.rewrite.get(v)
    }

    /// States that `new` is the counterpart of `old`, which holds the source graph's value `holds`.
    pub fn bind(&mut self, old: ValueId, new: ValueId, holds: ValueId) {
        self.rewrite.set(old, new);
        self.values[new.index()] = holds;
    }

    pub fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, Error> {
        let out = self.rewrite.add(op, inputs)?;
        self.note();
        Ok(out)
    }

    pub fn one(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, Error> {
        Ok(self.add(op, inputs)?[0])
    }

    /// Adds a source of a type.
    pub fn source(&mut self, op: Op, ty: &TensorType) -> ValueId {
        let v = self.rewrite.add_source(op, ty.clone());
        self.note();
        v
    }

    /// A copy of a value in a buffer of its own.
    pub fn copy(&mut self, v: ValueId) -> Result<ValueId, Error> {
        self.copying = true;
        let holds = std::mem::replace(&mut self.holds, self.values[v.index()]);
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
        &self.graph().ty(v).shape
    }

    pub fn dtype(&self, v: ValueId) -> DType {
        self.graph().ty(v).dtype
    }

    fn note(&mut self) {
        self.part_of.push(self.part);
        self.copies.push(self.copying);
        let values = self.graph().values.len();
        self.values.resize(values, self.holds);
    }

    /// States whether the nodes added next are copies.
    pub fn copying(&mut self, copying: bool) {
        self.copying = copying;
    }

    /// The finished core, with the outputs, loss and gradients of `from`.
    ///
    /// # Errors
    /// As [`Rewrite::finish`].
    pub fn finish(self) -> Result<Core, Error> {
        Ok(Core { graph: self.rewrite.finish()?.0, part_of: self.part_of, holds: self.values, copy: self.copies })
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
