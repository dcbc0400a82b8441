//! Reductions over axes.

use super::call::{Call, axes, axis};
use super::expr::Scalar;
use super::{Outcome, Rule, Table};
use crate::graph::{Expr, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Fold, Unary};

pub(super) const OPS: Table = &[
    ("ArgMax", Rule::Call(arg_max)),
    ("ArgMin", Rule::Call(arg_min)),
    ("ReduceL1", Rule::Call(l1)),
    ("ReduceL2", Rule::Call(l2)),
    ("ReduceLogSum", Rule::Call(log_sum)),
    ("ReduceLogSumExp", Rule::Call(log_sum_exp)),
    ("ReduceMax", Rule::Call(max)),
    ("ReduceMean", Rule::Call(mean)),
    ("ReduceMin", Rule::Call(min)),
    ("ReduceProd", Rule::Call(prod)),
    ("ReduceSum", Rule::Call(sum)),
    ("ReduceSumSquare", Rule::Call(sum_square)),
];

/// What a reduction runs over.
struct Reduction {
    x: ValueId,
    axes: Vec<usize>,
    /// Of the result, without the folded axes unless they are kept.
    shape: Vec<u64>,
    dtype: DType,
}

impl Reduction {
    fn of(call: &Call) -> Result<Self, String> {
        let x = call.input(0)?;
        let shape = call.shape(x);
        let rank = shape.len();
        let list = call.ints_or_input("axes", 1)?.unwrap_or_default();
        let all = list.is_empty() && !call.flag("noop_with_empty_axes")?;
        let axes = if all { (0..rank).collect() } else { axes(&list, rank)? };
        let keep = call.int("keepdims", 1)? != 0;
        let kept = (0..rank).filter(|d| keep || !axes.contains(d));
        let shape = kept.map(|d| if axes.contains(&d) { 1 } else { shape[d] }).collect();
        Ok(Reduction { x, axes, shape, dtype: call.dtype(x) })
    }

    /// The dtype that sums run in: f32 for floats.
    fn wide(&self) -> DType {
        if self.dtype.is_float() { DType::F32 } else { self.dtype }
    }

    /// Elements folded into one.
    fn count(&self, call: &Call) -> u64 {
        let shape = call.shape(self.x);
        self.axes.iter().fold(1, |n, &a| n.saturating_mul(shape[a]))
    }

    fn numbers(self) -> Result<Self, String> {
        match self.dtype {
            DType::Bool => Err("cannot take bool".into()),
            _ => Ok(self),
        }
    }

    fn floats(self) -> Result<Self, String> {
        match self.dtype.is_float() {
            true => Ok(self),
            false => Err(format!("needs floats, has {}", self.dtype)),
        }
    }

    fn done(&self, call: &mut Call, folded: ValueId) -> Outcome {
        let folded = call.cast(folded, self.dtype)?;
        call.reshape(folded, self.shape.clone()).map(|v| vec![v])
    }

    fn fold(&self, call: &mut Call, op: Fold, x: ValueId) -> Result<ValueId, String> {
        let dtype = self.wide();
        call.reduce(op, x, &self.axes, dtype)
    }
}

fn sum(call: &mut Call) -> Outcome {
    let r = Reduction::of(call)?.numbers()?;
    let folded = r.fold(call, Fold::Sum, r.x)?;
    r.done(call, folded)
}

fn prod(call: &mut Call) -> Outcome {
    let r = Reduction::of(call)?.numbers()?;
    let folded = r.fold(call, Fold::Prod, r.x)?;
    r.done(call, folded)
}

fn mean(call: &mut Call) -> Outcome {
    let r = Reduction::of(call)?.numbers()?;
    let folded = r.fold(call, Fold::Sum, r.x)?;
    let count = r.count(call);
    let mean = match r.dtype.is_float() {
        true => call.with(Binary::Div, folded, count as f32)?,
        false => {
            let count = call.scalar(count as f64, r.dtype)?;
            call.binary(Binary::Div, folded, count)?
        }
    };
    r.done(call, mean)
}

/// The largest or smallest; of bools, through integers.
fn extreme(call: &mut Call, op: Fold) -> Outcome {
    let r = Reduction::of(call)?;
    let of = if r.dtype == DType::Bool { DType::I32 } else { r.dtype };
    let x = call.cast(r.x, of)?;
    let folded = call.reduce(op, x, &r.axes, of)?;
    r.done(call, folded)
}

