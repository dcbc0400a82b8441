//! What lowering knows about each node and value before it decides anything: who computes it, who reads it, where it lies.

use super::access::{self, Blocked};
use super::core::Core;
use crate::graph::{ExprNode, Graph, Node, NodeId, Op, ValueId};
use fp8c_kernels::program::{Access, Unary};
use std::collections::{BTreeMap, BTreeSet};

/// How a node is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Exists before the step.
    Source,
    /// Folded into the accesses of its readers.
    View,
    /// A concatenation: its operands are written into its buffer where they are computed.
    Join,
    /// Computed again wherever it is read.
    Inline,
    /// Part of a row program.
    Row,
    /// A kernel of its own.
    Kernel,
    /// Part of the kernel of the node that reads it.
    Absorbed,
}

/// Where a value lies: in the buffer of `owner`, at `offset + sum(strides[d] * index[d])`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub owner: ValueId,
    pub offset: i64,
    pub strides: Vec<i64>,
}

/// A value traced through views to its buffer; the access is over the value's own axes.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub owner: ValueId,
    pub access: Access,
}

/// Largest tensor that is loaded again wherever a value made from it is read.
const SMALL: u64 = 1 << 16;
/// Longest expression that is computed again.
const SHORT: usize = 12;

pub(super) struct Scene<'a> {
    pub core: &'a Core,
    pub class: Vec<Class>,
    /// For each base value (no view): the nodes that read it, through views or not.
    pub readers: Vec<Vec<NodeId>>,
    /// Base values that are results of the program.
    pub pinned: Vec<bool>,
    /// Values that do not lie row-major in a buffer of their own.
    pub places: BTreeMap<ValueId, Place>,
    /// The matrix product that is part of another node's kernel, by that node.
    pub absorbs: BTreeMap<NodeId, NodeId>,
    /// Views, sources and concatenations aside: the epoch's nodes in order.
    pub order: Vec<NodeId>,
}

impl<'a> Scene<'a> {
    pub fn new(core: &'a Core) -> Self {
        let graph = &core.graph;
        let (nodes, values) = (graph.nodes.len(), graph.values.len());
        let mut scene = Scene {
            core,
            class: vec![Class::Kernel; nodes],
            readers: vec![vec![]; values],
            pinned: vec![false; values],
            places: BTreeMap::new(),
            absorbs: BTreeMap::new(),
            order: vec![],
        };
        scene.find_readers();
        super::absorb::find(&mut scene);
        let demanded = scene.demanded();
        for n in 0..nodes {
            scene.class[n] = scene.classify(NodeId(n as u32), &demanded);
        }
        scene.order = (0..nodes as u32).map(NodeId).filter(|&n| matches!(scene.class_of(n), Class::Row | Class::Kernel)).collect();
        super::places::find(&mut scene);
        scene
    }

