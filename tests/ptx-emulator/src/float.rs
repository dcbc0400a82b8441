//! Formats and conversions, bit by bit, independent of the generators' own.

use std::sync::LazyLock;

/// f32 to bf16, to nearest even; NaN becomes the canonical one.
pub fn to_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let bits = x.to_bits();
    let half_up = 0x7fff + ((bits >> 16) & 1);
    ((bits as u64 + half_up as u64) >> 16) as u16
}

pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits((x as u32) << 16)
}

/// Values of all E4M3FN codes.
static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| value_of_e4m3(code as u8)));

/// Value of an E4M3FN code.
pub fn from_e4m3(code: u8) -> f32 {
    E4M3[code as usize]
}

fn value_of_e4m3(code: u8) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, (code >> 3) & 15, code & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, m) => m as f32 / 512.0,
        (e, m) => (1.0 + m as f32 / 8.0) * 2f32.powi(e as i32 - 7),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// f32 to E4M3FN, to nearest even, saturating; NaN becomes 0x7f. By search over the codes: the reference of references.
pub fn to_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = x.abs().min(448.0) as f64;
    let distance = |code: u8| (from_e4m3(code) as f64 - magnitude).abs();
    // Codes ascend with their values: the nearest is next to the number of codes below.
    let below = E4M3[..0x7f].partition_point(|&x| x as f64 <= magnitude).saturating_sub(1) as u8;
    let above = (below + 1).min(0x7e);
    let code = match distance(below).partial_cmp(&distance(above)) {
        Some(std::cmp::Ordering::Greater) => above,
        Some(std::cmp::Ordering::Equal) if below % 2 == 1 => above,
        _ => below,
    };
    code | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// f16 bits of a value that f16 holds exactly (every E4M3 value).
pub fn to_f16_exact(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let (bits, sign) = (x.to_bits(), (x.to_bits() >> 16) as u16 & 0x8000);
    let exponent = ((bits >> 23) & 255) as i32 - 127;
    if x == 0.0 {
        return sign;
    }
    sign | (((exponent + 15) as u16) << 10) | ((bits >> 13) & 0x3ff) as u16
}

pub fn from_f16(h: u16) -> f32 {
    let (exponent, mantissa) = ((h >> 10) & 31, (h & 0x3ff) as f32);
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1.0 + mantissa / 1024.0) * 2f32.powi(e as i32 - 15),
    };
    if h >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_a_round_trip() {
        for code in 0..=255u8 {
            let x = from_e4m3(code);
            assert!(if x.is_nan() { code & 0x7f == 0x7f } else { to_e4m3(x) == code }, "{code:#x}");
            assert!(x.is_nan() || from_f16(to_f16_exact(x)) == x);
        }
    }

    #[test]
    fn rounding_is_to_nearest_even_and_saturates() {
        assert_eq!(to_e4m3(17.0), to_e4m3(16.0));
        assert_eq!(to_e4m3(19.0), to_e4m3(20.0));
        assert_eq!((to_e4m3(1e9), to_e4m3(f32::NEG_INFINITY)), (0x7e, 0xfe));
        assert_eq!((to_bf16(1.003_906_3), to_bf16(1.011_718_8)), (0x3f80, 0x3f82));
        assert_eq!(to_bf16(f32::MAX), 0x7f80);
    }
}
