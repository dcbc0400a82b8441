//! Constant folding while lowering: a node whose operands are all constants becomes a constant.
//!
//! A value without elements is a constant whatever computes it, so that no later pass meets one in the middle of a graph.
//!
//! What is folded is bounded, so that a few lines of a model cannot ask for gigabytes: a larger node stays a node.

use super::ops::Lowering;
use crate::Error;
use crate::graph::eval::eval_node;
use crate::graph::{ConstData, Graph, NodeId, Op, TensorType, ValueId};
use std::sync::Arc;

/// Largest folded result, and operand of a folded node, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Likewise, in elements: the interpreter takes some 16 bytes for each.
const MAX_ELEMENTS: u64 = 1 << 24;
/// All folded results of a model together, in bytes.
const MAX_TOTAL_BYTES: u64 = 1 << 30;
/// Most multiplications that a folded contraction may take.
const MAX_WORK: u64 = 1 << 26;

impl Lowering {
    /// Appends a node, or the constants that it evaluates to.
    ///
    /// Constant operands that broadcast lose the axes along which they only repeat: exporters bake the batch into masks.
    ///
    /// # Errors
    /// What [`Op::infer`] says of the operands, or the evaluation of constant ones (a division by zero, an index out of range).
    pub fn emit(&mut self, op: Op, inputs: &[ValueId], site: &Arc<str>) -> Result<Vec<ValueId>, String> {
        let results = self.infer(&op, inputs)?;
        if let Some(absurd) = results.iter().find(|t| t.bytes() > i64::MAX as u64) {
            return Err(format!("has a result of shape {:?}, which no memory holds", absurd.shape));
        }
        if results.iter().all(|t| t.elements() == 0) {
            return Ok(results.into_iter().map(|ty| self.constant(ConstData { ty, bytes: vec![] })).collect());
        }
        let inputs = self.without_empty(&op, inputs);
        if let (Op::Concat { .. }, [only]) = (&op, &inputs[..]) {
            return Ok(vec![*only]);
        }
        let inputs = self.without_repetition(&op, &inputs)?;
        let Some(constants) = self.foldable(&op, &inputs, &results) else {
            return self.append(op, &inputs, results, site);
        };
        let evaluated = self.infer(&op, &inputs)?;
        let folded = eval_node(&op, &constants.iter().map(|c| &**c).collect::<Vec<_>>(), &evaluated)?;
        let mut values = Vec::with_capacity(folded.len());
        for (data, ty) in folded.into_iter().zip(&results) {
            let whole = if data.ty == *ty { data } else { repeated(&data, ty)? };
            self.folded_bytes = self.folded_bytes.saturating_add(ty.bytes());
            values.push(self.constant(whole));
        }
        Ok(values)
    }

    fn infer(&self, op: &Op, inputs: &[ValueId]) -> Result<Vec<TensorType>, String> {
        let types: Vec<&TensorType> = inputs.iter().map(|&v| self.graph.ty(v)).collect();
        op.infer(&types, &self.graph.parameters)
    }

    fn append(&mut self, op: Op, inputs: &[ValueId], results: Vec<TensorType>, site: &Arc<str>) -> Result<Vec<ValueId>, String> {
        let reason = |e| match e {
            crate::Error::Graph { reason, .. } => reason,
            other => other.to_string(),
        };
        let mut values = self.graph.add_forward(op, inputs, site).map_err(reason)?;
        // Without its repetition an operand may no longer give the result its whole shape.
        for (v, ty) in values.iter_mut().zip(results) {
            if *self.graph.ty(*v) != ty {
                let spread = self.graph.add_forward(Op::Broadcast(ty.shape), &[*v], site).map_err(reason)?;
                *v = spread[0];
            }
        }
        Ok(values)
    }

    /// The constant operands of a node that is to be folded.
    fn foldable(&self, op: &Op, inputs: &[ValueId], results: &[TensorType]) -> Option<Vec<Arc<ConstData>>> {
        let constants = inputs.iter().map(|&v| self.known(v)).collect::<Option<Vec<_>>>()?;
        let small = |t: &TensorType| t.bytes() <= MAX_BYTES && t.elements() <= MAX_ELEMENTS;
        let bytes = results.iter().fold(self.folded_bytes, |n, t| n.saturating_add(t.bytes()));
        let fits = constants.iter().all(|c| small(&c.ty)) && results.iter().all(small) && bytes <= MAX_TOTAL_BYTES;
        (fits && !op.is_source() && work(op, &constants, results) <= MAX_WORK).then_some(constants)
    }

    /// The data of a constant, or of a value that has none.
    fn known(&self, v: ValueId) -> Option<Arc<ConstData>> {
        let ty = self.graph.ty(v);
        let empty = || Arc::new(ConstData { ty: ty.clone(), bytes: vec![] });
        self.graph.constant(v).cloned().or_else(|| (ty.elements() == 0).then(empty))
    }

    /// The operands, of a concatenation those with elements.
    fn without_empty(&self, op: &Op, inputs: &[ValueId]) -> Vec<ValueId> {
        let all = !matches!(op, Op::Concat { .. });
        inputs.iter().copied().filter(|&v| all || self.graph.ty(v).elements() > 0).collect()
    }

