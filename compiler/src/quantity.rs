//! Bytes, operations and seconds as types, so that none is added to another.
//!
//! Integers saturate: what is too large to count stays too large to fit. Numbers leave these types where something outside the
//! compiler wants them: the plan and its report, JSON, the solver.

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

/// A number of bytes, or an offset in bytes. Prints for people: three significant digits, binary units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// More than any memory has: no limit, or nowhere.
    pub const MAX: Bytes = Bytes(u64::MAX);

    /// What is left of these bytes, `None` when `taken` is more.
    pub fn checked_sub(self, taken: Bytes) -> Option<Bytes> {
        self.0.checked_sub(taken.0).map(Bytes)
    }

    /// The time to move them at `rate` bytes a second.
    pub fn at(self, rate: f64) -> Seconds {
        Seconds(self.0 as f64 / rate)
    }
}

impl Add for Bytes {
    type Output = Bytes;

    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl Sub for Bytes {
    type Output = Bytes;

    fn sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl Mul<u64> for Bytes {
    type Output = Bytes;

    fn mul(self, count: u64) -> Bytes {
        Bytes(self.0.saturating_mul(count))
    }
}

impl Div<u64> for Bytes {
    type Output = Bytes;

    fn div(self, parts: u64) -> Bytes {
        Bytes(self.0 / parts)
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(bytes: I) -> Bytes {
        bytes.fold(Bytes(0), Add::add)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB"] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        // Padded as a whole, so that columns of sizes line up.
        f.pad(&match unit {
            "B" => format!("{} B", self.0),
            _ if value >= 100.0 => format!("{value:.0} {unit}"),
            _ if value >= 10.0 => format!("{value:.1} {unit}"),
            _ => format!("{value:.2} {unit}"),
        })
    }
}

/// Floating-point operations of matrix products: two for each multiply-add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flops(pub u64);

impl Flops {
    /// Those of a nest of loops of these extents, with one multiply-add inside.
    pub fn of_loops(extents: &[u64]) -> Flops {
        extents.iter().fold(Flops(2), |f, &n| f * n)
    }

    /// The time they take at `rate` operations a second.
    pub fn at(self, rate: f64) -> Seconds {
        Seconds(self.0 as f64 / rate)
    }
}

impl Mul<u64> for Flops {
    type Output = Flops;

    fn mul(self, count: u64) -> Flops {
        Flops(self.0.saturating_mul(count))
    }
}

/// A predicted time in seconds. Not whole nanoseconds: the smallest launches differ by less than one. Ordered totally.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds(pub f64);

impl Seconds {
    /// Seconds a byte; of no bytes, those of one.
    pub fn per_byte(self, bytes: Bytes) -> f64 {
        self.0 / bytes.0.max(1) as f64
    }
}

impl Add for Seconds {
    type Output = Seconds;

    fn add(self, other: Seconds) -> Seconds {
        Seconds(self.0 + other.0)
    }
}

impl Sub for Seconds {
    type Output = Seconds;

    fn sub(self, other: Seconds) -> Seconds {
        Seconds(self.0 - other.0)
    }
}

impl Sum for Seconds {
    fn sum<I: Iterator<Item = Seconds>>(seconds: I) -> Seconds {
        seconds.fold(Seconds(0.0), Add::add)
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Seconds) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Seconds) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Seconds {
    fn eq(&self, other: &Seconds) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Seconds {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_counted_stays_too_large_and_nothing_falls_below_zero() {
        let half = Bytes(1 << 63);
        assert_eq!(half + half, Bytes::MAX);
        assert_eq!(half * 2, Bytes::MAX);
        assert_eq!([half, half, Bytes(1)].into_iter().sum::<Bytes>(), Bytes::MAX);
        assert_eq!(Bytes(3) - Bytes(5), Bytes(0));
        assert_eq!(Bytes(3).checked_sub(Bytes(5)), None);
        assert_eq!(Flops::of_loops(&[1 << 40, 1 << 40]), Flops(u64::MAX));
    }

    #[test]
    fn shown_sizes_have_three_digits_and_line_up() {
        assert_eq!(Bytes(512).to_string(), "512 B");
        assert_eq!(Bytes(1536).to_string(), "1.50 KiB");
        assert_eq!(Bytes(24 << 30).to_string(), "24.0 GiB");
        assert_eq!(format!("[{:>10}]", Bytes(1536)), "[  1.50 KiB]");
    }

    #[test]
    fn times_have_a_total_order_and_no_time_is_positive_zero() {
        let mut times = [Seconds(f64::NAN), Seconds(2e-6), Seconds(f64::INFINITY), Seconds(1e-9)];
        times.sort();
        assert_eq!(times[..3], [Seconds(1e-9), Seconds(2e-6), Seconds(f64::INFINITY)]);
        assert!(times[3].0.is_nan() && times[3] == times[3]);
        assert!(std::iter::empty::<Seconds>().sum::<Seconds>().0.is_sign_positive());
    }

    #[test]
    fn a_product_counts_two_operations_a_multiply_add_and_takes_time_by_its_rate() {
        let product = Flops::of_loops(&[8, 16, 32]);
        assert_eq!(product, Flops(2 * 8 * 16 * 32));
        assert_eq!(product.at(4096.0), Seconds(2.0));
        assert_eq!(Bytes(1 << 20).at(1024.0), Seconds(1024.0));
    }
}
