//! Convolution and pooling.

use super::backward::{Backward, Primal};
use super::*;

pub(super) fn rule(b: &mut Backward, p: &Primal, dy: ValueId) -> Result<(), Error> {
    match &p.op {
        Op::Conv(c) => conv(b, p, c, dy),
        Op::Pool { op, window } => {
            let dx = b.emit(Op::PoolGrad { op: *op, window: *window }, &[p.inputs[0], dy])?;
            b.contribute(p.inputs[0], dx)
        }
        _ => Err(b.unsupported("a derivative of a window")),
    }
}

fn conv(b: &mut Backward, p: &Primal, c: &ConvOp, dy: ValueId) -> Result<(), Error> {
    let (x, w) = (p.inputs[0], p.inputs[1]);
    if let Some(&bias) = p.inputs.get(2).filter(|&&v| b.needs(v)) {
        let sum = b.sum(dy, vec![0, 2, 3])?;
        let shape = b.shape(bias);
        let sum = b.reshape(sum, &shape)?;
        b.contribute(bias, sum)?;
    }
    if b.needs(w) {
        let dw = b.emit(Op::ConvWgrad(c.clone()), &[dy, x])?;
        b.contribute(w, dw)?;
    }
    if b.needs(x) {
        let dx = b.emit(Op::ConvDgrad(ConvOp { dtype: b.graph.ty(x).dtype, ..c.clone() }), &[dy, w])?;
        b.contribute(x, dx)?;
    }
    Ok(())
}
