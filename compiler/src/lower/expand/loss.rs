//! Cross-entropy over logits `[n, c]` and labels `[n]`.

use super::Writer;
use super::reduce::{along_rows, reduce};
use crate::Error;
use crate::graph::{CrossEntropyOp, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::DType::F32;
use fp8c_kernels::program::{Binary, Fold, Unary};

/// How many labels count, as an f32 scalar; `None` where all do.
fn counted(w: &mut Writer, c: &CrossEntropyOp, labels: ValueId) -> Result<Option<ValueId>, Error> {
    let Some(ignored) = c.ignore_index else { return Ok(None) };
    let ones = w.map(F32, &[labels], |f, v| {
        let (ignored, one, zero) = (f.int(ignored), f.float(1.0), f.float(0.0));
        let counts = f.bin(Binary::Ne, v[0], ignored);
        f.select(counts, one, zero)
    })?;
    let sum = reduce(w, Fold::Sum, ones, &[0], F32)?;
    Ok(Some(w.reshape(sum, &[])?))
}

/// True where the graph puts a value in a buffer anyway, so that single elements of it can be loaded.
fn is_stored(w: &Writer, mut v: ValueId) -> bool {
    let graph = w.graph();
    while let Op::Reshape(_) = graph.def(v).op {
        v = graph.def(v).inputs[0];
    }
    graph.def(v).op.is_source() || matches!(graph.def(v).op, Op::Matmul { .. } | Op::ScaledMatmul { .. })
}

/// The logit of each row's label, `[n, 1]`; any element of the row where the label is ignored.
fn picked(w: &mut Writer, c: &CrossEntropyOp, logits: ValueId, labels: ValueId) -> Result<ValueId, Error> {
    let [n, classes] = [w.shape(logits)[0], w.shape(logits)[1]];
    let label = w.reshape(labels, &[n, 1])?;
    if is_stored(w, logits) {
        let label = match c.ignore_index {
            Some(ignored) => w.map(DType::I64, &[label], |f, v| {
                let (ignored, zero) = (f.int(ignored), f.int(0));
                let skipped = f.bin(Binary::Eq, v[0], ignored);
                f.select(skipped, zero, v[0])
            })?,
            None => label,
        };
        let (data, index) = (w.reshape(logits, &[n, classes, 1])?, w.reshape(label, &[n, 1, 1])?);
        let taken = w.one(Op::Take, &[data, index])?;
        return w.reshape(taken, &[n, 1]);
    }
    let iota = w.one(Op::Iota { shape: vec![1, classes], axis: 1 }, &[])?;
    let only = w.map(F32, &[logits, iota, label], |f, v| {
        let zero = f.float(0.0);
        let here = f.bin(Binary::Eq, v[1], v[2]);
        f.select(here, v[0], zero)
    })?;
    along_rows(w, Fold::Sum, only, 1)
}

/// Inputs logits, labels; results loss, lse.
pub(super) fn cross_entropy(w: &mut Writer, c: &CrossEntropyOp, x: &[ValueId]) -> Result<Vec<ValueId>, Error> {
    let (logits, labels, n) = (x[0], x[1], w.shape(x[0])[0]);
    let max = along_rows(w, Fold::Max, logits, 1)?;
    let e = w.map(F32, &[logits, max], |f, v| {
        let shifted = f.sub(v[0], v[1]);
        f.un(Unary::Exp, shifted)
    })?;
    let sum = along_rows(w, Fold::Sum, e, 1)?;
    let lse = w.map(F32, &[max, sum], |f, v| {
        let log = f.un(Unary::Log, v[1]);
        f.add(v[0], log)
    })?;
    let pick = picked(w, c, logits, labels)?;
    let label = w.reshape(labels, &[n, 1])?;
    let row = match c.ignore_index {
        Some(ignored) => w.map(F32, &[lse, pick, label], |f, v| {
            let (ignored, zero) = (f.int(ignored), f.float(0.0));
            let counts = f.bin(Binary::Ne, v[2], ignored);
            let loss = f.sub(v[0], v[1]);
            f.select(counts, loss, zero)
        })?,
        None => w.map(F32, &[lse, pick], |f, v| f.sub(v[0], v[1]))?,
    };
    let sum = reduce(w, Fold::Sum, row, &[0, 1], F32)?;
    let sum = w.reshape(sum, &[])?;
    let loss = if c.sum { sum } else { mean(w, c, sum, labels)? };
    let lse = w.reshape(lse, &[n])?;
    Ok(vec![loss, lse])
}

/// A scalar divided by the number of labels that count.
fn mean(w: &mut Writer, c: &CrossEntropyOp, sum: ValueId, labels: ValueId) -> Result<ValueId, Error> {
    let n = w.shape(labels)[0] as f32;
    match counted(w, c, labels)? {
        Some(count) => w.map(F32, &[sum, count], |f, v| f.div(v[0], v[1])),
        None => w.map(F32, &[sum], |f, v| {
            let n = f.float(n);
            f.div(v[0], n)
        }),
    }
}

/// Inputs dloss, logits, labels, lse.
pub(super) fn cross_entropy_grad(w: &mut Writer, c: &CrossEntropyOp, x: &[ValueId]) -> Result<ValueId, Error> {
    let (dloss, logits, labels, lse) = (x[0], x[1], x[2], x[3]);
    let [n, classes] = [w.shape(logits)[0], w.shape(logits)[1]];
    let dloss = w.reshape(dloss, &[])?;
    let factor = if c.sum { dloss } else { mean(w, c, dloss, labels)? };
    let (lse, label) = (w.reshape(lse, &[n, 1])?, w.reshape(labels, &[n, 1])?);
    let iota = w.one(Op::Iota { shape: vec![1, classes], axis: 1 }, &[])?;
    w.map(c.dtype, &[logits, lse, label, iota, factor], |f, v| {
        let shifted = f.sub(v[0], v[1]);
        let p = f.un(Unary::Exp, shifted);
        let (one, zero) = (f.float(1.0), f.float(0.0));
        let here = f.bin(Binary::Eq, v[3], v[2]);
        let hot = f.select(here, one, zero);
        let rest = f.sub(p, hot);
        let Some(ignored) = c.ignore_index else { return f.mul(rest, v[4]) };
        let ignored = f.int(ignored);
        let counts = f.bin(Binary::Ne, v[2], ignored);
        let scaled = f.mul(rest, v[4]);
        f.select(counts, scaled, zero)
    })
}
