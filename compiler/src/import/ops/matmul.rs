//! Matrix products.

use super::call::{Call, volume};
use super::{Outcome, Rule, Table};
use crate::graph::{Op, ValueId};
use fp8c_kernels::program::Binary;

pub(super) const OPS: Table = &[("Gemm", Rule::Call(gemm)), ("MatMul", Rule::Call(matmul))];

/// A product of two values of one float type, of equal rank.
pub(super) fn product(call: &mut Call, a: ValueId, b: ValueId, trans_a: bool, trans_b: bool) -> Result<ValueId, String> {
    let dtype = call.dtype(a);
    match dtype.is_float() && call.dtype(b) == dtype {
        true => call.one(Op::Matmul { trans_a, trans_b, dtype }, &[a, b]),
        false => Err(format!("needs float matrices of one type, has {dtype} and {}", call.dtype(b))),
    }
}

/// `alpha * a' * b' + beta * c`
fn gemm(call: &mut Call) -> Outcome {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if call.rank(a) != 2 || call.rank(b) != 2 {
        return Err("needs matrices".into());
    }
    let (trans_a, trans_b) = (call.flag("transA")?, call.flag("transB")?);
    let (alpha, beta) = (call.float("alpha", 1.0)?, call.float("beta", 1.0)?);
    let mut y = product(call, a, b, trans_a, trans_b)?;
    if alpha != 1.0 {
        y = call.with(Binary::Mul, y, alpha)?;
    }
    let Some(mut c) = call.optional(2).filter(|_| beta != 0.0) else { return Ok(vec![y]) };
    if call.dtype(c) != call.dtype(y) {
        return Err("needs operands of one type".into());
    }
    if beta != 1.0 {
        c = call.with(Binary::Mul, c, beta)?;
    }
    let shape = call.shape(y);
    let sum = call.binary(Binary::Add, y, c)?;
    match call.shape(sum) == shape {
        true => Ok(vec![sum]),
        false => Err(format!("cannot broadcast {:?} to {shape:?}", call.shape(c))),
    }
}

/// numpy's matmul. A matrix on the right makes one matrix of all the rows on the left, which is what a linear layer is.
fn matmul(call: &mut Call) -> Outcome {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (sa, sb) = (call.shape(a), call.shape(b));
    if sa.is_empty() || sb.is_empty() {
        return Err("cannot multiply scalars".into());
    }
    // A vector on the left is a row, one on the right a column; the result loses that axis.
    let a = if sa.len() == 1 { call.reshape(a, vec![1, sa[0]])? } else { a };
    let b = if sb.len() == 1 { call.reshape(b, vec![sb[0], 1])? } else { b };
    let y = stacked(call, a, b)?;
    let mut shape = call.shape(y);
    let rank = shape.len();
    if sb.len() == 1 {
        shape.remove(rank - 1);
    }
    if sa.len() == 1 {
        shape.remove(rank - 2);
    }
    call.reshape(y, shape).map(|v| vec![v])
}

/// A product of matrices with leading axes that broadcast.
pub(super) fn stacked(call: &mut Call, a: ValueId, b: ValueId) -> Result<ValueId, String> {
    let (sa, sb) = (call.shape(a), call.shape(b));
    if sa.len() > 2 && sb.len() == 2 {
        let (columns, rows) = (sa[sa.len() - 1], volume(&sa[..sa.len() - 1])?);
        let flat = call.reshape(a, vec![rows, columns])?;
        let y = product(call, flat, b, false, false)?;
        let shape = [&sa[..sa.len() - 1], &[sb[1]]].concat();
        return call.reshape(y, shape);
    }
    let rank = sa.len().max(sb.len());
    let grown = |s: &[u64]| [&vec![1; rank - s.len()], s].concat();
    let a = call.reshape(a, grown(&sa))?;
    let b = call.reshape(b, grown(&sb))?;
    product(call, a, b, false, false)
}
