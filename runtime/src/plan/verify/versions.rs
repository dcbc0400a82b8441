//! Parameters and their training state have two versions in a step: as it finds them, and as it leaves them.

use super::owners::Owner;
use super::{Known, ensure, positions};
use crate::plan::{Clip, Plan, Step, TensorId};
use fp8c_kernels::program::{Arg, Kernel, Mode};
use std::collections::HashSet;

/// Follows the versions of what lasts from step to step. A step of `micro` counts as often as there are micro-batches.
pub(super) fn check(plan: &Plan, kernels: &[Known], owners: &[Owner]) -> Result<(), String> {
    summed_gradients(plan)?;
    let (written, settled) = (vec![0; plan.tensors.len()], vec![false; plan.tensors.len()]);
    let mut versions = Versions { plan, owners, written, settled, sums: HashSet::new() };
    for (at, step, micro) in positions(plan) {
        let times = if micro { plan.accumulation } else { 1 };
        let args = &kernels[step.kernel as usize].args;
        versions
            .step(step, args, times)
            .and_then(|()| versions.sum(step, args))
            .map_err(|reason| format!("step {at} ({}): {reason}", step.site))?;
    }
    versions.finished()
}

/// With several micro-batches, a gradient is the sum over them.
fn summed_gradients(plan: &Plan) -> Result<(), String> {
    if plan.accumulation == 1 {
        return Ok(());
    }
    let zeroed: HashSet<TensorId> = plan.zeroed_gradients().into_iter().collect();
    let lost = plan.parameters.iter().find(|p| p.gradient.is_some_and(|g| !zeroed.contains(&g)));
    lost.map_or(Ok(()), |p| Err(format!("the gradient of {} is not summed over the micro-batches", p.name)))
}

struct Versions<'a> {
    plan: &'a Plan,
    owners: &'a [Owner],
    /// How often a training step has written each tensor.
    written: Vec<u32>,
    /// Tensors that an update has read, and that are final for that.
    settled: Vec<bool>,
    /// The launches that changed something in place, with what they read: each argument and how often it had been written.
    sums: HashSet<(u32, Vec<(TensorId, u32)>)>,
}

impl Versions<'_> {
    fn step(&mut self, step: &Step, args: &[Arg], times: u32) -> Result<(), String> {
        let bound = || step.args.iter().zip(args).map(|(id, arg)| (id.0 as usize, arg.mode));
        let mut updates = vec![];
        for (id, mode) in bound() {
            let fault = |what: &str| format!("tensor {} {what}", self.plan.tensors[id].name);
            let lasting = matches!(self.owners[id], Owner::Parameter(_) | Owner::State(_));
            ensure(!lasting || self.written[id] == 0, || fault("is used after its update"))?;
            // Applied one by one, gradients do not wait for their norm, which the trainer alone reads.
            let norm = self.owners[id] == Owner::Control && self.plan.clip == Clip::Previous && mode != Mode::Write;
            ensure(!norm || self.written[id] == 0, || fault("is read with this step's norm in it"))?;
            if mode == Mode::Read {
                continue;
            }
            ensure(!self.settled[id], || fault("is written after an update has read it"))?;
            ensure(!lasting || times == 1, || fault("is updated once a micro-batch"))?;
            self.written[id] = self.written[id].saturating_add(times);
            if let Owner::Parameter(p) | Owner::State(p) = self.owners[id] {
                updates.push(p);
            }
        }
        let Some(&p) = updates.first() else { return Ok(()) };
        self.update(step.kernel, p as usize, &updates, bound())
    }

    /// What is added to in place is not added to twice with the same operands.
    fn sum(&mut self, step: &Step, args: &[Arg]) -> Result<(), String> {
        if args.iter().all(|a| a.mode != Mode::Update) {
            return Ok(());
        }
        let version = |(&id, arg): (&TensorId, &Arg)| (id, if arg.mode == Mode::Read { self.written[id.0 as usize] } else { 0 });
        let launch = (step.kernel, step.args.iter().zip(args).map(version).collect());
        ensure(self.sums.insert(launch), || "changes a tensor in place as an earlier step has done".into())
    }

    /// An update is of one parameter, reads its finished gradient, and touches nothing of another's.
    fn update(&mut self, kernel: u32, p: usize, updates: &[u32], bound: impl Iterator<Item = (usize, Mode)> + Clone) -> Result<(), String> {
        let parameter = &self.plan.parameters[p];
        let fault = |what: &str| format!("the update of {} {what}", parameter.name);
        ensure(updates.iter().all(|&other| other as usize == p), || fault("updates another parameter, too"))?;
        ensure(parameter.trainable, || fault("is one of a parameter that is not trained"))?;
        let guarded = matches!(self.plan.kernels[kernel as usize].kernel, Kernel::Update(k) if k.guarded);
        ensure(guarded == (self.plan.clip == Clip::Previous), || fault("is guarded as the plan does not say"))?;
        let gradient = parameter.gradient.map(|g| g.0 as usize);
        let reads = |id: usize| bound.clone().any(|(other, mode)| other == id && mode != Mode::Write);
        ensure(gradient.is_some_and(reads), || fault("does not read its gradient"))?;
        for (id, _) in bound.clone() {
            let foreign = match self.owners[id] {
                Owner::Parameter(q) | Owner::State(q) => q as usize != p,
                Owner::Gradient => Some(id) != gradient,
                Owner::Decay => parameter.decay.is_none_or(|d| d.0 as usize != id),
                Owner::Steps | Owner::Input | Owner::Constant | Owner::Control | Owner::Scratch => false,
            };
            ensure(!foreign, || fault(&format!("uses {}, which is not its own", self.plan.tensors[id].name)))?;
            let control = self.owners[id] == Owner::Control && self.plan.clip == Clip::Exact;
            self.settled[id] |= control || self.owners[id] == Owner::Gradient;
        }
        Ok(())
    }

    /// Everything that is trained has been updated.
    fn finished(&self) -> Result<(), String> {
        for p in &self.plan.parameters {
            let made = |id: TensorId| self.written[id.0 as usize] == 1;
            let all = || made(p.tensor) && p.state.iter().all(|&s| made(s));
            ensure(!p.trainable || all(), || format!("parameter {} or its state is not updated", p.name))?;
        }
        Ok(())
    }
}
