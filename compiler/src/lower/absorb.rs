//! Matrix products whose reader's work their kernel does at no cost: a bias, a cast, an accumulation.

use super::scene::Scene;
use crate::graph::{Expr, ExprNode, Node, NodeId, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::Binary;

/// What a kernel does after a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Rounds to the reader's dtype.
    Cast,
    /// Adds this operand of the reader along the last axis.
    Bias(usize),
    /// Adds to what the reader's buffer holds.
    Accumulate,
}

/// Finds products that are read once, by a node whose work an epilogue does. Only products in f32: rounding a bf16 product before
/// the bias is part of its meaning.
pub(super) fn find(scene: &mut Scene) {
    for n in 0..scene.graph().nodes.len() as u32 {
        let node = scene.graph().node(NodeId(n));
        let found = node.inputs.iter().find_map(|&v| {
            let product = scene.base(v);
            let (m, def) = scene.def(product);
            let alone = scene.readers[product.index()] == [NodeId(n)] && !scene.pinned[product.index()];
            let absorbable = is_product(&def.op) && alone && def.epoch() == node.epoch() && scene.graph().ty(product).dtype == DType::F32;
            (absorbable && tail(scene, node, product).is_some()).then_some(m)
        });
        if let Some(m) = found {
            scene.absorbs.insert(NodeId(n), m);
        }
    }
}

fn is_product(op: &Op) -> bool {
    matches!(op, Op::Matmul { .. } | Op::ScaledMatmul { .. })
}

/// What `reader` does to a product, if an epilogue can do it.
pub(super) fn tail(scene: &Scene, reader: &Node, product: ValueId) -> Option<Tail> {
    // The product must reach the reader whole and in order.
    let whole = |v: ValueId| {
        let mut at = v;
        while let Op::Reshape(_) = scene.def(at).1.op {
            at = scene.def(at).1.inputs[0];
        }
        at == product
    };
    match &reader.op {
        Op::AccumulateGradient => {
            let fits = whole(reader.inputs[1]) && scene.graph().ty(reader.inputs[0]).dtype == DType::F32;
            fits.then_some(Tail::Accumulate)
        }
        Op::Map(expr, dtype) if matches!(dtype, DType::F32 | DType::Bf16) => {
            let same_shape = |v: ValueId| whole(v) && scene.shape(v) == scene.shape(reader.results[0]);
            if *expr == Expr::identity() && same_shape(reader.inputs[0]) && *dtype == DType::Bf16 {
                return Some(Tail::Cast);
            }
            let at = reader.inputs.iter().position(|&v| same_shape(v))?;
            (is_sum(expr) && reader.inputs.len() == 2 && is_bias(scene, product, reader, 1 - at)).then(|| Tail::Bias(1 - at))
        }
        _ => None,
    }
}

fn is_sum(expr: &Expr) -> bool {
    use ExprNode::Operand;
    matches!(expr.body[..], [Operand(0), Operand(1), ExprNode::Binary(Binary::Add, 0, 1) | ExprNode::Binary(Binary::Add, 1, 0)])
}

/// True if the reader's operand is a stored vector along the columns of the product.
fn is_bias(scene: &Scene, product: ValueId, reader: &Node, operand: usize) -> bool {
    let v = reader.inputs[operand];
    let columns = scene.shape(product).last().copied().unwrap_or(1);
    let shape = scene.shape(v);
    let vector = columns > 1 && scene.shape(reader.results[0]).last() == Some(&columns) && shape.last() == Some(&columns);
    let float = matches!(scene.graph().ty(v).dtype, DType::F32 | DType::Bf16);
    let mut at = v;
    while let Op::Reshape(_) = scene.def(at).1.op {
        at = scene.def(at).1.inputs[0];
    }
    let whole = scene.elements(at) == columns;
    vector && float && whole && scene.def(at).1.op.is_source()
}
