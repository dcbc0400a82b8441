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
        side: graph.parameter_side(),
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
        let light =
            matches!(node.op, Op::Map(..) | Op::Reduce { .. } | Op::Softmax { .. } | Op::Take | Op::Concat { .. }) || node.op.is_view();
        let leads = |v: &ValueId| {
            let used = &users[v.index()];
            let read_out = graph.outputs.iter().any(|o| o.value == *v && graph.loss != Some(*v));
            graph.loss == Some(*v) || (!used.is_empty() && !read_out && used.iter().all(|u| head[u.index()]))
        };
        head[n] = light && node.results.iter().all(leads);
    }
    head
}

impl Storage<'_> {
    fn node(&mut self, n: NodeId) -> Result<(), Error> {
        let node = self.from.node(n);
        self.rewrite.begin(n);
        let inputs = node.inputs.iter().map(|&v| self.rewrite.get(v)).collect::<Result<Vec<_>, _>>()?;
        if node.op.is_source() || node.results.iter().all(|v| self.side[v.index()]) {
            return self.rewrite.copy(n);
        }
        let (op, inputs) = self.stored(n, inputs)?;
        if let Op::Map(expr, dtype) = &op
            && *expr == Expr::identity()
            && self.rewrite.graph().ty(inputs[0]).dtype == *dtype
        {
            // A conversion to what is stored anyway.
            self.statistic[node.results[0].index()] = self.of_statistics(node);
            self.rewrite.set(node.results[0], inputs[0]);
            return Ok(());
        }
        let results = self.rewrite.add(op, &inputs)?;
        let statistics = match &node.op {
            Op::Reduce { .. } | Op::CrossEntropy(_) => 0,
            Op::Map(..) if self.of_statistics(node) => 0,
            op if op.is_view() && self.statistic[node.inputs[0].index()] => 0,
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
        let (op, narrow) = match &node.op {
            Op::Map(expr, dtype) if dtype.is_float() && !head && !self.of_statistics(node) => (Op::Map(expr.clone(), DType::Bf16), 0),
            Op::Matmul { trans_a, trans_b, .. } => (Op::Matmul { trans_a: *trans_a, trans_b: *trans_b, dtype: DType::Bf16 }, 2),
            Op::PutAdd { extent, dtype } if dtype.is_float() => (Op::PutAdd { extent: *extent, dtype: DType::Bf16 }, 1),
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
            Op::Concat { .. } if inputs.iter().any(|&v| self.rewrite.graph().ty(v).dtype == DType::Bf16) => (node.op.clone(), inputs.len()),
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
        let to = self.rewrite.graph();
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
                self.rewrite.add_source(Op::Constant(Arc::new(data)), ty)
            }
            // Widened from what is stored in bf16.
            Op::Map(expr, _) if *expr == Expr::identity() && to.ty(node.inputs[0]).dtype == DType::Bf16 => node.inputs[0],
            op if op.is_view() => {
                let source = self.narrow(node.inputs[0])?;
                self.rewrite.add_beside(v, op.clone(), &[source])?[0]
            }
            _ => self.cast(v, DType::Bf16)?,
        };
        self.narrow.insert(v, made);
        Ok(made)
    }

    /// The value in f32.
    fn wide(&mut self, v: ValueId) -> Result<ValueId, Error> {
        if self.rewrite.graph().ty(v).dtype == DType::Bf16 { self.cast(v, DType::F32) } else { Ok(v) }
    }

    fn cast(&mut self, v: ValueId, dtype: DType) -> Result<ValueId, Error> {
        Ok(self.rewrite.add_beside(v, Op::Map(Expr::identity(), dtype), &[v])?[0])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::eval::{Rounding, Tensor, run};
    use crate::graph::parse::parse;

    /// An embedding with position table, a norm, a biased layer with GELU, a residual, a head tied to the embedding, and the loss.
    const MODEL: &str = r#"
parameter 0 "wte" f32[11, 8] trainable=true source="wte" perm=none init=normal 0.02
parameter 1 "wpe" f32[4, 8] trainable=true source="wpe" perm=none init=normal 0.02
parameter 2 "ln" f32[8] trainable=true source="ln" perm=none init=ones
parameter 3 "fc" f32[8, 8] trainable=true source="fc" perm=none init=normal 0.02
parameter 4 "bias" f32[8] trainable=true source="bias" perm=none init=zeros
forward
  %0: i64[4] = input "ids" () @"ids"
  %1: i64[4] = input "labels" () @"labels"
  %2: f32[11, 8] = parameter 0 () @"wte"
  %3: f32[4, 8] = parameter 1 () @"wpe"
  %4: f32[8] = parameter 2 () @"ln"
  %5: f32[8, 8] = parameter 3 () @"fc"
  %6: f32[8] = parameter 4 () @"fc"
  %7: f32[1, 11, 8] = reshape [1, 11, 8] (%2) @"wte"
  %8: i64[1, 4, 1] = reshape [1, 4, 1] (%0) @"wte"
  %9: f32[1, 4, 8] = take (%7, %8) @"wte"
  %10: f32[4, 8] = reshape [4, 8] (%9) @"wte"
  %11: f32[4, 8] = map f32 {x0; x1; add 0 1} (%10, %3) @"sum"
  %12: f32[4, 8] = map f32 {x0} (%11) @"cast"
  %13: f32[4, 8], %14: f32[4, 1], %15: f32[4, 1] = norm center=true axes=1 eps=1e-5 bias=true dtype=f32 (%12, %4, %6) @"ln"
  %16: f32[4, 8] = matmul trans_a=false trans_b=true dtype=f32 (%13, %5) @"fc"
  %17: f32[4, 8] = map f32 {x0; x1; add 0 1; gelu_erf 2; x2; add 3 4} (%16, %6, %11) @"act"
  %18: f32[4, 1] = reduce sum axes=[1] dtype=f32 (%17) @"mean"
  %19: f32[4, 1] = map f32 {x0; 0.125; mul 0 1} (%18) @"mean"
  %20: f32[4, 8] = map f32 {x0; x1; sub 0 1} (%17, %19) @"centre"
  %21: f32[4, 11] = matmul trans_a=false trans_b=true dtype=f32 (%20, %2) @"head"
  %22: f32[], %23: f32[4] = cross_entropy ignore_index=none sum=false dtype=f32 (%21, %1) @"loss"
  %24: f32[] = map f32 {x0; 2.0; mul 0 1} (%22) @"loss"
output "logits" %21
loss %24
"#;

    fn stored(precision: Precision) -> Graph {
        let graph = parse(MODEL, &[]).unwrap();
        graph.verify().unwrap();
        storage(graph, precision).unwrap()
    }

    #[test]
    fn f32_changes_nothing() {
        assert_eq!(stored(Precision::F32).to_string(), parse(MODEL, &[]).unwrap().to_string());
    }

    #[test]
    fn bf16_stores_activations_but_no_statistic_and_no_loss() {
        let graph = stored(Precision::Bf16);
        let of = |name: &str, nth: usize| {
            let node = graph.nodes.iter().filter(|n| &*n.site == name).nth(nth).unwrap();
            (node.op.name(), graph.ty(node.results[0]).dtype)
        };
        assert_eq!(of("sum", 0), ("map", DType::Bf16));
        assert_eq!(of("act", 0), ("map", DType::Bf16));
        assert_eq!(of("head", 0), ("matmul", DType::Bf16));
        assert_eq!((of("mean", 0), of("mean", 1)), (("reduce", DType::F32), ("map", DType::F32)));
        assert_eq!(of("centre", 0), ("map", DType::Bf16));
        assert_eq!((of("loss", 0), of("loss", 1)), (("cross_entropy", DType::F32), ("map", DType::F32)));
        // A conversion to f32 of what is stored in bf16 is gone.
        assert!(graph.nodes.iter().all(|n| &*n.site != "cast"));
    }

    #[test]
    fn products_read_bf16_and_each_parameter_is_converted_once() {
        let graph = stored(Precision::Fp8);
        let products = graph.nodes.iter().filter(|n| matches!(n.op, Op::Matmul { .. }));
        assert!(products.flat_map(|n| &n.inputs).all(|v| graph.ty(*v).dtype == DType::Bf16));
        let conversions: Vec<&str> =
            graph.nodes.iter().filter(|n| n.op == Op::Map(Expr::identity(), DType::Bf16)).map(|n| &*n.site).collect();
        assert_eq!(conversions, ["fc", "wte"]);
        // The embedding is gathered from f32, and the norm reads its scale in f32.
        let reads = |name: &str| graph.nodes.iter().find(|n| n.op.name() == name).unwrap().inputs.clone();
        assert_eq!(graph.ty(reads("take")[0]).dtype, DType::F32);
        assert_eq!(graph.ty(reads("norm")[1]).dtype, DType::F32);
    }

    #[test]
    fn the_loss_in_bf16_is_near_the_loss_in_f32() {
        let loss = |precision| {
            let graph = stored(precision);
            let sources = |node: &Node, ty: &TensorType| {
                let n = ty.elements() as i64;
                Some(match node.op {
                    Op::Parameter(p) => {
                        Tensor::float(ty.shape.clone(), (0..n).map(|i| ((i * 37 + 11 * p as i64) % 17) as f64 / 17.0 - 0.5).collect())
                    }
                    _ => Tensor::int(ty.shape.clone(), (0..n).map(|i| (i * 5) % 11).collect()),
                })
            };
            let values = run(&graph, &sources, Rounding::Stored).unwrap();
            values[graph.loss.unwrap().index()].floats().unwrap()[0]
        };
        let (exact, rounded) = (loss(Precision::F32), loss(Precision::Bf16));
        assert!(exact != rounded && (exact - rounded).abs() < 0.01 * exact, "{exact} and {rounded}");
    }
}
