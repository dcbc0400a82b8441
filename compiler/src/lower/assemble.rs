//! Units and buffers from groups and kernels, in an order that keeps every dependence.

use super::early;
use super::fuse::{Group, reads};
use super::kernels::{Draft, Fault, draft};
use super::row_builder::Limits;
use super::scene::{Class, Place, Scene};
use crate::Error;
use crate::graph::{Epoch, Graph, NodeId, Op, TensorType, ValueId};
use crate::quantity::{Bytes, Flops};
use crate::units::{Buffer, BufferId, Program, Unit};
use fp8c_kernels::program::{Access, Kernel, Mode, RowProgram, Stmt};
use fp8c_runtime::plan::Role;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// One launch to be ordered.
pub(super) struct Item {
    draft: Draft,
    /// The scene's nodes it carries out.
    pub nodes: Vec<NodeId>,
    pub epoch: Epoch,
    /// Place in its epoch: that of its last node, or 0 for what comes as soon as it can.
    pub position: NodeId,
}

/// Makes the program of a scene and its groups.
///
/// # Errors
/// [`Error::Verify`] when no order of execution exists, which the fusion excludes.
pub(super) fn assemble(scene: &Scene, graph: &Graph, groups: Vec<Group>) -> Result<Program, Error> {
    let mut items: Vec<Item> = vec![];
    let mut again: Vec<Item> = vec![];
    for g in groups {
        if g.epoch == Epoch::Forward {
            again.extend(g.again(scene, Limits::default()).into_iter().map(|(n, built)| {
                let draft = Draft { kernel: Kernel::Row(built.program), owners: built.owners, flops: Flops(0) };
                Item { draft, nodes: vec![n], epoch: Epoch::Backward, position: n }
            }));
        }
        let position = *g.nodes.last().unwrap_or(&NodeId(0));
        let draft = Draft { kernel: Kernel::Row(g.built.program), owners: g.built.owners, flops: Flops(0) };
        items.push(Item { draft, nodes: g.nodes, epoch: g.epoch, position });
    }
    for &n in scene.order.iter().filter(|&&n| scene.class_of(n) == Class::Kernel) {
        let draft = draft(scene, n).map_err(|f| match f {
            Fault::Failed(e) => e,
            Fault::Copy { node, input } => {
                Error::Verify { pass: "lower", reason: format!("input {input} of {} has no place", scene.graph().node(node).site) }
            }
        })?;
        let nodes = scene.absorbs.get(&n).copied().into_iter().chain([n]).collect();
        items.push(Item { draft, nodes, epoch: scene.graph().node(n).epoch(), position: n });
    }
    let early = early::hasten(scene, graph, &mut items)?;
    let order = order(scene, &items, early)?;
    let mut assembly = Assembly { scene, graph, program: Program::default(), ids: BTreeMap::new(), names: HashSet::new() };
    assembly.sources();
    for i in order {
        let unit = assembly.unit(&items[i]);
        assembly.program.units.push(unit);
    }
    for item in &again {
        let unit = assembly.unit(item);
        assembly.program.again.push(unit);
    }
    assembly.results()
}

/// A topological order: by epoch, then by place in the graph. `later` has pairs of items of which the second must wait for the first.
fn order(scene: &Scene, items: &[Item], later: Vec<(usize, usize)>) -> Result<Vec<usize>, Error> {
    let mut item_of: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        item_of.extend(item.nodes.iter().map(|&n| (n, i)));
    }
    let mut after: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); items.len()];
    let mut readers: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        for v in item.nodes.iter().flat_map(|&n| reads(scene, n)) {
            readers.entry(v).or_default().push(i);
            for n in definitions(scene, v) {
                if let Some(&d) = item_of.get(&n).filter(|&&d| d != i) {
                    after[d].insert(i);
                }
            }
        }
    }
    // Who reads a state comes before who replaces it.
    for (i, item) in items.iter().enumerate() {
        for &n in &item.nodes {
            let node = scene.graph().node(n);
            for alias in node.op.aliases().iter().flatten() {
                let old = scene.base(node.inputs[*alias]);
                for &r in readers.get(&old).into_iter().flatten().filter(|&&r| r != i) {
                    after[r].insert(i);
                }
            }
        }
    }
    later.into_iter().for_each(|(first, second)| {
        after[first].insert(second);
    });
    let mut waiting = vec![0usize; items.len()];
    after.iter().flatten().for_each(|&i| waiting[i] += 1);
    let key = |i: usize| (items[i].epoch, items[i].position, i);
    let mut ready: BTreeSet<_> = (0..items.len()).filter(|&i| waiting[i] == 0).map(key).collect();
    let mut out = vec![];
    while let Some((_, _, i)) = ready.pop_first() {
        out.push(i);
        for &next in &after[i] {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                ready.insert(key(next));
            }
        }
    }
    match out.len() == items.len() {
        true => Ok(out),
        false => Err(Error::Verify { pass: "lower", reason: "fused kernels depend on each other in a circle".into() }),
    }
}

