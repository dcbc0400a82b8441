//! A joint graph as kernels over buffers: what the planner schedules.
//!
//! Fusion comes before the memory decisions, so that the bytes the planner counts are the bytes the arena holds: a [`Unit`] is one
//! launch, a [`Buffer`] one materialised tensor. Units only fuse nodes of one epoch; every value that crosses from the forward
//! pass to the backward pass is a buffer.

use crate::graph::{Epoch, NodeId, TensorType, ValueId};
use crate::quantity::{Bytes, Flops};
use fp8c_kernels::program::Kernel;
use fp8c_runtime::plan::Role;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// A materialised tensor, contiguous and row-major.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub name: String,
    pub ty: TensorType,
    pub role: Role,
    /// The graph value it holds (views of one value share a buffer: the first).
    pub value: ValueId,
    /// Exists before and after the step (inputs, parameters, states, constants, control).
    pub persistent: bool,
}

impl Buffer {
    /// What it takes, before alignment.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.ty.bytes())
    }
}

/// One kernel launch over buffers.
#[derive(Clone, Debug)]
pub struct Unit {
    pub kernel: Kernel,
    /// A buffer for each argument; an argument of mode `Update` both reads and writes it.
    pub args: Vec<BufferId>,
    pub epoch: Epoch,
    pub site: Arc<str>,
    /// The graph nodes it computes.
    pub nodes: Vec<NodeId>,
    /// Of matrix products; elementwise work counts in bytes.
    pub flops: Flops,
    /// Read and written.
    pub traffic: Bytes,
}

/// Units in execution order (that of the graph: forward, backward, update).
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub buffers: Vec<Buffer>,
    pub units: Vec<Unit>,
    /// Other ways to make single forward buffers in the backward pass: each writes one buffer that a unit made together with others,
    /// reads those others where it can, and gives the same bits. None of them folds, so that all are cheap.
    pub again: Vec<Unit>,
    /// Buffer of each named output, in the graph's order.
    pub outputs: Vec<(String, BufferId)>,
    pub loss: Option<BufferId>,
    /// For each `Graph::gradients` entry: the parameter and the buffer that holds its gradient when the update begins.
    pub gradients: Vec<(usize, BufferId)>,
}

impl Program {
    /// A unit by its number; those of [`Program::again`] come behind the others.
    pub fn unit(&self, u: u32) -> &Unit {
        let u = u as usize;
        if u < self.units.len() { &self.units[u] } else { &self.again[u - self.units.len()] }
    }
}
