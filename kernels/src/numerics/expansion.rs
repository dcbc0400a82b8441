//! Dynamic-range expansion of a group of E4M3 codes (COAT, Xi et al. 2024): the group's range of magnitudes is stretched, or compressed, to
//! that of the format.
//!
//! COAT stores `sign(x) (|x| / c)^k` with a scale, `c` the root of the largest times the smallest magnitude. The scale is that of the
//! largest, `(s / c)^k / 448`, so `c` cancels, and `448 sign(x) (|x| / s)^k` is what the code holds. `k` is the largest sixteenth at which
//! the smallest magnitude comes to at least 1/224 of the largest code: `floor(16 ln(448² / 2) / ln(s / smallest)) / 16`, from 1/16 to
//! 255/16. Zeros do not count as the smallest, and stay zeros. Where all magnitudes are one, `k` is 1.
//!
//! A group is a word: an f32 whose high 24 bits are those of the largest magnitude, to nearest, and whose low eight are `16 k`. Read as a
//! number it is the largest magnitude within 2^-15. That is fine enough that a moment which decays by 1/1000 a step does not stand still.

use super::e4m3::{E4M3_MAX, decode_finite, f32_to_e4m3};
use crate::cpu::math::{Fma, exp, log};

/// `ln(448² / 2)`: the range that the formula stretches to.
pub(crate) const LN_RANGE: f32 = 11.516_44;
/// Low bits of the word, which hold the exponent.
pub(crate) const EXPONENT: u32 = 0xff;
/// Larger magnitudes than this count as it, so that rounding the word does not reach infinity.
pub(crate) const LARGEST: f32 = 3e38;

/// Largest magnitude and exponent of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Expansion {
    /// 0 for a group of zeros.
    pub largest: f32,
    /// In sixteenths.
    pub exponent: u32,
}

impl Expansion {
    /// Of a group whose largest magnitude, and whose smallest beside zero, are these. Below the smallest normal number all counts as zero.
    #[inline(always)]
    pub fn of<F: Fma>(largest: f32, smallest: f32) -> Self {
        let capped = if largest > LARGEST { LARGEST } else { largest };
        let largest = f32::from_bits(capped.to_bits().wrapping_add(EXPONENT / 2 + 1) & !EXPONENT);
        if capped < f32::MIN_POSITIVE {
            return Expansion { largest: 0.0, exponent: 0 };
        }
        let range = log::<F>(largest / smallest);
        let sixteenths = 16.0 * LN_RANGE / range;
        let whole = if sixteenths < 255.0 { sixteenths } else { 255.0 };
        let whole = if whole > 1.0 { whole } else { 1.0 };
        Expansion { largest, exponent: if largest > smallest && range > 0.0 { whole as u32 } else { 16 } }
    }

    /// Of a group's values.
    #[inline(always)]
    pub fn of_values<F: Fma>(values: &[f32]) -> Self {
        // Magnitudes are in the order of their bits, of which maximum and minimum become vector code. A zero less one is the largest.
        let bits = |x: &f32| x.to_bits() & 0x7fff_ffff;
        let largest = values.iter().fold(0, |m: u32, x| m.max(bits(x)));
        let smallest = values.iter().fold(u32::MAX, |m: u32, x| m.min(bits(x).wrapping_sub(1)));
        Self::of::<F>(f32::from_bits(largest), f32::from_bits(smallest.wrapping_add(1)))
    }

    /// The word that stores it.
    #[inline(always)]
    pub fn word(self) -> u32 {
        self.largest.to_bits() | self.exponent
    }

    /// What a word stores.
    #[inline(always)]
    pub fn of_word(word: u32) -> Self {
        Expansion { largest: f32::from_bits(word & !EXPONENT), exponent: word & EXPONENT }
    }
}

