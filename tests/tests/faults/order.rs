//! Faults of the order of steps.

use crate::bend::{Bent, Subject, is_transient};
use fp8c_kernels::program::Mode;
use fp8c_runtime::plan::{Clip, StepEpoch, TensorId};

/// Transient tensors that a step writes.
fn results(s: &Subject, at: usize) -> Vec<TensorId> {
    let written = |u: &(usize, usize, TensorId, Mode)| u.0 == at && u.3 != Mode::Read && is_transient(s.plan.tensor(u.2));
    s.uses().into_iter().filter(written).map(|u| u.2).collect()
}

/// Steps of an epoch of the micro-batch whose results another step reads later.
fn wanted(s: &Subject, epoch: StepEpoch) -> Vec<usize> {
    let read_later = |at: usize| results(s, at).into_iter().any(|id| s.reads(id).iter().any(|&r| r > at));
    let of_epoch = s.steps().into_iter().filter(|(at, step)| *at < s.micro() && step.epoch == epoch);
    of_epoch.map(|(at, _)| at).filter(|&at| read_later(at)).collect()
}

pub fn swapped(s: &Subject) -> Vec<Bent> {
    let depends =
        |at: &usize| results(s, *at).into_iter().any(|id| s.reads(id).contains(&(at + 1)) && s.plan.tensor(id).first as usize == *at);
    s.bend((0..s.micro() - 1).filter(depends).collect(), |b, at| {
        b.plan.schedule.micro.swap(at, at + 1);
        b.units.swap(at, at + 1);
        b.settle();
    })
}

fn missing(s: &Subject, epoch: StepEpoch) -> Vec<Bent> {
    s.bend(wanted(s, epoch), |b, at| {
        b.remove(at);
        b.settle();
    })
}

pub fn missing_forward(s: &Subject) -> Vec<Bent> {
    missing(s, StepEpoch::Forward)
}

pub fn missing_backward(s: &Subject) -> Vec<Bent> {
    missing(s, StepEpoch::Backward)
}

pub fn missing_recomputation(s: &Subject) -> Vec<Bent> {
    missing(s, StepEpoch::Recompute)
}

pub fn late(s: &Subject) -> Vec<Bent> {
    // Where gradients are applied one by one, a part of the backward pass is in the update anyway.
    let last = (s.plan.clip == Clip::Exact).then(|| s.micro() - 1);
    s.bend(last.into_iter().collect(), |b, at| {
        let step = b.remove(at);
        b.insert_update(at, step);
        b.settle();
    })
}

pub fn early_update(s: &Subject) -> Vec<Bent> {
    let updates: Vec<usize> =
        s.uses().into_iter().filter(|u| u.3 != Mode::Read && crate::training::parameter_of(s, u.2).is_some()).map(|u| u.0).collect();
    s.bend(updates, |b, at| {
        let (micro, step) = (b.plan.schedule.micro.len(), b.remove(at));
        b.insert_micro(micro, step);
        b.settle();
    })
}

pub fn no_kernel(s: &Subject) -> Vec<Bent> {
    s.bend((0..s.units.len()).collect(), |b, at| b.step(at).kernel = s.plan.kernels.len() as u32)
}
