//! Scalar operators and expressions.

use super::*;
use fp8c_kernels::program::{Binary, Kind, Literal, Unary};

/// A scalar's value; bools are integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    F(f64),
    I(i64),
}

/// Rounds to a float format's values, by way of f32.
pub(super) fn round_float(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => half::bf16::from_f32(x as f32).to_f64(),
        _ => x as f32 as f64,
    }
}

/// Wraps to an integer format's values.
pub(super) fn wrap_int(x: i64, dtype: DType) -> i64 {
    match dtype {
        DType::I32 => x as i32 as i64,
        DType::Bool => (x != 0) as i64,
        _ => x,
    }
}

/// An expression at each point of `shape`.
pub(super) fn map(expr: &Expr, dtype: DType, inputs: &[&Tensor], shape: &[u64], rounding: Rounding) -> Result<Tensor, String> {
    let n: u64 = shape.iter().product();
    // One offset list an operand keeps the inner loop free of index arithmetic.
    let at: Vec<Vec<usize>> = inputs.iter().map(|t| offsets(&t.shape, shape)).collect();
    let mut regs = Vec::with_capacity(expr.body.len());
    let (mut floats, mut ints) = (vec![], vec![]);
    for point in 0..n as usize {
        regs.clear();
        for node in &expr.body {
            let operand = |i: usize| match &inputs[i].data {
                Data::Float(v) => Scalar::F(v[at[i][point]]),
                Data::Int(v) => Scalar::I(v[at[i][point]]),
            };
            regs.push(step(node, &regs, operand, rounding)?);
        }
        let result = cast(*regs.last().ok_or("has an empty expression")?, dtype, rounding);
        match result {
            Scalar::F(x) => floats.push(x),
            Scalar::I(x) => ints.push(x),
        }
    }
    let data = if dtype.is_float() { Data::Float(floats) } else { Data::Int(ints) };
    Ok(Tensor { shape: shape.to_vec(), data })
}

fn offsets(from: &[u64], to: &[u64]) -> Vec<usize> {
    let mut at = vec![];
    walk(to, [(0, broadcast_strides(from, to))], |[i]| at.push(i));
    at
}

fn step(node: &ExprNode, regs: &[Scalar], operand: impl Fn(usize) -> Scalar, rounding: Rounding) -> Result<Scalar, String> {
    let reg = |i: u32| regs.get(i as usize).copied().ok_or("has an expression that is not in order");
    let value = match node {
        ExprNode::Operand(i) => return Ok(operand(*i as usize)),
        ExprNode::Const { kind, value } => literal(*kind, *value),
        ExprNode::Unary(op, x) => unary(*op, reg(*x)?)?,
        ExprNode::Binary(op, x, y) => binary(*op, reg(*x)?, reg(*y)?)?,
        ExprNode::Select(c, x, y) => match reg(*c)? {
            Scalar::I(0) => reg(*y)?,
            Scalar::I(_) => reg(*x)?,
            Scalar::F(_) => return Err("selects by a float".into()),
        },
        ExprNode::Cast(x, to) => cast(reg(*x)?, *to, rounding),
    };
    Ok(match value {
        Scalar::F(x) if rounding == Rounding::Stored => Scalar::F(x as f32 as f64),
        other => other,
    })
}

pub(super) fn literal(kind: Kind, value: Literal) -> Scalar {
    match (kind, value) {
        (Kind::Float, v) => Scalar::F(v.as_f32() as f64),
        (_, Literal::Int(i)) => Scalar::I(i),
        (_, Literal::Float(b)) => Scalar::I(f32::from_bits(b.0) as i64),
    }
}

