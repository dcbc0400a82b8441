//! Scatter-add, prefix sums, quantizers: contiguous operands.

use super::{At, Draft, Fault};
use crate::graph::infer::as_matrix;
use crate::quantity::Flops;
use fp8c_kernels::program::{Kernel, Layout, Quantize, Scan, ScatterAdd};

/// Inputs source `[o, j, i]` and index; result `[o, extent, i]`.
pub(super) fn put_add(at: At, extent: u64) -> Result<Draft, Fault> {
    let graph = at.scene.graph();
    let (src, index) = (graph.ty(at.inputs()[0]), graph.ty(at.inputs()[1]));
    let kernel = ScatterAdd {
        outer: src.shape[0],
        picks: src.shape[1],
        inner: src.shape[2],
        extent,
        index_outer: index.shape[0] != 1,
        index_inner: index.shape[2] != 1,
        src: src.dtype,
        index: index.dtype,
        dst: graph.ty(at.results()[0]).dtype,
        accumulate: false,
    };
    let owners = vec![at.whole(0)?, at.whole(1)?, at.result(0)?];
    Ok(Draft { kernel: Kernel::ScatterAdd(kernel), owners, flops: Flops(0) })
}

pub(super) fn cum_sum(at: At, axis: usize, exclusive: bool, reverse: bool) -> Result<Draft, Fault> {
    let ty = at.scene.graph().ty(at.inputs()[0]);
    let (outer, inner) = (ty.shape[..axis].iter().product(), ty.shape[axis + 1..].iter().product());
    let kernel = Scan { outer, extent: ty.shape[axis], inner, exclusive, reverse, dtype: ty.dtype };
    Ok(Draft { kernel: Kernel::Scan(kernel), owners: vec![at.whole(0)?, at.result(0)?], flops: Flops(0) })
}

pub(super) fn quantize(at: At, layout: Layout, power_of_two: bool) -> Result<Draft, Fault> {
    let ty = at.scene.graph().ty(at.inputs()[0]);
    let [rows, cols] = as_matrix(&ty.shape);
    let mut owners = vec![at.whole(0)?];
    for i in 0..at.results().len() {
        owners.push(at.result(i)?);
    }
    let kernel = Quantize { rows, cols, source: ty.dtype, layout, power_of_two };
    Ok(Draft { kernel: Kernel::Quantize(kernel), owners, flops: Flops(0) })
}
