//! Loops over rows of f32 that several kernels share.

use crate::cpu::math::Fma;
use crate::numerics::simd::{Vectorised, dispatch, fold_lanes};

/// Sum of products of two rows, in sixteen lanes.
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    dispatch(Dot { x, y })
}

/// `sum += factor * x`.
pub(crate) fn add_scaled(sum: &mut [f32], factor: f32, x: &[f32]) {
    dispatch(AddScaled { sum, factor, x });
}

/// Multiplies a row.
pub(crate) fn rescale(row: &mut [f32], factor: f32) {
    dispatch(Rescale { row, factor });
}

struct Dot<'a> {
    x: &'a [f32],
    y: &'a [f32],
}

impl Vectorised for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<F: Fma>(self) -> f32 {
        let mut lanes = [0.0f32; 16];
        let (xs, ys) = (self.x.chunks_exact(16), self.y.chunks_exact(16));
        let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x * y).sum();
        for (x, y) in xs.zip(ys) {
            for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
                *lane += x * y;
            }
        }
        fold_lanes(lanes, |x, y| x + y) + rest
    }
}

struct AddScaled<'a> {
    sum: &'a mut [f32],
    factor: f32,
    x: &'a [f32],
}

impl Vectorised for AddScaled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        for (sum, x) in self.sum.iter_mut().zip(self.x) {
            *sum += self.factor * x;
        }
    }
}

struct Rescale<'a> {
    row: &'a mut [f32],
    factor: f32,
}

impl Vectorised for Rescale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        self.row.iter_mut().for_each(|x| *x *= self.factor);
    }
}
