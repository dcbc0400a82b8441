//! Updates within the backward pass: a parameter's step runs as soon as nothing reads its old value any more.
//!
//! What is computed again may need a parameter as long as the backward pass is in a section that has used it, so the step waits for the last
//! backward unit of the first such section, and then comes before everything else.

use super::assemble::Item;
use super::scene::Scene;
use crate::Error;
use crate::graph::{Epoch, Graph, NodeId, Op, Pass};
use crate::sections::sections;

/// Puts the units of guarded steps into the backward pass, and says which items wait for which.
///
/// # Errors
/// As [`sections`].
pub(super) fn hasten(scene: &Scene, graph: &Graph, items: &mut [Item]) -> Result<Vec<(usize, usize)>, Error> {
    let guarded = |op: &Op| matches!(op, Op::Optimize(o) if o.guarded);
    if !graph.nodes.iter().any(|n| guarded(&n.op)) {
        return Ok(vec![]);
    }
    let sections = sections(graph)?;
    let mut through = vec![vec![]; sections.len()];
    for (i, item) in items.iter().enumerate().filter(|(_, item)| item.epoch == Epoch::Backward) {
        let reached = item.nodes.iter().map(|n| sections.of(scene.core.part_of[n.index()])).max();
        through[reached.unwrap_or(0)].push(i);
    }
    let mut later = vec![];
    for (i, item) in items.iter_mut().enumerate().filter(|(_, item)| item.epoch == Epoch::Update) {
        let part = |n: &NodeId| graph.node(scene.core.part_of[n.index()]);
        if item.nodes.iter().any(|n| matches!(part(n).op, Op::FinishNorm { .. })) {
            continue;
        }
        debug_assert!(item.nodes.iter().all(|n| part(n).pass == Pass::Update));
        (item.epoch, item.position) = (Epoch::Backward, NodeId(0));
        for node in item.nodes.iter().map(part).filter(|n| guarded(&n.op)) {
            let first = sections.first_use(graph, node.inputs[0]).min(sections.len());
            later.extend(through[first..].iter().flatten().map(|&before| (before, i)));
        }
    }
    Ok(later)
}
