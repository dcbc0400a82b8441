//! Which token a language model's loss compares a position with.
//!
//! Models that compute their own loss shift their labels by one position; a wrapper around the logits mostly does not. Both sides of
//! each loss are followed: the labels forward, by evaluating what is done to them on numbers that tell their place, and the scores
//! back, through views and operators that keep positions apart, to the value that has one place for each token.

use crate::graph::eval::eval_node;
use crate::graph::{ConstData, Graph, Op, TensorType, ValueId};
use fp8c_kernels::DType;
use fp8c_runtime::plan::Labels;
use std::cell::Cell;
use std::collections::HashMap;

/// First label of the evaluation: beyond what graphs compare labels with.
const FIRST: i64 = 1 << 20;
/// Most elements that are evaluated, and most nodes that are followed, so that a model made for it cannot take long.
const MAX_ELEMENTS: u64 = 1 << 26;

/// Tokens of a step, and of a sequence, for a model with token ids `[batch, length]`.
pub fn tokens(graph: &Graph) -> Option<(u64, u64)> {
    let ids = graph.nodes.iter().find(|n| matches!(&n.op, Op::Input { name } if name == "input_ids"))?;
    match graph.ty(ids.results[0]).shape[..] {
        [batch, length] if batch > 0 && length > 0 => Some((batch.checked_mul(length)?, length)),
        _ => None,
    }
}

/// The tokens that the input `labels` stands for; none where a loss cannot be followed, or two differ.
pub fn wanted(graph: &Graph, labels: ValueId) -> Option<Labels> {
    let (n, length) = tokens(graph)?;
    if graph.ty(labels).elements() != n {
        return None;
    }
    let derived = derived(graph, labels);
    let tracer = Tracer { graph, labels, n: n as i64, weights: weights(graph), left: Cell::new(MAX_ELEMENTS) };
    let mut found = None;
    for node in &graph.nodes {
        let (scores, index) = match &node.op {
            Op::CrossEntropy(_) | Op::Take => (node.inputs[0], node.inputs[1]),
            _ => continue,
        };
        if !derived[index.index()] || tracer.weights[scores.index()] {
            continue;
        }
        let one = compared(&tracer.places(scores, 1)?, &tracer.rows(index)?, length as i64)?;
        if *found.get_or_insert(one) != one {
            return None;
        }
    }
    found
}

/// Says how far labels are from the positions that they are compared with.
fn compared(places: &[i64], rows: &[Option<i64>], length: i64) -> Option<Labels> {
    // Several labels for a row of scores: an index with an axis of its own.
    if places.len() != rows.len() {
        return None;
    }
    let pairs = || places.iter().zip(rows).filter_map(|(&p, l)| Some((p - 1, (*l)?))).filter(|(p, _)| *p >= 0);
    pairs().next()?;
    if pairs().all(|(p, l)| l == p) {
        return Some(Labels::Next);
    }
    pairs().all(|(p, l)| l == p + 1 && l / length == p / length).then_some(Labels::Same)
}

/// The values other than floats that depend on the labels.
fn derived(graph: &Graph, labels: ValueId) -> Vec<bool> {
    let mut derived = vec![false; graph.values.len()];
    derived[labels.index()] = true;
    for node in &graph.nodes {
        if node.inputs.iter().any(|v| derived[v.index()]) {
            node.results.iter().filter(|r| !graph.ty(**r).dtype.is_float()).for_each(|r| derived[r.index()] = true);
        }
    }
    derived
}

/// The parameters and constants, and what is made of them alone.
fn weights(graph: &Graph) -> Vec<bool> {
    let mut weights = vec![false; graph.values.len()];
    for node in &graph.nodes {
        let own = matches!(node.op, Op::Parameter(_) | Op::Constant(_) | Op::Iota { .. });
        let made = !node.inputs.is_empty() && node.inputs.iter().all(|v| weights[v.index()]);
        node.results.iter().for_each(|r| weights[r.index()] = own || made);
    }
    weights
}

/// Follows labels and scores of a graph.
struct Tracer<'a> {
    graph: &'a Graph,
    labels: ValueId,
    /// Tokens of a step.
    n: i64,
    weights: Vec<bool>,
    /// Elements that may still be evaluated.
    left: Cell<u64>,
}