pub(super) fn cast(x: Scalar, to: DType, rounding: Rounding) -> Scalar {
    match (x, to) {
        (Scalar::F(x), DType::Bool) => Scalar::I((x != 0.0) as i64),
        (Scalar::F(x), to) if to.is_float() => Scalar::F(if rounding == Rounding::Stored { round_float(x, to) } else { x }),
        (Scalar::F(x), to) => Scalar::I(wrap_int(x as i64, to)),
        (Scalar::I(x), to) if to.is_float() => cast(Scalar::F(x as f64), to, rounding),
        (Scalar::I(x), to) => Scalar::I(wrap_int(x, to)),
    }
}

pub(super) fn unary(op: Unary, x: Scalar) -> Result<Scalar, String> {
    match x {
        Scalar::F(x) => Ok(match op {
            Unary::IsNan => Scalar::I(x.is_nan() as i64),
            Unary::IsInf => Scalar::I(x.is_infinite() as i64),
            Unary::Not => return Err("negates a float as a bool".into()),
            _ => Scalar::F(unary_float(op, x)),
        }),
        Scalar::I(x) => Ok(Scalar::I(match op {
            Unary::Neg => x.wrapping_neg(),
            Unary::Abs => x.wrapping_abs(),
            Unary::Sign => x.signum(),
            Unary::Not => (x == 0) as i64,
            _ => return Err(format!("applies {op:?} to an integer")),
        })),
    }
}

