//! The tensor graph: typed SSA over a small set of core operators.
//!
//! A [`Graph`] is a list of nodes in execution order. Every node has inputs, results and a [`Pass`]; every value has a dtype, a
//! static shape and one defining node. *A value is rounded to its dtype*: that is part of its meaning, so fusing two nodes never
//! changes a bit. Float arithmetic is f32, integer arithmetic i64.
//!
//! Invariants, checked by [`Graph::verify`] after every pass:
//! 1. nodes are in topological order; each value is defined once, before its uses;
//! 2. result types are what [`Op::infer`] says;
//! 3. sources (inputs, parameters, states, constants, control) come first and have names of their own;
//! 4. an update's aliased results have the type of the state they replace, and nothing reads the old state afterwards;
//! 5. epochs never decrease along the node list: forward, backward, update;
//! 6. a node that gives values is its own origin; that of any other is one that gives values, or itself.

mod build;
pub mod edit;
pub mod eval;
pub(crate) mod expr;
pub mod infer;
mod op;
pub mod parse;
#[cfg(test)]
mod tests;
mod text;
mod verify;

pub use op::*;

use fp8c_kernels::DType;
use serde::Deserialize;
use std::sync::Arc;

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Index of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
impl NodeId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Dtype and shape, row-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<u64>,
}

impl TensorType {
    pub fn new(dtype: DType, shape: impl Into<Vec<u64>>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }

    /// Number of elements, saturating.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// Bytes, saturating.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.size())
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

/// When a node runs within a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Epoch {
    Forward,
    /// The backward pass, recomputed forward nodes and loss heads included.
    Backward,
    /// Gradient norm, clipping and the optimizer.
    Update,
}

/// What a node's results are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// Values: of a linear layer Y = X W.
    Fprop,
    /// Values of a loss head, which runs slice by slice beside its gradients. Its products count as fprop in a policy.
    #[serde(skip_deserializing)]
    Loss,
    /// Gradients of what depends on an input of the graph: dX = dY W^T.
    Dgrad,
    /// Gradients of parameters alone: dW = X^T dY.
    Wgrad,
    /// The optimizer. No product is of this pass, so no policy may name it.
    #[serde(skip_deserializing)]
    Update,
}

impl Pass {
    /// The name in policies, plans and printed graphs.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Fprop => "fprop",
            Pass::Loss => "loss",
            Pass::Dgrad => "dgrad",
            Pass::Wgrad => "wgrad",
            Pass::Update => "update",
        }
    }

    /// True where results are values of the model, not their gradients or updates.
    pub fn gives_values(self) -> bool {
        matches!(self, Pass::Fprop | Pass::Loss)
    }

    pub fn epoch(self) -> Epoch {
        match self {
            Pass::Fprop => Epoch::Forward,
            Pass::Loss | Pass::Dgrad | Pass::Wgrad => Epoch::Backward,
            Pass::Update => Epoch::Update,
        }
    }
}

/// Where a node comes from and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    pub pass: Pass,
    /// The node that it differentiates or updates; `None` where that is the node itself.
    pub origin: Option<NodeId>,
    /// As in [`Node`].
    pub site: Arc<str>,
}

impl Provenance {
    pub fn forward(site: &Arc<str>) -> Self {
        Provenance { pass: Pass::Fprop, origin: None, site: site.clone() }
    }
}

/// An operator applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<ValueId>,
    pub results: Vec<ValueId>,
    pub pass: Pass,
    /// The node that it differentiates or updates, or itself.
    pub origin: NodeId,
    /// Where the node comes from, for messages, reports and layer globs: the PyTorch module path where the model carries it, then the
    /// ONNX node's name; derived nodes keep the name of what they derive from.
    pub site: Arc<str>,
}

impl Node {
    pub fn epoch(&self) -> Epoch {
        self.pass.epoch()
    }
}

/// A value's type and where it is defined.
#[derive(Clone, Debug)]
pub struct Value {
    pub ty: TensorType,
    pub node: NodeId,
    /// Position among the node's results.
    pub result: u32,
}

/// A trainable tensor or buffer with its outside name.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// PyTorch's name where known (`transformer.h.0.ln_1.weight`), else the initializer's.
    pub name: String,
    /// The initializer's name in the model file.
    pub source: String,
    pub trainable: bool,
    /// `Some(perm)`: the graph holds the outside tensor transposed, `graph = outside.transpose(perm)`.
    pub outside_perm: Option<Vec<usize>>,
    /// Initial value in the graph's orientation.
    pub init: Init,
    pub ty: TensorType,
}

/// Where a parameter's initial value comes from.
#[derive(Clone, Debug)]
pub enum Init {
    Data(Arc<ConstData>),
    /// A byte range of a file, mapped, little-endian elements of the parameter's type in the graph's orientation.
    File {
        path: std::path::PathBuf,
        offset: u64,
        bytes: u64,
        dtype: SourceDType,
    },
    Normal {
        std: f32,
    },
    Uniform {
        low: f32,
        high: f32,
    },
    Zeros,
    Ones,
}

/// Element formats of weight files that are converted at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceDType {
    F32,
    F16,
    Bf16,
    F64,
}

/// Constant data, in its storage format.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConstData {
    pub ty: TensorType,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

/// A graph in execution order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub values: Vec<Value>,
    /// Referred to by [`Op::Parameter`].
    pub parameters: Vec<Parameter>,
    /// Named results, in the model's order.
    pub outputs: Vec<Output>,
    /// The scalar f32 that training minimises.
    pub loss: Option<ValueId>,
    /// After differentiation: for each trainable parameter, its gradient (as read by the optimizer).
    pub gradients: Vec<Gradient>,
}

/// A named result of the graph.
#[derive(Clone, Debug)]
pub struct Output {
    pub name: String,
    pub value: ValueId,
}

/// Gradient of a parameter.
#[derive(Clone, Debug)]
pub struct Gradient {
    pub parameter: usize,
    pub value: ValueId,
}
