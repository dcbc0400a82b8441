//! Proves a plan again, without the planner's code and without the runtime's verifier.
//!
//! The program says which *version* of each buffer each of its units reads: the units that have written it before, in the program's
//! order ([`versions`]). The replay runs the plan's steps over the bytes of the arena ([`arena`]) and over what the trainer does between
//! them: which buffer, in which version and of which micro-batch, do the bytes of each tensor hold? A step that runs a unit must find
//! exactly what the unit reads, and leaves what the unit writes. So a value that is gone, half made, of an earlier micro-batch, or of a
//! parameter after its update, is an error, as is a parameter without its update. It fails closed: what it cannot follow is an error.

mod arena;
mod bindings;
mod versions;

use crate::Error;
use crate::graph::Graph;
use crate::quantity::Bytes;
use crate::units::{BufferId, Program};
use arena::{Arena, Content, Written};
use bindings::Homes;
use fp8c_kernels::program::Mode;
use fp8c_runtime::plan::{Plan, Role, Step, Tensor, TensorId};
use versions::Versions;

/// What a replay found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Highest byte touched plus one, rounded up to the arena's alignment.
    pub peak: Bytes,
}

/// Replays `plan`, whose step i runs unit `units[i]` of `program`, which was lowered from `graph`: two training steps, each of two
/// micro-batches where there are several, so that what one leaves behind is what the next one finds.
///
/// # Errors
/// [`Error::Verify`] naming the step and the tensor that is not what it should be.
pub fn replay(graph: &Graph, program: &Program, plan: &Plan, units: &[u32]) -> Result<Replay, Error> {
    proved(graph, program, plan, units).map_err(|reason| Error::Verify { pass: "plan", reason })
}

fn proved(graph: &Graph, program: &Program, plan: &Plan, units: &[u32]) -> Result<Replay, String> {
    let micro = plan.schedule.micro.len();
    if units.len() != micro + plan.schedule.update.len() {
        return Err("the plan's steps and the schedule's differ in number".into());
    }
    if let Some(u) = units.iter().find(|u| **u as usize >= program.units.len() + program.again.len()) {
        return Err(format!("there is no unit {u}"));
    }
    bindings::check(program, plan, units)?;
    let homes = Homes::find(graph, program, plan)?;
    let versions = Versions::new(program, &units[..micro]);
    let mut replay = Replayer { program, plan, versions, homes, arena: Arena::new(plan), pass: 0 };
    replay.load()?;
    for _ in 0..2 {
        replay.start_step()?;
        for m in 0..plan.accumulation.min(2) {
            replay.start_micro(m)?;
            (0..micro).try_for_each(|i| replay.step(i, units[i]))?;
            replay.results()?;
        }
        (micro..units.len()).try_for_each(|i| replay.step(i, units[i]))?;
        replay.finish_step()?;
    }
    let peak = replay.arena.peak;
    match peak == plan.arena_bytes && peak <= plan.budget_bytes {
        true => Ok(Replay { peak: Bytes(peak) }),
        false => Err(format!("the peak is {peak}, the arena {} and the budget {}", plan.arena_bytes, plan.budget_bytes)),
    }
}

struct Replayer<'a> {
    program: &'a Program,
    plan: &'a Plan,
    versions: Versions<'a>,
    homes: Homes,
    arena: Arena<'a>,
    /// Number of the micro-batch that is being replayed.
    pass: u32,
}

