//! Losses over classes.

use super::call::{Call, volume};
use super::expr::Scalar;
use super::{Outcome, Rule, Table, softmax};
use crate::graph::{ConstData, CrossEntropyOp, Expr, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Fold, Unary};

pub(super) const OPS: Table =
    &[("NegativeLogLikelihoodLoss", Rule::Call(negative_log_likelihood)), ("SoftmaxCrossEntropyLoss", Rule::Call(softmax_cross_entropy))];

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

/// Scores as rows of classes, `[n, c]`, with their labels, `[n]`.
struct Rows {
    scores: ValueId,
    labels: ValueId,
    weights: Option<ValueId>,
    ignored: Option<i64>,
    reduction: Reduction,
    /// Of the labels in the model.
    shape: Vec<u64>,
    /// Of the scores in the model, classes last.
    classes_last: Vec<u64>,
}

fn rows(call: &mut Call) -> Result<Rows, String> {
    let (scores, labels) = (call.float_input(0)?, call.input(1)?);
    let (scored, shape) = (call.shape(scores), call.shape(labels));
    let fits = scored.len() >= 2 && !shape.is_empty() && scored[0] == shape[0] && scored[2..] == shape[1..];
    if !fits || !matches!(call.dtype(labels), DType::I64 | DType::I32) {
        return Err(format!("needs scores [n, c, ..] and integer labels [n, ..], has {scored:?} and {shape:?}"));
    }
    let reduction = match call.string("reduction", "mean")? {
        "none" => Reduction::None,
        "sum" => Reduction::Sum,
        "mean" => Reduction::Mean,
        other => return Err(format!("has the reduction {other}")),
    };
    let ignored = call.attribute("ignore_index").map(|_| call.int("ignore_index", 0)).transpose()?;
    let weights = call.optional(2);
    if weights.is_some_and(|w| call.shape(w) != [scored[1]] || call.dtype(w) != call.dtype(scores)) {
        return Err("needs one weight for each class, of the scores' type".into());
    }
    let n = volume(&shape)?;
    let perm: Vec<usize> = [0].into_iter().chain(2..scored.len()).chain([1]).collect();
    let scores = call.transpose(scores, perm)?;
    let classes_last = call.shape(scores);
    let scores = call.reshape(scores, vec![n, scored[1]])?;
    let labels = call.reshape(labels, vec![n])?;
    let labels = call.cast(labels, DType::I64)?;
    Ok(Rows { scores, labels, weights, ignored, reduction, shape, classes_last })
}

/// The composite where there are no weights and one loss; with them, or a loss for each label, through the log-softmax.
fn softmax_cross_entropy(call: &mut Call) -> Outcome {
    let mut rows = rows(call)?;
    let dtype = call.dtype(rows.scores);
    let plain = rows.weights.is_none() && rows.reduction != Reduction::None;
    let logits = rows.scores;
    if !plain || call.wants(1) {
        rows.scores = softmax::last(call, logits, true)?;
    }
    let loss = match plain {
        true => {
            let op = CrossEntropyOp { ignore_index: rows.ignored, sum: rows.reduction == Reduction::Sum, dtype };
            let loss = call.one(Op::CrossEntropy(op), &[logits, rows.labels])?;
            call.cast(loss, dtype)?
        }
        false => picked(call, &rows)?,
    };
    let mut results = vec![loss];
    if call.wants(1) {
        let log = call.reshape(rows.scores, rows.classes_last.clone())?;
        let rank = rows.classes_last.len();
        let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        results.push(call.transpose(log, perm)?);
    }
    Ok(results)
}

fn negative_log_likelihood(call: &mut Call) -> Outcome {
    let rows = rows(call)?;
    picked(call, &rows).map(|v| vec![v])
}

/// `-score[label] * weight[label]`, ignored labels counting 0; the mean divides by the weights that count.
fn picked(call: &mut Call, rows: &Rows) -> Result<ValueId, String> {
    let (dtype, [n, c]) = (call.dtype(rows.scores), [call.shape(rows.scores)[0], call.shape(rows.scores)[1]]);
    let labels = match rows.ignored {
        None => rows.labels,
        Some(ignored) => {
            let mut e = Scalar::default();
            let (l, ignored, zero) = (e.operand(0), e.int(ignored), e.int(0));
            let same = e.binary(Binary::Eq, l, ignored);
            e.select(same, zero, l);
            call.map(e.finish(), &[rows.labels], DType::I64)?
        }
    };
    let scores = call.reshape(rows.scores, vec![n, c, 1])?;
    let index = call.reshape(labels, vec![n, 1, 1])?;
    let score = call.one(Op::Take, &[scores, index])?;
    let score = call.reshape(score, vec![n])?;
    let weight = weight_of_each(call, rows, labels, n)?;
    let weighted = call.map(Expr::binary(Binary::Mul), &[score, weight], DType::F32)?;
    let mut e = Scalar::default();
    let x = e.operand(0);
    e.unary(Unary::Neg, x);
    let losses = call.map(e.finish(), &[weighted], DType::F32)?;
    let loss = match rows.reduction {
        Reduction::None => call.reshape(losses, rows.shape.clone())?,
        Reduction::Sum => total(call, losses)?,
        Reduction::Mean => {
            let (sum, weights) = (total(call, losses)?, total(call, weight)?);
            call.binary(Binary::Div, sum, weights)?
        }
    };
    call.cast(loss, dtype)
}

fn total(call: &mut Call, x: ValueId) -> Result<ValueId, String> {
    let sum = call.reduce(Fold::Sum, x, &[0], DType::F32)?;
    call.reshape(sum, vec![])
}

/// The weight of each label, `[n]` f32: its class's or 1, and 0 where it is ignored.
fn weight_of_each(call: &mut Call, rows: &Rows, labels: ValueId, n: u64) -> Result<ValueId, String> {
    let weight = match rows.weights {
        None => call.constant(ConstData::f32([1], &[1.0])),
        Some(w) => {
            let index = call.reshape(labels, vec![1, n, 1])?;
            let taken = call.take(w, 0, index)?;
            call.cast(taken, DType::F32)?
        }
    };
    let Some(ignored) = rows.ignored else { return call.broadcast(weight, vec![n]) };
    let mut e = Scalar::default();
    let (l, w, ignored, zero) = (e.operand(0), e.operand(1), e.int(ignored), e.float(0.0));
    let same = e.binary(Binary::Eq, l, ignored);
    e.select(same, zero, w);
    call.map(e.finish(), &[rows.labels, weight], DType::F32)
}
