//! Convolutions whose groups have one input channel: plane by plane, tap by tap.

use super::super::loops::{add_scaled, dot};
use super::super::tasks::Tasks;
use super::columns::{plane, taps};
use super::{Args, Plan};
use crate::program::ConvPass;

pub(super) fn tasks(plan: &Plan) -> Tasks {
    let k = plan.k;
    // Two planes that are read or summed in f32, and the taps.
    let floats = plan.x_len + plan.y_len + plan.taps;
    let count = match k.pass {
        ConvPass::Fprop => k.batch * k.cout,
        ConvPass::Dgrad => k.batch * k.groups,
        ConvPass::Wgrad => k.cout,
    };
    Tasks { count: count as usize, floats: floats as u64, flops: plan.flops() }
}

/// # Safety
/// `args` are the kernel's; `slot` has the floats that [`tasks`] says.
pub(super) unsafe fn run(plan: &Plan, args: &Args, task: usize, slot: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match plan.k.pass {
            ConvPass::Fprop => fprop(plan, args, task, slot),
            ConvPass::Dgrad => dgrad(plan, args, task, slot),
            ConvPass::Wgrad => wgrad(plan, args, task, slot),
        }
    }
}

unsafe fn fprop(plan: &Plan, args: &Args, task: usize, slot: &mut [f32]) {
    let (image, co) = (task / plan.cout, task % plan.cout);
    let (panel, slot) = slot.split_at_mut(plan.x_len);
    let (out, weight) = slot.split_at_mut(plan.y_len);
    let weight = &mut weight[..plan.taps];
    // SAFETY: planes of the arguments; the output's is this task's own.
    unsafe {
        let x = plane(args.x.offset(((image * plan.cin + co / plan.cog) * plan.x_len) as isize), plan.x_len, panel);
        args.w.at(co * plan.taps, 0).load_row(weight);
        let mut bias = [0.0];
        if let Some(operand) = args.bias {
            operand.at(co, 0).load_row(&mut bias);
        }
        out.fill(bias[0]);
        let stride = plan.k.window.stride[1] as usize;
        taps(&plan.k.window, |tap, run, first| match stride {
            1 => add_scaled(&mut out[run.clone()], weight[tap], &x[first..][..run.len()]),
            _ => out[run].iter_mut().zip(x[first..].iter().step_by(stride)).for_each(|(y, x)| *y += weight[tap] * x),
        });
        args.y.offset(((image * plan.cout + co) * plan.y_len) as isize).store_row(out);
    }
}

unsafe fn dgrad(plan: &Plan, args: &Args, task: usize, slot: &mut [f32]) {
    let groups = plan.k.groups as usize;
    let (image, group) = (task / groups, task % groups);
    let (sums, slot) = slot.split_at_mut(plan.x_len);
    let (panel, weight) = slot.split_at_mut(plan.y_len);
    let weight = &mut weight[..plan.taps];
    sums.fill(0.0);
    let stride = plan.k.window.stride[1] as usize;
    for co in group * plan.cog..(group + 1) * plan.cog {
        // SAFETY: planes of the arguments.
        let dy = unsafe {
            args.w.at(co * plan.taps, 0).load_row(weight);
            plane(args.y.offset(((image * plan.cout + co) * plan.y_len) as isize), plan.y_len, panel)
        };
        taps(&plan.k.window, |tap, run, first| match stride {
            1 => add_scaled(&mut sums[first..][..run.len()], weight[tap], &dy[run]),
            _ => sums[first..].iter_mut().step_by(stride).zip(&dy[run]).for_each(|(x, y)| *x += weight[tap] * y),
        });
    }
    // SAFETY: the plane is this task's own.
    unsafe { args.x.offset(((image * groups + group) * plan.x_len) as isize).store_row(sums) }
}

unsafe fn wgrad(plan: &Plan, args: &Args, co: usize, slot: &mut [f32]) {
    let (x_panel, slot) = slot.split_at_mut(plan.x_len);
    let (y_panel, sums) = slot.split_at_mut(plan.y_len);
    let sums = &mut sums[..plan.taps];
    sums.fill(0.0);
    let stride = plan.k.window.stride[1] as usize;
    for image in 0..plan.k.batch as usize {
        // SAFETY: planes of the arguments.
        let (x, dy) = unsafe {
            let x = args.x.offset(((image * plan.cin + co / plan.cog) * plan.x_len) as isize);
            let dy = args.y.offset(((image * plan.cout + co) * plan.y_len) as isize);
            (plane(x, plan.x_len, x_panel), plane(dy, plan.y_len, y_panel))
        };
        taps(&plan.k.window, |tap, run, first| {
            sums[tap] += match stride {
                1 => dot(&x[first..][..run.len()], &dy[run]),
                _ => dy[run].iter().zip(x[first..].iter().step_by(stride)).map(|(y, x)| y * x).sum(),
            }
        });
    }
    // SAFETY: the taps are this task's own.
    unsafe { args.w.at(co * plan.taps, 0).store_row(sums) }
}

/// Whether planes are this module's way.
pub(super) fn suits(plan: &Plan) -> bool {
    plan.cig == 1 && plan.cog <= 4
}
