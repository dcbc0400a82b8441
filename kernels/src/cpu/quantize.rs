//! Quantizers: every layout in one pass over the source, in blocks of 128 x 128, so that what is made twice is read once.

use super::Buffer;
use super::matrix::{Float, Operand};
use super::tasks::{Shared, Tasks};
use super::transpose::transpose;
use crate::KernelError;
use crate::cpu::math::Fma;
use crate::numerics::simd::{Vectorised, dispatch};
use crate::numerics::{ScaleMode, amax_inline, f32_to_e4m3, larger, quantize_group, scale_of};
use crate::program::{GROUP, Layout, Quantize};

const G: usize = GROUP as usize;
/// Blocks along a row of blocks that make a task.
const BLOCKS: usize = 8;
/// Floats of the source block, a transposed copy of codes (a quarter of that), and a vector of factors.
const FLOATS: usize = G * G + G * G / 4 + G;

/// Codes `[outer, inner]` and their scales.
#[derive(Clone, Copy)]
struct Output {
    codes: Shared<u8>,
    scales: Shared<f32>,
}

impl Output {
    /// The `len` codes that start at `offset`.
    ///
    /// # Safety
    /// They are inside, and this task's own.
    unsafe fn codes<'a>(self, offset: usize, len: usize) -> &'a mut [u8] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.codes.get().add(offset), len) }
    }

    /// # Safety
    /// As [`Output::codes`].
    unsafe fn set_scale(self, index: usize, scale: f32) {
        // SAFETY: the caller's promise.
        unsafe { *self.scales.get().add(index) = scale }
    }
}

struct Plan {
    rows: usize,
    cols: usize,
    layout: Layout,
    mode: ScaleMode,
}

/// A block of the source: `rows x cols` from `(row, col)`, of group `(gr, gc)`.
struct Block {
    gr: usize,
    gc: usize,
    row: usize,
    col: usize,
    rows: usize,
    cols: usize,
}

impl Plan {
    fn new(k: &Quantize) -> Plan {
        Plan { rows: k.rows as usize, cols: k.cols as usize, layout: k.layout, mode: ScaleMode::from_flag(k.power_of_two) }
    }

    fn tasks_across(&self) -> usize {
        self.cols.div_ceil(G * BLOCKS)
    }

    fn tasks(&self) -> Tasks {
        Tasks { count: self.rows.div_ceil(G) * self.tasks_across(), floats: FLOATS as u64, flops: 8 * (self.rows * self.cols) as u64 }
    }

    /// # Safety
    /// `source` and `out` are the kernel's arguments; `slot` has `FLOATS`.
    unsafe fn run(&self, source: Operand, out: &[Output; 2], task: usize, slot: &mut [f32]) {
        let (gr, across) = (task / self.tasks_across(), task % self.tasks_across());
        let row = gr * G;
        for gc in across * BLOCKS..((across + 1) * BLOCKS).min(self.cols.div_ceil(G)) {
            let col = gc * G;
            let block = Block { gr, gc, row, col, rows: G.min(self.rows - row), cols: G.min(self.cols - col) };
            let (values, rest) = slot.split_at_mut(G * G);
            let (codes, factors) = rest.split_at_mut(G * G / 4);
            let codes: &mut [u8] = bytemuck::cast_slice_mut(codes);
            // SAFETY: the block is inside, and this task's own.
            unsafe {
                source.at(row, col).load(block.rows, block.cols, values);
                let values = &values[..block.rows * block.cols];
                match self.layout {
                    Layout::Rows => self.by_rows(&block, values, factors, out[0]),
                    Layout::Columns => self.by_columns(&block, values, codes, factors, out[0]),
                    Layout::RowsAndColumns => {
                        self.by_rows(&block, values, factors, out[0]);
                        self.by_columns(&block, values, codes, factors, out[1]);
                    }
                    Layout::Blocks => self.by_block(&block, values, codes, out[0], None),
                    Layout::BlocksBoth => self.by_block(&block, values, codes, out[0], Some(out[1])),
                }
            }
        }
    }

    unsafe fn by_rows(&self, b: &Block, values: &[f32], scales: &mut [f32], out: Output) {
        let (groups, stride) = (self.cols.div_ceil(G), self.cols);
        let scales = &mut scales[..b.rows];
        let first = b.row * self.cols + b.col;
        // SAFETY: rows `b.row..b.row + b.rows` and columns from `b.col` on are this block's.
        unsafe {
            dispatch(QuantizeRows { values, width: b.cols, mode: self.mode, codes: out.codes.get().add(first), stride, scales });
            scales.iter().enumerate().for_each(|(i, scale)| out.set_scale((b.row + i) * groups + b.gc, *scale));
        }
    }

