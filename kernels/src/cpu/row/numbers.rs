//! What the scalar operators compute where Rust's own differ, or would panic.

use crate::numerics::{bf16_to_f32, f32_to_bf16};
use half::bf16;

pub use crate::numerics::{e4m3_to_f32 as from_e4m3, f32_to_e4m3 as to_e4m3};

/// Rounds to the bits of a bf16.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    f32_to_bf16(x).to_bits()
}

/// Value of the bits of a bf16.
#[inline(always)]
pub fn from_bf16(x: u16) -> f32 {
    bf16_to_f32(bf16::from_bits(x))
}

/// The smaller; NaN if either is.
#[inline(always)]
pub fn min(x: f32, y: f32) -> f32 {
    // The second operand is taken where it is NaN.
    let least = if x < y { x } else { y };
    if x.is_nan() { x } else { least }
}

/// The larger; NaN if either is.
#[inline(always)]
pub fn max(x: f32, y: f32) -> f32 {
    let most = if x > y { x } else { y };
    if x.is_nan() { x } else { most }
}

/// Power; squares and cubes are products, whether the exponent is a constant or not.
#[inline(always)]
pub fn pow(x: f32, y: f32) -> f32 {
    if y == 2.0 {
        x * x
    } else if y == 3.0 {
        x * x * x
    } else {
        x.powf(y)
    }
}

/// Remainder with the sign of the divisor.
#[inline(always)]
pub fn modulo(x: f32, y: f32) -> f32 {
    let r = x % y;
    if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
}

/// Quotient truncated toward zero; 0 for a division by 0.
#[inline(always)]
pub fn int_div(x: i64, y: i64) -> i64 {
    if y == 0 { 0 } else { x.wrapping_div(y) }
}

/// Remainder with the sign of the dividend; 0 for a division by 0.
#[inline(always)]
pub fn int_rem(x: i64, y: i64) -> i64 {
    if y == 0 { 0 } else { x.wrapping_rem(y) }
}

/// Remainder with the sign of the divisor; 0 for a division by 0.
#[inline(always)]
pub fn int_mod(x: i64, y: i64) -> i64 {
    let r = int_rem(x, y);
    if r != 0 && (r < 0) != (y < 0) { r + y } else { r }
}

/// Power, wrapping; a negative exponent gives the truncated quotient.
#[inline(always)]
pub fn int_pow(x: i64, y: i64) -> i64 {
    match (x, y) {
        (1, _) => 1,
        (-1, _) => 1 - 2 * (y & 1),
        (_, y) if y < 0 => 0,
        (_, y) => wrapping_pow(x, y),
    }
}

fn wrapping_pow(mut base: i64, mut exponent: i64) -> i64 {
    let mut product = 1i64;
    while exponent > 0 {
        if exponent & 1 == 1 {
            product = product.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    product
}

/// [`max`] in f64.
pub fn max_f64(x: f64, y: f64) -> f64 {
    if x > y || x.is_nan() { x } else { y }
}

/// [`min`] in f64.
pub fn min_f64(x: f64, y: f64) -> f64 {
    if x < y || x.is_nan() { x } else { y }
}