/// The nodes whose results make up a base value: of a concatenation, its operands'.
fn definitions(scene: &Scene, v: ValueId) -> Vec<NodeId> {
    let (n, node) = scene.def(v);
    match scene.class_of(n) {
        Class::Join => node.inputs.iter().flat_map(|&v| definitions(scene, scene.base(v))).collect(),
        _ => vec![n],
    }
}

struct Assembly<'s, 'a> {
    scene: &'s Scene<'a>,
    /// The graph that was lowered.
    graph: &'s Graph,
    program: Program,
    ids: BTreeMap<ValueId, BufferId>,
    names: HashSet<String>,
}

impl Assembly<'_, '_> {
    /// Buffers of all sources but constants, which come when they are read.
    fn sources(&mut self) {
        for node in &self.scene.graph().nodes {
            if node.op.is_source() && !matches!(node.op, Op::Constant(_)) {
                self.buffer(node.results[0]);
            }
        }
    }

    fn buffer(&mut self, owner: ValueId) -> BufferId {
        if let Some(&id) = self.ids.get(&owner) {
            return id;
        }
        let (n, node) = self.scene.def(owner);
        let ty = self.scene.graph().ty(owner);
        let role = self.role(owner, &node.op);
        let shape = physical(&ty.shape, self.scene.places.get(&owner).filter(|p| p.owner == owner));
        let buffer = Buffer {
            name: self.name(owner, n),
            ty: TensorType::new(ty.dtype, shape),
            role,
            value: self.scene.core.holds[owner.index()],
            persistent: node.op.is_source(),
        };
        let id = BufferId(self.program.buffers.len() as u32);
        self.program.buffers.push(buffer);
        self.ids.insert(owner, id);
        id
    }

    fn role(&self, owner: ValueId, op: &Op) -> Role {
        let graph = self.scene.graph();
        let holds = |v: ValueId| self.scene.resolve(v).is_ok_and(|r| r.owner == owner);
        match op {
            Op::Input { .. } => Role::Input,
            Op::Parameter(_) | Op::DecayOf(_) => Role::Parameter,
            Op::State { .. } => Role::State,
            Op::Control => Role::Control,
            Op::Constant(_) => Role::Constant,
            _ if graph.outputs.iter().any(|o| holds(o.value)) || graph.loss.is_some_and(holds) => Role::Output,
            _ if graph.gradients.iter().any(|g| holds(g.value)) => Role::Gradient,
            _ => Role::Activation,
        }
    }

    /// A name of its own: the parameter's, or the site's with the operator.
    fn name(&mut self, owner: ValueId, n: NodeId) -> String {
        let node = self.scene.graph().node(n);
        let parameter = |p: &usize| self.graph.parameters.get(*p).map_or("parameter", |p| &p.name);
        let base = match &node.op {
            Op::Input { name } => name.clone(),
            Op::Parameter(p) => parameter(p).to_string(),
            Op::State { parameter: p, slot, .. } => format!("{}.state{slot}", parameter(p)),
            Op::DecayOf(p) => format!("{}.decay", parameter(p)),
            Op::Control => "control".into(),
            _ => {
                let of = self.graph.values[self.scene.core.holds[owner.index()].index()].result;
                if of == 0 { node.site.to_string() } else { format!("{}:{of}", node.site) }
            }
        };
        let mut name = base.clone();
        let mut i = 1;
        while !self.names.insert(name.clone()) {
            i += 1;
            name = format!("{base}#{i}");
        }
        name
    }

