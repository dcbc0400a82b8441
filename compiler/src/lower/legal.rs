//! Copies where they cannot be avoided: a kernel needs a row-major operand, a result a buffer of its own, an access is not affine.

use super::core::{Core, Writer};
use super::fuse::single;
use super::kernels::{Fault, draft};
use super::row_builder::Refusal;
use super::scene::{Class, Scene};
use crate::Error;
use crate::graph::{NodeId, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What has to be copied.
#[derive(Debug, Default)]
struct Copies {
    /// Values that all readers read as a copy.
    values: BTreeSet<ValueId>,
    /// Inputs of nodes.
    uses: BTreeSet<(NodeId, usize)>,
    /// Results of the graph.
    results: BTreeSet<ValueId>,
}

impl Copies {
    fn len(&self) -> usize {
        self.values.len() + self.uses.len() + self.results.len()
    }
}

/// Rounds of copying before something must be wrong.
const ROUNDS: usize = 16;

/// Adds the copies that let every node be carried out.
///
/// # Errors
/// [`Error::Graph`] for a node that no copy helps.
pub(super) fn legalise(mut core: Core) -> Result<Core, Error> {
    for _ in 0..ROUNDS {
        let copies = needed(&Scene::new(&core))?;
        if copies.len() == 0 {
            return Ok(core);
        }
        core = rewrite(&core, &copies)?;
    }
    Err(Error::Verify { pass: "lower", reason: "copies do not make every access affine".into() })
}

fn needed(scene: &Scene) -> Result<Copies, Error> {
    let mut copies = Copies::default();
    let graph = scene.graph();
    for &n in &scene.order {
        match scene.class_of(n) {
            Class::Kernel => match draft(scene, n) {
                Ok(_) => {}
                Err(Fault::Copy { node, input }) => copies.uses.extend([(node, input)]),
                Err(Fault::Failed(e)) => return Err(e),
            },
            _ => match single(scene, n) {
                Ok(_) => {}
                Err((_, Refusal::Blocked(v))) => copies.values.extend([v]),
                Err((_, r)) => {
                    return Err(Error::Verify { pass: "lower", reason: format!("{} makes no program: {r:?}", graph.node(n).site) });
                }
            },
        }
    }
    for n in (0..graph.nodes.len() as u32).map(NodeId).filter(|&n| scene.class_of(n) == Class::Join) {
        copies.uses.extend(unplaced(scene, n).into_iter().map(|i| (n, i)));
    }
    let persistent = |v: ValueId| scene.resolve(v).is_ok_and(|r| scene.def(r.owner).1.op.is_source());
    // What has no elements is no launch's to write.
    let filled = |v: &ValueId| scene.elements(*v) > 0;
    for v in graph.outputs.iter().map(|o| o.value).chain(graph.loss).filter(filled) {
        if !scene.is_contiguous(v) || persistent(v) || !is_all(scene, v) {
            copies.results.insert(v);
        }
    }
    for g in graph.gradients.iter().map(|g| g.value) {
        if !scene.is_contiguous(g) || !is_all(scene, g) {
            copies.results.insert(g);
        }
    }
    Ok(copies)
}

/// True if a value is all of its buffer.
fn is_all(scene: &Scene, v: ValueId) -> bool {
    scene.resolve(v).is_ok_and(|r| scene.elements(r.owner) == scene.elements(v))
}

/// Operands of a concatenation that are not computed in their place.
fn unplaced(scene: &Scene, n: NodeId) -> Vec<usize> {
    let node = scene.graph().node(n);
    let Op::Concat { axis } = node.op else { return vec![] };
    let whole = scene.place(node.results[0]);
    let mut start = 0;
    let mut missing = vec![];
    for (i, &v) in node.inputs.iter().enumerate() {
        let offset = whole.offset + start * whole.strides[axis];
        start += scene.shape(v)[axis] as i64;
        let there = scene.resolve(v).is_ok_and(|r| {
            let steps = (0..whole.strides.len()).all(|d| scene.shape(v)[d] == 1 || r.access.strides[d] == whole.strides[d]);
            r.owner == whole.owner && r.access.offset == offset && steps && r.access.guards.is_empty()
        });
        if !there {
            missing.push(i);
        }
    }
    missing
}

fn rewrite(core: &Core, copies: &Copies) -> Result<Core, Error> {
    let graph = &core.graph;
    let mut w = Writer::new(graph);
    // Copies of values for single uses are shared but for updates in place and concatenations, which want one of their own.
    let mut shared: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        let id = NodeId(n as u32);
        w.begin(id, core.part_of[n], core.holds[node.results[0].index()]);
        let own = matches!(node.op, Op::Concat { .. }) || !node.op.aliases().is_empty();
        let mut inputs = node.inputs.iter().map(|&v| w.get(v)).collect::<Result<Vec<_>, _>>()?;
        for (i, x) in inputs.iter_mut().enumerate().filter(|(i, _)| copies.uses.contains(&(id, *i))) {
            let old = node.inputs[i];
            *x = match shared.get(&old) {
                Some(&copy) if !own => copy,
                _ => w.copy(*x)?,
            };
            if !own {
                shared.insert(old, *x);
            }
        }
        w.copying(core.copy[n]);
        let results = match node.op.is_source() {
            true => vec![w.source(node.op.clone(), graph.ty(node.results[0]))],
            false => w.add(node.op.clone(), &inputs)?,
        };
        w.copying(false);
        for (&old, new) in node.results.iter().zip(results) {
            w.bind(old, new, core.holds[old.index()]);
            if copies.values.contains(&old) {
                let copy = w.copy(new)?;
                w.bind(old, copy, core.holds[old.index()]);
            }
        }
    }
    for &v in &copies.results {
        let node = graph.values[v.index()].node;
        w.begin(node, core.part_of[node.index()], core.holds[v.index()]);
        let x = w.get(v)?;
        let copy = w.copy(x)?;
        w.bind(v, copy, core.holds[v.index()]);
    }
    w.finish()
}