impl Tracer<'_> {
    /// Pays for a value.
    fn pay(&self, elements: u64) -> Option<()> {
        self.left.set(self.left.get().checked_sub(elements.saturating_add(1))?);
        Some(())
    }

    fn shape(&self, v: ValueId) -> &[u64] {
        &self.graph.ty(v).shape
    }

    /// The label that each element of an index is: its place in the input, or none for one that the graph put in.
    fn rows(&self, index: ValueId) -> Option<Vec<Option<i64>>> {
        let second = FIRST + self.n + 1;
        let evaluated = |first: i64| Some(self.evaluate(index, numbered(self.graph.ty(self.labels), first)?)?.to_i64());
        let (a, b) = (evaluated(FIRST)?, evaluated(second)?);
        let place = |(&x, &y): (&i64, &i64)| match y.checked_sub(x)? {
            0 => Some(None),
            d if d == second - FIRST && (FIRST..FIRST + self.n).contains(&x) => Some(Some(x - FIRST)),
            _ => None,
        };
        a.iter().zip(&b).map(place).collect()
    }

    /// A value for these labels. An attention mask is ones, as it is with a token file; other inputs are unknown.
    fn evaluate(&self, v: ValueId, labels: ConstData) -> Option<ConstData> {
        let mut known = HashMap::from([(self.labels, labels)]);
        let mut open = vec![v];
        while let Some(&next) = open.last() {
            if known.contains_key(&next) {
                open.pop();
                continue;
            }
            let node = self.graph.def(next);
            let missing: Vec<ValueId> = node.inputs.iter().copied().filter(|x| !known.contains_key(x)).collect();
            if !missing.is_empty() {
                open.extend(missing);
                continue;
            }
            let types: Vec<TensorType> = node.results.iter().map(|r| self.graph.ty(*r).clone()).collect();
            types.iter().try_for_each(|t| self.pay(t.elements()))?;
            let results = match &node.op {
                Op::Input { name } if name == "attention_mask" => vec![ones(&types[0])],
                op => eval_node(op, &node.inputs.iter().map(|x| &known[x]).collect::<Vec<_>>(), &types).ok()?,
            };
            known.extend(node.results.iter().copied().zip(results));
        }
        known.remove(&v)
    }

    /// For each element of `v` without its axis of classes or features the token's place, counted from 1; 0 for filling.
    fn places(&self, mut v: ValueId, mut axis: usize) -> Option<Vec<i64>> {
        while let Some((x, k)) = self.through(v, axis) {
            self.pay(0)?;
            (v, axis) = (x, k);
        }
        let (node, shape) = (self.graph.def(v), self.shape(v));
        let rows = one_along(shape, axis);
        let op = match &node.op {
            Op::Transpose(perm) => return self.moved(node.inputs[0], perm[axis], &node.op, rows),
            Op::Slice { starts, steps, sizes } => {
                let (mut starts, mut steps, mut sizes) = (starts.clone(), steps.clone(), sizes.clone());
                (starts[axis], steps[axis], sizes[axis]) = (0, 1, 1);
                Op::Slice { starts, steps, sizes }
            }
            Op::Pad { low, high } => {
                let (mut low, mut high) = (low.clone(), high.clone());
                (low[axis], high[axis]) = (0, 0);
                Op::Pad { low, high }
            }
            Op::Concat { axis: along } if *along != axis => return self.joined(v, axis, rows),
            _ => return (rows.iter().product::<u64>() == self.n as u64).then(|| (1..=self.n).collect()),
        };
        self.moved(node.inputs[0], axis, &op, rows)
    }

    /// The operand that has the same rows in the same order, where the operator keeps them apart, and its axis of features.
    fn through(&self, v: ValueId, axis: usize) -> Option<(ValueId, usize)> {
        let (node, shape) = (self.graph.def(v), self.shape(v));
        let x = *node.inputs.first()?;
        let last = axis + 1 == shape.len();
        match &node.op {
            Op::Reshape(_) => same_axis(self.shape(x), shape, axis).map(|k| (x, k)),
            Op::Map(..) => self.wide_operand(v, axis),
            Op::Softmax { .. } | Op::Norm(_) if last => Some((x, axis)),
            Op::Matmul { trans_a: false, .. } if last && self.weights[node.inputs[1].index()] => {
                (self.shape(x)[..axis] == shape[..axis]).then_some((x, axis))
            }
            _ => None,
        }
    }

    /// The one operand of a scalar expression that is no weight, where it has the whole shape.
    fn wide_operand(&self, v: ValueId, axis: usize) -> Option<(ValueId, usize)> {
        let shape = self.shape(v);
        let mut data = self.graph.def(v).inputs.iter().copied().filter(|x| !self.weights[x.index()] && self.graph.ty(*x).elements() > 1);
        let only = data.next().filter(|_| data.next().is_none())?;
        let dropped = shape.len() - self.shape(only).len();
        let whole = *self.shape(only) == shape[dropped..] && shape[..dropped].iter().all(|&n| n == 1) && axis >= dropped;
        whole.then(|| (only, axis - dropped))
    }

    /// Follows a view that moves rows: `op` as it acts on a tensor whose axis `k` has one element.
    fn moved(&self, x: ValueId, k: usize, op: &Op, rows: Vec<u64>) -> Option<Vec<i64>> {
        let places = ConstData::i64(one_along(self.shape(x), k), &self.inner(x, k)?);
        self.view(op, &[&places], rows)
    }

    /// [`Tracer::places`] of an operand, paid for.
    fn inner(&self, x: ValueId, k: usize) -> Option<Vec<i64>> {
        // What is paid for bounds the recursion too, at a depth that stacks bear.
        self.pay((MAX_ELEMENTS >> 8).max(self.n as u64))?;
        self.places(x, k)
    }

    fn joined(&self, v: ValueId, axis: usize, rows: Vec<u64>) -> Option<Vec<i64>> {
        let node = self.graph.def(v);
        let part = |&x: &ValueId| {
            let shape = one_along(self.shape(x), axis);
            let filling = || Some(vec![0; shape.iter().product::<u64>() as usize]);
            let places = if self.weights[x.index()] { filling()? } else { self.inner(x, axis)? };
            Some(ConstData::i64(shape, &places))
        };
        let parts: Vec<ConstData> = node.inputs.iter().map(part).collect::<Option<_>>()?;
        self.view(&node.op, &parts.iter().collect::<Vec<_>>(), rows)
    }

    fn view(&self, op: &Op, inputs: &[&ConstData], shape: Vec<u64>) -> Option<Vec<i64>> {
        let ty = TensorType::new(DType::I64, shape);
        self.pay(ty.elements())?;
        eval_node(op, inputs, &[ty]).ok()?.first().map(ConstData::to_i64)
    }
}