fn unary_float(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign => {
            if x == 0.0 || x.is_nan() {
                x
            } else {
                x.signum()
            }
        }
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Log1p => x.ln_1p(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Recip => 1.0 / x,
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Asinh => x.asinh(),
        Unary::Acosh => x.acosh(),
        Unary::Atanh => x.atanh(),
        Unary::Tanh => x.tanh(),
        Unary::Erf => erf(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::GeluErf => x * normal(x),
        Unary::GeluErfGrad => normal(x) + x * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt(),
        Unary::GeluTanh => 0.5 * x * (1.0 + gelu_inner(x).tanh()),
        Unary::GeluTanhGrad => {
            let t = gelu_inner(x).tanh();
            let slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
        }
        // Handled by the caller, which knows that they do not give a float.
        Unary::Not | Unary::IsNan | Unary::IsInf => f64::NAN,
    }
}

const GELU_CUBIC: f64 = 0.044715;
/// sqrt(2 / pi)
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;

fn gelu_inner(x: f64) -> f64 {
    GELU_SCALE * (x + GELU_CUBIC * x * x * x)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The normal distribution function.
fn normal(x: f64) -> f64 {
    0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

fn erfc(x: f64) -> f64 {
    match x {
        x if x < 2.5 => 1.0 - erf(x),
        _ => erfc_tail(x),
    }
}

/// The error function, to about 1e-15.
pub(super) fn erf(x: f64) -> f64 {
    if x.is_nan() || x == 0.0 {
        return x;
    }
    let a = x.abs();
    if a >= 2.5 {
        return (1.0 - erfc_tail(a)).copysign(x);
    }
    // 2/sqrt(pi) exp(-a^2) sum of 2^n a^(2n+1) / (1 * 3 * .. * (2n+1)): no cancellation.
    let (mut term, mut sum, mut n) = (a, a, 0.0);
    while term > sum * 1e-17 {
        n += 1.0;
        term *= 2.0 * a * a / (2.0 * n + 1.0);
        sum += term;
    }
    (std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum).copysign(x)
}

/// erfc for x >= 2.5 by its continued fraction, from the inside out.
fn erfc_tail(x: f64) -> f64 {
    let fraction = (1..=120).rev().fold(x, |f, n| x + 0.5 * n as f64 / f);
    (-x * x).exp() / (fraction * std::f64::consts::PI.sqrt())
}

pub(super) fn binary(op: Binary, x: Scalar, y: Scalar) -> Result<Scalar, String> {
    match (x, y) {
        (Scalar::F(x), Scalar::F(y)) => binary_float(op, x, y),
        (Scalar::I(x), Scalar::I(y)) => binary_int(op, x, y).map(Scalar::I),
        _ => Err(format!("applies {op:?} to a float and an integer")),
    }
}

fn binary_float(op: Binary, x: f64, y: f64) -> Result<Scalar, String> {
    let nan = x.is_nan() || y.is_nan();
    Ok(Scalar::F(match op {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Min => {
            if nan {
                f64::NAN
            } else {
                x.min(y)
            }
        }
        Binary::Max => {
            if nan {
                f64::NAN
            } else {
                x.max(y)
            }
        }
        Binary::Pow => x.powf(y),
        Binary::Mod => {
            let r = x % y;
            if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
        }
        Binary::Fmod => x % y,
        Binary::Eq => return Ok(Scalar::I((x == y) as i64)),
        Binary::Ne => return Ok(Scalar::I((x != y) as i64)),
        Binary::Lt => return Ok(Scalar::I((x < y) as i64)),
        Binary::Le => return Ok(Scalar::I((x <= y) as i64)),
        Binary::Gt => return Ok(Scalar::I((x > y) as i64)),
        Binary::Ge => return Ok(Scalar::I((x >= y) as i64)),
        Binary::And | Binary::Or | Binary::Xor => return Err(format!("applies {op:?} to floats")),
    }))
}

fn binary_int(op: Binary, x: i64, y: i64) -> Result<i64, String> {
    let divisor = || if y == 0 { Err("divides an integer by zero".to_string()) } else { Ok(y) };
    Ok(match op {
        Binary::Add => x.wrapping_add(y),
        Binary::Sub => x.wrapping_sub(y),
        Binary::Mul => x.wrapping_mul(y),
        Binary::Div => x.wrapping_div(divisor()?),
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::Pow => power(x, y),
        Binary::Mod => {
            let r = x.wrapping_rem(divisor()?);
            if r != 0 && (r < 0) != (y < 0) { r + y } else { r }
        }
        Binary::Fmod => x.wrapping_rem(divisor()?),
        Binary::Eq => (x == y) as i64,
        Binary::Ne => (x != y) as i64,
        Binary::Lt => (x < y) as i64,
        Binary::Le => (x <= y) as i64,
        Binary::Gt => (x > y) as i64,
        Binary::Ge => (x >= y) as i64,
        Binary::And => x & y,
        Binary::Or => x | y,
        Binary::Xor => x ^ y,
    })
}

/// Integer power, wrapping; a negative exponent truncates.
fn power(x: i64, y: i64) -> i64 {
    match (x, y) {
        (1, _) => 1,
        (-1, y) => {
            if y % 2 == 0 {
                1
            } else {
                -1
            }
        }
        (_, y) if y < 0 => 0,
        (x, y) => x.wrapping_pow(y.min(u32::MAX as i64) as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_agrees_with_published_values() {
        // NIST DLMF table 7.23; the last three exercise the continued fraction.
        for (x, y) in [
            (0.5, 0.5204998778130465),
            (1.0, 0.8427007929497149),
            (2.0, 0.9953222650189527),
            (2.5, 0.999593047982555),
            (3.0, 0.9999779095030014),
        ] {
            assert!((erf(x) - y).abs() < 2e-16 * 4.0, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((erfc(4.0) / 1.541725790028002e-8 - 1.0).abs() < 1e-13);
        assert!((erfc(10.0) / 2.088487583762545e-45 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn remainders_take_the_sign_that_onnx_gives_them() {
        let int = |op, x, y| binary(op, Scalar::I(x), Scalar::I(y)).unwrap();
        assert_eq!((int(Binary::Mod, -7, 3), int(Binary::Fmod, -7, 3)), (Scalar::I(2), Scalar::I(-1)));
        assert_eq!((int(Binary::Mod, 7, -3), int(Binary::Div, -7, 2)), (Scalar::I(-2), Scalar::I(-3)));
        assert!(binary(Binary::Div, Scalar::I(1), Scalar::I(0)).is_err());
        assert_eq!(int(Binary::Div, i64::MIN, -1), Scalar::I(i64::MIN));
    }
}
