//! Nothing is read before it is written, and nothing is written that must not be.

use super::held::Held;
use super::owners::Owner;
use super::tables::outlives_micro;
use super::{Known, ensure, positions};
use crate::plan::{Clip, Plan, Step};
use fp8c_kernels::program::Mode;

/// Follows one micro-batch and the update. What the micro-batch before left behind is taken to be lost but for what the trainer keeps;
/// so one is enough, however many there are.
pub(super) fn check(plan: &Plan, kernels: &[Known], owners: &[Owner]) -> Result<(), String> {
    let mut flow = Flow { plan, owners, held: at_start(plan, owners)? };
    for (at, step, micro) in positions(plan) {
        if at == plan.schedule.micro.len() {
            flow.results()?;
        }
        flow.step(step, &kernels[step.kernel as usize], micro).map_err(|reason| format!("step {at} ({}): {reason}", step.site))?;
    }
    // A plan without an update ends with its micro-batch.
    if plan.schedule.update.is_empty() { flow.results() } else { Ok(()) }
}

/// What the trainer defines before the first step.
fn at_start(plan: &Plan, owners: &[Owner]) -> Result<Vec<Held>, String> {
    let given = |o: &Owner| !matches!(o, Owner::Steps | Owner::Gradient | Owner::Scratch);
    let new = |(t, o): (&crate::plan::Tensor, &Owner)| Held::new(t.bytes / t.dtype.size(), given(o));
    let mut held: Vec<Held> = plan.tensors.iter().zip(owners).map(new).collect();
    for id in plan.zeroed_gradients() {
        let t = plan.tensor(id);
        let spans = t.first == 0 && outlives_micro(plan, t);
        ensure(spans, || format!("gradient {} is accumulated but does not last from one micro-batch to the next", t.name))?;
        held[id.0 as usize] = Held::new(t.bytes / t.dtype.size(), true);
    }
    Ok(held)
}

struct Flow<'a> {
    plan: &'a Plan,
    owners: &'a [Owner],
    held: Vec<Held>,
}

impl Flow<'_> {
    fn step(&mut self, step: &Step, kernel: &Known, micro: bool) -> Result<(), String> {
        // An argument may not read what the same launch writes elsewhere: all are checked before any is marked.
        for ((&id, arg), touched) in step.args.iter().zip(&kernel.args).zip(&kernel.footprint) {
            let t = self.plan.tensor(id);
            let held = &self.held[id.0 as usize];
            let defined = held.is_whole() || touched.reads.iter().all(|r| held.holds(r));
            ensure(defined, || format!("tensor {} is read before it is written", t.name))?;
            let wrong = self.not_to_be_written(id.0, micro).filter(|_| arg.mode != Mode::Read);
            ensure(wrong.is_none(), || format!("tensor {} is written, which {}", t.name, wrong.unwrap_or_default()))?;
        }
        for (id, touched) in step.args.iter().zip(&kernel.footprint) {
            touched.writes.iter().for_each(|w| self.held[id.0 as usize].write(w));
        }
        Ok(())
    }

    /// Inputs, constants and decay multipliers are the trainer's. `Session::run` promises to change neither parameter nor state.
    fn not_to_be_written(&self, id: u32, micro: bool) -> Option<&'static str> {
        match self.owners[id as usize] {
            Owner::Steps | Owner::Gradient => None,
            Owner::Parameter(_) | Owner::State(_) | Owner::Control => micro.then_some("only the update may"),
            Owner::Input | Owner::Decay | Owner::Constant | Owner::Scratch => Some("only the trainer may"),
        }
    }

    /// What the trainer reads when a micro-batch is over.
    fn results(&self) -> Result<(), String> {
        let gradients = self.plan.parameters.iter().filter_map(|p| p.gradient.filter(|_| self.plan.clip == Clip::Exact));
        for id in self.plan.outputs.iter().map(|p| p.tensor).chain(self.plan.loss).chain(gradients) {
            let whole = self.held[id.0 as usize].is_whole();
            ensure(whole, || format!("tensor {} is read after a micro-batch that does not write it", self.plan.tensor(id).name))?;
        }
        Ok(())
    }
}
