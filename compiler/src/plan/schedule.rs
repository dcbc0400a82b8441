//! Decisions to a sequence of launches.
//!
//! Forward units run in order. Before a backward unit, each forward value that it reads and that was not kept is computed again,
//! with whatever that needs, in forward order; a recomputed value then stays until its last reader. Everything here is exact:
//! the peak of a [`Schedule`] is what its launches need, to the byte.

use crate::graph::Epoch;
use crate::units::{BufferId, Program};
use fp8c_kernels::program::{Mode, ScratchFor};
use fp8c_runtime::plan::ALIGN;

/// For each buffer of the program: is the forward pass's value kept for the backward pass? Only asked of forward buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decisions {
    pub keep: Vec<bool>,
}

/// A transient tensor: the bytes of a buffer from one event to another, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// `None`: scratch memory of one launch.
    pub buffer: Option<BufferId>,
    pub bytes: u64,
    pub first: u32,
    pub last: u32,
    /// Made in the backward pass from a forward buffer.
    pub recomputed: bool,
}

/// Where an argument of a launch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Persistent(BufferId),
    /// Index into [`Schedule::instances`].
    Instance(u32),
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index into the program's units.
    pub unit: u32,
    pub args: Vec<Slot>,
    pub scratch: Option<u32>,
    pub recompute: bool,
}

/// Launches in order, with the lifetimes they imply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    pub events: Vec<Event>,
    pub instances: Vec<Instance>,
    /// Events before this one belong to a micro-batch, the rest to the update.
    pub update_start: u32,
}

/// Facts about a program that every schedule of it shares.
pub struct Facts {
    /// For each buffer: the forward units that write it, ascending.
    pub forward_writers: Vec<Vec<u32>>,
    /// For each unit: (argument position, buffer, reads, writes).
    pub touches: Vec<Vec<Touch>>,
    /// For each unit: scratch bytes, aligned.
    scratch: Vec<u64>,
    /// Buffers that are read after the step (outputs, loss, gradients).
    pinned: Vec<bool>,
}

/// How a unit touches one of its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    pub buffer: BufferId,
    pub reads: bool,
    pub writes: bool,
}

/// Bytes rounded up to the arena's alignment.
pub fn aligned(bytes: u64) -> u64 {
    bytes.div_ceil(ALIGN).max(1).saturating_mul(ALIGN)
}

impl Facts {
    /// Collects the facts; `device` says whose scratch memory counts.
    pub fn new(program: &Program, device: ScratchFor) -> Self {
        let mut forward_writers = vec![vec![]; program.buffers.len()];
        let mut touches = Vec::with_capacity(program.units.len());
        for (u, unit) in program.units.iter().enumerate() {
            let modes = unit.kernel.args();
            let touch = |(arg, &buffer): (&fp8c_kernels::program::Arg, &BufferId)| Touch {
                buffer,
                reads: arg.mode != Mode::Write,
                writes: arg.mode != Mode::Read,
            };
            let all: Vec<Touch> = modes.iter().zip(&unit.args).map(touch).collect();
            for t in all.iter().filter(|t| t.writes && unit.epoch == Epoch::Forward) {
                let writers: &mut Vec<u32> = &mut forward_writers[t.buffer.0 as usize];
                if writers.last() != Some(&(u as u32)) {
                    writers.push(u as u32);
                }
            }
            touches.push(all);
        }
        let mut pinned = vec![false; program.buffers.len()];
        let after = program.outputs.iter().map(|(_, b)| *b).chain(program.loss).chain(program.gradients.iter().map(|(_, b)| *b));
        after.for_each(|b| pinned[b.0 as usize] = true);
        let scratch = program.units.iter().map(|u| match u.kernel.scratch_bytes(device) {
            0 => 0,
            bytes => aligned(bytes),
        });
        Facts { forward_writers, touches, scratch: scratch.collect(), pinned }
    }

    /// Forward buffers that a backward or update unit reads directly.
    pub fn late_reads(&self, program: &Program) -> Vec<BufferId> {
        let mut wanted = vec![false; program.buffers.len()];
        for (unit, touches) in program.units.iter().zip(&self.touches) {
            let late = unit.epoch != Epoch::Forward;
            touches.iter().filter(|t| late && t.reads).for_each(|t| wanted[t.buffer.0 as usize] = true);
        }
        let transient = |b: usize| !program.buffers[b].persistent && !self.forward_writers[b].is_empty();
        (0..wanted.len()).filter(|&b| wanted[b] && transient(b)).map(|b| BufferId(b as u32)).collect()
    }
}

/// Builds the schedule that decisions imply.
pub fn build(program: &Program, facts: &Facts, decisions: &Decisions) -> Schedule {
    let mut b =
        Builder { program, facts, keep: &decisions.keep, now: vec![None; program.buffers.len()], out: Schedule::default(), late: false };
    for (u, unit) in program.units.iter().enumerate() {
        if unit.epoch != Epoch::Forward && !b.late {
            b.enter_backward();
        }
        if unit.epoch == Epoch::Update && b.out.update_start == 0 {
            b.out.update_start = b.out.events.len() as u32;
        }
        if b.late {
            b.recompute_inputs(u as u32);
        }
        b.launch(u as u32, false);
    }
    b.finish()
}

