//! Decisions to a sequence of launches.
//!
//! Forward units run in order. Before a backward unit, each forward value that it reads and that was not kept is computed again,
//! with whatever that needs, in forward order, by itself where that is possible from what is there and else by the units that made it; a
//! recomputed value then stays until its last reader. Everything here is exact:
//! the peak of a [`Schedule`] is what its launches need, to the byte.

mod local;

pub use local::Local;

use crate::graph::Epoch;
use crate::quantity::{Bytes, Seconds};
use crate::units::{BufferId, Program};
use fp8c_kernels::program::{Kernel, Mode, ScratchFor};
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
    pub bytes: Bytes,
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
    /// Its arguments' places in [`Schedule::args`].
    pub args: std::ops::Range<u32>,
    pub scratch: Option<u32>,
    pub recompute: bool,
}

/// Launches in order, with the lifetimes they imply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    pub events: Vec<Event>,
    /// Arguments of all events, one event after another.
    pub args: Vec<Slot>,
    pub instances: Vec<Instance>,
    /// Events before this one belong to a micro-batch, the rest to the update.
    pub update_start: u32,
}

/// Facts about a program that every schedule of it shares, packed closely: schedules are built by the thousand.
#[derive(Default)]
pub struct Facts {
    /// For each buffer: the forward units that write it, ascending.
    pub forward_writers: Vec<Vec<u32>>,
    /// For each buffer: the unit of [`Program::again`] that makes it by itself. It may run where all that it reads is there.
    alone: Vec<Option<u32>>,
    /// For each unit, when it runs.
    epoch: Vec<Epoch>,
    /// Arguments of all units, one unit after another, and where each unit's begin.
    touches: Vec<Touch>,
    first_touch: Vec<u32>,
    /// For each buffer: whether it has an address of its own throughout, and its bytes, aligned.
    persistent: Vec<bool>,
    bytes: Vec<Bytes>,
    /// For each unit: scratch memory, aligned.
    scratch: Vec<Bytes>,
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
pub fn aligned(bytes: Bytes) -> Bytes {
    Bytes(ALIGN) * bytes.0.div_ceil(ALIGN).max(1)
}

impl Facts {
    /// Collects the facts; `device` says whose scratch memory counts.
    pub fn new(program: &Program, device: ScratchFor) -> Self {
        let mut forward_writers = vec![vec![]; program.buffers.len()];
        let (mut touches, mut first_touch) = (vec![], vec![0]);
        let mut alone = vec![None; program.buffers.len()];
        for (u, unit) in program.units.iter().chain(&program.again).enumerate() {
            let again = u >= program.units.len();
            let modes = unit.kernel.args();
            let touch = |(arg, &buffer): (&fp8c_kernels::program::Arg, &BufferId)| Touch {
                buffer,
                reads: arg.mode != Mode::Write,
                writes: arg.mode != Mode::Read,
            };
            let start = touches.len();
            touches.extend(modes.iter().zip(&unit.args).map(touch));
            for t in touches[start..].iter().filter(|t| t.writes && again) {
                alone[t.buffer.0 as usize] = Some(u as u32);
            }
            for t in touches[start..].iter().filter(|t| t.writes && !again && unit.epoch == Epoch::Forward) {
                let writers: &mut Vec<u32> = &mut forward_writers[t.buffer.0 as usize];
                if writers.last() != Some(&(u as u32)) {
                    writers.push(u as u32);
                }
            }
            first_touch.push(touches.len() as u32);
        }
        let mut pinned = vec![false; program.buffers.len()];
        // Gradients that are applied within the backward pass are gone with that.
        let early = program.units.iter().any(|u| matches!(u.kernel, Kernel::Update(k) if k.guarded));
        let gradients = program.gradients.iter().filter(|_| !early).map(|(_, b)| *b);
        let after = program.outputs.iter().map(|(_, b)| *b).chain(program.loss).chain(gradients);
        after.for_each(|b| pinned[b.0 as usize] = true);
        let scratch = program.units.iter().chain(&program.again).map(|u| match u.kernel.scratch_bytes(device) {
            0 => Bytes(0),
            bytes => aligned(Bytes(bytes)),
        });
        Facts {
            forward_writers,
            alone,
            epoch: program.units.iter().map(|u| u.epoch).collect(),
            touches,
            first_touch,
            persistent: program.buffers.iter().map(|b| b.persistent).collect(),
            bytes: program.buffers.iter().map(|b| aligned(b.bytes())).collect(),
            scratch: scratch.collect(),
            pinned,
        }
    }

