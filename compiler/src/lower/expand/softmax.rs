//! Softmax and log-softmax along the last axis.

use super::Writer;
use super::reduce::along_rows;
use crate::Error;
use crate::graph::ValueId;
use fp8c_kernels::DType::F32;
use fp8c_kernels::program::{Fold, Unary};

pub(super) fn softmax(w: &mut Writer, log: bool, x: ValueId) -> Result<ValueId, Error> {
    let dtype = w.dtype(x);
    let max = along_rows(w, Fold::Max, x, 1)?;
    let shifted = w.map(F32, &[x, max], |f, v| f.sub(v[0], v[1]))?;
    let e = w.map(F32, &[shifted], |f, v| f.un(Unary::Exp, v[0]))?;
    let sum = along_rows(w, Fold::Sum, e, 1)?;
    if log {
        let log = w.map(F32, &[sum], |f, v| f.un(Unary::Log, v[0]))?;
        return w.map(dtype, &[shifted, log], |f, v| f.sub(v[0], v[1]));
    }
    let factor = w.map(F32, &[sum], |f, v| f.un(Unary::Recip, v[0]))?;
    w.map(dtype, &[e, factor], |f, v| f.mul(v[0], v[1]))
}

/// Gradient from dy and the result y.
pub(super) fn softmax_grad(w: &mut Writer, log: bool, dy: ValueId, y: ValueId) -> Result<ValueId, Error> {
    let dtype = w.dtype(y);
    if log {
        let sum = along_rows(w, Fold::Sum, dy, 1)?;
        return w.map(dtype, &[dy, y, sum], |f, v| {
            let p = f.un(Unary::Exp, v[1]);
            let taken = f.mul(p, v[2]);
            f.sub(v[0], taken)
        });
    }
    let product = w.map(F32, &[dy, y], |f, v| f.mul(v[0], v[1]))?;
    let sum = along_rows(w, Fold::Sum, product, 1)?;
    w.map(dtype, &[dy, y, sum], |f, v| {
        let rest = f.sub(v[0], v[2]);
        f.mul(v[1], rest)
    })
}
