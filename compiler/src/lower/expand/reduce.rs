//! Reductions: axes of extent 1 dropped, long ones with few results made in two stages.

use super::Writer;
use crate::Error;
use crate::graph::{Expr, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::Fold;

/// Results of a reduction, counted in its first stage, from which on every thread of a GPU has work.
const ENOUGH_ROWS: u64 = 1 << 15;
/// Shortest row that is worth a second stage.
const LONG_ROW: u64 = 1 << 10;
/// Shortest row that the first stage may fold.
const SHORT_ROW: u64 = 1 << 5;
/// Most partial results to a result.
const MOST_PARTIALS: u64 = 1 << 10;

/// `Reduce` over any axes.
pub(super) fn reduce(w: &mut Writer, op: Fold, x: ValueId, axes: &[usize], dtype: DType) -> Result<ValueId, Error> {
    let shape = w.shape(x).to_vec();
    let out: Vec<u64> = (0..shape.len()).map(|d| if axes.contains(&d) { 1 } else { shape[d] }).collect();
    let runs = runs(&shape, axes);
    let (rows, row) = runs.iter().fold((1, 1), |(r, l), &(e, folded)| if folded { (r, l * e) } else { (r * e, l) });
    if row == 1 {
        return w.one(Op::Map(Expr::identity(), dtype), &[x]);
    }
    let partial = if dtype.is_float() { DType::F32 } else { dtype };
    let few = rows < ENOUGH_ROWS && row >= LONG_ROW;
    let merged = w.reshape(x, &runs.iter().map(|r| r.0).collect::<Vec<_>>())?;
    let folded: Vec<usize> = (0..runs.len()).filter(|&d| runs[d].1).collect();
    let fold = |w: &mut Writer, x, axes: Vec<usize>, dtype| w.one(Op::Reduce { op, axes, dtype }, &[x]);
    let result = match folded[..] {
        [d] if few && partials(rows, row) > 1 => {
            let p = partials(rows, row);
            let mut split: Vec<u64> = runs.iter().map(|r| r.0).collect();
            split.splice(d..=d, [p, row / p]);
            let x = w.reshape(merged, &split)?;
            let first = fold(w, x, vec![d + 1], partial)?;
            fold(w, first, vec![d], dtype)?
        }
        [.., last] if few && folded.len() > 1 => {
            let first = fold(w, merged, vec![last], partial)?;
            fold(w, first, folded[..folded.len() - 1].to_vec(), dtype)?
        }
        _ => fold(w, merged, folded, dtype)?,
    };
    w.reshape(result, &out)
}

/// A reduction along the last `axes` axes in one stage, for values that are read along the same rows again.
pub(super) fn along_rows(w: &mut Writer, op: Fold, x: ValueId, axes: usize) -> Result<ValueId, Error> {
    let rank = w.shape(x).len();
    match w.shape(x)[rank - axes..].iter().product::<u64>() {
        1 => w.one(Op::Map(Expr::identity(), DType::F32), &[x]),
        _ => w.one(Op::Reduce { op, axes: (rank - axes..rank).collect(), dtype: DType::F32 }, &[x]),
    }
}

/// Neighbouring axes of one fate merged, those of extent 1 dropped: `(extent, folded)`.
fn runs(shape: &[u64], axes: &[usize]) -> Vec<(u64, bool)> {
    let mut runs: Vec<(u64, bool)> = vec![];
    for (d, &extent) in shape.iter().enumerate().filter(|(_, e)| **e != 1) {
        let folded = axes.contains(&d);
        match runs.last_mut() {
            Some(last) if last.1 == folded => last.0 *= extent,
            _ => runs.push((extent, folded)),
        }
    }
    runs
}

/// Into how many parts each row of a reduction is cut: the divisor of `row` next below what fills a device.
fn partials(rows: u64, row: u64) -> u64 {
    divisor(row, (ENOUGH_ROWS.div_ceil(rows.max(1))).min(row / SHORT_ROW).min(MOST_PARTIALS))
}

/// The largest divisor of `row` up to `most`.
pub(super) fn divisor(row: u64, most: u64) -> u64 {
    (1..=most).rev().find(|p| row.is_multiple_of(*p)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_of_one_fate_merge_and_those_of_extent_one_vanish() {
        assert_eq!(runs(&[2, 8, 1, 16], &[0, 1]), [(16, true), (16, false)]);
        assert_eq!(runs(&[4, 3, 5, 5], &[0, 2, 3]), [(4, true), (3, false), (25, true)]);
        assert_eq!(runs(&[1, 1], &[0, 1]), []);
    }

    #[test]
    fn long_rows_are_cut_evenly_and_prime_ones_not_at_all() {
        assert_eq!(partials(768, 8192), 32);
        assert_eq!(partials(1, 1 << 20), 1024);
        assert_eq!(partials(768, 8191), 1);
        assert_eq!(partials(1, 3 * 1000), 75);
    }
}