struct Builder<'a> {
    program: &'a Program,
    facts: &'a Facts,
    keep: &'a [bool],
    /// The live instance of each transient buffer, as later units see it.
    now: Vec<Option<u32>>,
    out: Schedule,
    late: bool,
}

impl Builder<'_> {
    /// Forgets the forward instances that are not kept.
    fn enter_backward(&mut self) {
        self.late = true;
        for b in 0..self.now.len() {
            if !self.keep[b] && !self.facts.pinned[b] {
                self.now[b] = None;
            }
        }
    }

    /// Runs again, in forward order, the forward units without which a unit lacks an input.
    fn recompute_inputs(&mut self, unit: u32) {
        let mut needed = std::collections::BTreeSet::new();
        let mut open = vec![unit];
        while let Some(u) = open.pop() {
            let missing = self.facts.touches[u as usize].iter().filter(|t| t.reads && self.lacks(t.buffer));
            for writer in missing.flat_map(|t| &self.facts.forward_writers[t.buffer.0 as usize]) {
                if *writer != unit && needed.insert(*writer) {
                    open.push(*writer);
                }
            }
        }
        for u in needed {
            self.launch(u, true);
        }
    }

    fn lacks(&self, b: BufferId) -> bool {
        let b = b.0 as usize;
        !self.program.buffers[b].persistent && self.now[b].is_none() && !self.facts.forward_writers[b].is_empty()
    }

    fn launch(&mut self, unit: u32, recompute: bool) {
        let at = self.out.events.len() as u32;
        let facts = self.facts;
        let mut args = Vec::with_capacity(facts.touches[unit as usize].len());
        for t in &facts.touches[unit as usize] {
            let b = t.buffer.0 as usize;
            if self.program.buffers[b].persistent {
                args.push(Slot::Persistent(t.buffer));
                continue;
            }
            // A recomputed unit may also make a value that is still there; that copy goes to a place of its own and dies at once.
            let made_before =
                self.now[b].filter(|&i| recompute && t.writes && self.out.instances[i as usize].first != at && !self.partial(t.buffer));
            let instance = match (self.now[b], made_before) {
                (Some(i), None) => i,
                (found, _) => {
                    let i = self.out.instances.len() as u32;
                    let bytes = aligned(self.program.buffers[b].ty.bytes());
                    self.out.instances.push(Instance { buffer: Some(t.buffer), bytes, first: at, last: at, recomputed: recompute });
                    if found.is_none() {
                        self.now[b] = Some(i);
                    }
                    i
                }
            };
            self.out.instances[instance as usize].last = at;
            args.push(Slot::Instance(instance));
        }
        let scratch = (facts.scratch[unit as usize] > 0).then(|| {
            let bytes = facts.scratch[unit as usize];
            self.out.instances.push(Instance { buffer: None, bytes, first: at, last: at, recomputed: false });
            self.out.instances.len() as u32 - 1
        });
        self.out.events.push(Event { unit, args, scratch, recompute });
    }

    /// True for buffers that several units fill together: writing one again must hit the same instance.
    fn partial(&self, b: BufferId) -> bool {
        self.facts.forward_writers[b.0 as usize].len() > 1
    }

    fn finish(mut self) -> Schedule {
        let end = self.out.events.len().saturating_sub(1) as u32;
        if self.out.update_start == 0 {
            self.out.update_start = self.out.events.len() as u32;
        }
        for (b, instance) in self.now.iter().enumerate() {
            if let (true, Some(i)) = (self.facts.pinned[b], instance) {
                self.out.instances[*i as usize].last = end;
            }
        }
        self.out
    }
}

impl Schedule {
    /// The largest number of transient bytes alive at one event, and that event.
    pub fn peak(&self) -> (u64, u32) {
        let mut change = vec![(0u64, 0u64); self.events.len() + 1];
        for i in &self.instances {
            change[i.first as usize].0 += i.bytes;
            change[i.last as usize + 1].1 += i.bytes;
        }
        let (mut live, mut peak) = (0u64, (0u64, 0u32));
        for (at, (born, died)) in change.iter().enumerate() {
            live = live + born - died;
            if live > peak.0 {
                peak = (live, at as u32);
            }
        }
        peak
    }

    /// Predicted seconds, given those of each unit; and the part spent on recomputation.
    pub fn seconds(&self, units: &[f64]) -> (f64, f64) {
        let total = self.events.iter().map(|e| units[e.unit as usize]).sum::<f64>();
        let again = self.events.iter().filter(|e| e.recompute).map(|e| units[e.unit as usize]).sum::<f64>();
        // The sum of nothing is -0.
        (total, again + 0.0)
    }
}
