//! Slices of bf16 to f32 and back, rounding to nearest even.

use super::simd::{Vectorised, dispatch};
use crate::cpu::math::Fma;
use half::bf16;

/// Rounds to bf16: to nearest even, overflow to infinity, NaN kept (quiet).
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded } as u16)
}

/// Rounds to one of the two nearest bf16, up with the probability of the distance from the lower one: of 65536 values of `noise`, that
/// many. What is a bf16 stays; the largest is not rounded up to infinity.
#[inline(always)]
pub fn f32_to_bf16_stochastic(x: f32, noise: u32) -> bf16 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(noise & 0xffff);
    let finite = bits & 0x7f80_0000 != 0x7f80_0000;
    let taken = if up & 0x7f80_0000 == 0x7f80_0000 { bits } else { up };
    let special = f32_to_bf16(x);
    if finite { bf16::from_bits((taken >> 16) as u16) } else { special }
}

/// Value of a bf16.
#[inline(always)]
pub fn bf16_to_f32(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Widens a slice.
///
/// # Panics
/// When the lengths differ.
pub fn widen_bf16(values: &[bf16], wide: &mut [f32]) {
    assert_eq!(values.len(), wide.len());
    dispatch(Widen { values, wide });
}

/// Rounds a slice to nearest even.
///
/// # Panics
/// When the lengths differ.
pub fn round_bf16(values: &[f32], rounded: &mut [bf16]) {
    assert_eq!(values.len(), rounded.len());
    dispatch(Round { values, rounded });
}

struct Widen<'a> {
    values: &'a [bf16],
    wide: &'a mut [f32],
}

impl Vectorised for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        for (wide, value) in self.wide.iter_mut().zip(self.values) {
            *wide = bf16_to_f32(*value);
        }
    }
}

struct Round<'a> {
    values: &'a [f32],
    rounded: &'a mut [bf16],
}

impl Vectorised for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        for (rounded, value) in self.rounded.iter_mut().zip(self.values) {
            *rounded = f32_to_bf16(*value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_half_at_every_boundary() {
        let mut values = Vec::new();
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                values.push(f32::from_bits((u32::from(high) << 16) | low));
            }
        }
        let mut rounded = vec![bf16::ZERO; values.len()];
        round_bf16(&values, &mut rounded);
        for (x, y) in values.iter().zip(&rounded) {
            assert_eq!(y.to_bits(), bf16::from_f32(*x).to_bits(), "{x}");
            assert_eq!(f32_to_bf16(*x).to_bits(), y.to_bits());
        }
    }

    #[test]
    fn stochastic_rounding_goes_up_as_often_as_the_distance_says() {
        for (low, expected) in [(0u32, 0usize), (1, 1), (0x4000, 0x4000), (0x8000, 0x8000), (0xffff, 0xffff)] {
            for high in [0x3f80u32, 0xbf80, 0x0001, 0x7f00] {
                let x = f32::from_bits(high << 16 | low);
                let up = (0..65536).filter(|&noise| u32::from(f32_to_bf16_stochastic(x, noise).to_bits()) == high + 1).count();
                let down = (0..65536).filter(|&noise| u32::from(f32_to_bf16_stochastic(x, noise).to_bits()) == high).count();
                assert_eq!((up, down), (expected, 65536 - expected), "{x}");
            }
        }
        assert_eq!(f32_to_bf16_stochastic(f32::MAX, 0xffff), bf16::MAX);
        assert_eq!(f32_to_bf16_stochastic(f32::NEG_INFINITY, 0xffff), bf16::NEG_INFINITY);
        assert!(f32_to_bf16_stochastic(f32::from_bits(0x7f80_0001), 0).is_nan());
    }

    #[test]
    fn widening_is_exact() {
        let values: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut wide = vec![0.0; values.len()];
        widen_bf16(&values, &mut wide);
        for (x, y) in values.iter().zip(&wide) {
            assert!(y.to_bits() == u32::from(x.to_bits()) << 16);
        }
    }
}
