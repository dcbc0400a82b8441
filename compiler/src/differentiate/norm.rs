//! Normalisation and softmax.

use super::backward::{Backward, Primal};
use super::*;

pub(super) fn norm(b: &mut Backward, p: &Primal, n: &NormOp, dy: ValueId) -> Result<(), Error> {
    let (x, scale) = (p.inputs[0], p.inputs[1]);
    let mut inputs = vec![dy, x, scale];
    inputs.extend(&p.results[1..]);
    let grads = b.emit_all(Op::NormGrad(NormOp { dtype: b.graph.ty(x).dtype, ..n.clone() }), &inputs)?;
    b.contribute(scale, grads[1])?;
    if let (Some(&bias), Some(&dbias)) = (p.inputs.get(2), grads.get(2)) {
        b.contribute(bias, dbias)?;
    }
    b.contribute(x, grads[0])
}

pub(super) fn softmax(b: &mut Backward, p: &Primal, log: bool, dy: ValueId) -> Result<(), Error> {
    let dx = b.emit(Op::SoftmaxGrad { log }, &[dy, p.results[0]])?;
    b.contribute(p.inputs[0], dx)
}
