//! The forward graph with its loss heads written out slice by slice.

use super::Extents;
use super::find::{Head, heads, is_output};
use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::*;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Fold, Kind, Literal};
use fp8c_runtime::plan::Purpose;
use std::collections::HashMap;
use std::ops::Range;

/// What no label is, where the loss itself ignores none.
const NO_LABEL: i64 = -1;

/// Writes loss heads of more rows than a slice has slice by slice, `rows` saying how many that are. What belongs to them gets the pass
/// [`Pass::Loss`] and stands behind all else.
///
/// # Errors
/// What [`Graph::add`] says, which is a fault of this pass.
pub fn slice(graph: Graph, purpose: Purpose, rows: impl Fn(&Extents) -> u64) -> Result<Graph, Error> {
    let side = graph.parameter_side();
    let found = heads(&graph, &side, purpose == Purpose::Train);
    let large: Vec<Head> = found.into_iter().filter(|h| rows(&h.extents) < h.extents.rows).collect();
    if large.is_empty() {
        return Ok(graph);
    }
    let late = late(&graph, &side, &large);
    let mut slicer = Slicer { from: &graph, rewrite: Rewrite::new(&graph), rows: &rows };
    let all = || (0..graph.nodes.len() as u32).map(NodeId);
    all().filter(|n| !late[n.index()]).try_for_each(|n| slicer.rewrite.copy(n))?;
    let first = slicer.rewrite.graph().nodes.len();
    let of_loss: HashMap<NodeId, &Head> = large.iter().map(|h| (h.loss, h)).collect();
    let written_out = |n: &NodeId| large.iter().any(|h| h.nodes().any(|m| m == *n && m != h.loss));
    for n in all().filter(|n| late[n.index()] && !written_out(n)) {
        match of_loss.get(&n) {
            Some(head) => slicer.head(head)?,
            None => slicer.rewrite.copy(n)?,
        }
    }
    let mut sliced = slicer.rewrite.finish()?.0;
    sliced.nodes[first..].iter_mut().for_each(|n| n.pass = Pass::Loss);
    Ok(sliced)
}

/// For each node: whether it belongs to a loss head, because a head leads to it, or it makes a weight that only heads read.
fn late(graph: &Graph, side: &[bool], heads: &[Head]) -> Vec<bool> {
    let mut late = vec![false; graph.nodes.len()];
    heads.iter().flat_map(Head::nodes).for_each(|n| late[n.index()] = true);
    for n in 0..graph.nodes.len() {
        late[n] |= graph.nodes[n].inputs.iter().any(|v| late[graph.values[v.index()].node.index()]);
    }
    let users = graph.users();
    for n in (0..graph.nodes.len()).rev() {
        let node = &graph.nodes[n];
        let for_heads = |v: &ValueId| {
            let of = &users[v.index()];
            side[v.index()] && !is_output(graph, *v) && !of.is_empty() && of.iter().all(|u| late[u.index()])
        };
        late[n] |= !node.op.is_source() && node.results.iter().all(for_heads);
    }
    late
}

struct Slicer<'a, R> {
    from: &'a Graph,
    rewrite: Rewrite<'a>,
    rows: &'a R,
}

/// What one slice gives: its loss, and what its product and each expression behind it give.
struct Slice {
    loss: ValueId,
    values: Vec<ValueId>,
}

