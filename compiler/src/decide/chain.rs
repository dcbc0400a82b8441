//! A program as a chain of sections.
//!
//! Each forward buffer that the backward pass may want is *owned* by one section: the one whose backward units read it. Its bytes count from
//! the forward pass to the end of that section's backward pass, so what a section keeps is there while all later ones run, forward and
//! backward, and is gone when earlier ones run backward. What several sections read (tables, shared weights) is kept and belongs to none.

use crate::graph::{Epoch, NodeId};
use crate::plan::schedule::{Decisions, Facts, build};
use crate::quantity::{Bytes, Seconds};
use crate::sections::Sections;
use crate::units::{BufferId, Program};
use std::ops::Range;

/// A program and what its launches cost.
#[derive(Clone, Copy)]
pub struct Costed<'a> {
    pub program: &'a Program,
    pub facts: &'a Facts,
    /// Predicted time of each unit, those of [`Program::again`] behind the others.
    pub unit_seconds: &'a [Seconds],
}

/// One section: its units in each pass and the buffers that it decides on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub forward: Range<u32>,
    pub backward: Range<u32>,
    /// Ascending.
    pub owned: Vec<BufferId>,
}

/// The sections of a program in the order of the forward pass.
pub struct Chain {
    pub links: Vec<Link>,
    /// For each buffer: the section that owns it.
    pub owner: Vec<Option<u32>>,
    /// For each unit: bytes that no section owns and that are alive while it runs.
    pub base: Vec<Bytes>,
    /// For each unit: bytes that no section owns and that are alive while something is computed again for it.
    pub before: Vec<Bytes>,
    /// For each forward unit: bytes that the next section owns and that are there when it runs.
    pub tail: Vec<Bytes>,
    /// Transient bytes of the update, which no decision changes.
    pub update: Bytes,
}

/// Which sections touch a buffer.
#[derive(Clone, Default)]
struct Uses {
    written: Option<(u32, u32)>,
    read_forward: Vec<u32>,
    read_backward: Vec<u32>,
    read_by_update: bool,
}

impl Chain {
    /// Cuts a program along the sections of the graph that it was made from.
    pub fn new(costed: &Costed, sections: &Sections) -> Self {
        let section_of = assigned(costed.program, sections);
        let count = section_of.iter().flatten().max().map_or(1, |&s| s as usize + 1);
        let mut links = vec![Link::default(); count];
        for (s, link) in (0..).zip(&mut links) {
            link.forward = range(costed.program, &section_of, s, Epoch::Forward);
            link.backward = range(costed.program, &section_of, s, Epoch::Backward);
        }
        let uses = uses(costed, &section_of);
        let owner: Vec<Option<u32>> = (0..uses.len()).map(|b| owner(costed, &uses[b], BufferId(b as u32))).collect();
        for (b, o) in owner.iter().enumerate() {
            if let Some(o) = o {
                links[*o as usize].owned.push(BufferId(b as u32));
            }
        }
        let units = costed.program.units.len();
        let (base, before, tail) = (vec![Bytes(0); units], vec![Bytes(0); units], vec![Bytes(0); units]);
        let mut chain = Chain { links, owner, base, before, tail, update: Bytes(0) };
        chain.loads(costed, &uses);
        chain
    }

    /// The decisions that keep everything that no section owns, and nothing else.
    pub fn nothing_owned(&self) -> Decisions {
        Decisions { keep: self.owner.iter().map(Option::is_none).collect() }
    }

    /// The decisions that keep everything.
    pub fn everything(&self) -> Decisions {
        Decisions { keep: vec![true; self.owner.len()] }
    }

