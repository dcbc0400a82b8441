//! Convolutions whose groups have one input channel, plane by plane.

use super::super::tasks::Tasks;
use super::columns::plane;
use super::planes::{Correlate, CorrelateTaps, Padded};
use super::strided;
use super::{Args, Plan};
use crate::numerics::simd::dispatch;
use crate::program::{ConvPass, Window};

/// Whether planes are this module's way.
pub(super) fn suits(plan: &Plan) -> bool {
    plan.cig == 1 && plan.cog <= 4
}

/// What unit strides make of a window: padded planes.
struct Unit {
    taps: [usize; 2],
    dilation: [usize; 2],
    /// x around the positions of y, dy around those of x.
    x: Padded,
    dy: Padded,
    /// Floats from row to row of y and of x in whole lanes.
    y_ld: usize,
    x_ld: usize,
}

impl Unit {
    fn new(w: &Window) -> Option<Unit> {
        let size = |x: [u64; 2]| x.map(|x| x as usize);
        let (taps, dilation, pad) = (size(w.kernel), size(w.dilation), size(w.pad));
        let (input, output) = (size(w.input), size(w.output));
        let reach = [0, 1].map(|d| dilation[d] * (taps[d] - 1));
        if w.stride != [1, 1] || (0..2).any(|d| pad[d] > reach[d]) {
            return None;
        }
        // A reach far beyond the image would make padding larger than what it saves.
        if (0..2).any(|d| reach[d] > 2 * input[d] + 64) {
            return None;
        }
        let x = Padded::new(output, taps, dilation, pad, input);
        let dy = Padded::new(input, taps, dilation, [reach[0] - pad[0], reach[1] - pad[1]], output);
        Some(Unit { taps, dilation, x, dy, y_ld: output[1].next_multiple_of(16), x_ld: input[1].next_multiple_of(16) })
    }

    /// A padded plane, and a plane in whole lanes, of either pass.
    fn floats(&self, w: &Window) -> [usize; 2] {
        let lanes = (w.output[0] as usize * self.y_ld).max(w.input[0] as usize * self.x_ld);
        [self.x.floats().max(self.dy.floats()), lanes]
    }
}

/// A task's scratch.
struct Slot<'a> {
    x: &'a mut [f32],
    y: &'a mut [f32],
    weight: &'a mut [f32],
    padded: &'a mut [f32],
    lanes: &'a mut [f32],
}

fn sizes(plan: &Plan) -> [usize; 5] {
    let [padded, lanes] = Unit::new(&plan.k.window).map_or([0, 0], |unit| unit.floats(&plan.k.window));
    [plan.x_len, plan.y_len, plan.taps, padded, lanes]
}

pub(super) fn tasks(plan: &Plan) -> Tasks {
    let k = plan.k;
    let count = match k.pass {
        ConvPass::Fprop => k.batch * k.cout,
        ConvPass::Dgrad => k.batch * k.groups,
        ConvPass::Wgrad => k.cout,
    };
    Tasks { count: count as usize, floats: sizes(plan).iter().sum::<usize>() as u64, flops: plan.flops() }
}

/// # Safety
/// `args` are the kernel's; `slot` has the floats that [`tasks`] says.
pub(super) unsafe fn run(plan: &Plan, args: &Args, task: usize, slot: &mut [f32]) {
    let [x, y, weight, padded, lanes] = sizes(plan);
    let (x, slot) = slot.split_at_mut(x);
    let (y, slot) = slot.split_at_mut(y);
    let (weight, slot) = slot.split_at_mut(weight);
    let (padded, slot) = slot.split_at_mut(padded);
    let slot = Slot { x, y, weight, padded, lanes: &mut slot[..lanes] };
    let unit = Unit::new(&plan.k.window);
    // SAFETY: the caller's promise.
    unsafe {
        match plan.k.pass {
            ConvPass::Fprop => fprop(plan, unit, args, task, slot),
            ConvPass::Dgrad => dgrad(plan, unit, args, task, slot),
            ConvPass::Wgrad => wgrad(plan, unit, args, task, slot),
        }
    }
}

/// Copies rows of whole lanes to rows of `width`.
fn compact(lanes: &[f32], ld: usize, width: usize, plane: &mut [f32]) {
    for (row, lanes) in plane.chunks_exact_mut(width.max(1)).zip(lanes.chunks_exact(ld.max(1))) {
        row.copy_from_slice(&lanes[..width]);
    }
}

