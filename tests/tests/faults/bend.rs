//! Finished plans, and plans bent from them.

use fp8c::compile::Compiled;
use fp8c::graph::Graph;
use fp8c::units::Program;
use fp8c_kernels::program::{Arg, Mode};
use fp8c_runtime::plan::{ALIGN, Plan, Role, Step, Tensor, TensorId};
pub use fp8c_tests::settle::is_transient;
use fp8c_tests::settle::settle;

/// Places at which a fault is planted in one plan, at most.
const PLACES: usize = 5;

/// A sound plan with what it was made from.
pub struct Subject {
    pub case: &'static str,
    pub graph: Graph,
    pub program: Program,
    pub plan: Plan,
    pub units: Vec<u32>,
}

/// A plan with a fault.
#[derive(Clone)]
pub struct Bent {
    pub plan: Plan,
    pub units: Vec<u32>,
}

impl Subject {
    pub fn new(case: &'static str, compiled: Compiled) -> Self {
        let Compiled { joint, program, plan, units, .. } = compiled;
        Subject { case, graph: joint, program, plan, units }
    }

    /// Applies a fault at several of the places where it can be.
    pub fn bend<P: Clone>(&self, places: Vec<P>, fault: impl Fn(&mut Bent, P)) -> Vec<Bent> {
        let step = places.len().div_ceil(PLACES).max(1);
        let bent = |place: &P| {
            let mut bent = Bent { plan: self.plan.clone(), units: self.units.clone() };
            fault(&mut bent, place.clone());
            bent
        };
        places.iter().step_by(step).map(bent).collect()
    }

    pub fn steps(&self) -> Vec<(usize, &Step)> {
        self.plan.schedule.micro.iter().chain(&self.plan.schedule.update).enumerate().collect()
    }

    pub fn micro(&self) -> usize {
        self.plan.schedule.micro.len()
    }

    pub fn args(&self, step: &Step) -> Vec<Arg> {
        self.plan.kernels[step.kernel as usize].kernel.args()
    }

    /// Every argument: position of the step, number, tensor, mode.
    pub fn uses(&self) -> Vec<(usize, usize, TensorId, Mode)> {
        let of = |(at, step): (usize, &Step)| {
            let modes = self.args(step).into_iter().map(|a| a.mode).collect::<Vec<_>>();
            step.args.iter().zip(modes).enumerate().map(move |(n, (&id, mode))| (at, n, id, mode)).collect::<Vec<_>>()
        };
        self.steps().into_iter().flat_map(of).collect()
    }

    pub fn ids(&self) -> Vec<(TensorId, &Tensor)> {
        (0..self.plan.tensors.len() as u32).map(|i| (TensorId(i), &self.plan.tensors[i as usize])).collect()
    }

    /// Tensors that steps pass to each other, with elements.
    pub fn transients(&self) -> Vec<(TensorId, &Tensor)> {
        self.ids().into_iter().filter(|(_, t)| is_transient(t) && t.role != Role::Scratch && t.bytes > 0).collect()
    }

    /// Positions at which something reads a tensor that a step has written before.
    pub fn reads(&self, id: TensorId) -> Vec<usize> {
        let mut reads: Vec<usize> = self.uses().into_iter().filter(|u| u.2 == id && u.3 != Mode::Write).map(|u| u.0).collect();
        reads.dedup();
        reads
    }
}

/// True for tensors of which one can stand where the other does.
pub fn alike(a: &Tensor, b: &Tensor) -> bool {
    a.dtype == b.dtype && a.bytes == b.bytes
}

impl Bent {
    pub fn tensor(&mut self, id: TensorId) -> &mut Tensor {
        &mut self.plan.tensors[id.0 as usize]
    }

    pub fn step(&mut self, at: usize) -> &mut Step {
        let micro = self.plan.schedule.micro.len();
        if at < micro { &mut self.plan.schedule.micro[at] } else { &mut self.plan.schedule.update[at - micro] }
    }

    /// Takes a step out of the schedule.
    pub fn remove(&mut self, at: usize) -> (Step, u32) {
        let micro = self.plan.schedule.micro.len();
        let step = if at < micro { self.plan.schedule.micro.remove(at) } else { self.plan.schedule.update.remove(at - micro) };
        (step, self.units.remove(at))
    }

    /// Puts a step into the micro-batch, at a position of the schedule.
    pub fn insert_micro(&mut self, at: usize, step: (Step, u32)) {
        self.plan.schedule.micro.insert(at, step.0);
        self.units.insert(at, step.1);
    }

    /// Puts a step into the update, at a position of the schedule.
    pub fn insert_update(&mut self, at: usize, step: (Step, u32)) {
        self.plan.schedule.update.insert(at - self.plan.schedule.micro.len(), step.0);
        self.units.insert(at, step.1);
    }

    /// A tensor like another one, in a place of its own above all others.
    pub fn add(&mut self, like: Tensor) -> TensorId {
        let offset = self.plan.arena_bytes;
        self.plan.arena_bytes += like.bytes.max(1).next_multiple_of(ALIGN);
        self.plan.budget_bytes = self.plan.budget_bytes.max(self.plan.arena_bytes);
        self.plan.tensors.push(Tensor { offset, name: format!("{}.copy", like.name), ..like });
        TensorId(self.plan.tensors.len() as u32 - 1)
    }

    /// Makes lifetimes and the arena's size fit what has become of the plan.
    pub fn settle(&mut self) {
        settle(&mut self.plan);
    }
}
