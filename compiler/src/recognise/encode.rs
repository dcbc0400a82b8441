//! Graph to e-graph.

use super::term::{Fact, Term, TermAnalysis, Terms, apply, attribute};
use crate::Error;
use crate::graph::{Expr, ExprNode, Graph, Node, Op, ValueId};
use crate::sections::roots;
use egg::{EGraph, Id};
use fp8c_kernels::DType;
use fp8c_kernels::program::{FloatBits, Kind, Literal, Named};
use std::sync::Arc;

/// An e-graph with the classes that must come out again.
pub struct Encoded {
    pub egraph: Terms,
    /// The class of each root, in the order of [`crate::sections::roots`].
    pub roots: Vec<Id>,
    /// Where each value of the graph comes from, in its order.
    pub sites: Vec<(Id, Arc<str>)>,
}

/// Puts every node of a forward graph into an e-graph.
///
/// # Errors
/// [`Error::Graph`] for a multi-result node whose later results are not statistics (none exists in forward graphs).
pub fn encode(graph: &Graph) -> Result<Encoded, Error> {
    let mut egraph: Terms = EGraph::new(TermAnalysis::default());
    let mut class = vec![None; graph.values.len()];
    let mut sites = vec![];
    for node in &graph.nodes {
        let inputs: Vec<Id> = node.inputs.iter().filter_map(|v| class[v.index()]).collect();
        let first = encode_node(&mut egraph, graph, node, &inputs);
        for (i, v) in node.results.iter().enumerate() {
            let id = if i == 0 { first } else { later_result(&mut egraph, graph, *v, first, i)? };
            class[v.index()] = Some(id);
            sites.push((id, node.site.clone()));
        }
    }
    egraph.rebuild();
    let roots = roots(graph).iter().filter_map(|v| class[v.index()]).collect();
    Ok(Encoded { egraph, roots, sites })
}

/// Result `i` of the node whose first result is `first`: `(result first i @shape)`, statistics in f32.
fn later_result(egraph: &mut Terms, graph: &Graph, v: ValueId, first: Id, i: usize) -> Result<Id, Error> {
    let ty = graph.ty(v);
    if ty.dtype != DType::F32 {
        return Err(Error::graph(&graph.def(v).site, format!("has a result {i} of type {}, which is no statistic", ty.dtype)));
    }
    let index = egraph.add(Term::Integer(i as i64, false));
    let shape = attribute(egraph, Op::Reshape(ty.shape.clone()));
    Ok(apply(egraph, "result", vec![first, index, shape]))
}

fn encode_node(egraph: &mut Terms, graph: &Graph, node: &Node, inputs: &[Id]) -> Id {
    let result = node.results[0];
    match &node.op {
        op if op.is_source() || matches!(op, Op::Iota { .. }) => {
            let data = if let Op::Constant(data) = op { Some(data.clone()) } else { None };
            let uniform = |d: &crate::graph::ConstData| {
                let values = d.to_f32();
                values.first().copied().filter(|x| values.iter().all(|y| y == x))
            };
            let scalar = data.as_ref().filter(|d| d.ty.dtype == DType::F32).and_then(|d| uniform(d));
            let fact = Fact { ty: Some(graph.ty(result).clone()), scalar, data, attribute: None };
            egraph.analysis.sources.insert(result.0, fact);
            egraph.add(Term::Source(result.0))
        }
        Op::Map(expr, dtype) => encode_map(egraph, expr, *dtype, inputs),
        op => {
            let mut children = inputs.to_vec();
            children.push(attribute(egraph, op.clone()));
            apply(egraph, op_name(op), children)
        }
    }
}

/// Takes an expression apart, one term an operation, and casts the result where its type is not the map's.
fn encode_map(egraph: &mut Terms, expr: &Expr, dtype: DType, inputs: &[Id]) -> Id {
    let mut at: Vec<Id> = Vec::with_capacity(expr.body.len());
    for n in &expr.body {
        let id = match n {
            ExprNode::Operand(i) => inputs[*i as usize],
            ExprNode::Const { kind: Kind::Float, value } => egraph.add(Term::Scalar(FloatBits(value.as_f32().to_bits()))),
            ExprNode::Const { kind, value } => {
                let i = if let Literal::Int(i) = value { *i } else { value.as_f32() as i64 };
                egraph.add(Term::Integer(i, *kind == Kind::Bool))
            }
            ExprNode::Unary(op, x) => apply(egraph, op.name(), vec![at[*x as usize]]),
            ExprNode::Binary(op, x, y) => apply(egraph, op.name(), vec![at[*x as usize], at[*y as usize]]),
            ExprNode::Select(c, x, y) => apply(egraph, "select", vec![at[*c as usize], at[*x as usize], at[*y as usize]]),
            ExprNode::Cast(x, to) => cast(egraph, at[*x as usize], *to),
        };
        at.push(id);
    }
    match at.last() {
        Some(&last) => cast(egraph, last, dtype),
        None => egraph.add(Term::Scalar(FloatBits(0))),
    }
}

fn cast(egraph: &mut Terms, x: Id, to: DType) -> Id {
    if egraph[x].data.ty.as_ref().is_some_and(|t| t.dtype == to) {
        return x;
    }
    let attribute = attribute(egraph, Op::Map(Expr::identity(), to));
    apply(egraph, "cast", vec![x, attribute])
}

/// The name that rules know an operator by.
pub fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Reduce { .. } => "reduce",
        Op::Matmul { .. } => "matmul",
        Op::Reshape(_) => "reshape",
        Op::Transpose(_) => "transpose",
        Op::Slice { .. } => "slice",
        Op::Pad { .. } => "pad",
        Op::Concat { .. } => "concat",
        Op::Broadcast(_) => "broadcast",
        Op::Take => "take",
        Op::PutAdd { .. } => "putadd",
        Op::CumSum { .. } => "cumsum",
        Op::Conv(_) => "conv",
        Op::Pool { .. } => "pool",
        Op::Norm(_) => "norm",
        Op::Softmax { .. } => "softmax",
        Op::Attention(_) => "attention",
        Op::Rotary { .. } => "rotary",
        Op::CrossEntropy(_) => "crossentropy",
        _ => "other",
    }
}
