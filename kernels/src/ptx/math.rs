//! Elementary functions as sequences of f32 and f64 arithmetic, without a library and without approximate instructions.
//!
//! The sequences are written once over [`Machine`]: `Build` turns them into LLVM IR, the tests run them on the CPU and hold them
//! against f64. Relative error is at most about 1e-6 where the result is normal (`tests` state the bound of each function);
//! polynomials are weighted least-maximum fits. Products and sums round once each, as IEEE has it, so that a GPU gives the bits
//! that the tests see.

/// What the sequences are made of: f32 `F`, f64 `D`, i32 `I`, bool `B`.
pub trait Machine {
    type F: Copy;
    type D: Copy;
    type I: Copy;
    type B: Copy;

    fn f(&self, x: f32) -> Self::F;
    fn add(&self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(&self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(&self, a: Self::F, b: Self::F) -> Self::F;
    fn div(&self, a: Self::F, b: Self::F) -> Self::F;
    fn fma(&self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn abs(&self, a: Self::F) -> Self::F;
    fn sqrt(&self, a: Self::F) -> Self::F;
    /// Rounds to an integer, half to even.
    fn rint(&self, a: Self::F) -> Self::F;
    /// The magnitude of `a` with the sign of `s`.
    fn copysign(&self, a: Self::F, s: Self::F) -> Self::F;
    fn bits(&self, a: Self::F) -> Self::I;
    #[expect(clippy::wrong_self_convention, reason = "the builder converts, it is not converted")]
    fn from_bits(&self, a: Self::I) -> Self::F;
    fn float(&self, a: Self::I) -> Self::F;

    fn i(&self, x: i32) -> Self::I;
    fn iadd(&self, a: Self::I, b: Self::I) -> Self::I;
    fn isub(&self, a: Self::I, b: Self::I) -> Self::I;
    fn iand(&self, a: Self::I, c: i32) -> Self::I;
    fn ishl(&self, a: Self::I, c: u32) -> Self::I;
    fn isar(&self, a: Self::I, c: u32) -> Self::I;
    fn ieq(&self, a: Self::I, c: i32) -> Self::B;

    /// Ordered `a < b`: false where either is NaN.
    fn lt(&self, a: Self::F, b: Self::F) -> Self::B;
    fn eq(&self, a: Self::F, b: Self::F) -> Self::B;
    fn and(&self, a: Self::B, b: Self::B) -> Self::B;
    fn xor(&self, a: Self::B, b: Self::B) -> Self::B;
    fn not(&self, a: Self::B) -> Self::B;
    fn select(&self, c: Self::B, a: Self::F, b: Self::F) -> Self::F;
    fn iselect(&self, c: Self::B, a: Self::I, b: Self::I) -> Self::I;

    fn d(&self, x: f64) -> Self::D;
    fn widen(&self, a: Self::F) -> Self::D;
    fn narrow(&self, a: Self::D) -> Self::F;
    fn dadd(&self, a: Self::D, b: Self::D) -> Self::D;
    fn dsub(&self, a: Self::D, b: Self::D) -> Self::D;
    fn dmul(&self, a: Self::D, b: Self::D) -> Self::D;
    fn ddiv(&self, a: Self::D, b: Self::D) -> Self::D;
    fn dfma(&self, a: Self::D, b: Self::D, c: Self::D) -> Self::D;
    fn dtrunc(&self, a: Self::D) -> Self::D;
    /// The low half of the bits of an f64.
    fn dlow(&self, a: Self::D) -> Self::I;
}

/// Horner's rule, coefficients from the highest power down.
fn poly<M: Machine>(m: &M, x: M::F, coefficients: &[f32]) -> M::F {
    let (first, rest) = coefficients.split_first().unwrap_or((&0.0, &[]));
    rest.iter().fold(m.f(*first), |p, &c| m.fma(p, x, m.f(c)))
}

fn dpoly<M: Machine>(m: &M, x: M::D, coefficients: &[f64]) -> M::D {
    let (first, rest) = coefficients.split_first().unwrap_or((&0.0, &[]));
    rest.iter().fold(m.d(*first), |p, &c| m.dfma(p, x, m.d(c)))
}

/// `x * 2^n` for |n| up to 250, rounded once.
fn scale2<M: Machine>(m: &M, x: M::F, n: M::I) -> M::F {
    let power = |n| m.from_bits(m.ishl(m.iadd(n, m.i(127)), 23));
    let half = m.isar(n, 1);
    m.mul(m.mul(x, power(half)), power(m.isub(n, half)))
}

/// `hi` where x is above it, `lo` where below; NaN stays.
fn clamp<M: Machine>(m: &M, x: M::F, lo: f32, hi: f32) -> M::F {
    let x = m.select(m.lt(m.f(hi), x), m.f(hi), x);
    m.select(m.lt(x, m.f(lo)), m.f(lo), x)
}

/// Adding it to a float of moderate size leaves the rounded integer in the low bits.
const ROUND: f32 = 12582912.0;
const DROUND: f64 = 6755399441055744.0;

pub fn exp<M: Machine>(m: &M, x: M::F) -> M::F {
    let x = clamp(m, x, -105.0, 89.0);
    let shifted = m.fma(x, m.f(std::f32::consts::LOG2_E), m.f(ROUND));
    let (n, whole) = (m.isub(m.bits(shifted), m.i(ROUND.to_bits() as i32)), m.sub(shifted, m.f(ROUND)));
    let r = m.fma(whole, m.f(-0.693_145_75), x);
    let r = m.fma(whole, m.f(-1.428_606_8e-6), r);
    let p = poly(m, r, &[0.001_395_060_2, 0.008_368_953, 0.041666206, 0.166_665_18, 0.5]);
    let e = m.add(m.fma(m.mul(r, r), p, r), m.f(1.0));
    scale2(m, e, n)
}

/// Splits a positive finite x into `(e, f)` with `x = 2^e * (1 + f)`, 1 + f between sqrt(1/2) and sqrt(2).
fn split<M: Machine>(m: &M, x: M::F) -> (M::I, M::F) {
    const SQRT_HALF: i32 = 0x3f3504f3;
    let tiny = m.lt(x, m.f(f32::MIN_POSITIVE));
    let bits = m.bits(m.select(tiny, m.mul(x, m.f(8388608.0)), x));
    let e = m.isar(m.isub(bits, m.i(SQRT_HALF)), 23);
    let f = m.sub(m.from_bits(m.isub(bits, m.ishl(e, 23))), m.f(1.0));
    (m.iadd(e, m.iselect(tiny, m.i(-23), m.i(0))), f)
}

pub fn log<M: Machine>(m: &M, x: M::F) -> M::F {
    let (e, f) = split(m, x);
    let (e, s) = (m.float(e), m.mul(f, f));
    let p = poly(
        m,
        f,
        &[0.067_466_386, -0.116_756_51, 0.118_881_63, -0.124_055_89, 0.142_195_52, -0.166_679_96, 0.200_021_19, -0.250_000_1, 0.333_333_13],
    );
    let y = m.fma(e, m.f(-2.121_944_4e-4), m.mul(m.mul(f, s), p));
    let y = m.fma(s, m.f(-0.5), y);
    let r = m.fma(e, m.f(0.693_359_4), m.add(f, y));
    let regular = m.and(m.lt(m.f(0.0), x), m.lt(x, m.f(f32::INFINITY)));
    // Zero gives minus infinity; infinity and NaN give themselves; a negative x gives NaN.
    let other = m.select(m.lt(x, m.f(0.0)), m.f(f32::NAN), x);
    m.select(regular, r, m.select(m.eq(x, m.f(0.0)), m.f(f32::NEG_INFINITY), other))
}

pub fn log1p<M: Machine>(m: &M, x: M::F) -> M::F {
    let u = m.add(m.f(1.0), x);
    let lost = m.sub(x, m.sub(u, m.f(1.0)));
    let r = m.add(log(m, u), m.div(lost, u));
    let r = m.select(m.eq(u, m.f(1.0)), x, r);
    let r = m.select(m.eq(u, m.f(0.0)), m.f(f32::NEG_INFINITY), r);
    m.select(m.eq(x, m.f(f32::INFINITY)), x, r)
}

/// `(quadrant, r)` with `x = quadrant * pi/2 + r`, |r| <= pi/4, for |x| up to 2^50.
fn quadrant<M: Machine>(m: &M, x: M::F) -> (M::I, M::F) {
    let x = m.widen(x);
    let shifted = m.dfma(x, m.d(std::f64::consts::FRAC_2_PI), m.d(DROUND));
    let n = m.dsub(m.d(0.0), m.dsub(shifted, m.d(DROUND)));
    let r = m.dfma(n, m.d(std::f64::consts::FRAC_PI_2), x);
    let r = m.dfma(n, m.d(6.123233995736766e-17), r);
    (m.dlow(shifted), m.narrow(r))
}

fn sin_poly<M: Machine>(m: &M, r: M::F) -> M::F {
    let s = m.mul(r, r);
    let p = poly(m, s, &[2.717_564_5e-6, -0.000_198_392_56, 0.008_333_329, -0.166_666_67]);
    m.fma(m.mul(s, p), r, r)
}

fn cos_poly<M: Machine>(m: &M, r: M::F) -> M::F {
    let s = m.mul(r, r);
    let p = poly(m, s, &[2.4431205e-05, -0.0013887306, 0.041_666_646]);
    m.fma(m.mul(s, s), p, m.fma(s, m.f(-0.5), m.f(1.0)))
}

/// The sine of `x + quarters * pi/2`.
fn sin_from<M: Machine>(m: &M, x: M::F, quarters: i32) -> M::F {
    let (q, r) = quadrant(m, x);
    let q = m.iadd(q, m.i(quarters));
    let y = m.select(m.ieq(m.iand(q, 1), 0), sin_poly(m, r), cos_poly(m, r));
    m.select(m.ieq(m.iand(q, 2), 0), y, m.sub(m.f(0.0), y))
}

pub fn sin<M: Machine>(m: &M, x: M::F) -> M::F {
    m.select(m.eq(x, m.f(0.0)), x, sin_from(m, x, 0))
}

pub fn cos<M: Machine>(m: &M, x: M::F) -> M::F {
    sin_from(m, x, 1)
}

pub fn tan<M: Machine>(m: &M, x: M::F) -> M::F {
    let (q, r) = quadrant(m, x);
    let (s, c) = (sin_poly(m, r), cos_poly(m, r));
    let even = m.ieq(m.iand(q, 1), 0);
    m.div(m.select(even, s, m.sub(m.f(0.0), c)), m.select(even, c, s))
}

/// The arc sine for |x| <= 1/2.
fn asin_core<M: Machine>(m: &M, x: M::F) -> M::F {
    let s = m.mul(x, x);
    let p = poly(m, s, &[0.037_565_213, 0.014_402_598, 0.031817615, 0.044_515_72, 0.075_005_11, 0.166_666_6]);
    m.fma(m.mul(s, p), x, x)
}

/// Twice the arc sine of sqrt((1 - a) / 2), which is the arc cosine of a.
fn acos_of_large<M: Machine>(m: &M, a: M::F) -> M::F {
    let half = m.sqrt(m.mul(m.sub(m.f(1.0), a), m.f(0.5)));
    m.mul(m.f(2.0), asin_core(m, half))
}

pub fn asin<M: Machine>(m: &M, x: M::F) -> M::F {
    let a = m.abs(x);
    let large = m.sub(m.f(std::f32::consts::FRAC_PI_2), acos_of_large(m, a));
    m.copysign(m.select(m.lt(m.f(0.5), a), large, asin_core(m, a)), x)
}

pub fn acos<M: Machine>(m: &M, x: M::F) -> M::F {
    let a = m.abs(x);
    let far = acos_of_large(m, a);
    let far = m.select(m.lt(x, m.f(0.0)), m.sub(m.f(std::f32::consts::PI), far), far);
    m.select(m.lt(m.f(0.5), a), far, m.sub(m.f(std::f32::consts::FRAC_PI_2), asin_core(m, x)))
}

pub fn atan<M: Machine>(m: &M, x: M::F) -> M::F {
    let a = m.abs(x);
    let large = m.lt(m.f(1.0), a);
    let t = m.select(large, m.div(m.f(1.0), a), a);
    let s = m.mul(t, t);
    let p = poly(
        m,
        s,
        &[
            -0.001_827_211_6,
            0.011_064_435,
            -0.031_455_692,
            0.058_234_543,
            -0.084_194_586,
            0.109_575_76,
            -0.142_652_45,
            0.199_986_38,
            -0.333_333_02,
        ],
    );
    let r = m.fma(m.mul(s, p), t, t);
    m.copysign(m.select(large, m.sub(m.f(std::f32::consts::FRAC_PI_2), r), r), x)
}

pub fn sinh<M: Machine>(m: &M, x: M::F) -> M::F {
    let a = m.abs(x);
    let s = m.mul(a, a);
    let p = poly(m, s, &[2.817_439_5e-6, 0.000_198_360_66, 0.008_333_350_5, 0.166_666_67]);
    let small = m.fma(m.mul(s, p), a, a);
    // Half the argument, so that the exponential does not overflow before the result does.
    let e = exp(m, m.mul(a, m.f(0.5)));
    let large = m.sub(m.mul(m.mul(m.f(0.5), e), e), m.div(m.div(m.f(0.5), e), e));
    m.copysign(m.select(m.lt(a, m.f(1.0)), small, large), x)
}

pub fn cosh<M: Machine>(m: &M, x: M::F) -> M::F {
    let e = exp(m, m.mul(m.abs(x), m.f(0.5)));
    m.add(m.mul(m.mul(m.f(0.5), e), e), m.div(m.div(m.f(0.5), e), e))
}

pub fn tanh<M: Machine>(m: &M, x: M::F) -> M::F {
    let a = m.abs(x);
    let s = m.mul(a, a);
    let p = poly(m, s, &[-0.006_207_429_3, 0.021_027_219, -0.053_842_276, 0.133_325, -0.333_333_16]);
    let small = m.fma(m.mul(s, p), a, a);
    let e = exp(m, m.add(a, a));
    let large = m.sub(m.f(1.0), m.div(m.f(2.0), m.add(e, m.f(1.0))));
    m.copysign(m.select(m.lt(a, m.f(0.56)), small, large), x)
}

/// Beyond this, `log(2x)` is the inverse hyperbolic functions' value, and squares would overflow.
const HUGE: f32 = 1e9;

pub fn asinh<M: Machine>(m: &M, x: M::F) -> M::F {
    let a = m.abs(x);
    let root = m.sqrt(m.fma(a, a, m.f(1.0)));
    let near = log1p(m, m.add(a, m.div(m.mul(a, a), m.add(root, m.f(1.0)))));
    let far = m.add(log(m, a), m.f(std::f32::consts::LN_2));
    m.copysign(m.select(m.lt(m.f(HUGE), a), far, near), x)
}

pub fn acosh<M: Machine>(m: &M, x: M::F) -> M::F {
    let t = m.sub(x, m.f(1.0));
    let near = log1p(m, m.add(t, m.sqrt(m.fma(t, t, m.add(t, t)))));
    let far = m.add(log(m, x), m.f(std::f32::consts::LN_2));
    m.select(m.lt(m.f(HUGE), x), far, near)
}

pub fn atanh<M: Machine>(m: &M, x: M::F) -> M::F {
    let a = m.abs(x);
    let r = log1p(m, m.div(m.add(a, a), m.sub(m.f(1.0), a)));
    m.copysign(m.mul(m.f(0.5), r), x)
}

pub fn erf<M: Machine>(m: &M, x: M::F) -> M::F {
    let (t, s) = (m.abs(x), m.mul(x, x));
    // 1 - exp(-t * q(t)) for large arguments.
    let r = m.fma(m.f(-1.728_534_7e-5), t, m.f(3.831_971_3e-4));
    let u = m.fma(m.f(-3.883_964_4e-3), t, m.f(2.425_462_2e-2));
    let r = m.fma(r, s, u);
    let r = m.fma(r, t, m.f(-1.067_778_8e-1));
    let r = m.fma(r, t, m.f(-6.348_467e-1));
    let r = m.fma(r, t, m.f(-1.287_175_1e-1));
    // Above 4 the polynomial is no longer a fit; the result is 1 to the last bit from 3.92 on.
    let r = m.select(m.lt(m.f(4.0), t), m.f(-105.0), m.fma(r, t, m.sub(m.f(0.0), t)));
    let large = m.copysign(m.sub(m.f(1.0), exp(m, r)), x);
    let p = poly(m, s, &[-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.12819925e-1, -3.761_253_4e-1, 1.283_791_7e-1]);
    m.select(m.lt(m.f(0.927_734_4), t), large, m.fma(p, x, x))
}

pub fn sigmoid<M: Machine>(m: &M, x: M::F) -> M::F {
    m.div(m.f(1.0), m.add(m.f(1.0), exp(m, m.sub(m.f(0.0), x))))
}

pub fn softplus<M: Machine>(m: &M, x: M::F) -> M::F {
    let tail = log1p(m, exp(m, m.sub(m.f(0.0), m.abs(x))));
    m.add(m.select(m.lt(x, m.f(0.0)), m.f(0.0), x), tail)
}

/// The normal distribution function.
fn normal<M: Machine>(m: &M, x: M::F) -> M::F {
    let e = erf(m, m.mul(x, m.f(std::f32::consts::FRAC_1_SQRT_2)));
    m.mul(m.f(0.5), m.add(m.f(1.0), e))
}

pub fn gelu_erf<M: Machine>(m: &M, x: M::F) -> M::F {
    m.mul(x, normal(m, x))
}

pub fn gelu_erf_grad<M: Machine>(m: &M, x: M::F) -> M::F {
    let density = m.mul(m.f(0.398_942_3), exp(m, m.mul(m.mul(x, m.f(-0.5)), x)));
    m.fma(x, density, normal(m, x))
}

const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044715;

/// The tanh inside the tanh approximation of GELU.
fn gelu_inner<M: Machine>(m: &M, x: M::F) -> M::F {
    let cubic = m.fma(m.mul(m.mul(x, x), m.f(GELU_CUBIC)), x, x);
    tanh(m, m.mul(m.f(GELU_SCALE), cubic))
}

pub fn gelu_tanh<M: Machine>(m: &M, x: M::F) -> M::F {
    m.mul(m.mul(m.f(0.5), x), m.add(m.f(1.0), gelu_inner(m, x)))
}

pub fn gelu_tanh_grad<M: Machine>(m: &M, x: M::F) -> M::F {
    let t = gelu_inner(m, x);
    let slope = m.mul(m.f(GELU_SCALE), m.fma(m.mul(x, x), m.f(3.0 * GELU_CUBIC), m.f(1.0)));
    let bend = m.mul(m.mul(m.mul(m.f(0.5), x), m.fma(m.sub(m.f(0.0), t), t, m.f(1.0))), slope);
    m.fma(m.f(0.5), m.add(m.f(1.0), t), bend)
}

/// log2 of a positive finite x to about 1e-13.
fn log2_wide<M: Machine>(m: &M, x: M::F) -> M::D {
    let (e, f) = split(m, x);
    let f = m.widen(f);
    let z = m.ddiv(f, m.dadd(f, m.d(2.0)));
    let s = m.dmul(z, z);
    let odd: Vec<f64> = (0..8).rev().map(|k| std::f64::consts::LOG2_E * 2.0 / (2 * k + 1) as f64).collect();
    m.dfma(z, dpoly(m, s, &odd), m.widen(m.float(e)))
}

pub fn pow<M: Machine>(m: &M, x: M::F, y: M::F) -> M::F {
    let a = m.abs(x);
    let finite = m.and(m.lt(m.f(0.0), a), m.lt(a, m.f(f32::INFINITY)));
    let wide = m.narrow(log2_wide(m, m.select(finite, a, m.f(1.0))));
    let ends = m.select(m.eq(a, m.f(0.0)), m.f(f32::NEG_INFINITY), a);
    // The product's whole and fractional parts, in f64; out of range it saturates.
    let product = m.dmul(log2_wide(m, m.select(finite, a, m.f(1.0))), m.widen(y));
    let rough = m.mul(m.select(finite, wide, ends), y);
    let shifted = m.dadd(product, m.d(DROUND));
    let fraction = m.dsub(product, m.dsub(shifted, m.d(DROUND)));
    let exponentials: Vec<f64> = {
        let ln2 = std::f64::consts::LN_2;
        (0..11).rev().map(|k| (1..=k).fold(1.0, |t, i| t * ln2 / i as f64)).collect()
    };
    let r = scale2(m, m.narrow(dpoly(m, fraction, &exponentials)), m.dlow(shifted));
    let r = m.select(m.lt(m.f(200.0), rough), m.f(f32::INFINITY), r);
    let r = m.select(m.lt(rough, m.f(-200.0)), m.f(0.0), r);
    let r = m.select(m.eq(rough, rough), r, rough);
    // Negative bases: NaN but for integer exponents, negative for odd ones.
    let integer = m.eq(m.rint(y), y);
    let half = m.mul(y, m.f(0.5));
    let odd = m.and(integer, m.not(m.eq(m.rint(half), half)));
    let negative = m.lt(m.copysign(m.f(1.0), x), m.f(0.0));
    let signed = m.select(m.and(odd, negative), m.sub(m.f(0.0), r), r);
    let signed = m.select(m.and(m.not(integer), m.and(finite, negative)), m.f(f32::NAN), signed);
    let one = m.select(m.eq(x, m.f(1.0)), m.f(1.0), signed);
    m.select(m.eq(y, m.f(0.0)), m.f(1.0), one)
}

/// Remainder with the sign of x; exact while the quotient is below 2^53.
pub fn fmod<M: Machine>(m: &M, x: M::F, y: M::F) -> M::F {
    let (wx, wy) = (m.widen(x), m.widen(m.abs(y)));
    let quotient = m.dtrunc(m.ddiv(wx, wy));
    let r = m.narrow(m.dfma(m.dsub(m.d(0.0), quotient), wy, wx));
    // The rounded quotient may be one too far from zero.
    let (ax, ay, ar) = (m.abs(x), m.abs(y), m.abs(r));
    let crossed = m.and(m.xor(m.lt(r, m.f(0.0)), m.lt(x, m.f(0.0))), m.lt(m.f(0.0), ar));
    let r = m.select(crossed, m.copysign(m.sub(ay, ar), x), m.copysign(ar, x));
    m.select(m.and(m.lt(ax, m.f(f32::INFINITY)), m.lt(ax, ay)), x, r)
}

/// Remainder with the sign of y.
pub fn modulo<M: Machine>(m: &M, x: M::F, y: M::F) -> M::F {
    let r = fmod(m, x, y);
    let foreign = m.and(m.xor(m.lt(r, m.f(0.0)), m.lt(y, m.f(0.0))), m.not(m.eq(r, m.f(0.0))));
    m.select(foreign, m.add(r, y), r)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cpu;

    impl Machine for Cpu {
        type F = f32;
        type D = f64;
        type I = i32;
        type B = bool;

        fn f(&self, x: f32) -> f32 {
            x
        }
        fn add(&self, a: f32, b: f32) -> f32 {
            a + b
        }
        fn sub(&self, a: f32, b: f32) -> f32 {
            a - b
        }
        fn mul(&self, a: f32, b: f32) -> f32 {
            a * b
        }
        fn div(&self, a: f32, b: f32) -> f32 {
            a / b
        }
        fn fma(&self, a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }
        fn abs(&self, a: f32) -> f32 {
            a.abs()
        }
        fn sqrt(&self, a: f32) -> f32 {
            a.sqrt()
        }
        fn rint(&self, a: f32) -> f32 {
            a.round_ties_even()
        }
        fn copysign(&self, a: f32, s: f32) -> f32 {
            a.copysign(s)
        }
        fn bits(&self, a: f32) -> i32 {
            a.to_bits() as i32
        }
        fn from_bits(&self, a: i32) -> f32 {
            f32::from_bits(a as u32)
        }
        fn float(&self, a: i32) -> f32 {
            a as f32
        }
        fn i(&self, x: i32) -> i32 {
            x
        }
        fn iadd(&self, a: i32, b: i32) -> i32 {
            a.wrapping_add(b)
        }
        fn isub(&self, a: i32, b: i32) -> i32 {
            a.wrapping_sub(b)
        }
        fn iand(&self, a: i32, c: i32) -> i32 {
            a & c
        }
        fn ishl(&self, a: i32, c: u32) -> i32 {
            a << c
        }
        fn isar(&self, a: i32, c: u32) -> i32 {
            a >> c
        }
        fn ieq(&self, a: i32, c: i32) -> bool {
            a == c
        }
        fn lt(&self, a: f32, b: f32) -> bool {
            a < b
        }
        fn eq(&self, a: f32, b: f32) -> bool {
            a == b
        }
        fn and(&self, a: bool, b: bool) -> bool {
            a && b
        }
        fn xor(&self, a: bool, b: bool) -> bool {
            a != b
        }
        fn not(&self, a: bool) -> bool {
            !a
        }
        fn select(&self, c: bool, a: f32, b: f32) -> f32 {
            if c { a } else { b }
        }
        fn iselect(&self, c: bool, a: i32, b: i32) -> i32 {
            if c { a } else { b }
        }
        fn d(&self, x: f64) -> f64 {
            x
        }
        fn widen(&self, a: f32) -> f64 {
            a as f64
        }
        fn narrow(&self, a: f64) -> f32 {
            a as f32
        }
        fn dadd(&self, a: f64, b: f64) -> f64 {
            a + b
        }
        fn dsub(&self, a: f64, b: f64) -> f64 {
            a - b
        }
        fn dmul(&self, a: f64, b: f64) -> f64 {
            a * b
        }
        fn ddiv(&self, a: f64, b: f64) -> f64 {
            a / b
        }
        fn dfma(&self, a: f64, b: f64, c: f64) -> f64 {
            a.mul_add(b, c)
        }
        fn dtrunc(&self, a: f64) -> f64 {
            a.trunc()
        }
        fn dlow(&self, a: f64) -> i32 {
            a.to_bits() as i32
        }
    }

    type Unary = (&'static str, fn(&Cpu, f32) -> f32, fn(f64) -> f64, f64, f64);

    /// Largest relative error over a sweep of an interval; results below the smallest normal number are held to its ulp.
    fn worst(f: &dyn Fn(f32) -> f32, exact: &dyn Fn(f64) -> f64, lo: f64, hi: f64) -> (f64, f32) {
        let points = (0..200_001).map(|i| (lo + (hi - lo) * i as f64 / 200_000.0) as f32);
        let error = |x: f32| {
            let (have, want) = (f(x) as f64, exact(x as f64));
            match want as f32 {
                w if w.is_finite() => (have - want).abs() / want.abs().max(f32::MIN_POSITIVE as f64),
                w => {
                    if have as f32 == w || (w.is_nan() && have.is_nan()) {
                        0.0
                    } else {
                        f64::INFINITY
                    }
                }
            }
        };
        points.map(|x| (error(x), x)).fold((0.0, 0.0), |a, b| if b.0 > a.0 || b.0.is_nan() { b } else { a })
    }

    /// erf by its Taylor series (converges everywhere; 100 terms suffice below 4).
    fn erf_exact(x: f64) -> f64 {
        let term = |(sum, t): (f64, f64), n: i32| {
            let t = if n == 0 { x } else { -t * x * x / n as f64 };
            (sum + t / (2 * n + 1) as f64, t)
        };
        (0..120).fold((0.0, 0.0), term).0 * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn functions_stay_within_a_millionth_of_f64() {
        let cases: [Unary; 27] = [
            ("exp", exp, f64::exp, -90.0, 90.0),
            ("log", log, f64::ln, 1e-3, 3.0),
            ("log of large", log, f64::ln, 1.0, 1e30),
            ("log1p", log1p, f64::ln_1p, -0.9999, 5.0),
            ("log1p of small", log1p, f64::ln_1p, -1e-4, 1e-4),
            ("sin", sin, f64::sin, -0.8, 0.8),
            ("cos", cos, f64::cos, -0.8, 0.8),
            ("sin of large", sin, f64::sin, -1e5, 1e5),
            ("cos of large", cos, f64::cos, -1e5, 1e5),
            ("tan", tan, f64::tan, -100.0, 100.0),
            ("asin", asin, f64::asin, -1.0, 1.0),
            ("acos", acos, f64::acos, -1.0, 0.9999),
            ("atan", atan, f64::atan, -20.0, 20.0),
            ("sinh", sinh, f64::sinh, -89.0, 89.0),
            ("cosh", cosh, f64::cosh, -89.0, 89.0),
            ("tanh", tanh, f64::tanh, -12.0, 12.0),
            ("tanh of small", tanh, f64::tanh, -1e-3, 1e-3),
            ("asinh", asinh, f64::asinh, -50.0, 50.0),
            ("asinh of large", asinh, f64::asinh, -1e30, 1e30),
            ("acosh", acosh, f64::acosh, 1.0, 50.0),
            ("acosh of large", acosh, f64::acosh, 1.0, 1e30),
            ("atanh", atanh, f64::atanh, -0.9999, 0.9999),
            ("erf", erf, erf_exact, -3.9, 3.9),
            ("erf of small", erf, erf_exact, -1e-3, 1e-3),
            ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0),
            ("softplus", softplus, |x| if x > 30.0 { x } else { x.exp().ln_1p() }, -80.0, 80.0),
            ("gelu, positive", gelu_erf, |x| 0.5 * x * (1.0 + erf_exact(x / 2f64.sqrt())), 0.0, 5.0),
        ];
        for (name, f, exact, lo, hi) in cases {
            let (error, at) = worst(&|x| f(&Cpu, x), &exact, lo, hi);
            assert!(error < 1e-6, "{name}: relative error {error:e} at {at}");
        }
    }

    #[test]
    fn derivatives_of_gelu_match_differences() {
        let smooth = |f: fn(f64) -> f64| move |x: f64| (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
        let erf_form = smooth(|x| 0.5 * x * (1.0 + erf_exact(x / 2f64.sqrt())));
        let tanh_form = smooth(|x| 0.5 * x * (1.0 + (0.7978845608028654 * (x + 0.044715 * x * x * x)).tanh()));
        for i in -400..400 {
            let x = i as f32 / 100.0;
            assert!((gelu_erf_grad(&Cpu, x) as f64 - erf_form(x as f64)).abs() < 1e-6, "{x}");
            assert!((gelu_tanh_grad(&Cpu, x) as f64 - tanh_form(x as f64)).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn powers_match_f64_and_c_on_the_edges() {
        for y in [-3.0, -1.5, -0.5, 0.5, 1.0, 2.0, 2.5, 3.0, 7.0, 100.0] {
            let (error, at) = worst(&|x| pow(&Cpu, x, y), &|x| x.powf(y as f64), 1e-3, 30.0);
            assert!(error < 1e-6, "pow({at}, {y}): {error:e}");
        }
        let values = [0.0, -0.0, 1.0, -1.5, -2.0, 0.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        for (x, y) in values.iter().flat_map(|&x| [0.0f32, 1.0, -1.0, 2.0, 3.0, -3.0, 0.5, -0.5].map(|y| (x, y))) {
            let (have, want) = (pow(&Cpu, x, y), x.powf(y));
            assert!(
                have == want || (have.is_nan() && want.is_nan()) || (have - want).abs() < 1e-6 * want.abs(),
                "pow({x}, {y}) = {have}, not {want}"
            );
        }
    }

    #[test]
    fn remainders_are_exact() {
        let values = [0.0f32, 1.0, -1.0, 5.5, -5.5, 0.1, -0.3, 1e10, -7.0, 3.0, 1e-3, 16777215.0, f32::INFINITY];
        for (x, y) in values.iter().flat_map(|&x| values.map(|y| (x, y))) {
            let (have, want) = (fmod(&Cpu, x, y), x % y);
            assert!(have == want || (have.is_nan() && want.is_nan()), "fmod({x}, {y}) = {have}, not {want}");
        }
        assert_eq!(modulo(&Cpu, -7.0, 3.0), 2.0);
        assert_eq!(modulo(&Cpu, 7.0, -3.0), -2.0);
        assert_eq!(modulo(&Cpu, 6.0, -3.0), 0.0);
    }

    #[test]
    fn special_values_pass_through() {
        assert_eq!(exp(&Cpu, f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(&Cpu, f32::INFINITY), f32::INFINITY);
        assert_eq!(log(&Cpu, 0.0), f32::NEG_INFINITY);
        assert_eq!(log(&Cpu, f32::INFINITY), f32::INFINITY);
        assert_eq!(log1p(&Cpu, -1.0), f32::NEG_INFINITY);
        assert_eq!(tanh(&Cpu, 1e9), 1.0);
        assert_eq!(erf(&Cpu, f32::INFINITY), 1.0);
        assert_eq!(erf(&Cpu, -1e20), -1.0);
        let all: [fn(&Cpu, f32) -> f32; 12] = [exp, log, log1p, sin, cos, tan, tanh, erf, sigmoid, softplus, asinh, atan];
        assert!(all.iter().all(|f| f(&Cpu, f32::NAN).is_nan()));
        assert!(log(&Cpu, -1.0).is_nan() && acosh(&Cpu, 0.5).is_nan() && asin(&Cpu, 1.5).is_nan());
    }
}
