//! The driver: visits nodes, keeps gradients, adds contributions.

use super::*;
use crate::graph::edit::Rewrite;
use fp8c_kernels::program::{Binary, Fold};
use std::collections::HashMap;
use std::sync::Arc;

/// A part of a value's gradient that came from a slice of it.
struct Piece {
    axis: usize,
    start: u64,
    value: ValueId,
}

/// What has arrived of a value's gradient.
#[derive(Default)]
struct Partial {
    whole: Option<ValueId>,
    pieces: Vec<Piece>,
}

/// A graph whose backward pass is being written.
pub(super) struct Backward {
    pub graph: Graph,
    /// Nodes of the forward pass.
    forward: usize,
    /// By forward value: a trainable parameter's change reaches it.
    needs: Vec<bool>,
    /// By forward value: no input reaches it.
    parameter_side: Vec<bool>,
    partials: HashMap<ValueId, Partial>,
    /// Parts of gradients of what is not on the parameter side.
    dgrads: Vec<ValueId>,
    /// The node being differentiated, and its site.
    at: NodeId,
    site: Arc<str>,
    /// Sums each parameter's gradient over micro-batches.
    accumulate: bool,
    /// Backward nodes that are there already, by what they compute.
    made: HashMap<(Op, Vec<ValueId>), Vec<ValueId>>,
}

/// A forward node and what a rule needs of it.
pub(super) struct Primal {
    pub op: Op,
    pub inputs: Vec<ValueId>,
    pub results: Vec<ValueId>,
}

impl Backward {
    pub fn new(graph: Graph, accumulate: bool) -> Self {
        let (mut needs, mut parameter_side) = (vec![false; graph.values.len()], vec![false; graph.values.len()]);
        for node in &graph.nodes {
            let trained = matches!(node.op, Op::Parameter(p) if graph.parameters[p].trainable);
            let side = !matches!(node.op, Op::Input { .. }) && node.inputs.iter().all(|v| parameter_side[v.index()]);
            let reached = trained || node.inputs.iter().any(|v| needs[v.index()]);
            for v in &node.results {
                needs[v.index()] = reached && graph.ty(*v).dtype.is_float();
                parameter_side[v.index()] = side;
            }
        }
        let forward = graph.nodes.len();
        let (partials, made) = (HashMap::new(), HashMap::new());
        Backward { graph, forward, needs, parameter_side, partials, dgrads: vec![], at: NodeId(0), site: "".into(), accumulate, made }
    }

    /// Writes the backward pass.
    pub fn run(&mut self, loss: ValueId) -> Result<(), Error> {
        self.at = self.graph.values[loss.index()].node;
        self.site = self.graph.def(loss).site.clone();
        let seed = loss::seed(self, loss)?;
        self.dgrads.push(seed);
        self.partials.insert(loss, Partial { whole: Some(seed), pieces: vec![] });
        // How many readers of each node's results are still to be visited.
        let mut waiting = vec![0usize; self.forward];
        for n in 0..self.forward {
            self.producers(n).into_iter().for_each(|p| waiting[p] += 1);
        }
        let mut done = vec![false; self.forward];
        for n in (0..self.forward).rev() {
            let mut ready = vec![n];
            while let Some(n) = ready.pop() {
                if std::mem::replace(&mut done[n], true) {
                    continue;
                }
                self.visit(n)?;
                for p in self.producers(n) {
                    waiting[p] -= 1;
                    if waiting[p] == 0 && self.parameter_side[self.graph.nodes[p].results[0].index()] {
                        ready.push(p);
                    }
                }
            }
        }
        Ok(())
    }

    /// The nodes that a forward node reads, each once.
    fn producers(&self, n: usize) -> Vec<usize> {
        let mut of: Vec<usize> = self.graph.nodes[n].inputs.iter().map(|v| self.graph.values[v.index()].node.index()).collect();
        of.sort_unstable();
        of.dedup();
        of
    }

    fn visit(&mut self, n: usize) -> Result<(), Error> {
        let node = self.graph.nodes[n].clone();
        (self.at, self.site) = (NodeId(n as u32), node.site.clone());
        let mut grads = vec![];
        for &v in &node.results {
            grads.push(self.take_gradient(v)?);
        }
        if grads.iter().all(Option::is_none) {
            return Ok(());
        }
        if let Op::Parameter(parameter) = node.op {
            return self.complete(parameter, grads[0]);
        }
        if node.inputs.iter().any(|&v| self.needs(v)) {
            let primal = Primal { op: node.op, inputs: node.inputs, results: node.results };
            self.rule(&primal, &grads)?;
        }
        Ok(())
    }

    /// Records a parameter's gradient, added to the buffer of earlier micro-batches if there are any.
    fn complete(&mut self, parameter: usize, gradient: Option<ValueId>) -> Result<(), Error> {
        let Some(mut value) = gradient else { return Ok(()) };
        if self.accumulate {
            let buffer = update::state(&mut self.graph, parameter, GRADIENT_SLOT, DType::F32);
            value = self.emit(Op::AccumulateGradient, &[buffer, value])?;
        }
        self.graph.gradients.push(Gradient { parameter, value });
        Ok(())
    }

