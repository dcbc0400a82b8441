//! A block of scores: what a query sees, caps, biases, and the row loops.

use super::super::Buffer;
use super::super::loops::add_scaled;
use super::super::math::{self, Fma};
use super::super::matrix::{Float, Operand};
use crate::numerics::simd::{Vectorised, fold_lanes};
use crate::program::{self, Attention};
use crate::{DType, KernelError};
use std::ops::Range;

/// Floats that loops take at a time: rows of scores are cut, and padded, to multiples of it.
const LANES: usize = 16;

/// Which keys the mask lets a query see.
#[derive(Clone, Copy)]
pub(super) struct Visible {
    kv_len: i64,
    shift: i64,
    causal: bool,
    window: Option<i64>,
}

impl Visible {
    pub(super) fn new(k: &Attention) -> Visible {
        let (q_len, kv_len) = (k.q_len as i64, k.kv_len as i64);
        let shift = if k.mask.align_end { kv_len - q_len } else { 0 };
        let window = k.mask.window.map(|w| i64::try_from(w).unwrap_or(i64::MAX / 2));
        Visible { kv_len, shift, causal: k.mask.causal, window }
    }

    /// The keys that query `i` sees: one run, perhaps an empty one.
    pub(super) fn keys(&self, i: usize) -> Range<usize> {
        let position = i as i64 + self.shift;
        let end = if self.causal { (position + 1).clamp(0, self.kv_len) } else { self.kv_len };
        let start = self.window.map_or(0, |w| (position - (w - 1)).clamp(0, end));
        start as usize..end as usize
    }

    /// The keys that any of these queries sees: positions ascend, and so do both ends.
    pub(super) fn keys_of(&self, queries: Range<usize>) -> Range<usize> {
        self.keys(queries.start).start..self.keys(queries.end - 1).end
    }
}

/// The bias argument.
#[derive(Clone, Copy)]
pub(super) struct Bias {
    shape: program::Bias,
    ptr: *const u8,
    float: Option<Float>,
}

// SAFETY: only read.
unsafe impl Sync for Bias {}

impl Bias {
    pub(super) fn new(shape: program::Bias, arg: Option<&Buffer>) -> Result<Bias, KernelError> {
        let float = if shape.dtype == DType::Bool { None } else { Some(Float::of(shape.dtype, "attention with a bias")?) };
        Ok(Bias { shape, ptr: arg.map_or(std::ptr::null(), |b| b.ptr), float })
    }

    /// What is added to the scores of a query with the keys from `key` on: 0 or minus infinity for a bool.
    ///
    /// # Safety
    /// All indices are inside.
    pub(super) unsafe fn row(&self, [batch, head, query]: [usize; 3], key: usize, out: &mut [f32]) {
        let s = &self.shape;
        let terms = [(batch, s.batch), (head, s.head), (query, s.query), (key, s.key)];
        let start = terms.iter().map(|&(index, stride)| index * stride as usize).sum::<usize>();
        match self.float {
            // SAFETY: the caller's promise.
            Some(float) => unsafe {
                Operand { ptr: self.ptr.cast_mut(), float, rs: 0, cs: s.key as isize }.offset(start as isize).load_row(out);
            },
            None => {
                for (j, x) in out.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    let visible = unsafe { *self.ptr.add(start + j * s.key as usize) } != 0;
                    *x = if visible { 0.0 } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// Rows of scores of consecutive queries with a run of keys.
pub(super) struct Block<'a> {
    pub scores: &'a mut [f32],
    /// From row to row; a multiple of the lanes.
    pub ld: usize,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
    pub visible: Visible,
}

impl Block<'_> {
    /// The columns of a row that its query sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        let seen = self.visible.keys(self.queries.start + row);
        let lo = seen.start.clamp(self.keys.start, self.keys.end);
        let hi = seen.end.clamp(lo, self.keys.end);
        lo - self.keys.start..hi - self.keys.start
    }

    /// A row's columns in whole lanes around those that its query sees; the others become 0, those between minus infinity.
    #[inline(always)]
    fn mask(&mut self, row: usize) -> Range<usize> {
        let seen = self.seen(row);
        let (lo, hi) = (seen.start / LANES * LANES, seen.end.next_multiple_of(LANES));
        let scores = &mut self.scores[row * self.ld..][..self.ld];
        if seen.is_empty() {
            scores.fill(0.0);
            return 0..0;
        }
        scores[..lo].fill(0.0);
        scores[lo..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..hi].fill(f32::NEG_INFINITY);
        scores[hi..].fill(0.0);
        lo..hi
    }

    /// Adds the bias to what the queries see.
    ///
    /// # Safety
    /// The queries and keys of `head` are inside the bias.
    pub(super) unsafe fn add_bias(&mut self, bias: &Bias, batch: usize, head: usize, buffer: &mut [f32]) {
        for row in 0..self.queries.len() {
            let seen = self.seen(row);
            let buffer = &mut buffer[..seen.len()];
            // SAFETY: the caller's promise.
            unsafe { bias.row([batch, head, self.queries.start + row], self.keys.start + seen.start, buffer) };
            add_scaled(&mut self.scores[row * self.ld..][seen], 1.0, buffer);
        }
    }
}

/// Soft-caps scores; `slope` gets the cap's derivative.
pub(super) struct Cap<'a> {
    pub scores: &'a mut [f32],
    pub slope: Option<&'a mut [f32]>,
    pub cap: f32,
}

