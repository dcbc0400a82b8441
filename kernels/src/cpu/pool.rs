//! Pooling: planes over the threads.

use super::Buffer;
use super::matrix::{Float, Operand};
use super::tasks::{Tasks, flops};
use crate::KernelError;
use crate::program::{Pool, PoolOp, Window};
use std::ops::Range;

/// Kernel positions of one output position that fall inside the image.
///
/// `extent` is the image's, along one dimension.
fn inside(w: &Window, dim: usize, output: usize) -> Range<usize> {
    let origin = (output as u64 * w.stride[dim]) as i64 - w.pad[dim] as i64;
    let (step, extent) = (w.dilation[dim] as i64, w.input[dim] as i64);
    // Divisions are slow, and most windows have none.
    let divide = |x: i64| if step == 1 { x } else { x / step };
    let first = if origin < 0 { divide(-origin + step - 1) } else { 0 };
    let end = if origin >= extent { 0 } else { divide(extent - 1 - origin) + 1 };
    let end = end.min(w.kernel[dim] as i64);
    first.min(end) as usize..end as usize
}

/// Input position that kernel position `tap` reads for an output position; it must be inside.
fn input(w: &Window, dim: usize, output: usize, tap: usize) -> usize {
    (output as u64 * w.stride[dim] + tap as u64 * w.dilation[dim] - w.pad[dim]) as usize
}

/// Kernel positions inside the image and its padding, along one dimension.
fn padded(w: &Window, dim: usize, output: usize, pad_end: u64) -> usize {
    let origin = (output as u64 * w.stride[dim]) as i64 - w.pad[dim] as i64;
    let end = (w.input[dim] + pad_end) as i64;
    let before = if origin >= end { 0 } else { (end - 1 - origin) / w.dilation[dim] as i64 + 1 };
    before.min(w.kernel[dim] as i64) as usize
}

struct Plan<'a> {
    k: &'a Pool,
    float: Float,
    x_len: usize,
    y_len: usize,
}

impl<'a> Plan<'a> {
    fn new(k: &'a Pool) -> Result<Plan<'a>, KernelError> {
        let len = |hw: [u64; 2]| (hw[0] * hw[1]) as usize;
        Ok(Plan { k, float: Float::of(k.dtype, "pool")?, x_len: len(k.window.input), y_len: len(k.window.output) })
    }

    fn tasks(&self) -> Tasks {
        let [r, s] = self.k.window.kernel;
        // A plane of x, of y, and of dx.
        let floats = self.x_len + self.y_len + if self.k.backward { self.x_len } else { 0 };
        let written = if self.k.backward { self.x_len } else { self.y_len };
        // Without elements there is nothing to write.
        Tasks {
            count: if written == 0 { 0 } else { self.k.planes as usize },
            floats: floats as u64,
            flops: flops(&[4, self.k.planes, r, s, self.y_len as u64]),
        }
    }

    fn plane(&self, arg: &Buffer, len: usize) -> Operand {
        Operand { ptr: arg.ptr, float: self.float, rs: len as isize, cs: 1 }
    }

    /// Value of one output position.
    fn pooled(&self, x: &[f32], y: usize, column: usize) -> f32 {
        let w = &self.k.window;
        if self.k.op == PoolOp::Max {
            return self.argmax(x, y, column).map_or(f32::NEG_INFINITY, |at| x[at]);
        }
        let columns = inside(w, 1, column);
        let mut sum = 0.0;
        for r in inside(w, 0, y) {
            let row = &x[input(w, 0, y, r) * w.input[1] as usize..][..w.input[1] as usize];
            columns.clone().for_each(|s| sum += row[input(w, 1, column, s)]);
        }
        sum / self.divisor(y, column)
    }

    fn divisor(&self, y: usize, column: usize) -> f32 {
        let w = &self.k.window;
        let count = match self.k.op {
            PoolOp::AverageWithPadding { pad_end } => padded(w, 0, y, pad_end[0]) * padded(w, 1, column, pad_end[1]),
            _ => inside(w, 0, y).len() * inside(w, 1, column).len(),
        };
        count.max(1) as f32
    }

    /// First position that attains the maximum, or the first NaN.
    fn argmax(&self, x: &[f32], y: usize, column: usize) -> Option<usize> {
        let w = &self.k.window;
        let columns = inside(w, 1, column);
        let mut best: Option<usize> = None;
        for r in inside(w, 0, y) {
            let row = input(w, 0, y, r) * w.input[1] as usize;
            for s in columns.clone() {
                let at = row + input(w, 1, column, s);
                if best.is_none_or(|b| x[at] > x[b] || (x[at].is_nan() && !x[b].is_nan())) {
                    best = Some(at);
                }
            }
        }
        best
    }

    /// Adds the gradient of one output position to those that it read.
    fn spread(&self, x: &[f32], dx: &mut [f32], y: usize, column: usize, dy: f32) {
        let w = &self.k.window;
        if self.k.op == PoolOp::Max {
            self.argmax(x, y, column).into_iter().for_each(|at| dx[at] += dy);
            return;
        }
        let share = dy / self.divisor(y, column);
        for r in inside(w, 0, y) {
            let row = input(w, 0, y, r) * w.input[1] as usize;
            inside(w, 1, column).for_each(|s| dx[row + input(w, 1, column, s)] += share);
        }
    }

    /// # Safety
    /// `args` are the kernel's; `slot` has the floats that [`Plan::tasks`] says.
    unsafe fn run(&self, [x, y, dx]: [Operand; 3], plane: usize, slot: &mut [f32]) {
        let across = self.k.window.output[1] as usize;
        let (x_plane, slot) = slot.split_at_mut(self.x_len);
        let (y_plane, slot) = slot.split_at_mut(self.y_len);
        // SAFETY: the plane is inside, and what is written this task's own.
        unsafe {
            x.at(plane, 0).load_row(x_plane);
            if self.k.backward {
                let dx_plane = &mut slot[..self.x_len];
                y.at(plane, 0).load_row(y_plane);
                dx_plane.fill(0.0);
                for (i, dy) in y_plane.iter().enumerate() {
                    self.spread(x_plane, dx_plane, i / across, i % across, *dy);
                }
                dx.at(plane, 0).store_row(dx_plane);
            } else {
                for (i, out) in y_plane.iter_mut().enumerate() {
                    *out = self.pooled(x_plane, i / across, i % across);
                }
                y.at(plane, 0).store_row(y_plane);
            }
        }
    }
}

/// Scratch bytes for a pool of `threads`.
pub(crate) fn scratch(k: &Pool, threads: usize) -> u64 {
    Plan::new(k).map_or(0, |plan| plan.tasks().scratch(threads))
}

/// Runs the kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::Unsupported`] for formats other than f32 and bf16.
pub(crate) unsafe fn run(k: &Pool, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let plan = Plan::new(k)?;
    let (x, y, dx) = match (args, k.backward) {
        ([x, y], false) => (x, y, y),
        ([x, dy, dx], true) => (x, dy, dx),
        _ => return Err(KernelError::Invalid { family: "pool", reason: format!("{} arguments", args.len()) }),
    };
    let operands = [plan.plane(x, plan.x_len), plan.plane(y, plan.y_len), plan.plane(dx, plan.x_len)];
    // SAFETY: planes are disjoint, and the arguments valid.
    unsafe { plan.tasks().run(scratch, |i, slot| plan.run(operands, i, slot)) }
}
