//! Softmax and its logarithm.

use super::call::{Call, axis};
use super::{Outcome, Rule, Table};
use crate::graph::{Op, ValueId};

pub(super) const OPS: Table =
    &[("Hardmax", Rule::Refused("has no useful derivative")), ("LogSoftmax", Rule::Call(log_softmax)), ("Softmax", Rule::Call(softmax))];

fn softmax(call: &mut Call) -> Outcome {
    along_axis(call, false)
}

fn log_softmax(call: &mut Call) -> Outcome {
    along_axis(call, true)
}

fn along_axis(call: &mut Call, log: bool) -> Outcome {
    let x = call.float_input(0)?;
    let rank = call.rank(x);
    let along = axis(call.int("axis", -1)?, rank)?;
    let swap = swapped(rank, along);
    let x = call.transpose(x, swap.clone())?;
    let y = last(call, x, log)?;
    call.transpose(y, swap).map(|v| vec![v])
}

/// Softmax along the last axis.
pub(super) fn last(call: &mut Call, x: ValueId, log: bool) -> Result<ValueId, String> {
    call.one(Op::Softmax { log }, &[x])
}

/// The permutation, its own inverse, that exchanges an axis with the last one.
fn swapped(rank: usize, along: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(along, rank - 1);
    perm
}