unsafe fn fprop(plan: &Plan, unit: Option<Unit>, args: &Args, task: usize, slot: Slot) {
    let (image, co, w) = (task / plan.cout, task % plan.cout, &plan.k.window);
    // SAFETY: planes of the arguments; the output's is this task's own.
    unsafe {
        let x = plane(args.x.offset(((image * plan.cin + co / plan.cog) * plan.x_len) as isize), plan.x_len, slot.x);
        args.w.at(co * plan.taps, 0).load_row(slot.weight);
        let mut bias = [0.0];
        if let Some(operand) = args.bias {
            operand.at(co, 0).load_row(&mut bias);
        }
        if let Some(unit) = unit {
            unit.x.fill(x, w.input[1] as usize, slot.padded);
            let y = &mut slot.lanes[..w.output[0] as usize * unit.y_ld];
            y.fill(bias[0]);
            let (taps, dilation) = (unit.taps, unit.dilation);
            Correlate { x: slot.padded, x_ld: unit.x.ld, weight: slot.weight, taps, dilation, y, y_ld: unit.y_ld }.run();
            compact(slot.lanes, unit.y_ld, w.output[1] as usize, slot.y);
        } else {
            slot.y.fill(bias[0]);
            dispatch(strided::Fprop { w, x, weight: slot.weight, y: slot.y });
        }
        args.y.offset(((image * plan.cout + co) * plan.y_len) as isize).store_row(slot.y);
    }
}

unsafe fn dgrad(plan: &Plan, unit: Option<Unit>, args: &Args, task: usize, slot: Slot) {
    let (groups, w) = (plan.k.groups as usize, &plan.k.window);
    let (image, group) = (task / groups, task % groups);
    slot.x.fill(0.0);
    slot.lanes.fill(0.0);
    for co in group * plan.cog..(group + 1) * plan.cog {
        // SAFETY: planes of the arguments.
        let dy = unsafe {
            args.w.at(co * plan.taps, 0).load_row(slot.weight);
            plane(args.y.offset(((image * plan.cout + co) * plan.y_len) as isize), plan.y_len, slot.y)
        };
        if let Some(unit) = &unit {
            slot.weight.reverse();
            unit.dy.fill(dy, w.output[1] as usize, slot.padded);
            let (taps, dilation) = (unit.taps, unit.dilation);
            let dx = &mut slot.lanes[..w.input[0] as usize * unit.x_ld];
            Correlate { x: slot.padded, x_ld: unit.dy.ld, weight: slot.weight, taps, dilation, y: dx, y_ld: unit.x_ld }.run();
        } else {
            dispatch(strided::Dgrad { w, dy, weight: slot.weight, dx: slot.x });
        }
    }
    if let Some(unit) = unit {
        compact(slot.lanes, unit.x_ld, w.input[1] as usize, slot.x);
    }
    // SAFETY: the plane is this task's own.
    unsafe { args.x.offset(((image * groups + group) * plan.x_len) as isize).store_row(slot.x) }
}

unsafe fn wgrad(plan: &Plan, unit: Option<Unit>, args: &Args, co: usize, slot: Slot) {
    let w = &plan.k.window;
    slot.weight.fill(0.0);
    for image in 0..plan.k.batch as usize {
        // SAFETY: planes of the arguments.
        let (x, dy) = unsafe {
            let x = args.x.offset(((image * plan.cin + co / plan.cog) * plan.x_len) as isize);
            let dy = args.y.offset(((image * plan.cout + co) * plan.y_len) as isize);
            (plane(x, plan.x_len, slot.x), plane(dy, plan.y_len, slot.y))
        };
        if let Some(unit) = &unit {
            unit.x.fill(x, w.input[1] as usize, slot.padded);
            let (rows, width) = (w.output[0] as usize, w.output[1] as usize);
            let lanes = Padded { rows, ld: unit.y_ld, top: 0, left: 0 };
            lanes.fill(dy, width, slot.lanes);
            let (dy, taps, dilation) = (&slot.lanes[..lanes.floats()], unit.taps, unit.dilation);
            CorrelateTaps { x: slot.padded, x_ld: unit.x.ld, dy, dy_ld: unit.y_ld, taps, dilation, dw: slot.weight }.run();
        } else {
            dispatch(strided::Wgrad { w, x, dy, dw: slot.weight });
        }
    }
    // SAFETY: the taps are this task's own.
    unsafe { args.w.at(co * plan.taps, 0).store_row(slot.weight) }
}