    /// Fills in what is alive whatever is decided, read off the schedule that keeps everything.
    fn loads(&mut self, costed: &Costed, uses: &[Uses]) {
        let schedule = build(costed.facts, &self.everything());
        let units = self.base.len();
        let mut base = vec![(Bytes(0), Bytes(0)); units + 2];
        for i in &schedule.instances {
            let Some(b) = i.buffer else { continue };
            let of = &uses[b.0 as usize];
            let (first, mut last) = (i.first as usize, i.last as usize);
            match (self.owner[b.0 as usize], of.written) {
                (Some(o), Some((_, wrote))) if wrote < o => {
                    let end = self.links[wrote as usize].forward.end as usize;
                    self.tail[first..end.max(first)].iter_mut().for_each(|t| *t += i.bytes);
                    continue;
                }
                (Some(_), _) => continue,
                // What is computed again may read it in every section that reads it forward.
                (None, Some(_)) => {
                    let readers = of.read_forward.iter().chain(&of.read_backward);
                    let lowest = readers.min().map(|&s| &self.links[s as usize].backward).filter(|r| !r.is_empty());
                    last = last.max(lowest.map_or(0, |r| r.end as usize - 1));
                }
                (None, None) => {}
            }
            base[first].0 += i.bytes;
            base[last + 1].1 += i.bytes;
        }
        let mut live = Bytes(0);
        for (u, &(born, died)) in base.iter().take(units).enumerate() {
            self.before[u] = live - died;
            live = live + born - died;
            self.base[u] = live;
        }
        let late = schedule.update_start as usize;
        self.update = schedule.live()[late.min(units)..].iter().copied().max().unwrap_or(Bytes(0));
    }
}

/// The section of each unit of the forward and backward pass, numbered without gaps. Forward sections never decrease along the units and
/// backward ones never increase: a stray unit goes with its neighbours.
fn assigned(program: &Program, sections: &Sections) -> Vec<Option<u32>> {
    let of = |n: &NodeId| sections.of(*n) as u32;
    let mut section_of: Vec<Option<u32>> = vec![None; program.units.len()];
    let mut reached = 0;
    for (s, u) in section_of.iter_mut().zip(&program.units).filter(|(_, u)| u.epoch == Epoch::Forward) {
        reached = reached.max(u.nodes.iter().map(of).min().unwrap_or(0));
        *s = Some(reached);
    }
    let mut reached = 0;
    for (s, u) in section_of.iter_mut().zip(&program.units).rev().filter(|(_, u)| u.epoch == Epoch::Backward) {
        reached = reached.max(u.nodes.iter().map(of).max().unwrap_or(0));
        *s = Some(reached);
    }
    let mut there: Vec<u32> = section_of.iter().flatten().copied().collect();
    there.sort_unstable();
    there.dedup();
    let dense = |s: u32| there.binary_search(&s).map_or(0, |i| i as u32);
    section_of.into_iter().map(|s| s.map(dense)).collect()
}

/// The units of a section in one epoch: empty, at the place where they would be, if it has none.
fn range(program: &Program, section_of: &[Option<u32>], section: u32, epoch: Epoch) -> Range<u32> {
    let is = |u: usize| program.units[u].epoch == epoch && section_of[u] == Some(section);
    match (0..section_of.len()).find(|&u| is(u)) {
        Some(start) => start as u32..(start..section_of.len()).take_while(|&u| is(u)).last().map_or(start, |u| u + 1) as u32,
        None => 0..0,
    }
}

fn uses(costed: &Costed, section_of: &[Option<u32>]) -> Vec<Uses> {
    let mut uses = vec![Uses::default(); costed.program.buffers.len()];
    for (u, unit) in (0u32..).zip(&costed.program.units) {
        let section = section_of[u as usize];
        for t in costed.facts.touches(u) {
            let of = &mut uses[t.buffer.0 as usize];
            match (unit.epoch, section) {
                (Epoch::Forward, Some(s)) => {
                    if t.writes {
                        of.written = Some((of.written.map_or(s, |w| w.0), s));
                    }
                    if t.reads {
                        of.read_forward.push(s);
                    }
                }
                (Epoch::Backward, Some(s)) if t.reads => of.read_backward.push(s),
                (Epoch::Update, _) => of.read_by_update |= t.reads,
                _ => {}
            }
        }
    }
    uses
}

/// The section that decides on a forward buffer: one that alone reads it backward, right behind the one that makes it or the same.
fn owner(costed: &Costed, of: &Uses, b: BufferId) -> Option<u32> {
    let (first, last) = of.written?;
    if costed.program.buffers[b.0 as usize].persistent || costed.facts.is_pinned(b) || of.read_by_update || first != last {
        return None;
    }
    let readers = if of.read_backward.is_empty() { &of.read_forward } else { &of.read_backward };
    let owner = readers.iter().copied().max().unwrap_or(first);
    let alone = of.read_backward.iter().all(|&s| s == owner) && of.read_forward.iter().all(|&s| s == owner);
    (alone && (owner == first || owner == first + 1)).then_some(owner)
}
