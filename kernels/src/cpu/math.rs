//! Elementary functions in f32 without branches, so that loops over them become vector code.
//!
//! Errors are within 2 units in the last place of the exact value unless a function says otherwise; NaN gives NaN, infinities their
//! limits. Constants: exponential, logarithm and hyperbolic tangent after Cephes (S. Moshier, public domain), error function after
//! N. Juffa (BSD). Nothing here depends on the position of an element in a slice.

/// How a multiply-add is rounded: once where the processor has the instruction, twice elsewhere.
pub trait Fma: Copy {
    fn fma(a: f32, b: f32, c: f32) -> f32;
}

/// One rounding. Only fast inside functions compiled for a processor that has it.
#[derive(Clone, Copy)]
pub struct Fused;

/// Two roundings.
#[derive(Clone, Copy)]
pub struct Split;

impl Fma for Fused {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Fma for Split {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Adding and subtracting it rounds to an integer, which is then in the low bits.
const ROUNDER: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

#[inline(always)]
fn poly<F: Fma, const N: usize>(x: f32, highest_first: [f32; N]) -> f32 {
    let mut sum = highest_first[0];
    for c in &highest_first[1..] {
        sum = F::fma(sum, x, *c);
    }
    sum
}

/// 2 to an integer in [-126, 127].
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// `if c { a } else { b }` on both values already computed.
#[inline(always)]
fn pick(c: bool, a: f32, b: f32) -> f32 {
    if c { a } else { b }
}

/// e to the x.
#[inline(always)]
pub fn exp<F: Fma>(x: f32) -> f32 {
    // Comparisons are false for NaN, which therefore passes through.
    let x = pick(x > 89.0, 89.0, x);
    let x = pick(x < -105.0, -105.0, x);
    let shifted = F::fma(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = F::fma(n, -LN2_LOW, F::fma(n, -LN2_HIGH, x));
    let p = poly::<F, 6>(r, [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
    let y = F::fma(p, r * r, r) + 1.0;
    // In two steps, so that results below the smallest normal number and above the largest are right.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// Natural logarithm.
#[inline(always)]
pub fn log<F: Fma>(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = pick(tiny, x * 8_388_608.0, x);
    // The exponent of x / sqrt(1/2): the mantissa ends up in [sqrt(1/2), sqrt(2)).
    let offset = (scaled.to_bits() as i32).wrapping_sub(0x3f35_04f3);
    let e = (offset >> 23) as f32 - pick(tiny, 23.0, 0.0);
    let m = f32::from_bits(((offset & 0x007f_ffff) + 0x3f35_04f3) as u32) - 1.0;
    let z = m * m;
    let p = poly::<F, 9>(
        m,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let y = F::fma(e, LN2_LOW, p * z * m);
    let y = F::fma(e, LN2_HIGH, F::fma(-0.5, z, y) + m);
    let y = pick(x == f32::INFINITY, x, y);
    let y = pick(x == 0.0, f32::NEG_INFINITY, y);
    pick(x >= 0.0, y, f32::NAN)
}

/// Natural logarithm of 1 + x.
#[inline(always)]
pub fn log1p<F: Fma>(x: f32) -> f32 {
    let u = 1.0 + x;
    // The quotient makes up for what 1 + x lost.
    let y = log::<F>(u) * (x / (u - 1.0));
    pick(u == 1.0 || x == f32::INFINITY, x, y)
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh<F: Fma>(x: f32) -> f32 {
    let z = x * x;
    let p = poly::<F, 5>(z, [-5.704_988e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1]);
    let small = F::fma(p * z, x, x);
    let large = (1.0 - 2.0 / (exp::<F>(2.0 * x.abs()) + 1.0)).copysign(x);
    pick(x.abs() < 0.625, small, large)
}

/// Logistic function.
#[inline(always)]
pub fn sigmoid<F: Fma>(x: f32) -> f32 {
    // Of the tail that does not overflow, so that tiny results are right.
    let e = exp::<F>(-x.abs());
    pick(x < 0.0, e, 1.0) / (1.0 + e)
}

/// log(1 + e^x).
#[inline(always)]
pub fn softplus<F: Fma>(x: f32) -> f32 {
    pick(x > 0.0, x, 0.0) + log1p::<F>(exp::<F>(-x.abs()))
}

/// Where the two forms of the error function meet.
const ERF_MIDDLE: f32 = 0.927_734_4;

/// erf(x) / x - 1 for |x| up to [`ERF_MIDDLE`], from the square of x.
#[inline(always)]
fn erf_core<F: Fma>(s: f32) -> f32 {
    poly::<F, 6>(s, [-5.967_617e-4, 4.991_194e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1])
}

/// 1 - erf(t) for t from [`ERF_MIDDLE`] up.
#[inline(always)]
fn erf_tail<F: Fma>(t: f32) -> f32 {
    let r = poly::<F, 7>(
        t,
        [-1.728_534_7e-5, 3.831_971_3e-4, -3.883_964_4e-3, 2.425_462_2e-2, -1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1],
    );
    exp::<F>(F::fma(r, t, -t))
}

/// Error function.
#[inline(always)]
pub fn erf<F: Fma>(x: f32) -> f32 {
    let t = x.abs();
    let small = F::fma(erf_core::<F>(x * x), x, x);
    // Beyond 4 the function is 1, and the polynomial's range ends.
    let large = (1.0 - erf_tail::<F>(pick(t > 4.0, 4.0, t))).copysign(x);
    pick(t > ERF_MIDDLE, large, small)
}

/// Distribution function of the standard normal distribution.
#[inline(always)]
pub fn normal_cdf<F: Fma>(x: f32) -> f32 {
    let y = x * std::f32::consts::FRAC_1_SQRT_2;
    let t = y.abs();
    let small = F::fma(0.5, F::fma(erf_core::<F>(y * y), y, y), 0.5);
    // The tail itself, not 1 minus what is almost 1.
    let tail = 0.5 * erf_tail::<F>(pick(t > 10.0, 10.0, t));
    pick(t > ERF_MIDDLE, pick(x < 0.0, tail, 1.0 - tail), small)
}

/// x * Phi(x); in the negative tail within 2e-8, absolutely.
#[inline(always)]
pub fn gelu_erf<F: Fma>(x: f32) -> f32 {
    // The limit at minus infinity is 0, not 0 times infinity.
    pick(x == f32::NEG_INFINITY, 0.0, x * normal_cdf::<F>(x))
}

/// Derivative of [`gelu_erf`].
#[inline(always)]
pub fn gelu_erf_grad<F: Fma>(x: f32) -> f32 {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    let density = INV_SQRT_TAU * exp::<F>(-0.5 * x * x);
    pick(x.abs() == f32::INFINITY, pick(x > 0.0, 1.0, 0.0), F::fma(x, density, normal_cdf::<F>(x)))
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

/// The logistic form of the approximation, (1 + tanh(u)) / 2 = sigmoid(2u), which has no cancellation, and its derivative by 2u.
#[inline(always)]
fn gelu_gate<F: Fma>(x: f32) -> (f32, f32) {
    let inner = F::fma(GELU_CUBE * x, x * x, x);
    let e = exp::<F>(-(2.0 * SQRT_2_OVER_PI * inner).abs());
    let d = 1.0 / (1.0 + e);
    (pick(x < 0.0, e, 1.0) * d, e * d * d)
}

/// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2.
#[inline(always)]
pub fn gelu_tanh<F: Fma>(x: f32) -> f32 {
    pick(x == f32::NEG_INFINITY, 0.0, x * gelu_gate::<F>(x).0)
}

/// Derivative of [`gelu_tanh`].
#[inline(always)]
pub fn gelu_tanh_grad<F: Fma>(x: f32) -> f32 {
    // Past 20 the gate is 0 or 1 and its slope 0, but the cube may overflow.
    let x = pick(x > 20.0, 20.0, pick(x < -20.0, -20.0, x));
    let (gate, change) = gelu_gate::<F>(x);
    let slope = 2.0 * SQRT_2_OVER_PI * F::fma(3.0 * GELU_CUBE * x, x, 1.0);
    F::fma(x * change, slope, gate)
}

/// Largest argument that [`sin`] and [`cos`] reduce with full precision; beyond, callers take the library's.
pub const MAX_ANGLE: f32 = 1e6;

/// Sine and cosine of the angle less its multiple of pi / 2, and the multiple.
#[inline(always)]
fn quadrant(x: f32) -> (f32, f32, u64) {
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(x);
    let shifted = x * std::f64::consts::FRAC_2_PI + ROUNDER;
    let n = shifted - ROUNDER;
    let r = x - n * std::f64::consts::FRAC_PI_2;
    let z = r * r;
    let s = r + r * z * (-1.666_666_666_6e-1 + z * (8.333_332_956e-3 + z * (-1.984_008_744e-4 + z * 2.718_311_493e-6)));
    let c = 1.0 + z * (-0.5 + z * (4.166_666_641e-2 + z * (-1.388_873_036e-3 + z * 2.443_315_711e-5)));
    (s as f32, c as f32, shifted.to_bits())
}

/// Sine, for angles up to [`MAX_ANGLE`].
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    let (s, c, n) = quadrant(x);
    let y = if n & 1 == 0 { s } else { c };
    if n & 2 == 0 { y } else { -y }
}

/// Cosine, for angles up to [`MAX_ANGLE`].
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    let (s, c, n) = quadrant(x);
    let y = if n & 1 == 0 { c } else { s };
    if (n & 1) ^ (n >> 1 & 1) == 0 { y } else { -y }
}
