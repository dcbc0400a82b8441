//! Correlations of planes with unit stride, on copies padded so that loops run over whole lanes without edges.

use super::super::math::Fma;
use crate::numerics::simd::{Vectorised, dispatch, fold_lanes};

/// Floats that a loop takes at a time.
const LANES: usize = 16;
/// Lanes of a wide block of a row.
const WIDE: usize = 64;

/// A plane of zeros with an image in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Padded {
    /// Rows, and floats from row to row.
    pub rows: usize,
    pub ld: usize,
    /// Where the image begins.
    pub top: usize,
    pub left: usize,
}

impl Padded {
    /// Room for what `taps` taps `dilation` apart read around `output` positions, from `pad` before the image on.
    pub(super) fn new(output: [usize; 2], taps: [usize; 2], dilation: [usize; 2], pad: [usize; 2], image: [usize; 2]) -> Padded {
        let reach = [0, 1].map(|d| dilation[d] * (taps[d] - 1));
        let rows = (output[0] + reach[0]).max(image[0] + pad[0]);
        let cols = (output[1].next_multiple_of(LANES) + reach[1]).max(image[1] + pad[1]);
        Padded { rows, ld: cols.next_multiple_of(LANES), top: pad[0], left: pad[1] }
    }

    pub(super) fn floats(&self) -> usize {
        self.rows * self.ld
    }

    /// Puts an image of rows of `width` into a plane of zeros.
    pub(super) fn fill(&self, image: &[f32], width: usize, plane: &mut [f32]) {
        let plane = &mut plane[..self.floats()];
        plane.fill(0.0);
        for (row, image) in plane.chunks_exact_mut(self.ld).skip(self.top).zip(image.chunks_exact(width.max(1))) {
            row[self.left..][..width].copy_from_slice(image);
        }
    }
}

/// `y[i, j] += sum(w[r, s] * x[i + r * dilation, j + s * dilation])`; rows of `y` are whole lanes, `y_ld` apart.
pub(super) struct Correlate<'a> {
    pub x: &'a [f32],
    pub x_ld: usize,
    pub weight: &'a [f32],
    pub taps: [usize; 2],
    pub dilation: [usize; 2],
    pub y: &'a mut [f32],
    pub y_ld: usize,
}

impl Correlate<'_> {
    pub(super) fn run(self) {
        dispatch(self);
    }

    /// The columns `j..j + N` of an output row.
    #[inline(always)]
    fn block<F: Fma, const N: usize>(&mut self, i: usize, j: usize) {
        let mut sums = [0.0f32; N];
        for r in 0..self.taps[0] {
            let row = &self.x[(i + r * self.dilation[0]) * self.x_ld + j..];
            for s in 0..self.taps[1] {
                let weight = self.weight[r * self.taps[1] + s];
                let x = &row[s * self.dilation[1]..][..N];
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = F::fma(weight, *x, *sum);
                }
            }
        }
        let y = &mut self.y[i * self.y_ld + j..][..N];
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
    }
}

impl Vectorised for Correlate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(mut self) {
        for i in 0..self.y.len() / self.y_ld {
            let mut j = 0;
            while j + WIDE <= self.y_ld {
                self.block::<F, WIDE>(i, j);
                j += WIDE;
            }
            while j < self.y_ld {
                self.block::<F, LANES>(i, j);
                j += LANES;
            }
        }
    }
}

/// `dw[r, s] += sum(dy[i, j] * x[i + r * dilation, j + s * dilation])`; rows of `dy` are whole lanes, zero beyond the image.
pub(super) struct CorrelateTaps<'a> {
    pub x: &'a [f32],
    pub x_ld: usize,
    pub dy: &'a [f32],
    pub dy_ld: usize,
    pub taps: [usize; 2],
    pub dilation: [usize; 2],
    pub dw: &'a mut [f32],
}

impl CorrelateTaps<'_> {
    pub(super) fn run(self) {
        dispatch(self);
    }

    /// What the columns `j..j + N` of every row add to one tap.
    #[inline(always)]
    fn block<F: Fma, const N: usize>(&self, r: usize, s: usize, j: usize) -> f32 {
        let mut sums = [0.0f32; N];
        for (i, dy) in self.dy.chunks_exact(self.dy_ld).enumerate() {
            let x = &self.x[(i + r * self.dilation[0]) * self.x_ld + s * self.dilation[1] + j..][..N];
            for ((sum, x), dy) in sums.iter_mut().zip(x).zip(&dy[j..][..N]) {
                *sum = F::fma(*dy, *x, *sum);
            }
        }
        fold_lanes(sums, |x, y| x + y)
    }
}

impl Vectorised for CorrelateTaps<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        for r in 0..self.taps[0] {
            for s in 0..self.taps[1] {
                let (mut j, mut sum) = (0, 0.0);
                while j + WIDE <= self.dy_ld {
                    sum += self.block::<F, WIDE>(r, s, j);
                    j += WIDE;
                }
                while j < self.dy_ld {
                    sum += self.block::<F, LANES>(r, s, j);
                    j += LANES;
                }
                self.dw[r * self.taps[1] + s] += sum;
            }
        }
    }
}