    fn rule(&mut self, p: &Primal, grads: &[Option<ValueId>]) -> Result<(), Error> {
        // Only the first result of an operator carries gradient; the others are statistics.
        let (Some(dy), true) = (grads[0], grads[1..].iter().all(Option::is_none)) else {
            return Err(self.unsupported("the gradient of a statistic"));
        };
        match &p.op {
            Op::Map(expr, _) => map::rule(self, p, expr, dy),
            Op::Reduce { op, axes, .. } => reduce::rule(self, p, *op, axes, dy),
            Op::Matmul { trans_a, trans_b, .. } => matmul::rule(self, p, *trans_a, *trans_b, dy),
            Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Pad { .. } | Op::Concat { .. } | Op::Broadcast(_) => {
                views::rule(self, p, dy)
            }
            Op::Take | Op::MaskGradient | Op::PutAdd { .. } | Op::CumSum { .. } => index::rule(self, p, dy),
            Op::Conv(_) | Op::Pool { .. } => conv::rule(self, p, dy),
            Op::Norm(n) => norm::norm(self, p, n, dy),
            Op::Softmax { log } => norm::softmax(self, p, *log, dy),
            Op::Attention(a) => attention::attention(self, p, a, dy),
            Op::Rotary { rotated, interleaved, inverse } => attention::rotary(self, p, (*rotated, *interleaved, *inverse), dy),
            Op::CrossEntropy(c) => loss::cross_entropy(self, p, c, dy),
            other => Err(self.unsupported(&format!("a derivative of {}", other.name()))),
        }
    }

    pub fn unsupported(&self, what: &str) -> Error {
        Error::graph(&self.site, format!("cannot be trained: {what} is not supported"))
    }

    /// True where a trainable parameter's change reaches a value.
    pub fn needs(&self, v: ValueId) -> bool {
        self.needs[v.index()]
    }

    /// The dtype of a value's gradient.
    pub fn dtype(&self, v: ValueId) -> DType {
        if self.parameter_side[v.index()] { DType::F32 } else { self.graph.ty(v).dtype }
    }

    pub fn shape(&self, v: ValueId) -> Vec<u64> {
        self.graph.ty(v).shape.clone()
    }

