//! Loops that fold a tile along its rows.
//!
//! Inside a tile floats fold in f32 on many lanes; between tiles in f64, so that long rows keep their precision. The order depends on
//! the shape of the tile alone.

use super::loops::Isa;
use super::numbers;
use crate::program::{Fold, Kind};

/// `(accumulators, tile, rows, columns, lanes)`: accumulators are f64 or i64, `rows * lanes` of them. Rows are contiguous in a tile
/// of one lane; a tile of several has one row of them.
pub type FoldFn = unsafe fn(*mut u8, *const u8, usize, usize, usize);

/// Bytes of an accumulator.
pub const ACCUMULATOR: usize = 8;

/// Lanes in which a contiguous row is folded.
const WIDTH: usize = 64;

/// How to fold: in a tile in `Item`, between tiles in `Total`.
trait Folding {
    type Item: Copy;
    type Total: Copy;
    const EMPTY: Self::Item;
    fn item(a: Self::Item, b: Self::Item) -> Self::Item;
    fn total(a: Self::Total, b: Self::Item) -> Self::Total;
}

#[inline(always)]
fn row<F: Folding>(row: &[F::Item]) -> F::Item {
    let mut lanes = [F::EMPTY; WIDTH];
    let chunks = row.chunks_exact(WIDTH);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = F::item(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = F::item(*lane, *x);
    }
    let mut width = WIDTH / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(a, b)| *a = F::item(*a, *b));
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
unsafe fn body<F: Folding>(totals: *mut u8, tile: *const u8, rows: usize, columns: usize, lanes: usize) {
    // SAFETY: the caller gives a tile and accumulators of these sizes.
    let (totals, tile) = unsafe {
        let totals = std::slice::from_raw_parts_mut(totals.cast::<F::Total>(), rows * lanes);
        (totals, std::slice::from_raw_parts(tile.cast::<F::Item>(), rows * columns * lanes))
    };
    if columns == 0 {
        return;
    }
    if lanes == 1 {
        for (total, values) in totals.iter_mut().zip(tile.chunks_exact(columns)) {
            *total = F::total(*total, row::<F>(values));
        }
        return;
    }
    for (at, totals) in totals.chunks_mut(WIDTH).enumerate() {
        let mut sums = [F::EMPTY; WIDTH];
        for line in tile.chunks_exact(lanes) {
            let line = &line[at * WIDTH..][..totals.len()];
            if line.len() == WIDTH {
                sums.iter_mut().zip(line).for_each(|(sum, x)| *sum = F::item(*sum, *x));
            } else {
                sums.iter_mut().zip(line).for_each(|(sum, x)| *sum = F::item(*sum, *x));
            }
        }
        totals.iter_mut().zip(&sums).for_each(|(total, sum)| *total = F::total(*total, *sum));
    }
}

