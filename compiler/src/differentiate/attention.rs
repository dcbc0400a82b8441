//! Attention and the rotary embedding.

use super::backward::{Backward, Primal};
use super::*;
use fp8c_kernels::program::{Binary, Unary};

pub(super) fn attention(b: &mut Backward, p: &Primal, a: &AttentionOp, dy: ValueId) -> Result<(), Error> {
    let mut inputs = p.inputs.clone();
    inputs.extend([p.results[0], p.results[1], dy]);
    if p.inputs[..3].iter().any(|&v| b.needs(v)) {
        let grads = b.emit_all(Op::AttentionGrad(a.clone()), &inputs)?;
        for (&to, gradient) in p.inputs.iter().zip(grads) {
            b.contribute(to, gradient)?;
        }
    }
    match p.inputs.get(3) {
        Some(&bias) if b.needs(bias) => trained_bias(b, p, a, bias, dy),
        _ => Ok(()),
    }
}

/// The gradient of a bias that is trained: `dz = p (do v^T - delta)` written out, which the fused kernel does not give.
fn trained_bias(b: &mut Backward, p: &Primal, a: &AttentionOp, bias: ValueId, dy: ValueId) -> Result<(), Error> {
    let [q, k, v] = [p.inputs[0], p.inputs[1], p.inputs[2]];
    let (o, lse) = (p.results[0], p.results[1]);
    if a.mask != Default::default() || a.softcap.is_some() || b.shape(q)[1] != b.shape(k)[1] {
        return Err(b.unsupported("a trained bias beside a mask, a soft cap or grouped heads"));
    }
    let scores = Op::Matmul { trans_a: false, trans_b: true, dtype: DType::F32 };
    let z = b.emit(scores.clone(), &[q, k])?;
    let dp = b.emit(scores, &[dy, v])?;
    let terms = b.emit(Op::Map(Expr::binary(Binary::Mul), DType::F32), &[dy, o])?;
    let delta = b.sum(terms, vec![3])?;
    let mut e = crate::graph::expr::Builder::default();
    let [z_, bias_, lse_, dp_, delta_] = [0, 1, 2, 3, 4].map(|i| e.operand(i));
    let scale = e.float(f32::from_bits(a.scale.0));
    let scaled = e.binary(Binary::Mul, z_, scale);
    let biased = e.binary(Binary::Add, scaled, bias_);
    let shifted = e.binary(Binary::Sub, biased, lse_);
    let prob = e.unary(Unary::Exp, shifted);
    let centred = e.binary(Binary::Sub, dp_, delta_);
    let dz = e.binary(Binary::Mul, prob, centred);
    let (expr, used) = e.extract(dz);
    let values = [z, bias, lse, dp, delta];
    let inputs: Vec<ValueId> = used.iter().map(|&i| values[i as usize]).collect();
    let dz = b.emit(Op::Map(expr, DType::F32), &inputs)?;
    b.contribute(bias, dz)
}

pub(super) fn rotary(b: &mut Backward, p: &Primal, (rotated, interleaved, inverse): (u64, bool, bool), dy: ValueId) -> Result<(), Error> {
    if p.inputs[1..].iter().any(|&v| b.needs(v)) {
        return Err(b.unsupported("a trained rotary table"));
    }
    let dx = b.emit(Op::Rotary { rotated, interleaved, inverse: !inverse }, &[dy, p.inputs[1], p.inputs[2]])?;
    b.contribute(p.inputs[0], dx)
}