    /// Appends a backward node, unless there is one like it, and gives its results.
    pub fn emit_all(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, Error> {
        let key = (op, inputs.to_vec());
        if let Some(results) = self.made.get(&key) {
            return Ok(results.clone());
        }
        // Which gradients of parameters alone need it is known in the end.
        let from = Provenance { pass: Pass::Wgrad, origin: Some(self.at), site: self.site.clone() };
        let results = self.graph.add(key.0.clone(), inputs, &from)?;
        self.made.insert(key, results.clone());
        Ok(results)
    }

    /// Appends a backward node and gives its first result.
    pub fn emit(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, Error> {
        Ok(self.emit_all(op, inputs)?[0])
    }

    /// The value in a float format.
    pub fn cast(&mut self, v: ValueId, dtype: DType) -> Result<ValueId, Error> {
        if self.graph.ty(v).dtype == dtype { Ok(v) } else { self.emit(Op::Map(Expr::identity(), dtype), &[v]) }
    }

    /// The value that this one widens, if it is a bf16 value in f32: what takes either format reads it without the detour. Looks
    /// through views.
    pub fn unwidened(&mut self, v: ValueId) -> Result<ValueId, Error> {
        let node = self.graph.def(v);
        match node.op.clone() {
            Op::Map(e, DType::F32) if e == Expr::identity() && self.graph.ty(node.inputs[0]).dtype == DType::Bf16 => Ok(node.inputs[0]),
            op @ (Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_)) if node.epoch() == Epoch::Backward => {
                let source = node.inputs[0];
                let narrow = self.unwidened(source)?;
                if narrow == source { Ok(v) } else { self.emit(op, &[narrow]) }
            }
            _ => Ok(v),
        }
    }

    /// The value in another shape of as many elements.
    pub fn reshape(&mut self, v: ValueId, shape: &[u64]) -> Result<ValueId, Error> {
        let node = self.graph.def(v);
        match node.op {
            _ if self.graph.ty(v).shape == shape => Ok(v),
            Op::Reshape(_) => self.reshape(node.inputs[0], shape),
            _ => self.emit(Op::Reshape(shape.to_vec()), &[v]),
        }
    }

    /// The value with its axes in another order.
    pub fn transpose(&mut self, v: ValueId, perm: Vec<usize>) -> Result<ValueId, Error> {
        if perm.iter().copied().eq(0..perm.len()) { Ok(v) } else { self.emit(Op::Transpose(perm), &[v]) }
    }

    /// Sums over axes, in f32.
    pub fn sum(&mut self, v: ValueId, axes: Vec<usize>) -> Result<ValueId, Error> {
        if axes.is_empty() {
            return Ok(v);
        }
        let v = self.unwidened(v)?;
        self.emit(Op::Reduce { op: Fold::Sum, axes, dtype: DType::F32 }, &[v])
    }

    /// Sums over the axes along which a tensor of `shape` was broadcast.
    pub fn sum_to(&mut self, v: ValueId, shape: &[u64]) -> Result<ValueId, Error> {
        let from = self.shape(v);
        let lead = from.len() - shape.len();
        let axes = (0..from.len()).filter(|&d| from[d] != 1 && (d < lead || shape[d - lead] == 1)).collect();
        let summed = self.sum(v, axes)?;
        self.reshape(summed, shape)
    }

    /// Adds a contribution to a value's gradient: it is summed to the value's shape and converted to the gradient's dtype.
    pub fn contribute(&mut self, to: ValueId, gradient: ValueId) -> Result<(), Error> {
        if !self.needs(to) {
            return Ok(());
        }
        let shape = self.shape(to);
        let summed = self.sum_to(gradient, &shape)?;
        let cast = self.cast(summed, self.dtype(to))?;
        if !self.parameter_side[to.index()] {
            self.dgrads.push(cast);
        }
        let before = self.partials.entry(to).or_default().whole;
        let whole = match before {
            Some(before) => self.emit(Op::Map(Expr::binary(Binary::Add), self.dtype(to)), &[before, cast])?,
            None => cast,
        };
        self.partials.entry(to).or_default().whole = Some(whole);
        Ok(())
    }

    /// Adds the gradient of the slice of `to` that begins at `start` along `axis` and is whole along the others.
    pub fn contribute_piece(&mut self, to: ValueId, axis: usize, start: u64, gradient: ValueId) -> Result<(), Error> {
        if self.needs(to) {
            let value = self.cast(gradient, self.dtype(to))?;
            if !self.parameter_side[to.index()] {
                self.dgrads.push(value);
            }
            self.partials.entry(to).or_default().pieces.push(Piece { axis, start, value });
        }
        Ok(())
    }

    /// The complete gradient of a value, if any part of it has arrived.
    fn take_gradient(&mut self, v: ValueId) -> Result<Option<ValueId>, Error> {
        let Some(mut partial) = self.partials.remove(&v) else { return Ok(None) };
        let mut pieces = std::mem::take(&mut partial.pieces);
        self.partials.insert(v, partial);
        pieces.sort_by_key(|p| (p.axis, p.start));
        let mut pieces = pieces.into_iter().peekable();
        while let Some(first) = pieces.next() {
            let axis = first.axis;
            let mut end = first.start + self.graph.ty(first.value).shape[axis];
            let mut run = vec![first.value];
            // A run is what touches without overlap; an overlapping piece begins a run of its own.
            while let Some(next) = pieces.next_if(|p| p.axis == axis && p.start == end) {
                end += self.graph.ty(next.value).shape[axis];
                run.push(next.value);
            }
            let joined = if run.len() == 1 { run[0] } else { self.emit(Op::Concat { axis }, &run)? };
            let (mut low, mut high) = (vec![0; self.graph.ty(v).rank()], vec![0; self.graph.ty(v).rank()]);
            (low[axis], high[axis]) = (first.start, self.graph.ty(v).shape[axis] - end);
            let padded = if low[axis] + high[axis] == 0 { joined } else { self.emit(Op::Pad { low, high }, &[joined])? };
            self.contribute(v, padded)?;
        }
        Ok(self.partials.remove(&v).and_then(|p| p.whole))
    }

    /// Gives what a gradient of more than parameters needs its pass; the rest serves parameters' gradients alone.
    fn passes(&mut self) {
        let mut wanted = vec![false; self.graph.values.len()];
        self.dgrads.iter().for_each(|v| wanted[v.index()] = true);
        for node in self.graph.nodes.iter_mut().rev().filter(|n| n.pass == Pass::Wgrad) {
            if node.results.iter().any(|v| wanted[v.index()]) {
                node.pass = Pass::Dgrad;
                node.inputs.iter().for_each(|v| wanted[v.index()] = true);
            }
        }
    }

    /// The joint graph, gradients in the parameters' order. Readers of a value whose gradient was masked read the value itself.
    pub fn finish(mut self) -> Result<Graph, Error> {
        self.graph.gradients.sort_by_key(|g| g.parameter);
        self.passes();
        let (sources, rest): (Vec<NodeId>, Vec<NodeId>) =
            (0..self.graph.nodes.len() as u32).map(NodeId).partition(|&n| self.graph.node(n).op.is_source());
        let mut rewrite = Rewrite::new(&self.graph);
        for n in [sources, rest].concat() {
            let node = self.graph.node(n);
            match node.op {
                Op::MaskGradient => rewrite.set(node.results[0], rewrite.get(node.inputs[0])?),
                _ => rewrite.copy(n)?,
            }
        }
        Ok(rewrite.finish()?.0)
    }
}
