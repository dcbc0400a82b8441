//! Correlations of planes with any stride, tap by tap.

use super::super::math::Fma;
use super::columns::taps;
use crate::numerics::simd::Vectorised;
use crate::program::Window;

/// `y += w * x`, one plane.
pub(super) struct Fprop<'a> {
    pub w: &'a Window,
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub y: &'a mut [f32],
}

impl Vectorised for Fprop<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        let stride = self.w.stride[1] as usize;
        taps(self.w, |row| {
            let (weight, y) = (self.weight[row.tap], &mut self.y[row.output]);
            let x = self.x[row.input..].iter().step_by(stride);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = F::fma(weight, *x, *y));
        });
    }
}

/// `dx += w * dy`, one plane.
pub(super) struct Dgrad<'a> {
    pub w: &'a Window,
    pub dy: &'a [f32],
    pub weight: &'a [f32],
    pub dx: &'a mut [f32],
}

impl Vectorised for Dgrad<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        let stride = self.w.stride[1] as usize;
        taps(self.w, |row| {
            let (weight, dy, dx) = (self.weight[row.tap], &self.dy[row.output], &mut self.dx[row.input..]);
            dx.iter_mut().step_by(stride).zip(dy).for_each(|(x, y)| *x = F::fma(weight, *y, *x));
        });
    }
}

/// `dw += dy * x`, one plane.
pub(super) struct Wgrad<'a> {
    pub w: &'a Window,
    pub x: &'a [f32],
    pub dy: &'a [f32],
    pub dw: &'a mut [f32],
}

impl Vectorised for Wgrad<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        let stride = self.w.stride[1] as usize;
        taps(self.w, |row| {
            let (x, dy) = (self.x[row.input..].iter().step_by(stride), &self.dy[row.output]);
            self.dw[row.tap] += dy.iter().zip(x).map(|(dy, x)| dy * x).sum::<f32>();
        });
    }
}
