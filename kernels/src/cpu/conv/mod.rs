//! Convolutions: matrices of columns in scratch, multiplied through `faer`; groups of one channel are summed tap by tap.

mod columns;
mod depthwise;
mod planes;
mod strided;

use super::Buffer;
use super::matrix::{Float, Operand, Shape, View, product};
use super::tasks::{Tasks, flops};
use crate::KernelError;
use crate::program::{Conv, ConvPass};
use columns::{gather, scatter};
use std::ops::Range;

/// Output positions of a matrix of columns.
const POSITIONS: usize = 384;
/// Floats of a matrix of columns.
const COLUMNS: usize = 1 << 17;
/// Floats of image sums that a task may keep, if one channel allows.
const SUMS: usize = 1 << 18;
/// As many tasks as are wanted, so that a few threads finish together.
const ENOUGH: usize = 16;

/// Addresses of a launch: x and y or their gradients, w or its gradient.
struct Args {
    x: Operand,
    w: Operand,
    y: Operand,
    bias: Option<Operand>,
}

struct Plan<'a> {
    k: &'a Conv,
    cin: usize,
    cout: usize,
    /// Channels of a group.
    cig: usize,
    cog: usize,
    taps: usize,
    x_len: usize,
    y_len: usize,
    float: Float,
    weight: Float,
    /// Input channels, output channels and output positions of a block.
    channels: usize,
    couts: usize,
    positions: usize,
}

