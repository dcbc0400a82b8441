//! A block of scores: what a query sees, caps, biases, and the row loops.

use super::super::Buffer;
use super::super::matrix::{Float, Operand};
use crate::numerics::exp::{exp, tanh};
use crate::numerics::simd::Vectorised;
use crate::program::{self, Attention};
use crate::{DType, KernelError};
use std::ops::Range;

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
        let start = (batch as u64 * s.batch + head as u64 * s.head + query as u64 * s.query + key as u64 * s.key) as usize;
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

/// Caps a row of scores and adds the bias; returns the largest.
pub(super) struct Finish<'a> {
    pub row: &'a mut [f32],
    pub cap: Option<f32>,
    pub bias: Option<&'a [f32]>,
}

impl Vectorised for Finish<'_> {
    type Output = f32;
    #[inline(always)]
    fn run(self) -> f32 {
        if let Some(cap) = self.cap {
            self.row.iter_mut().for_each(|z| *z = cap * tanh(*z / cap));
        }
        if let Some(bias) = self.bias {
            self.row.iter_mut().zip(bias).for_each(|(z, b)| *z += b);
        }
        let mut lanes = [f32::NEG_INFINITY; 16];
        let chunks = self.row.chunks_exact(16);
        let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, z| if *z > m { *z } else { m });
        for chunk in chunks {
            for (lane, z) in lanes.iter_mut().zip(chunk) {
                *lane = if *z > *lane { *z } else { *lane };
            }
        }
        lanes.into_iter().fold(rest, |m, z| if z > m { z } else { m })
    }
}

/// Replaces scores by `exp(z - shift)`; returns their sum.
pub(super) struct Exponentials<'a> {
    pub row: &'a mut [f32],
    pub shift: f32,
}

impl Vectorised for Exponentials<'_> {
    type Output = f32;
    #[inline(always)]
    fn run(self) -> f32 {
        let shift = self.shift;
        let mut lanes = [0.0f32; 16];
        let mut chunks = self.row.chunks_exact_mut(16);
        for chunk in &mut chunks {
            for (lane, z) in lanes.iter_mut().zip(chunk) {
                *z = exp(*z - shift);
                *lane += *z;
            }
        }
        let mut sum = 0.0;
        for z in chunks.into_remainder() {
            *z = exp(*z - shift);
            sum += *z;
        }
        lanes.into_iter().fold(sum, |s, x| s + x)
    }
}

/// From a row of raw scores makes the probabilities `exp(z - lse)` in place; with a cap, keeps the cap's derivative in `slope`.
pub(super) struct Probabilities<'a> {
    pub row: &'a mut [f32],
    pub slope: &'a mut [f32],
    pub cap: Option<f32>,
    pub bias: Option<&'a [f32]>,
    pub lse: f32,
}

impl Vectorised for Probabilities<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        if let Some(cap) = self.cap {
            for (z, slope) in self.row.iter_mut().zip(self.slope) {
                let t = tanh(*z / cap);
                *slope = 1.0 - t * t;
                *z = cap * t;
            }
        }
        if let Some(bias) = self.bias {
            self.row.iter_mut().zip(bias).for_each(|(z, b)| *z += b);
        }
        let lse = self.lse;
        self.row.iter_mut().for_each(|z| *z = exp(*z - lse));
    }
}

/// Turns a row of `do . v` into the gradient of the raw scores: `p * (dp - delta)`, times the cap's derivative.
pub(super) struct ScoreGradient<'a> {
    pub row: &'a mut [f32],
    pub probabilities: &'a [f32],
    pub slope: Option<&'a [f32]>,
    pub delta: f32,
}

impl Vectorised for ScoreGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (dp, p) in self.row.iter_mut().zip(self.probabilities) {
            *dp = p * (*dp - self.delta);
        }
        if let Some(slope) = self.slope {
            self.row.iter_mut().zip(slope).for_each(|(dz, slope)| *dz *= slope);
        }
    }
}
