//! Faults of what is trained.

use crate::bend::{Bent, Subject, alike, is_transient};
use fp8c_kernels::program::{Kernel, Mode};
use fp8c_runtime::plan::{Clip, Parameter, Role, TensorId};

/// The parameter that a tensor is.
pub fn parameter_of(s: &Subject, id: TensorId) -> Option<usize> {
    s.plan.parameters.iter().position(|p| p.tensor == id)
}

/// The steps that update a parameter: position, and which one.
fn updates(s: &Subject) -> Vec<(usize, usize)> {
    s.uses().into_iter().filter(|u| u.3 != Mode::Read).filter_map(|u| Some((u.0, parameter_of(s, u.2)?))).collect()
}

/// Pairs of parameters of one shape that are updated: position of the first one's update, and both.
fn pairs(s: &Subject) -> Vec<(usize, usize, usize)> {
    let all = updates(s);
    let tensor = |p: usize| s.plan.tensor(s.plan.parameters[p].tensor);
    let like = |p: usize| all.iter().map(|u| u.1).find(|&q| q != p && alike(tensor(p), tensor(q)));
    all.iter().filter_map(|&(at, p)| Some((at, p, like(p)?))).collect()
}

pub fn missing_update(s: &Subject) -> Vec<Bent> {
    s.bend(updates(s), |b, (at, _)| {
        b.remove(at);
        b.settle();
    })
}

pub fn double_update(s: &Subject) -> Vec<Bent> {
    s.bend(updates(s), |b, (at, _)| {
        let step = (b.step(at).clone(), b.units[at]);
        b.insert_update(at + 1, step);
        b.settle();
    })
}

/// A forward step that needs nothing but inputs and parameters runs again when the parameters have been updated.
pub fn read_after_update(s: &Subject) -> Vec<Bent> {
    let trained = |id: &TensorId| parameter_of(s, *id).is_some_and(|p| s.plan.parameters[p].trainable);
    let eager = |at: &usize| {
        let (_, step) = s.steps()[*at];
        let reads = s.args(step).into_iter().zip(&step.args).filter(|(a, _)| a.mode != Mode::Write).map(|(_, id)| *id).collect::<Vec<_>>();
        reads.iter().any(trained) && reads.iter().all(|&id| !is_transient(s.plan.tensor(id)))
    };
    s.bend((0..s.micro()).filter(eager).collect(), |b, at| {
        let (mut step, unit) = (b.step(at).clone(), b.units[at]);
        let end = b.units.len();
        for id in step.args.iter_mut().chain(&mut step.scratch) {
            let t = s.plan.tensor(*id);
            if is_transient(t) {
                *id = b.add(t.clone());
            }
        }
        b.insert_update(end, (step, unit));
        b.settle();
    })
}

/// A parameter is updated before the last step of the backward pass that reads it.
pub fn hasty_update(s: &Subject) -> Vec<Bent> {
    let last_read = |&(at, p): &(usize, usize)| {
        let reads = s.reads(s.plan.parameters[p].tensor).into_iter().filter(|&r| r < at && r >= s.micro()).max();
        reads.map(|read| (at, read))
    };
    s.bend(updates(s).iter().filter_map(last_read).collect(), |b, (at, read)| {
        let step = b.remove(at);
        b.insert_update(read, step);
        b.settle();
    })
}

/// An update looks at no sum of squares: it would go on with a gradient that is not finite.
pub fn unguarded(s: &Subject) -> Vec<Bent> {
    let guarded =
        |&(at, _): &(usize, usize)| matches!(s.plan.kernels[s.steps()[at].1.kernel as usize].kernel, Kernel::Update(k) if k.guarded);
    s.bend(updates(s).into_iter().filter(guarded).collect(), |b, (at, _)| {
        let kernel = b.step(at).kernel as usize;
        let mut entry = b.plan.kernels[kernel].clone();
        if let Kernel::Update(k) = &mut entry.kernel {
            k.guarded = false;
        }
        entry.name = "unguarded".into();
        b.plan.kernels.push(entry);
        b.step(at).kernel = b.plan.kernels.len() as u32 - 1;
        b.step(at).args.pop();
        b.settle();
    })
}