impl<'a> Plan<'a> {
    fn new(k: &'a Conv) -> Result<Plan<'a>, KernelError> {
        let w = &k.window;
        let len = |hw: [u64; 2]| (hw[0] * hw[1]) as usize;
        let groups = k.groups.max(1) as usize;
        let (cin, cout) = (k.cin as usize, k.cout as usize);
        let (x_len, y_len, taps) = (len(w.input), len(w.output), len(w.kernel));
        let (float, weight) = (Float::of(k.dtype, "conv")?, Float::of(k.weight, "conv")?);
        let (cig, cog) = (cin / groups, cout / groups);
        let mut plan = Plan { k, cin, cout, cig, cog, taps, x_len, y_len, float, weight, channels: 1, couts: cog, positions: 1 };
        plan.positions = y_len.clamp(1, POSITIONS);
        let fit = (COLUMNS / (taps * plan.positions).max(1)).max(1);
        plan.channels = match k.pass {
            ConvPass::Fprop => fit,
            // Every task has its own channels' image: in scratch for bf16.
            ConvPass::Dgrad if float != Float::F32 => fit.min((SUMS / x_len.max(1)).max(1)),
            ConvPass::Dgrad => fit,
            ConvPass::Wgrad => fit.min(cig.div_ceil(ENOUGH.div_ceil(groups)).max(1)),
        };
        plan.channels = plan.channels.clamp(1, cig.max(1));
        if k.pass == ConvPass::Wgrad {
            let tasks = groups * cig.div_ceil(plan.channels);
            plan.couts = cog.div_ceil(ENOUGH.div_ceil(tasks.max(1))).max(32).min(cog).max(1);
        }
        Ok(plan)
    }

    fn flops(&self) -> u64 {
        flops(&[2, self.k.batch, (self.cout * self.cig * self.taps) as u64, self.y_len as u64])
    }

    /// Elements of the output.
    fn out_len(&self) -> usize {
        let k = self.k;
        match k.pass {
            ConvPass::Fprop => k.batch as usize * self.cout * self.y_len,
            ConvPass::Dgrad => k.batch as usize * self.cin * self.x_len,
            ConvPass::Wgrad => self.cout * self.cig * self.taps,
        }
    }

    /// Whether no product contributes: the output is the bias, or zero.
    fn blank(&self) -> bool {
        let image = |channels: usize, len: usize| self.k.batch as usize * channels * len == 0;
        image(self.cin, self.x_len) || image(self.cout, self.y_len) || self.cout * self.cig * self.taps == 0
    }

    fn blocks(&self) -> usize {
        self.y_len.div_ceil(self.positions)
    }

    fn columns_floats(&self) -> usize {
        self.channels * self.taps * self.positions
    }

    /// Floats of a panel of weights, where it must be converted.
    fn weight_floats(&self) -> usize {
        if self.weight == Float::F32 { 0 } else { self.cog * self.channels * self.taps }
    }

    /// Floats of a block of y, where it must be converted or summed elsewhere.
    fn y_floats(&self, couts: usize) -> usize {
        if self.float == Float::F32 { 0 } else { couts * self.positions }
    }

    fn tasks(&self) -> Tasks {
        if self.blank() {
            let planes = if self.k.pass == ConvPass::Fprop { self.k.batch as usize * self.cout } else { 1 };
            return Tasks { count: if self.out_len() == 0 { 0 } else { planes }, floats: 0, flops: self.out_len() as u64 };
        }
        if depthwise::suits(self) {
            return depthwise::tasks(self);
        }
        let (batch, groups) = (self.k.batch as usize, self.k.groups as usize);
        let chunks = self.cig.div_ceil(self.channels);
        let (count, floats) = match self.k.pass {
            ConvPass::Fprop => (batch * groups * self.blocks(), self.weight_floats() + self.y_floats(self.cog) + self.cog),
            ConvPass::Dgrad => {
                let sums = if self.float == Float::F32 { 0 } else { self.channels * self.x_len };
                (batch * groups * chunks, self.weight_floats() + self.y_floats(self.cog) + sums)
            }
            ConvPass::Wgrad => (groups * chunks * self.cog.div_ceil(self.couts), self.y_floats(self.couts)),
        };
        Tasks { count, floats: (self.columns_floats() + floats) as u64, flops: self.flops() }
    }

    /// The `rows` channels of an image from `channel` on, a row each, from position `p` on.
    fn rows(&self, base: Operand, len: usize, channel: usize, p: usize) -> Operand {
        Operand { rs: len as isize, cs: 1, ..base }.at(channel, p)
    }

    /// Weights of `couts` output channels from `co` on for the input channels `chunk` of their group.
    fn weights(&self, w: Operand, co: usize, chunk: &Range<usize>) -> Operand {
        Operand { rs: (self.cig * self.taps) as isize, cs: 1, ..w }.at(co, chunk.start * self.taps)
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (cig, channels) = (self.cig, self.channels);
        (0..cig).step_by(channels).map(move |c| c..(c + channels).min(cig))
    }

    fn position_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (y_len, positions) = (self.y_len, self.positions);
        (0..y_len).step_by(positions).map(move |p| p..(p + positions).min(y_len))
    }

    /// Whether columns are rows of the image itself.
    fn pointwise(&self) -> bool {
        let w = &self.k.window;
        self.float == Float::F32 && w.kernel == [1, 1] && w.stride == [1, 1] && w.pad == [0, 0] && w.input == w.output
    }

    /// The matrix of columns of some channels of an image, from channel `first` on.
    ///
    /// # Safety
    /// The channels are inside.
    unsafe fn columns(&self, x: Operand, first: usize, channels: usize, p: &Range<usize>, panel: &mut [f32]) -> View {
        if self.pointwise() {
            let rows = self.rows(x, self.x_len, first, p.start);
            return View { ptr: rows.ptr.cast(), rs: rows.rs, cs: 1 };
        }
        let n = p.len();
        let image = x.offset((first * self.x_len) as isize);
        // SAFETY: the caller's promise.
        unsafe { gather(&self.k.window, image, channels, p.clone(), &mut panel[..channels * self.taps * n], n) };
        View::rows(panel, n)
    }

