//! Which nodes share a row program: greedy merging of each node with the programs that compute what it reads.
//!
//! A merge must keep the order of execution acyclic, agree on rows, compute nothing twice and stay within the limits; it is tried by
//! building the program. Values that anything outside reads are stored, once, by the program that computes them.

use super::row_builder::{Built, Limits, Refusal, Runs, build};
use super::scene::{Class, Scene};
use crate::graph::{Epoch, NodeId, Op, ValueId};
use std::collections::BTreeSet;

/// Nodes of one row program.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// In graph order.
    pub nodes: Vec<NodeId>,
    pub epoch: Epoch,
    /// Values that are read outside, in graph order.
    pub stored: Vec<ValueId>,
    pub runs: Runs,
    pub built: Built,
}

impl Group {
    /// For each of several stored values: the program that makes it alone, from the others where it can. Only what needs no
    /// reduction: the order of a sum may differ between programs.
    pub fn again(&self, scene: &Scene, limits: Limits) -> Vec<(NodeId, Built)> {
        let alone = |&v: &ValueId| {
            // What is a part of a concatenation is made again with the rest of it.
            if scene.place(v).owner != v {
                return None;
            }
            let others = |n: &NodeId| !self.stored.iter().any(|&o| o != v && scene.def(o).0 == *n);
            let nodes: Vec<NodeId> = self.nodes.iter().copied().filter(others).collect();
            // A space without folded runs has no place for a reduction.
            let built = build(scene, &nodes, &[v], &vec![(scene.elements(v), false)], limits).ok()?;
            Some((scene.def(v).0, built))
        };
        if self.stored.len() > 1 { self.stored.iter().filter_map(alone).collect() } else { vec![] }
    }
}

/// Groups the row nodes of a scene.
///
/// # Errors
/// The node that makes no program on its own, with the reason.
pub(super) fn groups(scene: &Scene, fuse: bool, limits: Limits) -> Result<Vec<Group>, (NodeId, Refusal)> {
    let mut fuser = Fuser { scene, limits, groups: vec![], of: vec![None; scene.graph().nodes.len()] };
    for &n in scene.order.iter().filter(|&&n| scene.class_of(n) == Class::Row) {
        let alone = single(scene, n)?;
        let mut at = fuser.groups.len();
        fuser.groups.push(Some(alone));
        fuser.of[n.index()] = Some(at);
        if !fuse {
            continue;
        }
        for producer in fuser.producers(n) {
            at = fuser.merged(producer, at);
        }
        for sibling in fuser.siblings(n, at) {
            at = fuser.merged(sibling, at);
        }
    }
    Ok(fuser.groups.into_iter().flatten().collect())
}

/// The group of one node alone.
///
/// # Errors
/// The node, with the reason why it makes no program.
pub(super) fn single(scene: &Scene, n: NodeId) -> Result<Group, (NodeId, Refusal)> {
    // One node is computed whatever its size.
    let limits = Limits { loads: usize::MAX, statements: usize::MAX / 4 };
    group(scene, vec![n], limits).map_err(|r| (n, r))
}

fn group(scene: &Scene, nodes: Vec<NodeId>, limits: Limits) -> Result<Group, Refusal> {
    let stored = stored(scene, &nodes);
    let runs = runs(scene, &nodes, &stored)?;
    let columns = runs.iter().any(|r| r.1) && runs.last().is_some_and(|r| !r.1);
    let points: u64 = runs.iter().map(|r| r.0).product();
    if columns && nodes.len() > 1 && stored.iter().any(|&v| scene.elements(v) == points) {
        return Err(Refusal::Misaligned);
    }
    let built = build(scene, &nodes, &stored, &runs, limits)?;
    let epoch = scene.graph().node(nodes[0]).epoch();
    Ok(Group { nodes, epoch, stored, runs, built })
}

/// The values of a set of nodes that something outside reads.
fn stored(scene: &Scene, nodes: &[NodeId]) -> Vec<ValueId> {
    let outside = |v: &ValueId| {
        let pinned = scene.pinned[v.index()] || scene.readers[v.index()].is_empty();
        pinned || scene.readers[v.index()].iter().any(|r| !nodes.contains(r))
    };
    nodes.iter().flat_map(|&n| scene.graph().node(n).results.iter().copied()).filter(outside).collect()
}

/// The space of a set of nodes: that of its reductions, else the elements of what it stores.
fn runs(scene: &Scene, nodes: &[NodeId], stored: &[ValueId]) -> Result<Runs, Refusal> {
    let mut found: Option<Runs> = None;
    for &n in nodes {
        let node = scene.graph().node(n);
        let Op::Reduce { axes, .. } = &node.op else { continue };
        let mut own: Runs = vec![];
        for (d, &extent) in scene.shape(node.inputs[0]).iter().enumerate().filter(|(_, e)| **e != 1) {
            let folded = axes.contains(&d);
            match own.last_mut() {
                Some(last) if last.1 == folded => last.0 *= extent,
                _ => own.push((extent, folded)),
            }
        }
        match &found {
            Some(runs) if *runs != own => return Err(Refusal::Misaligned),
            _ => found = Some(own),
        }
    }
    let largest = stored.iter().map(|&v| scene.elements(v)).max().unwrap_or(1);
    Ok(found.unwrap_or_else(|| vec![(largest, false)]))
}