impl<R: Fn(&Extents) -> u64> Slicer<'_, R> {
    fn one(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, Error> {
        Ok(self.rewrite.add(op, inputs)?[0])
    }

    fn reshape(&mut self, v: ValueId, shape: &[u64]) -> Result<ValueId, Error> {
        if self.rewrite.graph().ty(v).shape == shape { Ok(v) } else { self.one(Op::Reshape(shape.to_vec()), &[v]) }
    }

    fn head(&mut self, head: &Head) -> Result<(), Error> {
        let (product, loss) = (self.from.node(head.product), self.from.node(head.loss));
        let Op::CrossEntropy(c) = &loss.op else { return Err(Error::graph(&loss.site, "is no cross-entropy")) };
        self.rewrite.begin(head.product);
        let Extents { rows, depth, .. } = head.extents;
        let x = self.rewrite.get(product.inputs[0])?;
        let x = self.reshape(x, &[rows, depth])?;
        let w = self.rewrite.get(product.inputs[1])?;
        let matrix = self.from.ty(product.inputs[1]).shape.iter().rev().take(2).rev().copied().collect::<Vec<_>>();
        let w = self.reshape(w, &matrix)?;
        self.rewrite.begin(head.loss);
        let (labels, ignored) = self.labels(head, c)?;
        let c = CrossEntropyOp { ignore_index: ignored, ..c.clone() };
        // The last slice first: the backward pass, which comes upon them in reverse, takes rows in order.
        let step = (self.rows)(&head.extents).max(1);
        let starts: Vec<u64> = (0..rows).step_by(step as usize).collect();
        let slices = starts.iter().rev().map(|&start| self.slice(head, [x, w, labels], &c, start..rows.min(start + step)));
        let mut slices = slices.collect::<Result<Vec<_>, _>>()?;
        slices.reverse();
        self.rewrite.begin(head.loss);
        let mut total = slices[0].loss;
        for s in &slices[1..] {
            total = self.one(Op::Map(Expr::binary(Binary::Add), DType::F32), &[total, s.loss])?;
        }
        let total = if c.sum { total } else { self.mean(total, labels, ignored)? };
        self.rewrite.set(loss.results[0], total);
        self.outputs(head, &slices)
    }

    /// The product, the expressions behind it and the loss of some rows.
    fn slice(&mut self, head: &Head, [x, w, labels]: [ValueId; 3], c: &CrossEntropyOp, rows: Range<u64>) -> Result<Slice, Error> {
        let product = self.from.node(head.product);
        self.rewrite.begin(head.product);
        let taken = rows.end - rows.start;
        let cut = |axes: &[u64]| Op::Slice {
            starts: [rows.start as i64].into_iter().chain(axes.iter().map(|_| 0)).collect(),
            steps: vec![1; 1 + axes.len()],
            sizes: [taken].into_iter().chain(axes.iter().copied()).collect(),
        };
        let part = self.one(cut(&[head.extents.depth]), &[x])?;
        let mut values = vec![self.one(product.op.clone(), &[part, w])?];
        for &n in &head.maps {
            let map = self.from.node(n);
            self.rewrite.begin(n);
            let shape = &self.from.ty(map.results[0]).shape;
            let mut inputs = vec![];
            for &v in &map.inputs {
                let own = &self.from.ty(v).shape;
                inputs.push(match own == shape {
                    true => values[values.len() - 1],
                    false => {
                        let operand = self.rewrite.get(v)?;
                        let last = own.last().copied().unwrap_or(1);
                        self.reshape(operand, &[1, last])?
                    }
                });
            }
            values.push(self.one(map.op.clone(), &inputs)?);
        }
        self.rewrite.begin(head.loss);
        let labels = self.one(cut(&[]), &[labels])?;
        let of_slice = Op::CrossEntropy(CrossEntropyOp { sum: true, ..c.clone() });
        let loss = self.one(of_slice, &[values[values.len() - 1], labels])?;
        Ok(Slice { loss, values })
    }

    /// A label for each row of the product, and which of them counts for nothing: rows that are cut off before the loss get that one.
    fn labels(&mut self, head: &Head, c: &CrossEntropyOp) -> Result<(ValueId, Option<i64>), Error> {
        let mut labels = self.rewrite.get(self.from.node(head.loss).inputs[1])?;
        let mut ignored = c.ignore_index;
        for &n in &head.views {
            let node = self.from.node(n);
            let Op::Slice { starts, sizes, .. } = &node.op else { continue };
            let shape = &self.from.ty(node.inputs[0]).shape;
            let rank = shape.len() - 1;
            if sizes[..rank] == shape[..rank] {
                continue;
            }
            let none = *ignored.get_or_insert(NO_LABEL);
            labels = self.reshape(labels, &sizes[..rank])?;
            labels = self.shifted(labels, Binary::Sub, none)?;
            let low: Vec<u64> = starts[..rank].iter().map(|&s| s as u64).collect();
            let high = (0..rank).map(|d| shape[d] - low[d] - sizes[d]).collect();
            labels = self.one(Op::Pad { low, high }, &[labels])?;
            labels = self.shifted(labels, Binary::Add, none)?;
        }
        Ok((self.reshape(labels, &[head.extents.rows])?, ignored))
    }

    fn shifted(&mut self, labels: ValueId, op: Binary, by: i64) -> Result<ValueId, Error> {
        let by = ExprNode::Const { kind: Kind::Int, value: Literal::Int(by) };
        let dtype = self.rewrite.graph().ty(labels).dtype;
        self.one(Op::Map(Expr { body: vec![ExprNode::Operand(0), by, ExprNode::Binary(op, 0, 1)] }, dtype), &[labels])
    }

    /// A sum over labels divided by how many count.
    fn mean(&mut self, total: ValueId, labels: ValueId, ignored: Option<i64>) -> Result<ValueId, Error> {
        let rows = self.rewrite.graph().ty(labels).elements();
        let Some(ignored) = ignored else {
            return self.one(Op::Map(Expr::with_constant(Binary::Div, rows as f32), DType::F32), &[total]);
        };
        let constant = |kind, value| ExprNode::Const { kind, value };
        let body = vec![
            ExprNode::Operand(0),
            constant(Kind::Int, Literal::Int(ignored)),
            ExprNode::Binary(Binary::Ne, 0, 1),
            constant(Kind::Float, Literal::float(1.0)),
            constant(Kind::Float, Literal::float(0.0)),
            ExprNode::Select(2, 3, 4),
        ];
        let counts = self.one(Op::Map(Expr { body }, DType::F32), &[labels])?;
        let count = self.one(Op::Reduce { op: Fold::Sum, axes: vec![0], dtype: DType::F32 }, &[counts])?;
        let count = self.reshape(count, &[])?;
        self.one(Op::Map(Expr::binary(Binary::Div), DType::F32), &[total, count])
    }

    /// Logits that are a result of the graph, joined from the slices.
    fn outputs(&mut self, head: &Head, slices: &[Slice]) -> Result<(), Error> {
        let made: Vec<NodeId> = [head.product].into_iter().chain(head.maps.iter().copied()).collect();
        for v in head.values(self.from).filter(|&v| is_output(self.from, v)) {
            let mut n = self.from.values[v.index()].node;
            while head.views.contains(&n) {
                n = self.from.values[self.from.node(n).inputs[0].index()].node;
            }
            let Some(at) = made.iter().position(|&m| m == n) else { continue };
            self.rewrite.begin(n);
            let parts: Vec<ValueId> = slices.iter().map(|s| s.values[at]).collect();
            let whole = self.one(Op::Concat { axis: 0 }, &parts)?;
            let whole = self.reshape(whole, &self.from.ty(v).shape)?;
            self.rewrite.set(v, whole);
        }
        Ok(())
    }
}