fn max(call: &mut Call) -> Outcome {
    extreme(call, Fold::Max)
}

fn min(call: &mut Call) -> Outcome {
    extreme(call, Fold::Min)
}

fn l1(call: &mut Call) -> Outcome {
    let r = Reduction::of(call)?.numbers()?;
    let abs = call.unary(Unary::Abs, r.x)?;
    let folded = r.fold(call, Fold::Sum, abs)?;
    r.done(call, folded)
}

/// The sum of squares, in the sum's dtype.
fn squares(call: &mut Call, r: &Reduction) -> Result<ValueId, String> {
    let wide = r.wide();
    let mut e = Scalar::default();
    let x = e.operand(0);
    e.binary(Binary::Mul, x, x);
    let squares = call.map(e.finish(), &[r.x], wide)?;
    r.fold(call, Fold::Sum, squares)
}

fn sum_square(call: &mut Call) -> Outcome {
    let r = Reduction::of(call)?.numbers()?;
    let folded = squares(call, &r)?;
    r.done(call, folded)
}

fn l2(call: &mut Call) -> Outcome {
    let r = Reduction::of(call)?.floats()?;
    let folded = squares(call, &r)?;
    let root = call.unary(Unary::Sqrt, folded)?;
    r.done(call, root)
}

fn log_sum(call: &mut Call) -> Outcome {
    let r = Reduction::of(call)?.floats()?;
    let folded = r.fold(call, Fold::Sum, r.x)?;
    let log = call.unary(Unary::Log, folded)?;
    r.done(call, log)
}

/// `log(sum(exp(x - m))) + m` with m the largest, or 0 where that is infinite.
fn log_sum_exp(call: &mut Call) -> Outcome {
    let r = Reduction::of(call)?.floats()?;
    let largest = call.reduce(Fold::Max, r.x, &r.axes, DType::F32)?;
    let mut e = Scalar::default();
    let m = e.operand(0);
    let infinite = e.unary(Unary::IsInf, m);
    let zero = e.float(0.0);
    e.select(infinite, zero, m);
    let shift = call.map(e.finish(), &[largest], DType::F32)?;
    let less = call.map(Expr::binary(Binary::Sub), &[r.x, shift], DType::F32)?;
    let exp = call.unary(Unary::Exp, less)?;
    let folded = r.fold(call, Fold::Sum, exp)?;
    let log = call.unary(Unary::Log, folded)?;
    let shifted = call.binary(Binary::Add, log, shift)?;
    r.done(call, shifted)
}

fn arg_max(call: &mut Call) -> Outcome {
    arg(call, Fold::Max)
}

fn arg_min(call: &mut Call) -> Outcome {
    arg(call, Fold::Min)
}

/// The first (or last) position that attains the extreme: the smallest (largest) of the positions where the input equals it.
fn arg(call: &mut Call, op: Fold) -> Outcome {
    let x = call.input(0)?;
    let (shape, dtype) = (call.shape(x), call.dtype(x));
    let along = axis(call.int("axis", 0)?, shape.len())?;
    let last = call.flag("select_last_index")?;
    if dtype == DType::Bool || shape[along] == 0 {
        return Err("needs numbers, and at least one".into());
    }
    let extreme = call.reduce(op, x, &[along], dtype)?;
    let mut line = vec![1; shape.len()];
    line[along] = shape[along];
    let position = call.one(Op::Iota { shape: line, axis: along }, &[])?;
    let mut e = Scalar::default();
    let (x0, best, at) = (e.operand(0), e.operand(1), e.operand(2));
    let attains = e.binary(Binary::Eq, x0, best);
    let otherwise = e.int(if last { 0 } else { shape[along] as i64 - 1 });
    e.select(attains, at, otherwise);
    let candidates = call.map(e.finish(), &[x, extreme, position], DType::I64)?;
    let found = call.reduce(if last { Fold::Max } else { Fold::Min }, candidates, &[along], DType::I64)?;
    let mut kept = shape;
    match call.int("keepdims", 1)? {
        0 => drop(kept.remove(along)),
        _ => kept[along] = 1,
    }
    call.reshape(found, kept).map(|v| vec![v])
}