struct Fuser<'s, 'a> {
    scene: &'s Scene<'a>,
    limits: Limits,
    groups: Vec<Option<Group>>,
    /// The group of each row node.
    of: Vec<Option<usize>>,
}

impl Fuser<'_, '_> {
    /// Groups that compute what a node reads, the largest value first.
    fn producers(&self, n: NodeId) -> Vec<usize> {
        let mut found: Vec<(u64, usize)> = vec![];
        for v in reads(self.scene, n) {
            let Some(g) = self.of[self.scene.def(v).0.index()] else { continue };
            let bytes = self.scene.graph().ty(v).bytes();
            match found.iter_mut().find(|f| f.1 == g) {
                Some(f) => f.0 += bytes,
                None => found.push((bytes, g)),
            }
        }
        found.sort_by_key(|f| (std::cmp::Reverse(f.0), f.1));
        found.into_iter().map(|f| f.1).collect()
    }

    /// Groups over the same space that read what a node reads: other parts of one composite, and other sums along the same columns.
    fn siblings(&self, n: NodeId, own: usize) -> Vec<usize> {
        let node = self.scene.graph().node(n);
        let Some(group) = &self.groups[own] else { return vec![] };
        let mine: BTreeSet<ValueId> = reads(self.scene, n).into_iter().collect();
        let shares = |&r: &NodeId| {
            let same_part = self.scene.core.part_of[r.index()] == self.scene.core.part_of[n.index()];
            let folds = matches!((&node.op, &self.scene.graph().node(r).op), (Op::Reduce { .. }, Op::Reduce { .. }));
            (same_part || folds) && r != n && reads(self.scene, r).iter().any(|v| mine.contains(v))
        };
        let mut found: Vec<usize> = mine
            .iter()
            .flat_map(|v| &self.scene.readers[v.index()])
            .filter(|r| shares(r))
            .filter_map(|r| self.of[r.index()])
            .filter(|&g| g != own && self.groups[g].as_ref().is_some_and(|g| g.runs == group.runs))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// Merges two groups where that can be done; the group that holds `b`'s nodes afterwards.
    fn merged(&mut self, a: usize, b: usize) -> usize {
        let (Some(x), Some(y)) = (&self.groups[a], &self.groups[b]) else { return b };
        if a == b || x.epoch != y.epoch {
            return b;
        }
        let mut nodes = [&x.nodes[..], &y.nodes[..]].concat();
        nodes.sort();
        if self.is_cyclic(&nodes, a, b) {
            return b;
        }
        let Ok(group) = group(self.scene, nodes, self.limits) else { return b };
        group.nodes.iter().for_each(|n| self.of[n.index()] = Some(a));
        self.groups[a] = Some(group);
        self.groups[b] = None;
        a
    }

    /// True if something outside the set lies on a path between two of its nodes.
    fn is_cyclic(&self, nodes: &[NodeId], a: usize, b: usize) -> bool {
        let inside = |n: NodeId| matches!(self.of[n.index()], Some(g) if g == a || g == b);
        let last = nodes[nodes.len() - 1];
        let mut seen: BTreeSet<NodeId> = BTreeSet::new();
        let mut stack: Vec<NodeId> = vec![];
        let follow = |n: NodeId, stack: &mut Vec<NodeId>| {
            let results = &self.scene.graph().node(n).results;
            stack.extend(results.iter().flat_map(|v| &self.scene.readers[v.index()]).copied());
        };
        nodes.iter().for_each(|&n| follow(n, &mut stack));
        stack.retain(|&n| !inside(n));
        while let Some(n) = stack.pop() {
            if !seen.insert(n) {
                continue;
            }
            // A group runs as one: reaching one of its nodes reaches all.
            let group = self.of[n.index()].and_then(|g| self.groups[g].as_ref());
            let members = group.map_or(std::slice::from_ref(&n), |g| &g.nodes);
            // Readers come later than what they read, so that only a group with an early node leads back.
            if members[0] > last {
                continue;
            }
            for &m in members {
                if inside(m) {
                    return true;
                }
                seen.insert(m);
                follow(m, &mut stack);
            }
            if stack.iter().any(|&n| inside(n)) {
                return true;
            }
        }
        false
    }
}

/// Base values that a row node reads, those that inlined nodes read included.
pub(super) fn reads(scene: &Scene, n: NodeId) -> Vec<ValueId> {
    let mut found = vec![];
    let mut stack: Vec<ValueId> = scene.graph().node(n).inputs.clone();
    while let Some(v) = stack.pop() {
        let base = scene.base(v);
        match scene.class_of(scene.def(base).0) {
            Class::Inline => stack.extend(&scene.def(base).1.inputs),
            _ if !found.contains(&base) => found.push(base),
            _ => {}
        }
    }
    found
}