/// The codes of a group.
#[inline(always)]
pub(crate) fn compress<F: Fma>(values: &[f32], group: Expansion, codes: &mut [u8]) {
    let k = group.exponent as f32 * (1.0 / 16.0);
    for (code, x) in codes.iter_mut().zip(values) {
        let y = E4M3_MAX * exp::<F>(k * log::<F>(x.abs() / group.largest));
        let y = if group.largest > 0.0 { y } else { 0.0 };
        *code = f32_to_e4m3(y.copysign(*x));
    }
}

/// The values of a group's codes, none of which is NaN.
#[inline(always)]
pub(crate) fn expand<F: Fma>(codes: &[u8], group: Expansion, values: &mut [f32]) {
    let root = 16.0 / group.exponent as f32;
    for (x, code) in values.iter_mut().zip(codes) {
        let y = decode_finite(*code);
        let magnitude = group.largest * exp::<F>(root * log::<F>(y.abs() * (1.0 / E4M3_MAX)));
        let magnitude = if y == 0.0 { 0.0 } else { magnitude };
        *x = magnitude.copysign(y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::math::Fused;
    use proptest::prelude::*;

    fn through(values: &[f32]) -> (Expansion, Vec<u8>, Vec<f32>) {
        let group = Expansion::of_values::<Fused>(values);
        let (mut codes, mut back) = (vec![0; values.len()], vec![0.0; values.len()]);
        compress::<Fused>(values, group, &mut codes);
        expand::<Fused>(&codes, Expansion::of_word(group.word()), &mut back);
        (group, codes, back)
    }

    #[test]
    fn a_group_of_zeros_and_one_of_a_single_magnitude_come_back() {
        let (group, codes, back) = through(&[0.0, -0.0, 0.0]);
        assert_eq!((group.word(), codes, back), (0, vec![0, 0x80, 0], vec![0.0, 0.0, 0.0]));
        let (group, codes, back) = through(&[-0.75, 0.0, 0.75]);
        assert_eq!((group.exponent, codes, back), (16, vec![0xfe, 0, 0x7e], vec![-0.75, 0.0, 0.75]));
        assert_eq!(through(&[1e-42, -1e-40]).2, [0.0, 0.0], "below the normal numbers there is nothing");
    }

    #[test]
    fn the_exponent_is_the_formulas_in_sixteenths() {
        // ln(448² / 2) / ln(4) = 8.307, / ln(1e6) = 0.8336.
        assert_eq!(through(&[4.0, 1.0]).0.exponent, 132);
        assert_eq!(through(&[1e3, 1e-3]).0.exponent, 13);
        assert_eq!(through(&[1.0, 1.0 + 1e-3]).0.exponent, 255);
        assert_eq!(through(&[3e38, 1e-38]).0.exponent, 1);
    }

    #[test]
    fn a_value_that_decays_with_its_group_does_not_stand_still() {
        let mut values = vec![1.0f32, 0.3, -0.01, 0.5];
        for _ in 0..1000 {
            let decayed: Vec<f32> = values.iter().map(|x| x * 0.999).collect();
            values = through(&decayed).2;
        }
        let expected = 0.999f32.powi(1000);
        assert!((values[0] / expected - 1.0).abs() < 0.02, "{} for {expected}", values[0]);
    }

    proptest! {
        #[test]
        fn a_value_keeps_its_place_within_the_formats_step(
            exponents in prop::collection::vec((-30f32..0.0, any::<bool>()), 2..128), octaves in 0.01f32..1.0,
        ) {
            let values: Vec<f32> = exponents.iter().map(|(e, minus)| (octaves * e).exp2() * if *minus { -1.0 } else { 1.0 }).collect();
            let (group, _, back) = through(&values);
            let k = group.exponent as f32 / 16.0;
            for (x, y) in values.iter().zip(&back) {
                // A code is within a sixteenth of what it stands for, or half a step of the subnormals: the smallest are two and a half steps.
                let near = (y / x).ln().abs() * k;
                prop_assert!(near < 0.224, "{} comes back as {} with k = {}", x, y, k);
            }
        }
    }
}