    fn unit(&mut self, item: &Item) -> Unit {
        let draft = &item.draft;
        let args: Vec<BufferId> = draft.owners.iter().map(|&v| self.buffer(v)).collect();
        let mut nodes: Vec<NodeId> = item.nodes.iter().map(|n| self.scene.core.part_of[n.index()]).collect();
        nodes.sort();
        nodes.dedup();
        let site = self.scene.graph().node(*item.nodes.last().unwrap_or(&item.position)).site.clone();
        let (kernel, flops, traffic) = (draft.kernel.clone(), draft.flops, traffic(&draft.kernel));
        Unit { kernel, args, epoch: item.epoch, site, nodes, flops, traffic }
    }

    fn results(mut self) -> Result<Program, Error> {
        let graph = self.scene.graph();
        let owner = |v: ValueId| {
            let missing = || Error::Verify { pass: "lower", reason: format!("result {} has no buffer", v.0) };
            self.scene.resolve(v).map(|r| r.owner).map_err(|_| missing())
        };
        let outputs = graph.outputs.iter().map(|o| Ok((o.name.clone(), owner(o.value)?))).collect::<Result<Vec<_>, Error>>()?;
        let loss = graph.loss.map(owner).transpose()?;
        let gradients = graph.gradients.iter().map(|g| Ok((g.parameter, owner(g.value)?))).collect::<Result<Vec<_>, Error>>()?;
        self.program.outputs = outputs.into_iter().map(|(name, v)| (name, self.buffer(v))).collect();
        self.program.loss = loss.map(|v| self.buffer(v));
        self.program.gradients = gradients.into_iter().map(|(p, v)| (p, self.buffer(v))).collect();
        Ok(self.program)
    }
}

/// Extents in the order in which they lie in memory.
fn physical(shape: &[u64], place: Option<&Place>) -> Vec<u64> {
    let Some(place) = place else { return shape.to_vec() };
    let mut axes: Vec<usize> = (0..shape.len()).collect();
    axes.sort_by_key(|&d| std::cmp::Reverse(place.strides[d]));
    axes.into_iter().map(|d| shape[d]).collect()
}

/// Bytes that a launch reads and writes, each argument at most once each way.
fn traffic(kernel: &Kernel) -> Bytes {
    let Kernel::Row(p) = kernel else {
        return kernel.args().iter().map(|a| Bytes(a.bytes()) * if a.mode == Mode::Update { 2 } else { 1 }).sum();
    };
    let mut touched = vec![[0u64; 2]; p.args.len()];
    for s in &p.body {
        let (arg, points, writes) = match s {
            Stmt::Load { arg, access, indexed } => (*arg, if indexed.is_some() { points(p, None) } else { points(p, Some(access)) }, false),
            Stmt::Store { arg, access, .. } | Stmt::Accumulate { arg, access, .. } => (*arg, points(p, Some(access)), true),
            Stmt::StoreQuantized { codes, access, .. } => (*codes, points(p, Some(access)), true),
            _ => continue,
        };
        let at = &mut touched[arg as usize][writes as usize];
        *at = at.saturating_add(points);
    }
    let bytes =
        |(a, t): (&fp8c_kernels::program::Arg, &[u64; 2])| t.iter().map(|&n| Bytes(a.dtype.size()) * n.min(a.elements)).sum::<Bytes>();
    p.args.iter().zip(&touched).map(bytes).sum()
}

/// Distinct elements that an access touches, at most.
fn points(p: &RowProgram, access: Option<&Access>) -> u64 {
    let moves = |d: usize| access.is_none_or(|a| a.strides[d] != 0);
    (0..p.space.len()).filter(|&d| moves(d)).map(|d| p.space[d]).product()
}
