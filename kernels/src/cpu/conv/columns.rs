//! Images as matrices of columns: row `(channel, r, s)`, a column for each output position, and back.

use super::super::matrix::{Float, Operand};
use crate::program::Window;
use std::ops::Range;

/// Output columns `x` whose kernel column `s` reads inside the image, within a range.
#[inline(always)]
fn inside(w: &Window, s: usize, x: Range<usize>) -> Range<usize> {
    let origin = s as i64 * w.dilation[1] as i64 - w.pad[1] as i64;
    let (step, extent) = (w.stride[1] as i64, w.input[1] as i64);
    let first = if origin < 0 { (-origin + step - 1) / step } else { 0 };
    let end = if origin >= extent { 0 } else { (extent - 1 - origin) / step + 1 };
    let first = first.clamp(x.start as i64, x.end as i64) as usize;
    first..(end.clamp(first as i64, x.end as i64) as usize)
}

/// A run of one output row: its columns `x` of output row `y`, from position `at` of a matrix's row on.
struct Run {
    y: usize,
    x: Range<usize>,
    at: usize,
}

/// Cuts a range of output positions into runs of one row each.
fn runs(w: &Window, positions: Range<usize>) -> impl Iterator<Item = Run> {
    let across = w.output[1] as usize;
    let mut p = positions.start;
    std::iter::from_fn(move || {
        let (y, x) = (p / across, p % across);
        let len = (across - x).min(positions.end - p);
        let run = Run { y, x: x..x + len, at: p - positions.start };
        p += len;
        (len > 0).then_some(run)
    })
}

/// Input row that output row `y` reads with kernel row `r`, where inside the image.
#[inline(always)]
fn input_row(w: &Window, y: usize, r: usize) -> Option<usize> {
    let row = (y as u64 * w.stride[0] + r as u64 * w.dilation[0]) as i64 - w.pad[0] as i64;
    (0..w.input[0] as i64).contains(&row).then_some(row as usize)
}

/// Element of an input row that output column `x` reads with kernel column `s`; it must be inside.
#[inline(always)]
fn input_column(w: &Window, x: usize, s: usize) -> usize {
    (x as u64 * w.stride[1] + s as u64 * w.dilation[1] - w.pad[1]) as usize
}

/// Fills rows `ld` apart with what `channels` channels, the first at `image`, give for `positions`.
///
/// # Safety
/// The channels lie one after the other at `image`; `out` has room for `channels * taps` rows.
pub(super) unsafe fn gather(w: &Window, image: Operand, channels: usize, positions: Range<usize>, out: &mut [f32], ld: usize) {
    let (plane, across) = ((w.input[0] * w.input[1]) as usize, w.input[1] as usize);
    let mut rows = out.chunks_mut(ld);
    for channel in 0..channels {
        for r in 0..w.kernel[0] as usize {
            for s in 0..w.kernel[1] as usize {
                let Some(out) = rows.next() else { return };
                for run in runs(w, positions.clone()) {
                    let len = run.x.len();
                    let out = &mut out[run.at..][..len];
                    let seen = inside(w, s, run.x.clone());
                    let Some(row) = input_row(w, run.y, r).filter(|_| !seen.is_empty()) else {
                        out.fill(0.0);
                        continue;
                    };
                    let (before, after) = (seen.start - run.x.start, seen.end - run.x.start);
                    out[..before].fill(0.0);
                    out[after..].fill(0.0);
                    let first = channel * plane + row * across + input_column(w, seen.start, s);
                    // SAFETY: columns `seen` of an input row.
                    unsafe { Operand { cs: w.stride[1] as isize, ..image.offset(first as isize) }.load_row(&mut out[before..after]) };
                }
            }
        }
    }
}

/// Adds such a matrix to the f32 image that it would have been gathered from.
pub(super) fn scatter(w: &Window, columns: &[f32], ld: usize, positions: Range<usize>, image: &mut [f32]) {
    let (plane, across) = ((w.input[0] * w.input[1]) as usize, w.input[1] as usize);
    let mut rows = columns.chunks(ld);
    for image in image.chunks_exact_mut(plane.max(1)) {
        for r in 0..w.kernel[0] as usize {
            for s in 0..w.kernel[1] as usize {
                let Some(columns) = rows.next() else { return };
                for run in runs(w, positions.clone()) {
                    let seen = inside(w, s, run.x.clone());
                    let Some(row) = input_row(w, run.y, r).filter(|_| !seen.is_empty()) else { continue };
                    let first = row * across + input_column(w, seen.start, s);
                    let columns = &columns[run.at + seen.start - run.x.start..][..seen.len()];
                    if w.stride[1] == 1 {
                        image[first..][..columns.len()].iter_mut().zip(columns).for_each(|(x, c)| *x += c);
                    } else {
                        image[first..].iter_mut().step_by(w.stride[1] as usize).zip(columns).for_each(|(x, c)| *x += c);
                    }
                }
            }
        }
    }
}

/// One output row under one tap: the run of the output plane, and where the input plane's begins; the latter's stride is the
/// window's.
pub(super) struct TapRow {
    pub tap: usize,
    pub output: Range<usize>,
    pub input: usize,
}

/// Visits every tap of every output row that reads inside the image, for convolutions whose groups have a single input channel.
#[inline(always)]
pub(super) fn taps(w: &Window, mut visit: impl FnMut(TapRow)) {
    let (across, out_across) = (w.input[1] as usize, w.output[1] as usize);
    for r in 0..w.kernel[0] as usize {
        for s in 0..w.kernel[1] as usize {
            let seen = inside(w, s, 0..out_across);
            if seen.is_empty() {
                continue;
            }
            let column = input_column(w, seen.start, s);
            for y in 0..w.output[0] as usize {
                let Some(row) = input_row(w, y, r) else { continue };
                let output = y * out_across + seen.start..y * out_across + seen.end;
                visit(TapRow { tap: r * w.kernel[1] as usize + s, output, input: row * across + column });
            }
        }
    }
}

/// A plane in f32: where it lies, or converted.
///
/// # Safety
/// The plane has `len` valid elements, and nobody writes them for as long as the result lives.
pub(super) unsafe fn plane(x: Operand, len: usize, panel: &mut [f32]) -> &[f32] {
    // SAFETY: the caller's promise.
    unsafe {
        match x.float {
            Float::F32 => std::slice::from_raw_parts(x.ptr.cast(), len),
            _ => {
                x.load_row(&mut panel[..len]);
                &panel[..len]
            }
        }
    }
}
