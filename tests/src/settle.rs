//! Makes a bent plan fit together again where that takes no thought: lifetimes, unused tensors, the size of the arena.

use fp8c_runtime::plan::{ALIGN, Clip, Plan, Role, Tensor, TensorId};
use std::collections::HashSet;

/// True for what steps pass to each other.
pub fn is_transient(t: &Tensor) -> bool {
    matches!(t.role, Role::Activation | Role::Gradient | Role::Output | Role::Scratch)
}

/// Makes lifetimes what the steps need, drops what nothing uses, and gives the arena the size of its tensors. Indices are in range.
pub fn settle(plan: &mut Plan) {
    let mut uses: Vec<Option<(u32, u32)>> = vec![None; plan.tensors.len()];
    for (at, step) in (0u32..).zip(plan.schedule.micro.iter().chain(&plan.schedule.update)) {
        for id in step.args.iter().chain(&step.scratch) {
            let first = uses[id.0 as usize].map_or(at, |(first, _)| first);
            uses[id.0 as usize] = Some((first, at));
        }
    }
    let end = (plan.schedule.micro.len() + plan.schedule.update.len()).saturating_sub(1) as u32;
    let ports = plan.inputs.iter().chain(&plan.outputs).map(|p| p.tensor).chain(plan.loss);
    let gradients = plan.parameters.iter().filter_map(|p| p.gradient.filter(|_| plan.clip == Clip::Exact));
    let pinned: HashSet<TensorId> = ports.chain(gradients).collect();
    let zeroed: HashSet<TensorId> = plan.zeroed_gradients().into_iter().collect();
    let mut kept = vec![false; plan.tensors.len()];
    for ((i, t), used) in plan.tensors.iter_mut().enumerate().zip(&uses) {
        let id = TensorId(i as u32);
        let pinned = pinned.contains(&id);
        kept[i] = !is_transient(t) || pinned || used.is_some();
        match used {
            Some((first, last)) if is_transient(t) => {
                let first = if zeroed.contains(&id) { 0 } else { *first };
                (t.first, t.last) = (first, if pinned { end } else { *last });
            }
            _ if is_transient(t) => (t.first, t.last) = (t.first.min(end), end),
            _ => t.last = end,
        }
    }
    keep(plan, &kept);
    size(plan);
}

/// Gives the arena the size of its tensors, and the budget room for it.
pub fn size(plan: &mut Plan) {
    let top = |t: &Tensor| t.offset.saturating_add(t.bytes.max(1)).checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX);
    plan.arena_bytes = plan.tensors.iter().map(top).max().unwrap_or(0);
    plan.budget_bytes = plan.budget_bytes.max(plan.arena_bytes);
}

/// Drops tensors, and numbers the others anew.
fn keep(plan: &mut Plan, kept: &[bool]) {
    let mut next = 0;
    let number = |&kept: &bool| {
        next += u32::from(kept);
        TensorId(next - u32::from(kept))
    };
    let numbers: Vec<TensorId> = kept.iter().map(number).collect();
    let mut of = kept.iter();
    plan.tensors.retain(|_| of.next() == Some(&true));
    for_each_id(plan, |id| *id = numbers[id.0 as usize]);
}

/// Visits every place of a plan that names a tensor.
pub fn for_each_id(plan: &mut Plan, mut visit: impl FnMut(&mut TensorId)) {
    for step in plan.schedule.micro.iter_mut().chain(&mut plan.schedule.update) {
        step.args.iter_mut().chain(&mut step.scratch).for_each(&mut visit);
    }
    plan.inputs.iter_mut().chain(&mut plan.outputs).for_each(|p| visit(&mut p.tensor));
    plan.loss.iter_mut().chain(&mut plan.control).for_each(&mut visit);
    for p in &mut plan.parameters {
        visit(&mut p.tensor);
        p.gradient.iter_mut().chain(&mut p.decay).chain(&mut p.state).for_each(&mut visit);
    }
}
