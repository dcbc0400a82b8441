//! The E4M3FN codec: bias 7, no infinity, NaN = S.1111.111, largest value 448, smallest subnormal 2^-9.
//!
//! Casts round to nearest even and saturate: overflow and infinities give +-448, NaN stays NaN with its sign.

use super::simd::{Vectorised, dispatch};
use crate::cpu::math::Fma;

/// Largest finite value.
pub const E4M3_MAX: f32 = 448.0;

const MAX_BITS: u32 = E4M3_MAX.to_bits();
const INFINITY_BITS: u32 = f32::INFINITY.to_bits();
/// Smallest normal value, 2^-6.
const MIN_NORMAL: f32 = 0.015625;
/// Adding 2^14 puts the unit in the last place of an f32 at 2^-9, the step of E4M3's subnormals.
const SUBNORMAL_MAGIC: f32 = 16384.0;
/// Difference of the exponents' biases, 127 - 7.
const REBIAS: u32 = 120;
const TWO_120: f32 = f32::from_bits((127 + REBIAS) << 23);

const TABLE: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = decode(code as u8);
        code += 1;
    }
    table
};

/// Value of an E4M3FN code.
#[inline(always)]
pub fn e4m3_to_f32(code: u8) -> f32 {
    TABLE[code as usize]
}

/// Rounds to E4M3FN: to nearest even, saturating at +-448, NaN kept.
#[inline(always)]
pub fn f32_to_e4m3(x: f32) -> u8 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let sign = ((bits >> 24) & 0x80) as u8;
    let clamped = if magnitude < MAX_BITS { magnitude } else { MAX_BITS };
    let odd = (clamped >> 20) & 1;
    // Wraps below the smallest normal, where the other branch is selected.
    let normal = ((clamped + 0x7_ffff + odd) >> 20).wrapping_sub(REBIAS << 3);
    let subnormal = (f32::from_bits(clamped) + SUBNORMAL_MAGIC).to_bits().wrapping_sub(SUBNORMAL_MAGIC.to_bits());
    let finite = if clamped < MIN_NORMAL.to_bits() { subnormal } else { normal };
    let code = if magnitude > INFINITY_BITS { 0x7f } else { finite };
    code as u8 | sign
}

/// Decodes by arithmetic, for the table.
const fn decode(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::from_bits(0x7fc0_0000 | ((code as u32 & 0x80) << 24));
    }
    decode_finite(code)
}

/// Value of a code that is not NaN: its bits as an f32, 2^120 too small, put right by an exact product.
#[inline(always)]
pub(super) const fn decode_finite(code: u8) -> f32 {
    let bits = ((((code as u32) << 24) as i32) >> 4) as u32 & 0x87f0_0000;
    f32::from_bits(bits) * TWO_120
}

/// Decodes codes.
///
/// # Panics
/// When the lengths differ.
pub fn decode_e4m3(codes: &[u8], values: &mut [f32]) {
    assert_eq!(codes.len(), values.len());
    dispatch(Decode { codes, values });
}

/// Encodes `values[i] * factor`, the product rounded to f32.
///
/// # Panics
/// When the lengths differ.
pub fn encode_e4m3(values: &[f32], factor: f32, codes: &mut [u8]) {
    assert_eq!(codes.len(), values.len());
    dispatch(Encode { values, factor, codes });
}

struct Decode<'a> {
    codes: &'a [u8],
    values: &'a mut [f32],
}

impl Vectorised for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        let largest = self.codes.iter().fold(0, |m: u8, code| m.max(code & 0x7f));
        if largest == 0x7f {
            self.values.iter_mut().zip(self.codes).for_each(|(value, code)| *value = e4m3_to_f32(*code));
        } else {
            self.values.iter_mut().zip(self.codes).for_each(|(value, code)| *value = decode_finite(*code));
        }
    }
}

struct Encode<'a> {
    values: &'a [f32],
    factor: f32,
    codes: &'a mut [u8],
}

impl Vectorised for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        for (code, value) in self.codes.iter_mut().zip(self.values) {
            *code = f32_to_e4m3(*value * self.factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by testdata/numerics/e4m3.py from ml_dtypes: lines `value of code 0..=255` and `f32 bits, code`.
    const GOLDEN: &str = include_str!("../../../testdata/numerics/e4m3.txt");

    fn golden(section: &str) -> impl Iterator<Item = (u32, u32)> {
        let lines = GOLDEN.lines().skip_while(move |l| *l != section).skip(1).take_while(|l| !l.starts_with('['));
        lines.map(|l| {
            let (a, b) = l.split_once(' ').expect("two columns");
            (u32::from_str_radix(a, 16).expect("hex"), u32::from_str_radix(b, 16).expect("hex"))
        })
    }

    #[test]
    fn slices_without_nan_decode_as_single_codes_do() {
        let codes: Vec<u8> = (0..=255).filter(|c| c & 0x7f != 0x7f).cycle().take(1000).collect();
        let mut values = vec![0.0; codes.len()];
        decode_e4m3(&codes, &mut values);
        for (code, value) in codes.into_iter().zip(values) {
            assert_eq!(value.to_bits(), e4m3_to_f32(code).to_bits());
        }
    }

    #[test]
    fn every_code_decodes_as_ml_dtypes_has_it() {
        let codes: Vec<u8> = (0..=255).collect();
        let mut values = vec![0.0; 256];
        decode_e4m3(&codes, &mut values);
        let mut seen = 0;
        for (code, bits) in golden("[decode]") {
            for value in [e4m3_to_f32(code as u8), values[code as usize]] {
                let expected = f32::from_bits(bits);
                let same = value.to_bits() == bits || (value.is_nan() && expected.is_nan() && value.is_sign_negative() == (code >= 128));
                assert!(same, "code {code:#x}: {value} against {expected}");
            }
            seen += 1;
        }
        assert_eq!(seen, 256);
    }

    #[test]
    fn every_rounding_boundary_encodes_as_ml_dtypes_has_it() {
        let cases: Vec<(u32, u32)> = golden("[encode]").collect();
        assert!(cases.len() > 1000);
        let values: Vec<f32> = cases.iter().map(|(bits, _)| f32::from_bits(*bits)).collect();
        let mut codes = vec![0; values.len()];
        encode_e4m3(&values, 1.0, &mut codes);
        for ((bits, code), vectorised) in cases.into_iter().zip(codes) {
            let x = f32::from_bits(bits);
            assert_eq!(u32::from(f32_to_e4m3(x)), code, "{x} ({bits:#x})");
            assert_eq!(u32::from(vectorised), code, "{x} ({bits:#x}) in a slice");
        }
    }

    #[test]
    fn overflow_saturates_and_nan_stays_nan() {
        for x in [449.0, 464.0, 480.0, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!((f32_to_e4m3(x), f32_to_e4m3(-x)), (0x7e, 0xfe), "{x}");
        }
        assert_eq!(f32_to_e4m3(f32::NAN.copysign(1.0)), 0x7f);
        assert_eq!(f32_to_e4m3(f32::NAN.copysign(-1.0)), 0xff);
        assert_eq!(f32_to_e4m3(f32::from_bits(0x7f80_0001)), 0x7f);
        assert_eq!((f32_to_e4m3(0.0), f32_to_e4m3(-0.0), f32_to_e4m3(1e-40)), (0, 0x80, 0));
    }

    #[test]
    fn decoding_then_encoding_gives_every_code_back() {
        for code in 0..=255u8 {
            assert_eq!(f32_to_e4m3(e4m3_to_f32(code)), code);
        }
    }
}
