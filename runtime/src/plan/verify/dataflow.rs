//! Nothing is read before it is written, and nothing is written that must not be.

use super::{ensure, tables::tensor};
use crate::plan::{Plan, Role, Step, TensorId};
use fp8c_kernels::program::{Arg, Mode};

/// Follows one micro-batch and the update. Expects `tables::steps` to have passed.
pub(super) fn check(plan: &Plan) -> Result<(), String> {
    let args: Vec<Vec<Arg>> = plan.kernels.iter().map(|k| k.kernel.args()).collect();
    let mut defined = defined_at_start(plan);
    let rules = Rules { fixed: trainers_own(plan), kept: kept(plan) };
    for id in plan.zeroed_gradients() {
        let t = tensor(plan, id)?;
        let spans = t.first == 0 && t.last as usize + 1 >= plan.schedule.micro.len();
        ensure(spans, || format!("gradient {} is accumulated but does not last from one micro-batch to the next", t.name))?;
        defined[id.0 as usize] = true;
    }
    for step in &plan.schedule.micro {
        follow(plan, step, &args[step.kernel as usize], true, &rules, &mut defined)?;
    }
    let gradients = plan.parameters.iter().filter_map(|p| p.gradient);
    for id in plan.outputs.iter().map(|p| p.tensor).chain(plan.loss).chain(gradients) {
        let t = tensor(plan, id)?;
        ensure(defined[id.0 as usize], || format!("tensor {} is read after a micro-batch that does not write it", t.name))?;
    }
    for step in &plan.schedule.update {
        follow(plan, step, &args[step.kernel as usize], false, &rules, &mut defined)?;
    }
    Ok(())
}

fn defined_at_start(plan: &Plan) -> Vec<bool> {
    let by_role = |role| matches!(role, Role::Parameter | Role::State | Role::Constant | Role::Control);
    let mut defined: Vec<bool> = plan.tensors.iter().map(|t| by_role(t.role)).collect();
    let decays = plan.parameters.iter().filter_map(|p| p.decay);
    for id in plan.inputs.iter().map(|p| p.tensor).chain(decays) {
        defined[id.0 as usize] = true;
    }
    defined
}

/// Which tensors may not be written.
struct Rules {
    /// By no step.
    fixed: Vec<bool>,
    /// By no step of a micro-batch.
    kept: Vec<bool>,
}

/// Parameters, optimizer state and the control block; a state in which a gradient is summed is none of them.
fn kept(plan: &Plan) -> Vec<bool> {
    let by_role = |role| matches!(role, Role::Parameter | Role::State | Role::Control);
    let mut kept: Vec<bool> = plan.tensors.iter().map(|t| by_role(t.role)).collect();
    plan.parameters.iter().filter_map(|p| p.gradient).for_each(|id| kept[id.0 as usize] = false);
    plan.parameters.iter().for_each(|p| kept[p.tensor.0 as usize] = true);
    kept
}

/// Inputs, constants and decay multipliers.
fn trainers_own(plan: &Plan) -> Vec<bool> {
    let mut fixed: Vec<bool> = plan.tensors.iter().map(|t| matches!(t.role, Role::Input | Role::Constant)).collect();
    plan.parameters.iter().filter_map(|p| p.decay).for_each(|id| fixed[id.0 as usize] = true);
    fixed
}

fn follow(plan: &Plan, step: &Step, args: &[Arg], micro: bool, rules: &Rules, defined: &mut [bool]) -> Result<(), String> {
    for (&id, arg) in step.args.iter().zip(args) {
        let t = &plan.tensors[id.0 as usize];
        let fault = |what: &str| format!("{}: tensor {} {what}", step.site, t.name);
        if arg.mode != Mode::Write {
            ensure(defined[id.0 as usize], || fault("is read before it is written"))?;
        }
        if arg.mode != Mode::Read {
            ensure(!rules.fixed[id.0 as usize], || fault("is written, which only the trainer may"))?;
            ensure(!(micro && rules.kept[id.0 as usize]), || fault("is written outside the update"))?;
        }
    }
    // Marked after all were checked: an argument may not read what the same launch writes elsewhere.
    let written = step.args.iter().zip(args).filter(|(_, a)| a.mode != Mode::Read);
    written.for_each(|(id, _): (&TensorId, _)| defined[id.0 as usize] = true);
    Ok(())
}