impl Replayer<'_> {
    fn name(&self, b: BufferId) -> &str {
        &self.program.buffers[b.0 as usize].name
    }

    /// What lasts gets its first value.
    fn load(&mut self) -> Result<(), String> {
        for b in self.lasting() {
            if let Some(id) = self.homes.of(b) {
                self.arena.claim(id, Content { buffer: b, pass: 0, written: Written::default() })?;
            }
        }
        // Every one must still be there when all are.
        for b in self.lasting() {
            let lost = self.homes.of(b).is_some_and(|id| self.arena.content(id).is_none());
            if lost {
                return Err(format!("{} shares memory with what lasts as long", self.name(b)));
            }
        }
        Ok(())
    }

    fn lasting(&self) -> Vec<BufferId> {
        (0..self.program.buffers.len() as u32).map(BufferId).filter(|&b| self.versions.lasts(b)).collect()
    }

    /// The trainer sets the control block and zeroes the gradients that are summed.
    fn start_step(&mut self) -> Result<(), String> {
        let zeroed = self.plan.zeroed_gradients();
        for b in self.lasting() {
            let Some(id) = self.homes.of(b) else { continue };
            let sums = self.program.gradients.iter().any(|(_, g)| *g == b);
            if sums && !zeroed.contains(&id) {
                self.arena.forget(id);
            } else if sums || self.program.buffers[b.0 as usize].role == Role::Control {
                self.arena.claim(id, Content { buffer: b, pass: 0, written: Written::default() })?;
            }
        }
        Ok(())
    }

    /// The trainer writes the inputs; what lasts must have been written by the micro-batch before as often as the program says.
    fn start_micro(&mut self, number: u32) -> Result<(), String> {
        self.pass += 1;
        for b in self.lasting() {
            let Some(id) = self.homes.of(b) else { continue };
            if self.program.buffers[b.0 as usize].role == Role::Input {
                self.arena.claim(id, Content { buffer: b, pass: 0, written: Written::default() })?;
            } else if number > 0 {
                self.renew(b, id, self.versions.of_micro(b))?;
            }
        }
        Ok(())
    }

    fn finish_step(&mut self) -> Result<(), String> {
        for b in self.lasting() {
            let input = self.program.buffers[b.0 as usize].role == Role::Input;
            match self.homes.of(b) {
                Some(id) if !input => self.renew(b, id, self.versions.of_step(b))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The version that the program leaves behind becomes the one that it finds.
    fn renew(&mut self, b: BufferId, id: TensorId, writes: u32) -> Result<(), String> {
        match self.arena.content(id) {
            Some(c) if c.buffer == b && c.written.is_exactly(writes) => c.written = Written::default(),
            Some(c) if c.buffer == b => return Err(format!("{} is not written as often as the program says", self.name(b))),
            _ => return Err(format!("{} is lost before the step ends", self.name(b))),
        }
        Ok(())
    }

    fn step(&mut self, at: usize, unit: u32) -> Result<(), String> {
        let (plan, program) = (self.plan, self.program);
        let micro = &plan.schedule.micro;
        let step = if at < micro.len() { &micro[at] } else { &plan.schedule.update[at - micro.len()] };
        let site = &program.unit(unit).site;
        let named = |reason| format!("step {at} ({site}) {reason}");
        if let Some(b) = self.trained(unit).filter(|_| at < micro.len()) {
            return Err(named(format!("changes {}, which only the update may", self.name(b))));
        }
        self.reads(step, unit).map_err(named)?;
        self.writes(step, unit).map_err(named)
    }

    /// A parameter or a moment that a unit changes; gradients that are summed are neither.
    fn trained(&self, unit: u32) -> Option<BufferId> {
        let lasts = |b: BufferId| matches!(self.program.buffers[b.0 as usize].role, Role::Parameter | Role::State);
        let summed = |b: BufferId| self.program.gradients.iter().any(|(_, g)| *g == b);
        let mut written = self.versions.touches(unit).iter().filter(|t| t.mode != Mode::Read).map(|t| t.buffer);
        written.find(|&b| lasts(b) && !summed(b))
    }

    fn reads(&mut self, step: &Step, unit: u32) -> Result<(), String> {
        for (n, touch) in self.versions.touches(unit).iter().enumerate().filter(|(_, t)| t.mode != Mode::Write) {
            let id = step.args[n];
            let lasts = self.versions.lasts(touch.buffer);
            let pass = self.pass;
            let fits = self.arena.content(id).is_some_and(|c| {
                let there = c.buffer == touch.buffer && (lasts || c.pass == pass);
                there && self.versions.readable(unit, n, &c.written)
            });
            if !fits {
                let tensor: &Tensor = self.plan.tensor(id);
                return Err(format!("reads {}, which does not hold {} as the program has it there", tensor.name, self.name(touch.buffer)));
            }
        }
        Ok(())
    }

    fn writes(&mut self, step: &Step, unit: u32) -> Result<(), String> {
        if let Some(scratch) = step.scratch {
            self.arena.occupy(scratch)?;
        }
        for (n, touch) in self.versions.touches(unit).iter().enumerate().filter(|(_, t)| t.mode != Mode::Read) {
            let (id, b) = (step.args[n], touch.buffer);
            let pass = if self.versions.lasts(b) { 0 } else { self.pass };
            match self.arena.content(id) {
                Some(c) if c.buffer == b && c.pass == pass => self.versions.write(unit, n, &mut c.written),
                _ => {
                    let mut written = Written::default();
                    self.versions.write(unit, n, &mut written);
                    self.arena.claim(id, Content { buffer: b, pass, written })?;
                }
            }
        }
        let all = step.args.iter().chain(&step.scratch).all(|&id| self.arena.is_there(id));
        if all { Ok(()) } else { Err("has arguments that overlap".into()) }
    }

    /// Outputs, loss and gradients must be there, finished, when a micro-batch is over.
    fn results(&mut self) -> Result<(), String> {
        for (b, id) in self.homes.results.clone() {
            let (lasts, pass, writes) = (self.versions.lasts(b), self.pass, self.versions.of_micro(b));
            let done = self.arena.content(id).is_some_and(|c| c.buffer == b && (lasts || c.pass == pass) && c.written.is_exactly(writes));
            if !done {
                return Err(format!("{} is not there when a micro-batch ends", self.name(b)));
            }
        }
        Ok(())
    }
}
