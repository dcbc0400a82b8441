//! Faults of what a step computes, and on what.

use crate::bend::{Bent, Subject, alike, is_transient};
use fp8c_kernels::program::{Guard, Kernel, Literal, Mode, Stmt};
use fp8c_runtime::plan::{Role, Tensor, TensorId};

/// Guards the last index of a dimension out of a store that fills a tensor which is read afterwards.
pub fn partial_write(s: &Subject) -> Vec<Bent> {
    let mut places = vec![];
    for (at, step) in s.steps() {
        let Kernel::Row(k) = &s.plan.kernels[step.kernel as usize].kernel else { continue };
        for (n, stmt) in k.body.iter().enumerate() {
            let Stmt::Store { arg, access, .. } = stmt else { continue };
            let id = step.args[*arg as usize];
            let moves = access.strides.iter().zip(&k.space).position(|(&s, &e)| s != 0 && e > 1);
            let wanted = is_transient(s.plan.tensor(id)) && s.reads(id).iter().any(|&r| r > at);
            let guarded = access.guards.iter().map(|g| g.dim).collect::<Vec<_>>();
            places.extend(moves.filter(|d| wanted && !guarded.contains(&(*d as u32))).map(|d| (step.kernel, n, d)));
        }
    }
    places.dedup_by_key(|p| p.0);
    s.bend(places, |b, (kernel, n, dim)| {
        let Kernel::Row(k) = &mut b.plan.kernels[kernel as usize].kernel else { return };
        let upper = k.space[dim] as i64 - 1;
        if let Stmt::Store { access, .. } = &mut k.body[n] {
            access.guards.push(Guard { dim: dim as u32, lower: 0, upper });
        }
    })
}

pub fn missing(s: &Subject) -> Vec<Bent> {
    s.bend((0..s.units.len()).collect(), |b, at| {
        b.step(at).args.pop();
    })
}

/// A step's result is one of its operands.
pub fn alias(s: &Subject) -> Vec<Bent> {
    let mut places = vec![];
    for (at, step) in s.steps() {
        let args = s.args(step);
        let alike = |a: usize, b: usize| a != b && alike(s.plan.tensor(step.args[a]), s.plan.tensor(step.args[b]));
        let pair = (0..args.len()).filter(|&w| args[w].mode != Mode::Read).find_map(|w| Some((w, (0..args.len()).find(|&r| alike(w, r))?)));
        places.extend(pair.map(|(w, r)| (at, w, r)));
    }
    s.bend(places, |b, (at, written, read)| {
        let id = b.step(at).args[written];
        b.step(at).args[read] = id;
        b.settle();
    })
}

/// A step writes a tensor of another role, in a kind and size of tensor that the step could write.
fn onto(s: &Subject, role: Role) -> Vec<Bent> {
    let written = s.uses().into_iter().filter(|u| u.0 < s.micro() && u.3 == Mode::Write && is_transient(s.plan.tensor(u.2)));
    s.bend(written.collect(), |b, (at, n, id, _)| {
        let given = s.ids().into_iter().find(|(_, t)| t.role == role && alike(t, s.plan.tensor(id)) && t.bytes > 0);
        let target = match given {
            Some((other, _)) => other,
            // None is of that size: one that has been there all along in name.
            None => b.add(Tensor { role, first: 0, ..s.plan.tensor(id).clone() }),
        };
        b.step(at).args[n] = target;
        b.settle();
    })
}

pub fn onto_an_input(s: &Subject) -> Vec<Bent> {
    onto(s, Role::Input)
}

pub fn onto_a_parameter(s: &Subject) -> Vec<Bent> {
    onto(s, Role::Parameter)
}

/// Another tensor like the one at a place, alive there and not bound by the step.
fn stand_in(s: &Subject, at: usize, id: TensorId) -> Option<TensorId> {
    let (_, step) = s.steps()[at];
    let alive = |t: &Tensor| (t.first as usize) < at && (t.last as usize) >= at;
    let fits = |(other, t): &(TensorId, &Tensor)| *other != id && is_transient(t) && alive(t) && alike(t, s.plan.tensor(id));
    s.ids().into_iter().filter(fits).map(|(other, _)| other).find(|other| !step.args.contains(other))
}

pub fn other(s: &Subject) -> Vec<Bent> {
    let reads = s.uses().into_iter().filter(|u| u.3 == Mode::Read && is_transient(s.plan.tensor(u.2)));
    let places = reads.filter_map(|(at, n, id, _)| Some((at, n, stand_in(s, at, id)?))).collect();
    s.bend(places, |b, (at, n, id)| {
        b.step(at).args[n] = id;
        b.settle();
    })
}

/// A result that is read later goes to a tensor of its own, which nothing reads.
pub fn other_result(s: &Subject) -> Vec<Bent> {
    let wanted = |u: &(usize, usize, TensorId, Mode)| {
        let t = s.plan.tensor(u.2);
        u.3 == Mode::Write && is_transient(t) && t.first as usize == u.0 && s.reads(u.2).iter().any(|&r| r > u.0)
    };
    s.bend(s.uses().into_iter().filter(wanted).collect(), |b, (at, n, id, _)| {
        let other = b.add(s.plan.tensor(id).clone());
        b.step(at).args[n] = other;
        b.settle();
    })
}

pub fn other_kernel(s: &Subject) -> Vec<Bent> {
    let other = |kernel: u32| {
        let args = s.plan.kernels[kernel as usize].kernel.args();
        (0..s.plan.kernels.len() as u32).find(|&k| k != kernel && s.plan.kernels[k as usize].kernel.args() == args)
    };
    let places = s.steps().into_iter().filter_map(|(at, step)| Some((at, other(step.kernel)?))).collect();
    s.bend(places, |b, (at, kernel)| b.step(at).kernel = kernel)
}

pub fn other_number(s: &Subject) -> Vec<Bent> {
    let mut places = vec![];
    for (k, entry) in s.plan.kernels.iter().enumerate() {
        let Kernel::Row(row) = &entry.kernel else { continue };
        let number = row.body.iter().position(|stmt| matches!(stmt, Stmt::Const { value: Literal::Float(_), .. }));
        places.extend(number.map(|n| (k, n)));
    }
    s.bend(places, |b, (k, n)| {
        if let Kernel::Row(row) = &mut b.plan.kernels[k].kernel
            && let Stmt::Const { value, .. } = &mut row.body[n]
        {
            *value = Literal::float(if value.as_f32() == 1.0 { 2.0 } else { 1.0 });
        }
    })
}
