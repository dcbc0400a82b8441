//! Convolution.

use super::call::Call;
use super::pool::{self, Frame};
use super::{Outcome, Rule, Table};
use crate::graph::{ConvOp, Op, ValueId};

pub(super) const OPS: Table =
    &[("Conv", Rule::Call(conv)), ("ConvTranspose", Rule::Refused("is not supported: transposed convolutions have no derivative here"))];

/// One or two spatial dimensions; one is a convolution of height 1.
fn conv(call: &mut Call) -> Outcome {
    let (x, w) = (call.float_input(0)?, call.float_input(1)?);
    let bias = call.optional(2);
    let (image, weight, dtype) = (call.shape(x), call.shape(w), call.dtype(x));
    if [Some(w), bias].into_iter().flatten().any(|v| call.dtype(v) != dtype) {
        return Err("needs operands of one type".into());
    }
    let frame = Frame::new(&image)?;
    if weight.len() != image.len() || bias.is_some_and(|b| call.shape(b) != [weight[0]]) {
        return Err(format!("needs a weight and a bias that fit the input, has {weight:?} for {image:?}"));
    }
    if call.ints("kernel_shape")?.is_some_and(|k| k.iter().map(|&k| k as u64).ne(weight[2..].iter().copied())) {
        return Err("has a kernel_shape that is not its weight's".into());
    }
    let geometry = pool::geometry(call, &frame, &weight[2..], false)?;
    let groups = u64::try_from(call.int("group", 1)?).map_err(|_| "has a negative group")?;
    let (x, w) = (call.reshape(x, frame.planar(&image))?, call.reshape(w, frame.planar(&weight))?);
    let inputs: Vec<ValueId> = [x, w].into_iter().chain(bias).collect();
    let y = call.one(Op::Conv(ConvOp { groups, window: geometry.window, dtype }), &inputs)?;
    let shape = frame.unplanar(&call.shape(y));
    call.reshape(y, shape).map(|v| vec![v])
}
