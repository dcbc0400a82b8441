//! The seed of the backward pass, and cross-entropy.

use super::backward::{Backward, Primal};
use super::*;
use fp8c_runtime::plan::Control;

/// The gradient of the loss by itself: the loss scale, from the control block.
pub(super) fn seed(b: &mut Backward, loss: ValueId) -> Result<ValueId, Error> {
    let control = control(&mut b.graph);
    let scale = b.emit(control_slice(Control::LOSS_SCALE), &[control])?;
    let shape = b.shape(loss);
    b.reshape(scale, &shape)
}

/// The control block, made if it is not there.
pub(super) fn control(graph: &mut Graph) -> ValueId {
    match graph.nodes.iter().find(|n| n.op == Op::Control) {
        Some(node) => node.results[0],
        None => graph.add_source(Op::Control, TensorType::new(DType::F32, [Control::LEN as u64]), &"control".into()),
    }
}

/// One number of the control block.
pub(super) fn control_slice(at: usize) -> Op {
    Op::Slice { starts: vec![at as i64], steps: vec![1], sizes: vec![1] }
}

pub(super) fn cross_entropy(b: &mut Backward, p: &Primal, c: &CrossEntropyOp, dy: ValueId) -> Result<(), Error> {
    let op = Op::CrossEntropyGrad(CrossEntropyOp { dtype: b.dtype(p.inputs[0]), ..c.clone() });
    let dx = b.emit(op, &[dy, p.inputs[0], p.inputs[1], p.results[1]])?;
    b.contribute(p.inputs[0], dx)
}
