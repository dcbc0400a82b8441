//! Which format each value of a forward graph is stored in.
//!
//! Arithmetic is f32 throughout; this pass says what is rounded when it is stored. Under [`Precision::Bf16`] and [`Precision::Fp8`]:
//! * activations are bf16, logits among them;
//! * matrix products, convolutions and attention read bf16 operands: a parameter is converted once, where it is first needed, and views
//!   of it are views of the converted one; a constant is converted at compile time;
//! * expressions, norms, gathers and rotary tables read parameters and constants as they are, in f32;
//! * statistics (sums, what norms and attention keep, and expressions of these alone) and the loss, with the light operators that only
//!   lead to it, are f32.
//!
//! It runs before differentiation, which gives gradients the formats of their values.

use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::*;
use fp8c_kernels::DType;
use std::collections::HashMap;
use std::sync::Arc;

/// The arithmetic that the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
    /// As bf16 at this stage: which matrix products read E4M3 is decided later.
    Fp8,
}

impl Precision {
    /// The name on the command line and in plans.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Fp8 => "fp8",
        }
    }
}

/// Rewrites an f32 forward graph to the storage formats of a precision; f32 changes nothing.
///
/// # Errors
/// What [`Graph::add`] says of a node that does not fit the formats of its inputs.
pub fn storage(graph: Graph, precision: Precision) -> Result<Graph, Error> {
    if precision == Precision::F32 {
        return Ok(graph);
    }
    let mut pass = Storage {
        head: loss_head(&graph),
        side: parameter_side(&graph),
        from: &graph,
        rewrite: Rewrite::new(&graph),
        statistic: vec![false; graph.values.len()],
        narrow: HashMap::new(),
    };
    (0..graph.nodes.len() as u32).try_for_each(|n| pass.node(NodeId(n)))?;
    pass.finish()
}

struct Storage<'a> {
    from: &'a Graph,
    rewrite: Rewrite<'a>,
    /// By node: it leads to the loss alone.
    head: Vec<bool>,
    /// By value: no input reaches it.
    side: Vec<bool>,
    /// By value: kept in f32, and what is made of it alone too.
    statistic: Vec<bool>,
    /// By value of the new graph: the same in bf16.
    narrow: HashMap<ValueId, ValueId>,
}

/// Nodes whose results are of no use but for the loss, and that are light enough to store them in f32.
fn loss_head(graph: &Graph) -> Vec<bool> {
    let users = graph.users();
    let mut head = vec![false; graph.nodes.len()];
    for n in (0..graph.nodes.len()).rev() {
        let node = &graph.nodes[n];
        let light = match node.op {
            Op::Map(..) | Op::Reduce { .. } | Op::Softmax { .. } | Op::Take => true,
            Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Broadcast(_) | Op::Concat { .. } | Op::Pad { .. } => true,
            _ => false,
        };
        let leads = |v: &ValueId| {
            let used = &users[v.index()];
            let read_out = graph.outputs.iter().any(|o| o.value == *v && graph.loss != Some(*v));
            graph.loss == Some(*v) || (!used.is_empty() && !read_out && used.iter().all(|u| head[u.index()]))
        };
        head[n] = light && node.results.iter().all(leads);
    }
    head
}

fn parameter_side(graph: &Graph) -> Vec<bool> {
    let mut side = vec![false; graph.values.len()];
    for node in &graph.nodes {
        let of = !matches!(node.op, Op::Input { .. }) && node.inputs.iter().all(|v| side[v.index()]);
        node.results.iter().for_each(|v| side[v.index()] = of);
    }
    side
}

fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Pad { .. } | Op::Broadcast(_))
}

