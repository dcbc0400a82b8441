//! The gradient norm: one running sum over all gradients.
//!
//! Each gradient's squares are summed in parts; the parts of all gradients lie in one tensor, which a single reduction adds up.

use super::Writer;
use super::reduce::{along_rows, divisor};
use crate::Error;
use crate::graph::{Node, Op, ValueId};
use fp8c_kernels::DType::F32;
use fp8c_kernels::program::Fold;
use std::collections::BTreeMap;

/// Elements that one part sums, at least.
const PART: u64 = 1 << 11;
/// Most parts of one gradient.
const MOST_PARTS: u64 = 1 << 10;

/// Sums that have begun and whose next addend comes, by the source graph's value.
#[derive(Default)]
pub(super) struct Running(BTreeMap<ValueId, Sum>);

struct Sum {
    start: ValueId,
    /// `[n, 1]` each.
    parts: Vec<ValueId>,
}

impl Running {
    /// Adds a `SumSquares` node; its result, unless the sum goes on.
    pub fn add(&mut self, w: &mut Writer, node: &Node, goes_on: bool) -> Result<Option<ValueId>, Error> {
        let gradient = w.get(node.inputs[0])?;
        let mut sum = match self.0.remove(&node.inputs[1]) {
            Some(sum) => sum,
            None => Sum { start: w.get(node.inputs[1])?, parts: vec![] },
        };
        let n = w.graph().ty(gradient).elements();
        let p = divisor(n, (n / PART).clamp(1, MOST_PARTS)).max(1);
        let rows = w.reshape(gradient, &[p, n / p])?;
        let squares = w.map(F32, &[rows], |f, v| f.mul(v[0], v[0]))?;
        sum.parts.push(along_rows(w, Fold::Sum, squares, 1)?);
        if goes_on {
            self.0.insert(node.results[0], sum);
            return Ok(None);
        }
        let all = if sum.parts.len() == 1 { sum.parts[0] } else { w.one(Op::Concat { axis: 0 }, &sum.parts)? };
        let n = w.graph().ty(all).elements();
        let row = w.reshape(all, &[1, n])?;
        let total = along_rows(w, Fold::Sum, row, 1)?;
        let total = w.reshape(total, &[1])?;
        w.one(Op::AccumulateGradient, &[sum.start, total]).map(Some)
    }
}
