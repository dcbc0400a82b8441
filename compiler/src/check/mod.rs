//! Proves a plan again, without the planner's code.
//!
//! Replays the plan as bytes: which buffer's value does each byte of the arena hold after every step? A step may read a tensor only
//! if every byte of it still holds the value that the step's unit asks for, fully written. The peak is the highest byte touched.
//! It fails closed: what it cannot follow is an error.

use crate::Error;
use crate::quantity::Bytes;
use crate::units::Program;
use fp8c_kernels::program::Mode;
use fp8c_runtime::plan::{ALIGN, Plan, Role, TensorId};
use std::collections::{BTreeMap, HashMap};

/// What a replay found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Highest byte touched plus one, rounded up to the arena's alignment.
    pub peak: Bytes,
}

/// Replays `plan`, whose step i runs unit `units[i]` of `program`, for one micro-batch after another and an update, twice over, so
/// that what one step leaves behind is what the next one finds.
///
/// # Errors
/// [`Error::Verify`] naming the step and the tensor that is not what it should be.
pub fn replay(program: &Program, plan: &Plan, units: &[u32]) -> Result<Replay, Error> {
    let micro = plan.schedule.micro.len();
    if units.len() != micro + plan.schedule.update.len() {
        return Err(fail("the plan's steps and the schedule's differ in number".into()));
    }
    let mut arena = Arena::new(program, plan)?;
    for _ in 0..2 {
        for _ in 0..plan.accumulation.clamp(1, 2) {
            (0..micro).try_for_each(|i| arena.step(i, units[i]))?;
        }
        (micro..units.len()).try_for_each(|i| arena.step(i, units[i]))?;
        arena.results()?;
    }
    if arena.peak > plan.arena_bytes || plan.arena_bytes > plan.budget_bytes {
        return Err(fail(format!("peak {} of arena {} of budget {}", arena.peak, plan.arena_bytes, plan.budget_bytes)));
    }
    Ok(Replay { peak: Bytes(arena.peak) })
}

fn fail(reason: String) -> Error {
    Error::Verify { pass: "plan", reason }
}

/// The value in a stretch of bytes.
#[derive(Clone, Copy)]
struct Held {
    end: u64,
    tensor: TensorId,
}

struct Arena<'a> {
    program: &'a Program,
    plan: &'a Plan,
    /// By start: who wrote the stretch last.
    held: BTreeMap<u64, Held>,
    /// For each tensor that holds something: the buffer, and the units that wrote it since it was claimed.
    content: HashMap<TensorId, (u32, Vec<u32>)>,
    /// For each buffer: the units of the epoch that makes it that must all have written it before it is read.
    makers: Vec<Vec<u32>>,
    peak: u64,
}

impl<'a> Arena<'a> {
    fn new(program: &'a Program, plan: &'a Plan) -> Result<Self, Error> {
        let mut makers = vec![vec![]; program.buffers.len()];
        for (u, unit) in program.units.iter().enumerate() {
            for (arg, b) in unit.kernel.args().iter().zip(&unit.args) {
                if arg.mode == Mode::Write && !program.buffers[b.0 as usize].persistent {
                    makers[b.0 as usize].push(u as u32);
                }
            }
        }
        let mut arena = Arena { program, plan, held: BTreeMap::new(), content: HashMap::new(), makers, peak: 0 };
        let persistent = |role| !matches!(role, Role::Activation | Role::Gradient | Role::Output | Role::Scratch);
        let by_name: HashMap<&str, u32> =
            program.buffers.iter().enumerate().filter(|(_, b)| b.persistent).map(|(i, b)| (b.name.as_str(), i as u32)).collect();
        for (i, t) in plan.tensors.iter().enumerate().filter(|(_, t)| persistent(t.role)) {
            if let Some(&buffer) = by_name.get(t.name.as_str()) {
                arena.claim(TensorId(i as u32))?;
                arena.content.insert(TensorId(i as u32), (buffer, vec![]));
            }
        }
        Ok(arena)
    }