    pub fn graph(&self) -> &'a Graph {
        &self.core.graph
    }

    pub fn class_of(&self, n: NodeId) -> Class {
        self.class[n.index()]
    }

    /// The node that defines a value, and its number.
    pub fn def(&self, v: ValueId) -> (NodeId, &'a Node) {
        let n = self.graph().values[v.index()].node;
        (n, self.graph().node(n))
    }

    pub fn shape(&self, v: ValueId) -> &'a [u64] {
        &self.graph().ty(v).shape
    }

    pub fn elements(&self, v: ValueId) -> u64 {
        self.graph().ty(v).elements()
    }

    /// The value that a chain of views starts from.
    pub fn base(&self, mut v: ValueId) -> ValueId {
        loop {
            let node = self.def(v).1;
            if !node.op.is_view() {
                return v;
            }
            v = node.inputs[0];
        }
    }

    /// Traces a value through views to the buffer that holds it.
    ///
    /// # Errors
    /// When the views compose to no affine access over the value's axes, or the base has no buffer.
    pub fn resolve(&self, v: ValueId) -> Result<Resolved, Blocked> {
        // A view may need an axis in parts, which the next one joins again.
        let mut parts: Vec<(usize, u64)> = self.shape(v).iter().copied().enumerate().collect();
        let (owner, access) = loop {
            let space: Vec<u64> = parts.iter().map(|p| p.1).collect();
            match self.traced(v, &space) {
                Err(Blocked::Split { dim, inner }) => {
                    let (axis, extent) = parts[dim];
                    parts.splice(dim..=dim, [(axis, extent / inner), (axis, inner)]);
                }
                found => break found?,
            }
        };
        let strides = joined(&parts, &access.strides, self.shape(v).len()).ok_or(Blocked::Opaque)?;
        // A guard on a part is none on the axis.
        if parts.len() != strides.len() && !access.guards.is_empty() {
            return Err(Blocked::Opaque);
        }
        Ok(Resolved { owner, access: Access { strides, ..access } })
    }

    /// The access into a value's buffer over a space that is the value's shape, axes split or not.
    fn traced(&self, v: ValueId, space: &[u64]) -> Result<(ValueId, Access), Blocked> {
        let (mut at, mut access) = (v, access::identity(space));
        loop {
            let node = self.def(at).1;
            let Some(from) = node.inputs.first().filter(|_| node.op.is_view()) else { break };
            access = access::through(&node.op, &access, space, self.shape(at), self.shape(*from)).ok_or(Blocked::Opaque)??;
            at = *from;
        }
        if matches!(self.class_of(self.def(at).0), Class::Inline | Class::Absorbed) {
            return Err(Blocked::Opaque);
        }
        self.placed(at, access, space)
    }

    /// Turns an access into a value's row-major elements into one into its buffer.
    pub fn placed(&self, v: ValueId, access: Access, space: &[u64]) -> Result<(ValueId, Access), Blocked> {
        let Some(place) = self.places.get(&v) else { return Ok((v, access)) };
        let shape = self.shape(v);
        if place.offset == 0 && place.strides == access::row_major(shape) {
            return Ok((place.owner, access));
        }
        let axes = access::axes(&access, space, shape)?;
        Ok((place.owner, access::linear(&axes, &place.strides, place.offset, &access.guards, space.len())))
    }

    /// Where a value with a buffer lies.
    pub fn place(&self, v: ValueId) -> Place {
        let own = || Place { owner: v, offset: 0, strides: access::row_major(self.shape(v)) };
        self.places.get(&v).cloned().unwrap_or_else(own)
    }

    /// True if a value is all of its buffer's first elements, in row-major order.
    pub fn is_contiguous(&self, v: ValueId) -> bool {
        let whole = |r: Resolved| {
            let (shape, rows) = (self.shape(v), access::row_major(self.shape(v)));
            let steps = (0..shape.len()).all(|d| shape[d] == 1 || r.access.strides[d] == rows[d]);
            steps && r.access.offset == 0 && r.access.guards.is_empty()
        };
        self.resolve(v).is_ok_and(whole)
    }

    fn find_readers(&mut self) {
        let graph = self.graph();
        for (n, node) in graph.nodes.iter().enumerate().filter(|(_, node)| !node.op.is_view()) {
            for &v in &node.inputs {
                let base = self.base(v);
                let readers = &mut self.readers[base.index()];
                if readers.last() != Some(&NodeId(n as u32)) {
                    readers.push(NodeId(n as u32));
                }
            }
        }
        let results = graph.outputs.iter().map(|o| o.value).chain(graph.loss).chain(graph.gradients.iter().map(|g| g.value));
        for v in results.collect::<BTreeSet<_>>() {
            let base = self.base(v);
            self.pinned[base.index()] = true;
        }
    }

    /// Base values that must have a buffer whatever is fused.
    fn demanded(&self) -> Vec<bool> {
        let mut demanded = self.pinned.clone();
        for node in &self.graph().nodes {
            let inputs = match &node.op {
                Op::Take => &node.inputs[..1],
                Op::Concat { .. } => &node.inputs[..],
                op if op.is_view() || is_row_op(op) => &[],
                _ => &node.inputs[..],
            };
            inputs.iter().for_each(|&v| demanded[self.base(v).index()] = true);
        }
        demanded
    }

    fn classify(&self, n: NodeId, demanded: &[bool]) -> Class {
        let node = self.graph().node(n);
        if self.absorbs.values().any(|&m| m == n) {
            return Class::Absorbed;
        }
        if self.absorbs.contains_key(&n) {
            return Class::Kernel;
        }
        match &node.op {
            op if op.is_source() => Class::Source,
            op if op.is_view() => Class::View,
            Op::Concat { .. } => Class::Join,
            op if !is_row_op(op) => Class::Kernel,
            _ if !self.core.copy[n.index()] && !demanded[node.results[0].index()] && self.is_cheap(node) => Class::Inline,
            _ => Class::Row,
        }
    }

    /// True for what is cheaper computed again than stored: index patterns and short expressions of small sources.
    fn is_cheap(&self, node: &Node) -> bool {
        let small = |v: &ValueId| {
            let base = self.base(*v);
            match self.class_of(self.def(base).0) {
                Class::Source => self.elements(base) <= SMALL,
                class => class == Class::Inline,
            }
        };
        match &node.op {
            Op::Iota { .. } => true,
            Op::Map(expr, _) => {
                let light = expr.body.len() <= SHORT && !expr.body.iter().any(|n| matches!(n, ExprNode::Unary(op, _) if is_heavy(*op)));
                node.inputs.iter().all(small) && (light || self.elements(node.results[0]) == 1)
            }
            _ => false,
        }
    }
}

/// Strides of whole axes from those of their parts, `(axis, extent)` in order.
fn joined(parts: &[(usize, u64)], strides: &[i64], axes: usize) -> Option<Vec<i64>> {
    let mut out: Vec<Option<(i64, u64)>> = vec![None; axes];
    for (&(axis, extent), &stride) in parts.iter().zip(strides).rev().filter(|(p, _)| p.1 != 1) {
        match &mut out[axis] {
            Some((inner, covered)) if stride == *inner * *covered as i64 => *covered *= extent,
            Some(_) => return None,
            none => *none = Some((stride, extent)),
        }
    }
    // The stride of an axis of extent 1 is never taken.
    Some(out.into_iter().map(|s| s.map_or(0, |s| s.0)).collect())
}

/// True for operators that row programs carry out.
pub(super) fn is_row_op(op: &Op) -> bool {
    matches!(op, Op::Map(..) | Op::Reduce { .. } | Op::Iota { .. } | Op::Take)
}

fn is_heavy(op: Unary) -> bool {
    !matches!(
        op,
        Unary::Neg | Unary::Abs | Unary::Sign | Unary::Not | Unary::Floor | Unary::Ceil | Unary::Round | Unary::IsNan | Unary::IsInf
    )
}
