//! Kernels for the nodes that are no row programs.

mod attention;
mod index;
mod product;
mod update;
mod window;

use super::access::row_major;
use super::scene::Scene;
use crate::Error;
use crate::graph::{NodeId, Op, ValueId};
use crate::quantity::Flops;
use fp8c_kernels::program::Kernel;

/// One launch, its arguments by the values that own their buffers.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub kernel: Kernel,
    pub owners: Vec<ValueId>,
    pub flops: Flops,
}

/// Why a node has no kernel as it stands.
#[derive(Debug)]
pub(super) enum Fault {
    /// This input of the node needs a buffer of its own, row-major.
    Copy { node: NodeId, input: usize },
    /// Nothing helps.
    Failed(Error),
}

impl Fault {
    fn failed(scene: &Scene, n: NodeId, reason: impl Into<String>) -> Self {
        Fault::Failed(Error::graph(&scene.graph().node(n).site, reason))
    }
}

/// The kernel of a node.
///
/// # Errors
/// A [`Fault`]: an input that lies where the kernel cannot read it, or one of the wrong format.
pub(super) fn draft(scene: &Scene, n: NodeId) -> Result<Draft, Fault> {
    let at = At { scene, n };
    match &scene.graph().node(*scene.absorbs.get(&n).unwrap_or(&n)).op {
        Op::Matmul { trans_a, trans_b, .. } => product::dense(at, *trans_a, *trans_b),
        Op::ScaledMatmul { block_b, .. } => product::scaled(at, *block_b),
        Op::Conv(c) => window::conv(at, c),
        Op::ConvDgrad(c) => window::conv_dgrad(at, c),
        Op::ConvWgrad(c) => window::conv_wgrad(at, c),
        Op::Pool { op, window } => window::pool(at, *op, *window, false),
        Op::PoolGrad { op, window } => window::pool(at, *op, *window, true),
        Op::Attention(a) => attention::forward(at, a),
        Op::AttentionGrad(a) => attention::backward(at, a),
        Op::PutAdd { extent, .. } => index::put_add(at, *extent),
        Op::CumSum { axis, exclusive, reverse } => index::cum_sum(at, *axis, *exclusive, *reverse),
        Op::Quantize { layout, power_of_two } => index::quantize(at, *layout, *power_of_two),
        Op::FinishNorm { accumulation } => update::finish_norm(at, *accumulation),
        Op::Optimize(o) => update::optimize(at, o),
        Op::AccumulateGradient => update::accumulate(at),
        op => Err(Fault::failed(scene, n, format!("has no kernel for {op:?}"))),
    }
}

/// A node whose kernel is being made.
#[derive(Clone, Copy)]
struct At<'s, 'a> {
    scene: &'s Scene<'a>,
    n: NodeId,
}

impl<'s, 'a> At<'s, 'a> {
    fn inputs(&self) -> &'a [ValueId] {
        &self.scene.graph().node(self.n).inputs
    }

    fn results(&self) -> &'a [ValueId] {
        &self.scene.graph().node(self.n).results
    }

    fn copy(&self, input: usize) -> Fault {
        Fault::Copy { node: self.n, input }
    }

    /// The buffer of an input that must be row-major from its start.
    fn whole(&self, input: usize) -> Result<ValueId, Fault> {
        let v = self.inputs()[input];
        match self.scene.resolve(v) {
            Ok(r) if self.scene.is_contiguous(v) => Ok(r.owner),
            _ => Err(self.copy(input)),
        }
    }

    /// The buffer of a result that is row-major from its start.
    fn result(&self, i: usize) -> Result<ValueId, Fault> {
        let v = self.results()[i];
        let place = self.scene.place(v);
        match place.offset == 0 && place.strides == row_major(self.scene.shape(v)) {
            true => Ok(place.owner),
            false => Err(Fault::failed(self.scene, self.n, "was given a place that its kernel cannot write")),
        }
    }

    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, Fault> {
        Err(Fault::failed(self.scene, self.n, reason))
    }
}