    /// How many units run without recomputation.
    pub fn units(&self) -> usize {
        self.epoch.len()
    }

    /// When one of these runs.
    pub fn epoch(&self, unit: u32) -> Epoch {
        self.epoch.get(unit as usize).copied().unwrap_or(Epoch::Backward)
    }

    /// True for what has an address of its own throughout.
    pub fn is_persistent(&self, b: BufferId) -> bool {
        self.persistent[b.0 as usize]
    }

    /// True for what is read after the step.
    pub fn is_pinned(&self, b: BufferId) -> bool {
        self.pinned[b.0 as usize]
    }

    /// A buffer's bytes in the arena.
    pub fn bytes_of(&self, b: BufferId) -> Bytes {
        self.bytes[b.0 as usize]
    }

    /// How a unit touches its arguments, in order.
    pub fn touches(&self, unit: u32) -> &[Touch] {
        &self.touches[self.first_touch[unit as usize] as usize..self.first_touch[unit as usize + 1] as usize]
    }

    /// Forward buffers that a backward or update unit reads directly.
    pub fn late_reads(&self, program: &Program) -> Vec<BufferId> {
        let mut wanted = vec![false; program.buffers.len()];
        for (unit, epoch) in (0u32..).zip(&self.epoch) {
            let late = *epoch != Epoch::Forward;
            self.touches(unit).iter().filter(|t| late && t.reads).for_each(|t| wanted[t.buffer.0 as usize] = true);
        }
        let transient = |b: usize| !program.buffers[b].persistent && !self.forward_writers[b].is_empty();
        (0..wanted.len()).filter(|&b| wanted[b] && transient(b)).map(|b| BufferId(b as u32)).collect()
    }
}

/// Builds the schedule that decisions imply.
pub fn build(facts: &Facts, decisions: &Decisions) -> Schedule {
    let (units, buffers, args) = (facts.epoch.len(), facts.bytes.len(), facts.touches.len());
    let mut out = Schedule::default();
    out.events.reserve(units * 3 / 2);
    out.args.reserve(args * 3 / 2);
    out.instances.reserve(buffers * 3 / 2);
    let mut b = Builder { facts, keep: &decisions.keep, now: vec![None; buffers], out, late: false };
    for (u, &epoch) in facts.epoch.iter().enumerate() {
        if epoch != Epoch::Forward && !b.late {
            b.enter_backward();
        }
        if epoch == Epoch::Update && b.out.update_start == 0 {
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

    /// The units that make a buffer that is not there: the one that makes it alone where all that it reads is there.
    fn makers(&self, b: BufferId) -> &[u32] {
        let at_hand = |u: &&u32| self.facts.touches(**u).iter().all(|t| !t.reads || !self.lacks(t.buffer));
        match self.facts.alone[b.0 as usize].as_ref().filter(at_hand) {
            Some(alone) => std::slice::from_ref(alone),
            None => &self.facts.forward_writers[b.0 as usize],
        }
    }

    /// Where a unit stands among those that run again: one that makes a buffer alone stands behind those that made it with others.
    fn place(&self, unit: u32) -> (u32, u32) {
        let made =
            || self.facts.touches(unit).iter().find(|t| t.writes).and_then(|t| self.facts.forward_writers[t.buffer.0 as usize].last());
        let with = if (unit as usize) < self.facts.units() { Some(&unit) } else { made() };
        (with.copied().unwrap_or(unit), unit)
    }

    /// Runs again, in forward order, the forward units without which a unit lacks an input.
    fn recompute_inputs(&mut self, unit: u32) {
        if !self.facts.touches(unit).iter().any(|t| t.reads && self.lacks(t.buffer)) {
            return;
        }
        let mut needed = std::collections::BTreeSet::new();
        let mut open = vec![unit];
        while let Some(u) = open.pop() {
            let missing = self.facts.touches(u).iter().filter(|t| t.reads && self.lacks(t.buffer));
            for &writer in missing.flat_map(|t| self.makers(t.buffer)) {
                if writer != unit && needed.insert(self.place(writer)) {
                    open.push(writer);
                }
            }
        }
        for &(with, u) in &needed {
            // What is made with others anyway need not be made alone.
            if u == with || !needed.contains(&(with, with)) {
                self.launch(u, true);
            }
        }
    }

    fn lacks(&self, b: BufferId) -> bool {
        let b = b.0 as usize;
        self.now[b].is_none() && !self.facts.persistent[b] && !self.facts.forward_writers[b].is_empty()
    }

    fn launch(&mut self, unit: u32, recompute: bool) {
        let at = self.out.events.len() as u32;
        let facts = self.facts;
        let first_arg = self.out.args.len() as u32;
        for t in facts.touches(unit) {
            let b = t.buffer.0 as usize;
            if facts.persistent[b] {
                self.out.args.push(Slot::Persistent(t.buffer));
                continue;
            }
            // A recomputed unit may also make a value that is still there; that copy goes to a place of its own and dies at once.
            let made_before =
                self.now[b].filter(|&i| recompute && t.writes && self.out.instances[i as usize].first != at && !self.partial(t.buffer));
            let instance = match (self.now[b], made_before) {
                (Some(i), None) => i,
                (found, _) => {
                    let i = self.out.instances.len() as u32;
                    let bytes = facts.bytes[b];
                    self.out.instances.push(Instance { buffer: Some(t.buffer), bytes, first: at, last: at, recomputed: recompute });
                    if found.is_none() {
                        self.now[b] = Some(i);
                    }
                    i
                }
            };
            self.out.instances[instance as usize].last = at;
            self.out.args.push(Slot::Instance(instance));
        }
        let scratch = (facts.scratch[unit as usize] > Bytes(0)).then(|| {
            let bytes = facts.scratch[unit as usize];
            self.out.instances.push(Instance { buffer: None, bytes, first: at, last: at, recomputed: false });
            self.out.instances.len() as u32 - 1
        });
        let args = first_arg..self.out.args.len() as u32;
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
    /// Where an event's arguments lie.
    pub fn args(&self, event: &Event) -> &[Slot] {
        &self.args[event.args.start as usize..event.args.end as usize]
    }

    /// Transient bytes alive at each event.
    pub fn live(&self) -> Vec<Bytes> {
        let mut change = vec![(Bytes(0), Bytes(0)); self.events.len() + 1];
        for i in &self.instances {
            change[i.first as usize].0 += i.bytes;
            change[i.last as usize + 1].1 += i.bytes;
        }
        let mut live = Bytes(0);
        change.pop();
        let turn = |(born, died): (Bytes, Bytes)| {
            live = live + born - died;
            live
        };
        change.into_iter().map(turn).collect()
    }

    /// The largest number of transient bytes alive at one event, and the first such event.
    pub fn peak(&self) -> (Bytes, u32) {
        let worst = self.live().into_iter().zip(0u32..).max_by_key(|&(bytes, at)| (bytes, std::cmp::Reverse(at)));
        worst.unwrap_or((Bytes(0), 0))
    }

    /// Bytes above a budget, summed over the events: bytes times events, exact.
    pub fn over(&self, budget: Bytes) -> u128 {
        self.live().into_iter().map(|bytes| (bytes - budget).0 as u128).sum()
    }

    /// Predicted time, given that of each unit; and the part spent on recomputation.
    pub fn seconds(&self, units: &[Seconds]) -> (Seconds, Seconds) {
        let total = self.events.iter().map(|e| units[e.unit as usize]).sum();
        let again = self.events.iter().filter(|e| e.recompute).map(|e| units[e.unit as usize]).sum();
        (total, again)
    }
}