    unsafe fn by_columns(&self, b: &Block, values: &[f32], codes: &mut [u8], factors: &mut [f32], out: Output) {
        let groups = self.rows.div_ceil(G);
        let factors = &mut factors[..b.cols];
        dispatch(ColumnAmax { values, amax: factors });
        for (j, factor) in factors.iter_mut().enumerate() {
            let scale = scale_of(*factor, self.mode);
            // SAFETY: column `b.col + j` and its group are this block's.
            unsafe { out.set_scale((b.col + j) * groups + b.gr, scale) };
            *factor = 1.0 / scale;
        }
        let codes = &mut codes[..values.len()];
        dispatch(EncodeColumns { values, factors, codes });
        // SAFETY: as above.
        unsafe { self.store_transposed(b, codes, out) }
    }

    unsafe fn by_block(&self, b: &Block, values: &[f32], codes: &mut [u8], out: Output, transposed: Option<Output>) {
        let codes = &mut codes[..values.len()];
        let scale = quantize_group(values, self.mode, codes);
        // SAFETY: the block is this task's own.
        unsafe {
            for (i, codes) in codes.chunks_exact(b.cols).enumerate() {
                out.codes((b.row + i) * self.cols + b.col, b.cols).copy_from_slice(codes);
            }
            out.set_scale(b.gr * self.cols.div_ceil(G) + b.gc, scale);
            if let Some(out) = transposed {
                self.store_transposed(b, codes, out);
                out.set_scale(b.gc * self.rows.div_ceil(G) + b.gr, scale);
            }
        }
    }

    /// Stores a block's codes at their transposed place.
    unsafe fn store_transposed(&self, b: &Block, codes: &[u8], out: Output) {
        // SAFETY: columns `b.col..b.col + b.cols` and rows from `b.row` on are this block's.
        unsafe { transpose(codes, b.cols, out.codes.get().add(b.col * self.rows + b.row), self.rows) }
    }
}

/// Codes and scales of groups that are the rows of `values`; rows of codes lie `stride` apart.
struct QuantizeRows<'a> {
    values: &'a [f32],
    width: usize,
    mode: ScaleMode,
    codes: *mut u8,
    stride: usize,
    scales: &'a mut [f32],
}

impl Vectorised for QuantizeRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        for (i, (values, scale)) in self.values.chunks_exact(self.width).zip(self.scales).enumerate() {
            *scale = scale_of(amax_inline(values), self.mode);
            let factor = 1.0 / *scale;
            // SAFETY: the row's codes are the block's own.
            let codes = unsafe { std::slice::from_raw_parts_mut(self.codes.add(i * self.stride), self.width) };
            codes.iter_mut().zip(values).for_each(|(code, x)| *code = f32_to_e4m3(*x * factor));
        }
    }
}

/// Largest magnitude of each column.
struct ColumnAmax<'a> {
    values: &'a [f32],
    amax: &'a mut [f32],
}

impl Vectorised for ColumnAmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        self.amax.fill(0.0);
        for row in self.values.chunks_exact(self.amax.len()) {
            for (m, x) in self.amax.iter_mut().zip(row) {
                *m = larger(x.abs(), *m);
            }
        }
    }
}

/// Codes of `values[i, j] * factors[j]`.
struct EncodeColumns<'a> {
    values: &'a [f32],
    factors: &'a [f32],
    codes: &'a mut [u8],
}

impl Vectorised for EncodeColumns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        let n = self.factors.len();
        for (codes, values) in self.codes.chunks_exact_mut(n).zip(self.values.chunks_exact(n)) {
            for ((code, value), factor) in codes.iter_mut().zip(values).zip(self.factors) {
                *code = f32_to_e4m3(*value * *factor);
            }
        }
    }
}

/// Scratch bytes for a pool of `threads`.
pub(crate) fn scratch(k: &Quantize, threads: usize) -> u64 {
    Plan::new(k).tasks().scratch(threads)
}

/// Runs the kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::Unsupported`] for a source that is neither f32 nor bf16.
pub(crate) unsafe fn run(k: &Quantize, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let [source, codes, scales, rest @ ..] = args else {
        return Err(KernelError::Invalid { family: "quantize", reason: format!("{} arguments", args.len()) });
    };
    let output = |codes: &Buffer, scales: &Buffer| Output { codes: Shared(codes.ptr), scales: Shared(scales.ptr.cast()) };
    let first = output(codes, scales);
    let second = match rest {
        [codes, scales] => output(codes, scales),
        _ => first,
    };
    let source = Operand { ptr: source.ptr, float: Float::of(k.source, "quantize")?, rs: k.cols as isize, cs: 1 };
    let plan = Plan::new(k);
    // SAFETY: blocks are disjoint, and the arguments valid.
    unsafe { plan.tasks().run(scratch, |i, slot| plan.run(source, &[first, second], i, slot)) }
}
