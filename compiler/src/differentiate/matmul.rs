//! Matrix products: both derivatives are products again.
//!
//! Where an operand was broadcast along batch axes, its gradient sums over them inside the product: they join the contracted axis, so that
//! the weight of a linear layer gets one `[k, rows] x [rows, n]` product, never a batch of them and a sum.

use super::backward::{Backward, Primal};
use super::*;

/// A factor of a gradient: a value, and whether the contracted axis is its second last (else its last).
#[derive(Clone, Copy)]
struct Factor {
    value: ValueId,
    contracts_rows: bool,
}

pub(super) fn rule(b: &mut Backward, p: &Primal, trans_a: bool, trans_b: bool, dy: ValueId) -> Result<(), Error> {
    let [x, w] = [p.inputs[0], p.inputs[1]];
    let over_n = Factor { value: dy, contracts_rows: false };
    let over_m = Factor { value: dy, contracts_rows: true };
    // The weight's gradient first: its operands die soonest.
    if b.needs(w) {
        // w is [k, n], or [n, k] where transposed; the sum is over m.
        let other = Factor { value: x, contracts_rows: !trans_a };
        let dw = if trans_b { product(b, over_m, other, w)? } else { product(b, other, over_m, w)? };
        b.contribute(w, dw)?;
    }
    if b.needs(x) {
        // x is [m, k], or [k, m] where transposed; the sum is over n.
        let other = Factor { value: w, contracts_rows: trans_b };
        let dx = if trans_a { product(b, other, over_n, x)? } else { product(b, over_n, other, x)? };
        b.contribute(x, dx)?;
    }
    Ok(())
}

/// The product of two factors, summed over the batch axes along which `of` has extent 1.
fn product(b: &mut Backward, left: Factor, right: Factor, of: ValueId) -> Result<ValueId, Error> {
    let shape = b.shape(of);
    let rank = shape.len();
    let extent = |d: usize| b.graph.ty(left.value).shape[d].max(b.graph.ty(right.value).shape[d]);
    let summed: Vec<usize> = (0..rank - 2).filter(|&d| shape[d] == 1 && extent(d) != 1).collect();
    let extents: Vec<u64> = summed.iter().map(|&d| extent(d)).collect();
    let dtype = b.dtype(of);
    if summed.is_empty() {
        let op = Op::Matmul { trans_a: left.contracts_rows, trans_b: !right.contracts_rows, dtype };
        return b.emit(op, &[left.value, right.value]);
    }
    let kept: Vec<usize> = (0..rank - 2).filter(|d| !summed.contains(d)).collect();
    let l = flatten(b, left, &kept, &summed, &extents)?;
    let r = flatten(b, right, &kept, &summed, &extents)?;
    let product = b.emit(Op::Matmul { trans_a: left.contracts_rows, trans_b: !right.contracts_rows, dtype }, &[l, r])?;
    b.reshape(product, &shape)
}

/// Moves summed batch axes in front of the contracted axis and joins them with it: `[kept.., summed * contracted, free]`, or
/// `[kept.., free, summed * contracted]` where the contracted axis is the last.
fn flatten(b: &mut Backward, f: Factor, kept: &[usize], summed: &[usize], extents: &[u64]) -> Result<ValueId, Error> {
    let mut shape = b.shape(f.value);
    let rank = shape.len();
    let mut value = f.value;
    if summed.iter().zip(extents).any(|(&d, &e)| shape[d] != e) {
        summed.iter().zip(extents).for_each(|(&d, &e)| shape[d] = e);
        value = b.emit(Op::Broadcast(shape.clone()), &[value])?;
    }
    let (free, contracted) = if f.contracts_rows { (rank - 1, rank - 2) } else { (rank - 2, rank - 1) };
    let joined = extents.iter().product::<u64>() * shape[contracted];
    let mut perm = kept.to_vec();
    let mut flat: Vec<u64> = kept.iter().map(|&d| shape[d]).collect();
    if f.contracts_rows {
        perm.extend(summed);
        perm.extend([contracted, free]);
        flat.extend([joined, shape[free]]);
    } else {
        perm.push(free);
        perm.extend(summed);
        perm.push(contracted);
        flat.extend([shape[free], joined]);
    }
    let moved = b.transpose(value, perm)?;
    b.reshape(moved, &flat)
}