impl Vectorised for Cap<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        let cap = self.cap;
        match self.slope {
            Some(slope) => {
                for (z, slope) in self.scores.iter_mut().zip(slope) {
                    let t = math::tanh::<F>(*z / cap);
                    *slope = 1.0 - t * t;
                    *z = cap * t;
                }
            }
            None => self.scores.iter_mut().for_each(|z| *z = cap * math::tanh::<F>(*z / cap)),
        }
    }
}

/// One step of an online softmax: turns scores into exponentials under the row's new maximum, and rescales what the old one was
/// used for.
pub(super) struct Softmax<'a> {
    pub block: Block<'a>,
    /// Largest score and sum of exponentials of each row so far.
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// Sums of exponentials times values, rows of `depth`.
    pub out: &'a mut [f32],
    pub depth: usize,
}

impl Vectorised for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(mut self) {
        for row in 0..self.block.queries.len() {
            let columns = self.block.mask(row);
            let scores = &mut self.block.scores[row * self.block.ld..][columns];
            let old = self.max[row];
            let new = largest(scores, old);
            if new == f32::NEG_INFINITY {
                // Nothing seen yet, unless it is NaN, which stays.
                scores.iter_mut().for_each(|z| *z = if z.is_nan() { *z } else { 0.0 });
                self.sum[row] += scores.iter().sum::<f32>();
                continue;
            }
            if new > old {
                let factor = math::exp::<F>(old - new);
                self.max[row] = new;
                self.sum[row] *= factor;
                self.out[row * self.depth..][..self.depth].iter_mut().for_each(|x| *x *= factor);
            }
            let mut lanes = [0.0f32; LANES];
            for chunk in scores.chunks_exact_mut(LANES) {
                for (lane, z) in lanes.iter_mut().zip(chunk) {
                    *z = math::exp::<F>(*z - new);
                    *lane += *z;
                }
            }
            self.sum[row] += fold_lanes(lanes, |x, y| x + y);
        }
    }
}

/// The largest of whole lanes of scores and `least`; NaN is passed over.
#[inline(always)]
fn largest(scores: &[f32], least: f32) -> f32 {
    let mut lanes = [least; LANES];
    for chunk in scores.chunks_exact(LANES) {
        for (lane, z) in lanes.iter_mut().zip(chunk) {
            *lane = if *z > *lane { *z } else { *lane };
        }
    }
    fold_lanes(lanes, |x, y| if x > y { x } else { y })
}

/// From capped and biased scores makes the probabilities `exp(z - lse)`, and from `do . v` in `grads` the gradients of the raw
/// scores: `p * (do . v - delta)`, times the cap's derivative.
pub(super) struct Gradients<'a> {
    pub block: Block<'a>,
    pub grads: &'a mut [f32],
    pub slope: Option<&'a [f32]>,
    pub lse: &'a [f32],
    pub delta: &'a [f32],
}

impl Vectorised for Gradients<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(mut self) {
        let ld = self.block.ld;
        for row in 0..self.block.queries.len() {
            let (lse, delta) = (self.lse[row], self.delta[row]);
            let seen = self.block.seen(row);
            let columns = self.block.mask(row);
            let p = &mut self.block.scores[row * ld..][..ld];
            let dz = &mut self.grads[row * ld..][..ld];
            if lse == f32::NEG_INFINITY {
                // A row that saw nothing.
                p.fill(0.0);
                dz.fill(0.0);
                continue;
            }
            dz[..columns.start].fill(0.0);
            dz[columns.end..].fill(0.0);
            for (p, dz) in p[columns.clone()].iter_mut().zip(&mut dz[columns.clone()]) {
                *p = math::exp::<F>(*p - lse);
                *dz = *p * (*dz - delta);
            }
            if let Some(slope) = self.slope {
                let slope = &slope[row * ld..][columns.clone()];
                dz[columns.clone()].iter_mut().zip(slope).for_each(|(dz, slope)| *dz *= slope);
            }
            // What the query does not see gives nothing, whatever its scores and values are: 0 times an infinity would be NaN.
            let edges = (!columns.is_empty()).then_some([columns.start..seen.start, seen.end..columns.end]);
            for hidden in edges.into_iter().flatten() {
                p[hidden.clone()].fill(0.0);
                dz[hidden].fill(0.0);
            }
        }
    }
}
