//! Pooling, and the geometry of sliding windows that convolution shares.

use super::call::Call;
use super::{Outcome, Rule, Table};
use crate::graph::Op;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Fold, PoolOp, Window};

pub(super) const OPS: Table = &[
    ("AveragePool", Rule::Call(average_pool)),
    ("GlobalAveragePool", Rule::Call(global_average_pool)),
    ("GlobalMaxPool", Rule::Call(global_max_pool)),
    ("MaxPool", Rule::Call(max_pool)),
];

/// Number of spatial dimensions, 1 or 2; one becomes two by a height of 1.
pub(super) struct Frame {
    spatial: usize,
    input: [u64; 2],
}

impl Frame {
    pub fn new(image: &[u64]) -> Result<Self, String> {
        match image {
            [_, _, l] => Ok(Frame { spatial: 1, input: [1, *l] }),
            [_, _, h, w] => Ok(Frame { spatial: 2, input: [*h, *w] }),
            _ => Err(format!("needs one or two spatial dimensions, has an input of shape {image:?}")),
        }
    }

    /// The shape with two spatial dimensions.
    pub fn planar(&self, shape: &[u64]) -> Vec<u64> {
        let (outer, inner) = shape.split_at(2.min(shape.len()));
        [outer, &[1][..2 - self.spatial], inner].concat()
    }

    /// The shape with the model's number of spatial dimensions.
    pub fn unplanar(&self, shape: &[u64]) -> Vec<u64> {
        let (outer, inner) = shape.split_at(2.min(shape.len()));
        [outer, &inner[inner.len().saturating_sub(self.spatial)..]].concat()
    }

    /// A pair of values, one for each dimension.
    fn pair(&self, list: &[u64], of_height: u64) -> Result<[u64; 2], String> {
        match (self.spatial, list) {
            (1, [l]) => Ok([of_height, *l]),
            (2, [h, w]) => Ok([*h, *w]),
            _ => Err(format!("needs {} values, one for each spatial dimension, has {list:?}", self.spatial)),
        }
    }
}

/// A window with the rows below and the columns right of the image that count as padding.
pub(super) struct Geometry {
    pub window: Window,
    pad_end: [u64; 2],
}

/// Largest extent of any quantity of a window; keeps the arithmetic in range.
const MAX_EXTENT: u64 = 1 << 31;

fn positive(list: Vec<i64>, what: &str, least: i64) -> Result<Vec<u64>, String> {
    let fits = |&i: &i64| i >= least && i as u64 <= MAX_EXTENT;
    match list.iter().all(fits) {
        true => Ok(list.into_iter().map(|i| i as u64).collect()),
        false => Err(format!("has {what} {list:?}")),
    }
}

/// Reads strides, dilations, pads, auto_pad and ceil_mode.
pub(super) fn geometry(call: &Call, frame: &Frame, kernel: &[u64], ceil: bool) -> Result<Geometry, String> {
    let n = frame.spatial;
    let or_ones = |list: Option<Vec<i64>>| list.unwrap_or_else(|| vec![1; n]);
    let stride = frame.pair(&positive(or_ones(call.ints("strides")?), "strides", 1)?, 1)?;
    let dilation = frame.pair(&positive(or_ones(call.ints("dilations")?), "dilations", 1)?, 1)?;
    let kernel = frame.pair(kernel, 1)?;
    let pads = positive(call.ints("pads")?.unwrap_or_else(|| vec![0; 2 * n]), "pads", 0)?;
    if pads.len() != 2 * n {
        return Err(format!("needs {} pads, has {pads:?}", 2 * n));
    }
    let (mut pad, mut pad_end) = (frame.pair(&pads[..n], 0)?, frame.pair(&pads[n..], 0)?);
    let auto = call.string("auto_pad", "NOTSET")?;
    let mut output = [0; 2];
    for d in 0..2 {
        if kernel[d] == 0 || frame.input[d].max(kernel[d]) > MAX_EXTENT {
            return Err(format!("has a kernel {kernel:?} for an image of {:?}", frame.input));
        }
        let reach = (kernel[d] - 1) * dilation[d] + 1;
        match auto {
            "NOTSET" | "" => {}
            "VALID" => (pad[d], pad_end[d]) = (0, 0),
            "SAME_UPPER" | "SAME_LOWER" => {
                let total = ((frame.input[d].div_ceil(stride[d]).max(1) - 1) * stride[d] + reach).saturating_sub(frame.input[d]);
                let (less, more) = (total / 2, total.div_ceil(2));
                (pad[d], pad_end[d]) = if auto == "SAME_UPPER" { (less, more) } else { (more, less) };
            }
            other => return Err(format!("has the auto_pad {other}")),
        }
        output[d] = positions(frame.input[d], [pad[d], pad_end[d]], reach, stride[d], ceil)
            .ok_or_else(|| format!("slides a window of {reach} over {} elements", frame.input[d]))?;
    }
    Ok(Geometry { window: Window { input: frame.input, output, kernel, stride, dilation, pad }, pad_end })
}

/// How many positions a window has; with `ceil` the last may reach beyond the padding, but must not start there.
fn positions(input: u64, pad: [u64; 2], reach: u64, stride: u64, ceil: bool) -> Option<u64> {
    let room = (input + pad[0] + pad[1]).checked_sub(reach)?;
    let last = if ceil { room.div_ceil(stride) } else { room / stride };
    Some(if ceil && last > 0 && last * stride >= input + pad[0] { last } else { last + 1 })
}

fn max_pool(call: &mut Call) -> Outcome {
    pooled(call, |_| PoolOp::Max)
}

fn average_pool(call: &mut Call) -> Outcome {
    let with_padding = call.flag("count_include_pad")?;
    pooled(call, |g| if with_padding { PoolOp::AverageWithPadding { pad_end: g.pad_end } } else { PoolOp::Average })
}

fn pooled(call: &mut Call, op: impl Fn(&Geometry) -> PoolOp) -> Outcome {
    let x = call.float_input(0)?;
    let image = call.shape(x);
    let frame = Frame::new(&image)?;
    let kernel = positive(call.ints("kernel_shape")?.ok_or("needs a kernel_shape")?, "a kernel_shape", 1)?;
    let geometry = geometry(call, &frame, &kernel, call.flag("ceil_mode")?)?;
    let x = call.reshape(x, frame.planar(&image))?;
    let y = call.one(Op::Pool { op: op(&geometry), window: geometry.window }, &[x])?;
    let shape = frame.unplanar(&call.shape(y));
    call.reshape(y, shape).map(|v| vec![v])
}

/// All axes after the channels.
fn spatial_axes(call: &Call) -> Result<Vec<usize>, String> {
    let x = call.float_input(0)?;
    match call.rank(x) {
        0..=2 => Err("needs an input [n, c, ..]".into()),
        rank => Ok((2..rank).collect()),
    }
}

fn global_average_pool(call: &mut Call) -> Outcome {
    let (x, axes) = (call.input(0)?, spatial_axes(call)?);
    let (shape, dtype) = (call.shape(x), call.dtype(x));
    let sum = call.reduce(Fold::Sum, x, &axes, DType::F32)?;
    let count = shape[2..].iter().fold(1u64, |n, &d| n.saturating_mul(d));
    let mean = call.with(Binary::Div, sum, count as f32)?;
    call.cast(mean, dtype).map(|v| vec![v])
}

fn global_max_pool(call: &mut Call) -> Outcome {
    let (x, axes) = (call.input(0)?, spatial_axes(call)?);
    let dtype = call.dtype(x);
    call.reduce(Fold::Max, x, &axes, dtype).map(|v| vec![v])
}