impl Storage<'_> {
    fn node(&mut self, n: NodeId) -> Result<(), Error> {
        let node = self.from.node(n);
        let inputs = node.inputs.iter().map(|&v| self.rewrite.get(v)).collect::<Result<Vec<_>, _>>()?;
        let first = |v: &Option<&ValueId>| v.is_none_or(|v| self.side[v.index()]);
        if node.op.is_source() || first(&node.results.first()) {
            return self.rewrite.copy(n);
        }
        let (op, inputs) = self.stored(n, inputs)?;
        let results = self.rewrite.to.add(op, &inputs, node.epoch, &node.site)?;
        let statistics = match &node.op {
            Op::Reduce { .. } => 0,
            Op::Map(..) if self.of_statistics(node) => 0,
            op if is_view(op) && self.statistic[node.inputs[0].index()] => 0,
            _ => 1,
        };
        for (i, (&from, &to)) in node.results.iter().zip(&results).enumerate() {
            self.statistic[from.index()] = i >= statistics;
            self.rewrite.set(from, to);
        }
        Ok(())
    }

    /// The operator as it is stored, on inputs of the formats that it takes.
    fn stored(&mut self, n: NodeId, mut inputs: Vec<ValueId>) -> Result<(Op, Vec<ValueId>), Error> {
        let node = self.from.node(n);
        let head = self.head[n.index()];
        let float = |dtype: DType| dtype.is_float();
        let (op, narrow) = match &node.op {
            Op::Map(expr, dtype) if float(*dtype) && !head && !self.of_statistics(node) => (Op::Map(expr.clone(), DType::Bf16), 0),
            Op::Matmul { trans_a, trans_b, .. } => (Op::Matmul { trans_a: *trans_a, trans_b: *trans_b, dtype: DType::Bf16 }, 2),
            Op::PutAdd { extent, dtype } if float(*dtype) => (Op::PutAdd { extent: *extent, dtype: DType::Bf16 }, 1),
            Op::Conv(c) => (Op::Conv(ConvOp { dtype: DType::Bf16, ..c.clone() }), 3),
            Op::Pool { .. } => (node.op.clone(), 1),
            Op::Norm(norm) => (Op::Norm(NormOp { dtype: DType::Bf16, ..norm.clone() }), 1),
            Op::Softmax { .. } if head => {
                inputs[0] = self.wide(inputs[0])?;
                (node.op.clone(), 0)
            }
            Op::Softmax { .. } | Op::Rotary { .. } => (node.op.clone(), 1),
            Op::Attention(_) => (node.op.clone(), 3),
            Op::CrossEntropy(c) => (Op::CrossEntropy(CrossEntropyOp { dtype: DType::Bf16, ..c.clone() }), 1),
            Op::Concat { .. } if inputs.iter().any(|&v| self.rewrite.to.ty(v).dtype == DType::Bf16) => (node.op.clone(), inputs.len()),
            op => (op.clone(), 0),
        };
        for v in inputs.iter_mut().take(narrow) {
            *v = self.narrow(*v)?;
        }
        Ok((op, inputs))
    }

    /// True for an expression whose float operands, beside parameters and constants, are all statistics.
    fn of_statistics(&self, node: &Node) -> bool {
        let float = |v: &&ValueId| self.from.ty(**v).dtype.is_float();
        let mut activations = node.inputs.iter().filter(float).filter(|v| !self.side[v.index()]).peekable();
        activations.peek().is_some() && activations.all(|v| self.statistic[v.index()])
    }

    /// The value in bf16; of a view, the view of its source in bf16, so that each source is converted once.
    fn narrow(&mut self, v: ValueId) -> Result<ValueId, Error> {
        let to = &self.rewrite.to;
        if to.ty(v).dtype != DType::F32 {
            return Ok(v);
        }
        if let Some(&made) = self.narrow.get(&v) {
            return Ok(made);
        }
        let node = to.def(v).clone();
        let made = match &node.op {
            Op::Constant(data) => {
                let ty = TensorType::new(DType::Bf16, data.ty.shape.clone());
                let rounded = eval::eval_node(&Op::Map(Expr::identity(), DType::Bf16), &[data], std::slice::from_ref(&ty));
                let data = rounded.map_err(|e| Error::graph(&node.site, e))?.remove(0);
                self.rewrite.to.add_source(Op::Constant(Arc::new(data)), ty, &node.site)
            }
            op if is_view(op) => {
                let source = self.narrow(node.inputs[0])?;
                self.rewrite.to.add(op.clone(), &[source], node.epoch, &node.site)?[0]
            }
            _ => self.cast(v, DType::Bf16)?,
        };
        self.narrow.insert(v, made);
        Ok(made)
    }

    /// The value in f32.
    fn wide(&mut self, v: ValueId) -> Result<ValueId, Error> {
        if self.rewrite.to.ty(v).dtype == DType::Bf16 { self.cast(v, DType::F32) } else { Ok(v) }
    }

    fn cast(&mut self, v: ValueId, dtype: DType) -> Result<ValueId, Error> {
        let site = self.rewrite.to.def(v).site.clone();
        Ok(self.rewrite.to.add(Op::Map(Expr::identity(), dtype), &[v], Epoch::Forward, &site)?[0])
    }

    fn finish(mut self) -> Result<Graph, Error> {
        if let Some(loss) = self.from.loss {
            let stored = self.rewrite.get(loss)?;
            let wide = self.wide(stored)?;
            self.rewrite.set(loss, wide);
        }
        let graph = self.rewrite.finish()?.0.without_dead_code()?.0;
        graph.verify()?;
        Ok(graph)
    }
}