fn numbered(ty: &TensorType, first: i64) -> Option<ConstData> {
    let numbers = 0..ty.elements() as i64;
    let bytes = match ty.dtype {
        DType::I64 => numbers.flat_map(|i| (first + i).to_le_bytes()).collect(),
        DType::I32 => numbers.flat_map(|i| ((first + i) as i32).to_le_bytes()).collect(),
        _ => return None,
    };
    Some(ConstData { ty: ty.clone(), bytes })
}

fn ones(ty: &TensorType) -> ConstData {
    let one: &[u8] = match ty.dtype {
        DType::I64 => &1i64.to_le_bytes(),
        DType::I32 => &1i32.to_le_bytes(),
        DType::F32 => &1f32.to_le_bytes(),
        DType::Bf16 => &half::bf16::ONE.to_le_bytes(),
        DType::Bool | DType::E4m3 => &[1],
    };
    ConstData { ty: ty.clone(), bytes: one.repeat(ty.elements() as usize) }
}

fn one_along(shape: &[u64], axis: usize) -> Vec<u64> {
    shape.iter().enumerate().map(|(d, &n)| if d == axis { 1 } else { n }).collect()
}

/// The axis of `before` that a reshape leaves as axis `axis` of `after`.
fn same_axis(before: &[u64], after: &[u64], axis: usize) -> Option<usize> {
    let outer: u64 = after[..axis].iter().product();
    (0..before.len()).find(|&k| before[k] == after[axis] && before[..k].iter().product::<u64>() == outer)
}