    unsafe fn fprop(&self, args: &Args, task: usize, slot: &mut [f32]) {
        let groups = self.k.groups as usize;
        let (image, group, block) = (task / self.blocks() / groups, task / self.blocks() % groups, task % self.blocks());
        let p = block * self.positions..((block + 1) * self.positions).min(self.y_len);
        let (panel, slot) = slot.split_at_mut(self.columns_floats());
        let (panel_w, slot) = slot.split_at_mut(self.weight_floats());
        let (tile, bias) = slot.split_at_mut(self.y_floats(self.cog));
        let (co, n) = (group * self.cog, p.len());
        let y = self.rows(args.y, self.y_len, image * self.cout + co, p.start);
        let (sums, ld) = if self.float == Float::F32 { (y.ptr.cast::<f32>(), self.y_len) } else { (tile.as_mut_ptr(), n) };
        for chunk in self.chunks() {
            let depth = chunk.len() * self.taps;
            let first = image * self.cin + group * self.cig + chunk.start;
            // SAFETY: blocks of the arguments; y's is this task's own.
            unsafe {
                let x = self.columns(args.x, first, chunk.len(), &p, panel);
                let w = self.weights(args.w, co, &chunk).view(self.cog, depth, panel_w);
                product(Shape { m: self.cog, n, k: depth }, sums, ld, chunk.start > 0, w, x, 1.0);
            }
        }
        let bias = &mut bias[..self.cog];
        bias.fill(0.0);
        if let Some(operand) = args.bias {
            // SAFETY: one value for each output channel.
            unsafe { operand.offset(co as isize).load_row(bias) };
        }
        for (row, bias) in bias.iter().enumerate() {
            // SAFETY: rows of this task's block.
            unsafe {
                let sums = std::slice::from_raw_parts_mut(sums.add(row * ld), n);
                if args.bias.is_some() {
                    sums.iter_mut().for_each(|y| *y += bias);
                }
                if self.float != Float::F32 {
                    y.at(row, 0).store_row(sums);
                }
            }
        }
    }

    unsafe fn dgrad(&self, args: &Args, task: usize, slot: &mut [f32]) {
        let (groups, chunks) = (self.k.groups as usize, self.cig.div_ceil(self.channels));
        let (image, group) = (task / chunks / groups, task / chunks % groups);
        let first = task % chunks * self.channels;
        let chunk = first..(first + self.channels).min(self.cig);
        let (panel, slot) = slot.split_at_mut(self.columns_floats());
        let (panel_w, slot) = slot.split_at_mut(self.weight_floats());
        let (panel_y, sums) = slot.split_at_mut(self.y_floats(self.cog));
        let depth = chunk.len() * self.taps;
        let dx = self.rows(args.x, self.x_len, image * self.cin + group * self.cig + chunk.start, 0);
        // SAFETY: the channels' images are this task's own.
        unsafe {
            let sums = match self.float {
                Float::F32 => std::slice::from_raw_parts_mut(dx.ptr.cast::<f32>(), chunk.len() * self.x_len),
                _ => &mut sums[..chunk.len() * self.x_len],
            };
            sums.fill(0.0);
            let w = self.weights(args.w, group * self.cog, &chunk).view(self.cog, depth, panel_w);
            for p in self.position_blocks() {
                let n = p.len();
                let dy = self.rows(args.y, self.y_len, image * self.cout + group * self.cog, p.start).view(self.cog, n, panel_y);
                product(Shape { m: depth, n, k: self.cog }, panel.as_mut_ptr(), n, false, w.t(), dy, 1.0);
                scatter(&self.k.window, &panel[..depth * n], n, p, sums);
            }
            if self.float != Float::F32 {
                dx.store_row(sums);
            }
        }
    }