    /// The operands, those constants compacted that the operator broadcasts anyway.
    fn without_repetition(&mut self, op: &Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, String> {
        let broadcasts = |i: usize| matches!((op, i), (Op::Map(..), _) | (Op::Attention(_), 3));
        inputs.iter().enumerate().map(|(i, &v)| if broadcasts(i) { self.compacted(v) } else { Ok(v) }).collect()
    }

    /// A constant with extent 1 along the axes where it only repeats; any other value as it is.
    fn compacted(&mut self, v: ValueId) -> Result<ValueId, String> {
        let Some(data) = self.graph.constant(v).cloned().filter(|c| c.ty.elements() > 1) else { return Ok(v) };
        if let Some(&known) = self.compacted.get(&v) {
            return Ok(known);
        }
        let mut data = (*data).clone();
        for axis in 0..data.ty.rank() {
            if let Some(first) = first_if_repeated(&data, axis) {
                data = first;
            }
        }
        let compact = self.constant(data);
        self.compacted.insert(v, compact);
        Ok(compact)
    }

    /// A constant; equal ones share a node.
    pub fn constant(&mut self, data: ConstData) -> ValueId {
        let data = Arc::new(data);
        if let Some(&v) = self.constants.get(&data) {
            return v;
        }
        let name: Arc<str> = format!("constant.{}", self.constants.len()).into();
        let v = self.graph.add_source(Op::Constant(data.clone()), data.ty.clone(), &name);
        self.constants.insert(data, v);
        v
    }
}

/// The first slice along an axis, if all are equal and there is more than one.
fn first_if_repeated(data: &ConstData, axis: usize) -> Option<ConstData> {
    let extent = data.ty.shape[axis] as usize;
    if extent <= 1 || data.bytes.is_empty() {
        return None;
    }
    let slice = data.ty.shape[axis + 1..].iter().product::<u64>() as usize * data.ty.dtype.size() as usize;
    let repeats = |line: &[u8]| line.chunks_exact(slice).all(|s| *s == line[..slice]);
    if !data.bytes.chunks_exact(slice * extent).all(repeats) {
        return None;
    }
    let bytes = data.bytes.chunks_exact(slice * extent).flat_map(|line| &line[..slice]).copied().collect();
    let mut ty = data.ty.clone();
    ty.shape[axis] = 1;
    Some(ConstData { ty, bytes })
}

/// A constant broadcast to a type of the same rank or a larger one.
fn repeated(data: &ConstData, ty: &TensorType) -> Result<ConstData, String> {
    let whole = eval_node(&Op::Broadcast(ty.shape.clone()), &[data], std::slice::from_ref(ty))?;
    whole.into_iter().next().ok_or_else(|| "has no result".into())
}

/// Multiplications of an operator, about; 0 for those that are linear in their operands.
fn work(op: &Op, inputs: &[Arc<ConstData>], results: &[TensorType]) -> u64 {
    let out = results.first().map_or(0, TensorType::elements);
    let extent = |i: usize, from_end: usize| {
        let shape = inputs.get(i).map_or(&[][..], |c| &c.ty.shape);
        shape.len().checked_sub(from_end).map_or(1, |d| shape[d])
    };
    match op {
        Op::Matmul { trans_a, .. } => out.saturating_mul(extent(0, if *trans_a { 2 } else { 1 })),
        Op::Conv(c) => out.saturating_mul(c.window.kernel[0].saturating_mul(c.window.kernel[1])).saturating_mul(extent(1, 3)),
        Op::Pool { window, .. } => out.saturating_mul(window.kernel[0].saturating_mul(window.kernel[1])),
        Op::Attention(_) => out.saturating_mul(extent(1, 2)).saturating_mul(2),
        _ => 0,
    }
}

/// Drops the nodes that no root, input or parameter needs, and puts the sources first, in the order they were added; `roots` are
/// renumbered.
///
/// # Errors
/// As [`Graph::select`].
pub(super) fn compact(graph: &Graph, roots: &mut [ValueId]) -> Result<Graph, Error> {
    let needed = needed(graph, roots);
    let kept = (0..graph.nodes.len() as u32).map(NodeId).filter(|n| needed[n.index()]);
    let (sources, rest): (Vec<NodeId>, Vec<NodeId>) = kept.partition(|&n| graph.node(n).op.is_source());
    let (out, map) = graph.select(&[sources, rest].concat())?;
    roots.iter_mut().for_each(|v| *v = map.get(*v).unwrap_or(*v));
    Ok(out)
}

/// For each node, whether it is a source with a name of its own or something needed depends on it.
fn needed(graph: &Graph, roots: &[ValueId]) -> Vec<bool> {
    let named = |op: &Op| op.is_source() && !matches!(op, Op::Constant(_));
    let mut needed: Vec<bool> = graph.nodes.iter().map(|n| named(&n.op)).collect();
    let outputs = graph.outputs.iter().map(|o| o.value);
    for v in roots.iter().copied().chain(outputs).chain(graph.loss) {
        needed[graph.values[v.index()].node.index()] = true;
    }
    for n in (0..graph.nodes.len()).rev().filter(|&n| !graph.nodes[n].op.is_source()).collect::<Vec<_>>() {
        if needed[n] {
            graph.nodes[n].inputs.iter().for_each(|v| needed[graph.values[v.index()].node.index()] = true);
        }
    }
    needed
}
