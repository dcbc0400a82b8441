//! The sections of a graph: ranges of the forward pass between which few values pass, with the backward and update nodes that come of them.
//!
//! A deep model is few kinds of section, repeated. The forward pass is cut where one value alone carries what was computed so far: at
//! residual additions and behind embeddings. A backward or update node belongs to the section of its origin. Kinds are found by
//! structure and never by name: two sections are of one kind when their forward nodes are the same up to the numbering of values.

mod cut;
mod part;
#[cfg(test)]
mod tests;

pub use cut::roots;
pub use part::{Part, Shape};

use crate::Error;
use crate::graph::{Graph, NodeId, Op, Pass, ValueId};
use cut::Whole;
use std::collections::HashMap;
use std::fmt::Write;

/// The section that reads what was embedded, where a model embeds.
const BEHIND_EMBEDDING: usize = 1;

/// A graph cut into sections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sections {
    /// For each node: its section. Sources belong to the section that first reads them.
    of: Vec<u32>,
    /// For each section, the number of its kind; kinds are numbered as they appear.
    pub kinds: Vec<u32>,
    /// Sections that repeat as one, as a range; empty where nothing repeats.
    first_repetition: std::ops::Range<usize>,
}

/// The forward ranges of a graph as graphs of their own, in order.
///
/// # Errors
/// [`Error::Graph`] for nodes that do not type.
pub fn parts(graph: &Graph) -> Result<Vec<Part>, Error> {
    let whole = Whole::new(graph);
    whole.ranges().into_iter().map(|range| part::part(&whole, range)).collect()
}

/// Cuts a forward or a joint graph.
///
/// # Errors
/// [`Error::Graph`] for nodes that do not type.
pub fn sections(graph: &Graph) -> Result<Sections, Error> {
    let whole = Whole::new(graph);
    let ranges = whole.ranges();
    let mut numbers: HashMap<Shape, u32> = HashMap::new();
    let mut kinds = vec![];
    for range in &ranges {
        let next = numbers.len() as u32;
        kinds.push(*numbers.entry(part::part(&whole, range.clone())?.shape).or_insert(next));
    }
    let mut of = vec![u32::MAX; graph.nodes.len()];
    for (s, range) in (0..).zip(&ranges) {
        range.clone().filter(|&n| !graph.nodes[n].op.is_source()).for_each(|n| of[n] = s);
    }
    for n in 0..graph.nodes.len() {
        let node = &graph.nodes[n];
        let last = ranges.len().saturating_sub(1) as u32;
        // Sources come before their readers.
        if node.pass != Pass::Fprop {
            of[n] = Some(of[node.origin.index()]).filter(|&s| s != u32::MAX).unwrap_or(last);
        }
        for v in &node.inputs {
            let maker = graph.values[v.index()].node.index();
            if graph.nodes[maker].op.is_source() && of[maker] == u32::MAX {
                of[maker] = of[n];
            }
        }
    }
    of.iter_mut().filter(|s| **s == u32::MAX).for_each(|s| *s = 0);
    let first_repetition = repetition(&kinds);
    Ok(Sections { of, kinds, first_repetition })
}

/// The sections before which a sequence of kinds begins to repeat, and how many repeat as one: the shortest period that holds longest.
///
/// The section behind the embedding may differ from those like it: it reads the stream before that is first rounded.
fn repetition(kinds: &[u32]) -> std::ops::Range<usize> {
    let mut best: (usize, std::ops::Range<usize>) = (0, 0..0);
    for period in 1..=kinds.len() / 2 {
        // How many in a row are like those a period later, and how many of them exactly.
        let (mut run, mut exact) = (0, 0);
        for i in 0..kinds.len() - period {
            let same = kinds[i] == kinds[i + period];
            (run, exact) = if same || i == BEHIND_EMBEDDING { (run + 1, exact + usize::from(same)) } else { (0, 0) };
            if run >= period && exact > 0 && run > best.0 {
                let start = i + 1 - run;
                best = (run, start..start + period);
            }
        }
    }
    best.1
}

impl Sections {
    /// The section of a node.
    pub fn of(&self, n: NodeId) -> usize {
        self.of[n.index()] as usize
    }

    /// The first section that reads a source, or what is made of sources alone and of this one among them: where the backward pass is
    /// through with that section, nothing computes anything of the source again.
    pub fn first_use(&self, graph: &Graph, source: ValueId) -> usize {
        let mut side = vec![false; graph.values.len()];
        let mut made_of = vec![false; graph.values.len()];
        made_of[source.index()] = true;
        let mut first = usize::MAX;
        for (n, node) in (0..).map(NodeId).zip(&graph.nodes) {
            let alone = !matches!(node.op, Op::Input { .. }) && node.inputs.iter().all(|v| side[v.index()]);
            let reads = node.inputs.iter().any(|v| made_of[v.index()]);
            if reads && node.pass != Pass::Update {
                first = first.min(self.of(n));
            }
            for v in &node.results {
                side[v.index()] = alone;
                made_of[v.index()] |= reads && alone && node.pass == Pass::Fprop;
            }
        }
        first
    }

    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// True in the first block of a model of repeated blocks, and in what comes before it.
    pub fn in_first_block(&self, n: NodeId) -> bool {
        self.of(n) < self.first_repetition.end
    }

    /// The block that a section belongs to: sections that repeat as one are one block, others are blocks of their own.
    pub fn block(&self, section: usize) -> usize {
        let range = &self.first_repetition;
        if section < range.start || range.is_empty() {
            return section;
        }
        // Compared with the second: the first may differ where it begins.
        let second = range.end;
        let repeats = |at: usize| (0..range.len()).all(|i| self.kinds.get(at + i) == Some(&self.kinds[second + i]));
        let blocks = 1 + (1..).take_while(|b| repeats(range.start + b * range.len())).count();
        let inside = (section - range.start) / range.len();
        let after = section.saturating_sub(range.start + blocks * range.len());
        range.start + if inside < blocks { inside } else { blocks + after }
    }

    /// One line a section: its kind, its block, how many nodes of each pass it has, and its first and last node.
    pub fn print(&self, graph: &Graph) -> String {
        let mut out = String::new();
        for (s, kind) in self.kinds.iter().enumerate() {
            let nodes = || (0..).map(NodeId).zip(&graph.nodes).filter(|(n, node)| self.of(*n) == s && !node.op.is_source());
            let count = |pass| nodes().filter(|(_, n)| n.pass == pass).count();
            let all = [Pass::Fprop, Pass::Loss, Pass::Dgrad, Pass::Wgrad, Pass::Update].into_iter();
            let passes: Vec<String> =
                all.filter(|&p| p != Pass::Loss || count(p) > 0).map(|p| format!("{} {}", count(p), p.name())).collect();
            let mut forward = nodes().filter(|(_, n)| n.pass == Pass::Fprop).map(|(_, n)| n.site.as_ref());
            let first = forward.next().unwrap_or("");
            let last = forward.last().unwrap_or(first);
            let _ = writeln!(out, "section {s} kind {kind} block {}: {} ({first} .. {last})", self.block(s), passes.join(", "));
        }
        out
    }
}
