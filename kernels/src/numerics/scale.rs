//! Dequantizing scales: `s = max(amax, 1e-12) / 448` over a group, 1 for a group of zeros.
//!
//! `amax` ignores NaN (which stays NaN in the codes); an infinity gives an infinite scale, so that what is read back is not finite.

use super::e4m3::E4M3_MAX;
use super::simd::{Vectorised, dispatch, fold_lanes};
use crate::cpu::math::Fma;

/// Least `amax` that a scale is computed from.
pub const AMAX_FLOOR: f32 = 1e-12;

/// How a group's scale is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleMode {
    /// `amax / 448`, rounded to f32.
    Exact,
    /// The least power of two that is not below `amax / 448`, so that nothing saturates.
    PowerOfTwo,
}

impl ScaleMode {
    /// The mode that a kernel program's `power_of_two` flag names.
    pub fn from_flag(power_of_two: bool) -> Self {
        if power_of_two { ScaleMode::PowerOfTwo } else { ScaleMode::Exact }
    }
}

/// Scale of a group whose largest magnitude is `amax`: what its codes are multiplied by to give the values back.
#[inline(always)]
pub fn scale_of(amax: f32, mode: ScaleMode) -> f32 {
    if amax == 0.0 {
        return 1.0;
    }
    let exact = (if amax > AMAX_FLOOR { amax } else { AMAX_FLOOR }) / E4M3_MAX;
    match mode {
        ScaleMode::Exact => exact,
        ScaleMode::PowerOfTwo => power_of_two_up(exact),
    }
}

/// The least power of two that is not below a positive normal number; infinity stays.
#[inline(always)]
fn power_of_two_up(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0x7f_ffff) & 0xff80_0000)
}

/// Largest magnitude of a slice, NaN ignored; 0 for an empty one.
pub fn amax(values: &[f32]) -> f32 {
    dispatch(Amax { values })
}

struct Amax<'a> {
    values: &'a [f32],
}

impl Vectorised for Amax<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<F: Fma>(self) -> f32 {
        amax_inline(self.values)
    }
}

/// [`amax`] for loops that are vectorised as a whole.
#[inline(always)]
pub(crate) fn amax_inline(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 32];
    let chunks = values.chunks_exact(32);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(x.abs(), *lane);
        }
    }
    let rest = rest.iter().fold(0.0, |m, x| larger(x.abs(), m));
    larger(fold_lanes(lanes, larger), rest)
}

/// The larger, or `b` when `a` is NaN.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Quantizes one group: codes of `x * (1 / s)` and `s`.
///
/// # Panics
/// When the lengths differ.
pub fn quantize_group(values: &[f32], mode: ScaleMode, codes: &mut [u8]) -> f32 {
    let scale = scale_of(amax(values), mode);
    super::e4m3::encode_e4m3(values, 1.0 / scale, codes);
    scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_group_of_zeros_has_scale_one() {
        assert_eq!(scale_of(0.0, ScaleMode::Exact), 1.0);
        assert_eq!(scale_of(0.0, ScaleMode::PowerOfTwo), 1.0);
        assert_eq!(scale_of(amax(&[]), ScaleMode::Exact), 1.0);
    }

    #[test]
    fn a_tiny_amax_is_raised_to_the_floor() {
        assert_eq!(scale_of(1e-30, ScaleMode::Exact), 1e-12 / 448.0);
        assert_eq!(scale_of(1e-11, ScaleMode::Exact), 1e-11 / 448.0);
    }

    #[test]
    fn an_infinity_makes_the_whole_group_not_finite() {
        for mode in [ScaleMode::Exact, ScaleMode::PowerOfTwo] {
            let mut codes = [0; 3];
            let scale = quantize_group(&[1.0, f32::INFINITY, -2.0], mode, &mut codes);
            assert!(codes.iter().all(|c| !(super::super::e4m3_to_f32(*c) * scale).is_finite()));
        }
    }

    #[test]
    fn a_nan_stays_a_nan_and_leaves_its_neighbours_alone() {
        let mut codes = [0; 3];
        let scale = quantize_group(&[1.0, f32::NAN, -448.0], ScaleMode::Exact, &mut codes);
        assert_eq!((scale, codes[0], codes[1] & 0x7f, codes[2]), (1.0, 0x38, 0x7f, 0xfe));
    }

    proptest! {
        #[test]
        fn power_of_two_scales_are_the_least_that_do_not_saturate(amax in 1e-11f32..1e30) {
            let (exact, up) = (scale_of(amax, ScaleMode::Exact), scale_of(amax, ScaleMode::PowerOfTwo));
            prop_assert!(up.to_bits() & 0x7f_ffff == 0);
            prop_assert!(up >= exact && up / 2.0 < exact);
        }

        #[test]
        fn quantizing_loses_at_most_a_sixteenth_of_a_value_or_half_a_step(
            values in prop::collection::vec(-1e3f32..1e3, 1..300), power_of_two: bool,
        ) {
            let mut codes = vec![0; values.len()];
            let scale = quantize_group(&values, ScaleMode::from_flag(power_of_two), &mut codes);
            for (x, code) in values.iter().zip(&codes) {
                let y = super::super::e4m3_to_f32(*code) * scale;
                prop_assert!((x - y).abs() <= (x.abs() / 16.0).max(scale * 0.000_976_562_5) * 1.0001, "{} {}", x, y);
            }
        }
    }
}
