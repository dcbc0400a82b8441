//! Faults of places and lifetimes.

use crate::bend::{Bent, Subject, is_transient};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Kernel, Mode, ScratchFor};
use fp8c_runtime::plan::{ALIGN, Role, Tensor, TensorId};

pub fn freed_early(s: &Subject) -> Vec<Bent> {
    let used_last = |&(id, t): &(TensorId, &Tensor)| t.last > t.first && s.uses().iter().any(|u| u.2 == id && u.0 == t.last as usize);
    let places = s.transients().into_iter().filter(used_last).map(|(id, _)| id).collect();
    s.bend(places, |b, id| b.tensor(id).last -= 1)
}

pub fn born_late(s: &Subject) -> Vec<Bent> {
    let places = s.transients().into_iter().filter(|(_, t)| t.last > t.first).map(|(id, _)| id).collect();
    s.bend(places, |b, id| b.tensor(id).first += 1)
}

/// Pairs of tensors of which the second is written while the first is still to be read by a step.
fn meeting(s: &Subject) -> Vec<(TensorId, TensorId)> {
    let transients = s.transients();
    let mut pairs = vec![];
    for (a, x) in &transients {
        let Some(&read) = s.reads(*a).last() else { continue };
        let written_meanwhile = |y: &Tensor| x.first < y.first && y.first as usize <= read;
        let fits = |y: &Tensor| x.offset + y.bytes <= s.plan.arena_bytes - ALIGN;
        let found = transients.iter().find(|(b, y)| a != b && written_meanwhile(y) && fits(y));
        pairs.extend(found.map(|(b, _)| (*a, *b)));
    }
    pairs
}

pub fn overlap(s: &Subject) -> Vec<Bent> {
    s.bend(meeting(s), |b, (below, moved)| b.tensor(moved).offset = s.plan.tensor(below).offset)
}

pub fn partial_overlap(s: &Subject) -> Vec<Bent> {
    let places = meeting(s).into_iter().filter(|(below, _)| s.plan.tensor(*below).bytes > ALIGN).collect();
    s.bend(places, |b, (below, moved)| b.tensor(moved).offset = s.plan.tensor(below).offset + ALIGN)
}

pub fn on_a_parameter(s: &Subject) -> Vec<Bent> {
    let parameter = s.plan.tensor(s.plan.parameters[0].tensor).offset;
    let places = s.transients().into_iter().map(|(id, _)| id).collect();
    s.bend(places, |b, id| b.tensor(id).offset = parameter)
}

/// Steps with scratch memory, and one that they read.
fn with_scratch(s: &Subject) -> Vec<(usize, TensorId, TensorId)> {
    let with = s.steps().into_iter().filter_map(|(at, step)| Some((at, step.scratch?, *step.args.first()?)));
    with.filter(|(_, _, arg)| s.plan.tensor(*arg).bytes > 0).collect()
}

pub fn scratch_on_an_argument(s: &Subject) -> Vec<Bent> {
    let fits = |scratch: &Tensor, arg: &Tensor| arg.offset + scratch.bytes <= s.plan.arena_bytes;
    let places = with_scratch(s).into_iter().filter(|(_, scratch, arg)| fits(s.plan.tensor(*scratch), s.plan.tensor(*arg))).collect();
    s.bend(places, |b, (_, scratch, arg)| b.tensor(scratch).offset = s.plan.tensor(arg).offset)
}

pub fn outside(s: &Subject) -> Vec<Bent> {
    s.bend(s.transients().into_iter().map(|(id, _)| id).collect(), |b, id| b.tensor(id).offset = s.plan.arena_bytes)
}

pub fn misaligned(s: &Subject) -> Vec<Bent> {
    s.bend(s.transients().into_iter().map(|(id, _)| id).collect(), |b, id| b.tensor(id).offset += 4)
}

pub fn too_small(s: &Subject) -> Vec<Bent> {
    s.bend(s.transients().into_iter().map(|(id, _)| id).collect(), |b, id| {
        let t = b.tensor(id);
        let elements = t.bytes / t.dtype.size() - 1;
        (t.shape, t.bytes) = (vec![elements], elements * t.dtype.size());
    })
}

pub fn other_dtype(s: &Subject) -> Vec<Bent> {
    let places = s.transients().into_iter().filter(|(_, t)| t.dtype == DType::F32).map(|(id, _)| id).collect();
    s.bend(places, |b, id| b.tensor(id).dtype = DType::I32)
}

pub fn large_arena(s: &Subject) -> Vec<Bent> {
    s.bend(vec![()], |b, ()| {
        b.plan.arena_bytes += ALIGN;
        b.plan.budget_bytes = b.plan.budget_bytes.max(b.plan.arena_bytes);
    })
}

pub fn over_budget(s: &Subject) -> Vec<Bent> {
    s.bend(vec![()], |b, ()| b.plan.budget_bytes = b.plan.arena_bytes - 1)
}

/// Steps whose kernels need scratch memory even on one thread.
fn needing_scratch(s: &Subject) -> Vec<(usize, TensorId)> {
    let needs = |k: &Kernel| k.scratch_bytes(ScratchFor::Cpu { threads: 1 }) > 1;
    let with = s.steps().into_iter().filter(|(_, step)| needs(&s.plan.kernels[step.kernel as usize].kernel));
    with.filter_map(|(at, step)| Some((at, step.scratch?))).collect()
}

pub fn small_scratch(s: &Subject) -> Vec<Bent> {
    s.bend(needing_scratch(s), |b, (_, id)| {
        let t = b.tensor(id);
        (t.shape, t.bytes) = (vec![1], 1);
        b.settle();
    })
}

pub fn no_scratch(s: &Subject) -> Vec<Bent> {
    s.bend(needing_scratch(s), |b, (at, _)| {
        b.step(at).scratch = None;
        b.settle();
    })
}

/// A reader of a value reads scratch memory of the same size instead, which a step has used before.
pub fn scratch_as_data(s: &Subject) -> Vec<Bent> {
    let first = with_scratch(s).first().map(|w| w.0).unwrap_or(usize::MAX);
    let read_later = |u: &(usize, usize, TensorId, Mode)| u.0 > first && u.3 == Mode::Read && is_transient(s.plan.tensor(u.2));
    s.bend(s.uses().into_iter().filter(read_later).collect(), |b, (at, n, id, _)| {
        let scratch = b.add(Tensor { role: Role::Scratch, first: first as u32, last: at as u32, ..s.plan.tensor(id).clone() });
        b.step(at).args[n] = scratch;
        b.settle();
    })
}

/// A value is scratch memory of a step between its writer and its reader.
pub fn data_as_scratch(s: &Subject) -> Vec<Bent> {
    let mut places = vec![];
    for (at, scratch, _) in with_scratch(s) {
        let need = s.plan.tensor(scratch).bytes;
        let waits = |t: &Tensor| (t.first as usize) < at && (t.last as usize) > at && t.bytes >= need;
        let found = s.transients().into_iter().find(|(id, t)| waits(t) && s.reads(*id).iter().any(|&r| r > at));
        places.extend(found.map(|(id, _)| (at, id)));
    }
    s.bend(places, |b, (at, id)| {
        b.step(at).scratch = Some(id);
        b.settle();
    })
}