    unsafe fn wgrad(&self, args: &Args, task: usize, slot: &mut [f32]) {
        let (chunks, splits) = (self.cig.div_ceil(self.channels), self.cog.div_ceil(self.couts));
        let (group, split) = (task / splits / chunks, task % splits);
        let first = task / splits % chunks * self.channels;
        let chunk = first..(first + self.channels).min(self.cig);
        let co = group * self.cog + split * self.couts;
        let m = self.couts.min(self.cog - split * self.couts);
        let (panel, panel_y) = slot.split_at_mut(self.columns_floats());
        let n = chunk.len() * self.taps;
        let dw = self.weights(args.w, co, &chunk);
        let mut accumulate = false;
        for image in 0..self.k.batch as usize {
            for p in self.position_blocks() {
                let k = p.len();
                // SAFETY: blocks of the arguments; dw's is this task's own.
                unsafe {
                    let x = self.columns(args.x, image * self.cin + group * self.cig + chunk.start, chunk.len(), &p, panel);
                    let dy = self.rows(args.y, self.y_len, image * self.cout + co, p.start).view(m, k, panel_y);
                    product(Shape { m, n, k }, dw.ptr.cast(), dw.rs as usize, accumulate, dy, x.t(), 1.0);
                }
                accumulate = true;
            }
        }
    }

    /// Fills an output that no product contributes to: a plane with its bias, or all with zero.
    unsafe fn fill(&self, args: &Args, task: usize) {
        let (out, len) = match self.k.pass {
            ConvPass::Fprop => (args.y.offset((task * self.y_len) as isize), self.y_len),
            ConvPass::Dgrad => (args.x, self.out_len()),
            ConvPass::Wgrad => (args.w, self.out_len()),
        };
        let mut bias = [0.0];
        // SAFETY: one bias for each output channel; the plane is this task's own.
        unsafe {
            if let Some(operand) = args.bias {
                operand.at(task % self.cout, 0).load_row(&mut bias);
            }
            (0..len).for_each(|i| out.at(i, 0).store_row(&bias));
        }
    }

    /// # Safety
    /// `args` are the kernel's; `slot` has the floats that [`Plan::tasks`] says.
    unsafe fn run(&self, args: &Args, task: usize, slot: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.k.pass {
                _ if self.blank() => self.fill(args, task),
                _ if depthwise::suits(self) => depthwise::run(self, args, task, slot),
                ConvPass::Fprop => self.fprop(args, task, slot),
                ConvPass::Dgrad => self.dgrad(args, task, slot),
                ConvPass::Wgrad => self.wgrad(args, task, slot),
            }
        }
    }
}

/// Scratch bytes for a pool of `threads`.
pub(crate) fn scratch(k: &Conv, threads: usize) -> u64 {
    Plan::new(k).map_or(0, |plan| plan.tasks().scratch(threads))
}

/// Runs the kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::Unsupported`] for formats other than f32 and bf16.
pub(crate) unsafe fn run(k: &Conv, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let plan = Plan::new(k)?;
    // Every operand as one row; `at` is by element.
    let operand = |b: &Buffer, float| Operand { ptr: b.ptr, float, rs: 1, cs: 1 };
    let args = match (k.pass, args) {
        (ConvPass::Fprop, [x, w, bias @ .., y]) => Args {
            x: operand(x, plan.float),
            w: operand(w, plan.weight),
            y: operand(y, plan.float),
            bias: bias.first().map(|b| operand(b, plan.weight)),
        },
        (ConvPass::Dgrad, [dy, w, dx]) => {
            Args { x: operand(dx, plan.float), w: operand(w, plan.weight), y: operand(dy, plan.float), bias: None }
        }
        (ConvPass::Wgrad, [dy, x, dw]) => {
            Args { x: operand(x, plan.float), w: operand(dw, Float::F32), y: operand(dy, plan.float), bias: None }
        }
        _ => return Err(KernelError::Invalid { family: "conv", reason: format!("{} arguments", args.len()) }),
    };
    // SAFETY: blocks are disjoint, and the arguments valid.
    unsafe { plan.tasks().run(scratch, |i, slot| plan.run(&args, i, slot)) }
}