    /// Gives a tensor's bytes to it; whatever lay there is gone. One without bytes has a place all the same.
    fn claim(&mut self, id: TensorId) -> Result<(), Error> {
        let t = self.plan.tensors.get(id.0 as usize).ok_or_else(|| fail(format!("tensor {} does not exist", id.0)))?;
        let (start, end) = (t.offset, t.offset + t.bytes.div_ceil(ALIGN).max(1) * ALIGN);
        let first = self.held.range(..start).next_back().filter(|(_, h)| h.end > start).map(|(&s, _)| s).unwrap_or(start);
        let hit: Vec<u64> = self.held.range(first..end.max(start + 1)).map(|(&s, _)| s).collect();
        for s in hit {
            if let Some(gone) = self.held.remove(&s) {
                self.content.remove(&gone.tensor);
            }
        }
        self.held.insert(start, Held { end, tensor: id });
        self.peak = self.peak.max(end);
        Ok(())
    }

    fn holds(&self, id: TensorId) -> bool {
        let t = &self.plan.tensors[id.0 as usize];
        self.held.get(&t.offset).is_some_and(|h| h.tensor == id)
    }

    fn step(&mut self, at: usize, unit: u32) -> Result<(), Error> {
        let micro = &self.plan.schedule.micro;
        let step = if at < micro.len() { &micro[at] } else { &self.plan.schedule.update[at - micro.len()] };
        let u = self.program.unit(unit);
        let kernel = &self.plan.kernels[step.kernel as usize].kernel;
        if *kernel != u.kernel || step.args.len() != u.args.len() {
            return Err(fail(format!("step {at} does not run the kernel of {}", u.site)));
        }
        let modes = kernel.args();
        for ((arg, &id), b) in modes.iter().zip(&step.args).zip(&u.args) {
            // A unit that makes a buffer by itself writes all of it.
            let alone = |by: &[u32]| by.iter().any(|&u| u as usize >= self.program.units.len());
            let complete = |(buffer, by): &(u32, Vec<u32>)| {
                *buffer == b.0 && (arg.mode != Mode::Read || alone(by) || self.makers[b.0 as usize].iter().all(|m| by.contains(m)))
            };
            if arg.mode != Mode::Write && !(self.holds(id) && self.content.get(&id).is_some_and(complete)) {
                let (tensor, want) = (&self.plan.tensors[id.0 as usize].name, &self.program.buffers[b.0 as usize].name);
                return Err(fail(format!("step {at} ({}) reads {tensor}, which does not hold {want}", u.site)));
            }
        }
        if let Some(scratch) = step.scratch {
            self.claim(scratch)?;
        }
        let written = modes.iter().zip(&step.args).zip(&u.args).filter(|((arg, _), _)| arg.mode != Mode::Read);
        for ((_, &id), b) in written {
            if !(self.holds(id) && self.content.get(&id).is_some_and(|(buffer, _)| *buffer == b.0)) {
                self.claim(id)?;
                self.content.insert(id, (b.0, vec![]));
            }
            if let Some((_, by)) = self.content.get_mut(&id) {
                by.push(unit);
            }
        }
        let all_held = step.args.iter().all(|&id| self.holds(id)) && step.scratch.is_none_or(|s| self.holds(s));
        match all_held {
            true => Ok(()),
            false => Err(fail(format!("step {at} ({}) has arguments that overlap", u.site))),
        }
    }

    /// Outputs and loss must be there when the step is over.
    fn results(&self) -> Result<(), Error> {
        let ports = self.plan.outputs.iter().map(|p| p.tensor).chain(self.plan.loss);
        for id in ports.chain(self.plan.parameters.iter().map(|p| p.tensor)) {
            if self.plan.tensors.len() <= id.0 as usize || !self.holds(id) {
                return Err(fail(format!("tensor {} is lost before the step ends", id.0)));
            }
        }
        Ok(())
    }
}
