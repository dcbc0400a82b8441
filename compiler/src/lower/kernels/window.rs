//! Convolution and pooling: contiguous images.

use super::{At, Draft, Fault};
use crate::graph::ConvOp;
use crate::quantity::Flops;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Conv, ConvPass, Kernel, Pool, PoolOp, Window};

/// Which inputs of a convolution are what.
struct Operands {
    pass: ConvPass,
    /// Inputs in the kernel's order.
    inputs: usize,
    image: Option<usize>,
    weight: Option<usize>,
}

fn draft(at: At, c: &ConvOp, o: Operands) -> Result<Draft, Fault> {
    let graph = at.scene.graph();
    let dtype = |i: usize| graph.ty(at.inputs()[i]).dtype;
    let images: Vec<usize> = (0..o.inputs).filter(|&i| Some(i) != o.weight && i < 2).collect();
    if images.iter().any(|&i| dtype(i) != c.dtype) {
        return at.fail(format!("has an image that is not {}", c.dtype));
    }
    let bias = o.pass == ConvPass::Fprop && o.inputs == 3;
    if bias && dtype(2) != dtype(1) {
        return at.fail("has a bias of another format than its weight");
    }
    let y = if o.pass == ConvPass::Fprop { at.results()[0] } else { at.inputs()[0] };
    let [batch, cout] = [0, 1].map(|d| at.scene.shape(y)[d]);
    let image = o.image.map_or(at.results()[0], |i| at.inputs()[i]);
    let cin = at.scene.shape(image)[1];
    let mut owners = (0..o.inputs).map(|i| at.whole(i)).collect::<Result<Vec<_>, _>>()?;
    owners.push(at.result(0)?);
    let weight = o.weight.map_or(DType::F32, dtype);
    let kernel = Conv { pass: o.pass, batch, cin, cout, groups: c.groups, window: c.window, bias, dtype: c.dtype, weight };
    let [oh, ow] = c.window.output;
    let taps = cin / c.groups.max(1) * c.window.kernel[0] * c.window.kernel[1];
    let flops = Flops::of_loops(&[batch, cout, oh, ow, taps]);
    Ok(Draft { kernel: Kernel::Conv(kernel), owners, flops })
}

pub(super) fn conv(at: At, c: &ConvOp) -> Result<Draft, Fault> {
    draft(at, c, Operands { pass: ConvPass::Fprop, inputs: at.inputs().len(), image: Some(0), weight: Some(1) })
}

pub(super) fn conv_dgrad(at: At, c: &ConvOp) -> Result<Draft, Fault> {
    draft(at, c, Operands { pass: ConvPass::Dgrad, inputs: 2, image: None, weight: Some(1) })
}

pub(super) fn conv_wgrad(at: At, c: &ConvOp) -> Result<Draft, Fault> {
    draft(at, c, Operands { pass: ConvPass::Wgrad, inputs: 2, image: Some(1), weight: None })
}

pub(super) fn pool(at: At, op: PoolOp, window: Window, backward: bool) -> Result<Draft, Fault> {
    let v = at.inputs()[0];
    let shape = at.scene.shape(v);
    let mut owners = (0..at.inputs().len()).map(|i| at.whole(i)).collect::<Result<Vec<_>, _>>()?;
    owners.push(at.result(0)?);
    let kernel = Pool { op, backward, planes: shape[0] * shape[1], window, dtype: at.scene.graph().ty(v).dtype };
    Ok(Draft { kernel: Kernel::Pool(kernel), owners, flops: Flops(0) })
}
