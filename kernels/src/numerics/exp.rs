//! Exponentials without branches, so that loops over them vectorise. The same bits on every CPU.

/// Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Below this `exp`, nearly as small as normal numbers get, is flushed to zero.
const LEAST: f32 = -86.9;
const MOST: f32 = 88.722_83;

/// e^x to about one unit in the last place; results below about 2^-125 are zero.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Written so that NaN passes.
    let low = if x < LEAST { LEAST } else { x };
    let clamped = if low > MOST { MOST } else { low };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first short enough that its product with n is exact.
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // 2^(n - 1) and a doubling: n may be 128. It is at least -125.
    let half = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let y = p * half * 2.0;
    let y = if x < LEAST { 0.0 } else { y };
    if x > MOST { f32::INFINITY } else { y }
}

/// Hyperbolic tangent to a few units in the last place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let s = x * x;
    let small = x + x * s * (-1.0 / 3.0 + s * (2.0 / 15.0 - s * (17.0 / 315.0)));
    let large = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if s < 0.04 { small } else { large.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -86_900..88_700 {
            let x = i as f32 * 1e-3;
            let (y, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(((y - exact) / exact).abs() < 2.4e-7, "{x}: {y} against {exact}");
        }
    }

    #[test]
    fn exp_of_the_extremes_is_zero_infinity_and_nan() {
        assert_eq!((exp(f32::NEG_INFINITY), exp(-100.0), exp(0.0)), (0.0, 0.0, 1.0));
        assert_eq!((exp(f32::INFINITY), exp(89.0)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan() && exp(88.72).is_finite());
    }

    #[test]
    fn tanh_is_within_a_few_units_in_the_last_place() {
        for i in -10_000..10_000 {
            let x = i as f32 * 1e-3;
            let (y, exact) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!((y - exact).abs() <= exact.abs() * 1e-6, "{x}: {y} against {exact}");
        }
        assert_eq!((tanh(50.0), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }
}
