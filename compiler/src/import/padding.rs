//! The padding row of an embedding: PyTorch gives it no gradient (`torch.nn.Embedding`, `padding_idx`), though a tied LM head does.

use super::model::ModelNode;
use super::ops::Lowering;
use super::torch::FxNode;
use crate::graph::{ConstData, Expr, Op};
use fp8c_kernels::DType;
use fp8c_kernels::program::Binary;
use std::sync::Arc;

/// Masks the gradient of a lowered `Gather` where PyTorch's metadata says that it is an embedding with a padding row.
///
/// # Errors
/// What [`Op::infer`] says.
pub fn mask(lowering: &mut Lowering, node: &ModelNode) -> Result<(), String> {
    let Some(row) = FxNode::of(node).filter(|_| node.op == "Gather").and_then(|fx| fx.padding_row()) else { return Ok(()) };
    let value = |name: Option<&String>| name.and_then(|name| lowering.values.get(name)).copied();
    let (Some(index), Some(result)) = (value(node.inputs.get(1)), value(node.outputs.first())) else { return Ok(()) };
    let mut shape = lowering.graph.ty(index).shape.clone();
    // Not a lookup of whole rows.
    if lowering.graph.ty(result).rank() != shape.len() + 1 || !lowering.graph.ty(result).dtype.is_float() {
        return Ok(());
    }
    shape.push(1);
    let site: Arc<str> = lowering.graph.def(result).site.clone();
    let row = lowering.constant(ConstData::i64([], &[row]));
    let kept = lowering.emit(Op::Map(Expr::binary(Binary::Ne), DType::Bool), &[index, row], &site)?[0];
    let kept = lowering.emit(Op::Reshape(shape), &[kept], &site)?[0];
    if lowering.graph.constant(kept).is_some_and(|c| c.bytes.iter().all(|&b| b != 0)) {
        return Ok(());
    }
    let masked = lowering.emit(Op::MaskGradient, &[result, kept], &site)?[0];
    lowering.values.insert(node.outputs[0].clone(), masked);
    Ok(())
}