/// What writes the control block runs after the first update that reads it; before the last, where gradients are applied one by one.
pub fn late_norm(s: &Subject) -> Vec<Bent> {
    let control = s.plan.control;
    let norm = s.uses().into_iter().find(|u| Some(u.2) == control && u.3 != Mode::Read).map(|u| u.0);
    s.bend(norm.into_iter().collect(), |b, at| {
        let step = b.remove(at);
        let last = updates(s).last().map_or(at, |u| u.0);
        b.insert_update(if s.plan.clip == Clip::Previous { last } else { at + 1 }, step);
        b.settle();
    })
}

/// Binds what is another parameter's in an update.
fn exchange(s: &Subject, of: fn(&Parameter) -> Option<TensorId>) -> Vec<Bent> {
    s.bend(pairs(s), |b, (at, p, q)| {
        let [mine, other] = [p, q].map(|p| of(&s.plan.parameters[p]));
        for id in &mut b.step(at).args {
            if Some(*id) == mine {
                *id = other.unwrap_or(*id);
            }
        }
        b.settle();
    })
}

pub fn other_gradient(s: &Subject) -> Vec<Bent> {
    exchange(s, |p| p.gradient)
}

pub fn other_state(s: &Subject) -> Vec<Bent> {
    exchange(s, |p| p.state.first().copied())
}

pub fn other_decay(s: &Subject) -> Vec<Bent> {
    exchange(s, |p| p.decay)
}

fn trained(s: &Subject) -> Vec<usize> {
    (0..s.plan.parameters.len()).filter(|&p| s.plan.parameters[p].trainable).collect()
}

pub fn shared_state(s: &Subject) -> Vec<Bent> {
    s.bend(trained(s), |b, p| {
        let state = &mut b.plan.parameters[p].state;
        state[1] = state[0];
    })
}

pub fn not_zeroed(s: &Subject) -> Vec<Bent> {
    let zeroed = s.plan.zeroed_gradients();
    let summed = trained(s).into_iter().filter(|&p| s.plan.parameters[p].gradient.is_some_and(|g| zeroed.contains(&g)));
    s.bend(summed.collect(), |b, p| b.plan.parameters[p].gradient = None)
}

pub fn summed_twice(s: &Subject) -> Vec<Bent> {
    let zeroed = s.plan.zeroed_gradients();
    let sums = s.uses().into_iter().filter(|u| u.3 == Mode::Update && zeroed.contains(&u.2)).map(|u| u.0).collect();
    s.bend(sums, |b, at| {
        let step = (b.step(at).clone(), b.units[at]);
        b.insert_micro(at + 1, step);
        b.settle();
    })
}

pub fn own_gradient(s: &Subject) -> Vec<Bent> {
    s.bend(trained(s), |b, p| b.plan.parameters[p].gradient = Some(b.plan.parameters[p].tensor))
}

pub fn state_as_gradient(s: &Subject) -> Vec<Bent> {
    s.bend(trained(s), |b, p| b.plan.parameters[p].gradient = b.plan.parameters[p].state.first().copied())
}

pub fn exchanged_inputs(s: &Subject) -> Vec<Bent> {
    let tensor = |i: usize| s.plan.tensor(s.plan.inputs[i].tensor);
    let pairs = (1..s.plan.inputs.len()).flat_map(|j| (0..j).map(move |i| (i, j))).filter(|&(i, j)| alike(tensor(i), tensor(j)));
    s.bend(pairs.collect(), |b, (i, j)| {
        let kept = b.plan.inputs[i].tensor;
        b.plan.inputs[i].tensor = b.plan.inputs[j].tensor;
        b.plan.inputs[j].tensor = kept;
    })
}

pub fn unlisted(s: &Subject) -> Vec<Bent> {
    debug_assert!(s.plan.tensors.iter().any(|t| t.role == Role::Parameter));
    s.bend(trained(s), |b, p| {
        b.plan.parameters.remove(p);
    })
}