unsafe fn base<F: Folding>(totals: *mut u8, tile: *const u8, rows: usize, columns: usize, lanes: usize) {
    unsafe { body::<F>(totals, tile, rows, columns, lanes) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<F: Folding>(totals: *mut u8, tile: *const u8, rows: usize, columns: usize, lanes: usize) {
    unsafe { body::<F>(totals, tile, rows, columns, lanes) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn avx512<F: Folding>(totals: *mut u8, tile: *const u8, rows: usize, columns: usize, lanes: usize) {
    unsafe { body::<F>(totals, tile, rows, columns, lanes) }
}

/// The loops of one fold.
#[derive(Clone, Copy, Debug)]
pub struct FoldLoops {
    /// What an accumulator holds at first.
    pub empty: [u8; ACCUMULATOR],
    /// Folds a tile into accumulators.
    pub tile: FoldFn,
    /// Folds other accumulators (second argument) into the first, `n` of them (third).
    pub merge: unsafe fn(*mut u8, *const u8, usize),
    /// Makes row values (first argument) of accumulators.
    pub finish: unsafe fn(*mut u8, *const u8, usize),
}

trait Total: Folding {
    const START: Self::Total;
    type Value: Copy;
    fn merge(a: Self::Total, b: Self::Total) -> Self::Total;
    fn value(total: Self::Total) -> Self::Value;
    fn bytes(total: Self::Total) -> [u8; ACCUMULATOR];
}

unsafe fn merge<F: Total>(totals: *mut u8, others: *const u8, n: usize) {
    let (totals, others) = (totals.cast::<F::Total>(), others.cast::<F::Total>());
    for i in 0..n {
        // SAFETY: the caller gives `n` accumulators each.
        unsafe { totals.add(i).write(F::merge(totals.add(i).read(), others.add(i).read())) };
    }
}

unsafe fn finish<F: Total>(values: *mut u8, totals: *const u8, n: usize) {
    let (values, totals) = (values.cast::<F::Value>(), totals.cast::<F::Total>());
    for i in 0..n {
        // SAFETY: the caller gives `n` values and accumulators.
        unsafe { values.add(i).write(F::value(totals.add(i).read())) };
    }
}

fn loops<F: Total>(isa: Isa) -> FoldLoops {
    let tile: FoldFn = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::<F>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::<F>,
        _ => base::<F>,
    };
    FoldLoops { empty: F::bytes(F::START), tile, merge: merge::<F>, finish: finish::<F> }
}

/// Declares folds: `name: what a tile starts with, item and total functions`.
macro_rules! folds {
    ($item:ty, $total:ty { $($name:ident: $empty:expr, $of:expr, $of_totals:expr;)* }) => {
        $(struct $name;
        impl Folding for $name {
            type Item = $item;
            type Total = $total;
            const EMPTY: $item = $empty;
            #[inline(always)]
            fn item(a: $item, b: $item) -> $item {
                $of(a, b)
            }
            #[inline(always)]
            fn total(a: $total, b: $item) -> $total {
                $of_totals(a, b as $total)
            }
        }
        impl Total for $name {
            const START: $total = $empty as $total;
            type Value = $item;
            fn merge(a: $total, b: $total) -> $total {
                $of_totals(a, b)
            }
            fn value(total: $total) -> $item {
                total as $item
            }
            fn bytes(total: $total) -> [u8; ACCUMULATOR] {
                total.to_ne_bytes()
            }
        })*
    };
}

folds!(f32, f64 {
    Sum: 0.0, |a, b| a + b, |a, b| a + b;
    Prod: 1.0, |a, b| a * b, |a, b| a * b;
    Max: f32::NEG_INFINITY, numbers::max, numbers::max_f64;
    Min: f32::INFINITY, numbers::min, numbers::min_f64;
});

folds!(i64, i64 {
    IntSum: 0, i64::wrapping_add, i64::wrapping_add;
    IntProd: 1, i64::wrapping_mul, i64::wrapping_mul;
    IntMax: i64::MIN, Ord::max, Ord::max;
    IntMin: i64::MAX, Ord::min, Ord::min;
});

/// The loops of a fold; `None` for bools.
pub fn of(fold: Fold, kind: Kind, isa: Isa) -> Option<FoldLoops> {
    Some(match (kind, fold) {
        (Kind::Bool, _) => return None,
        (Kind::Float, Fold::Sum) => loops::<Sum>(isa),
        (Kind::Float, Fold::Prod) => loops::<Prod>(isa),
        (Kind::Float, Fold::Max) => loops::<Max>(isa),
        (Kind::Float, Fold::Min) => loops::<Min>(isa),
        (Kind::Int, Fold::Sum) => loops::<IntSum>(isa),
        (Kind::Int, Fold::Prod) => loops::<IntProd>(isa),
        (Kind::Int, Fold::Max) => loops::<IntMax>(isa),
        (Kind::Int, Fold::Min) => loops::<IntMin>(isa),
    })
}
