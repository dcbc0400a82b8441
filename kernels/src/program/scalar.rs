//! Scalar operators: the vocabulary of fused elementwise code, shared by the graph, the CPU and PTX.

use serde::{Deserialize, Serialize};

/// A scalar function of one argument.
///
/// Floats in, floats out, but for `Not` (bool), `IsNan`, `IsInf` (bool out) and `Neg`, `Abs`, `Sign`, which also take integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unary {
    Neg,
    Abs,
    Sign,
    Not,
    Exp,
    Log,
    Log1p,
    Sqrt,
    Rsqrt,
    Recip,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
    Tanh,
    Erf,
    Sigmoid,
    Softplus,
    Floor,
    Ceil,
    /// Rounds half to even.
    Round,
    IsNan,
    IsInf,
    /// x * Phi(x), with the exact normal distribution function.
    GeluErf,
    /// Derivative of `GeluErf`.
    GeluErfGrad,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// Derivative of `GeluTanh`.
    GeluTanhGrad,
}

/// A scalar function of two arguments of one kind; comparisons give bool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    /// Integers truncate toward zero, as ONNX has it.
    Div,
    Min,
    Max,
    Pow,
    /// Sign of the divisor (Python's).
    Mod,
    /// Sign of the dividend (C's).
    Fmod,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Xor,
}

/// How a row is folded to one value. `Max` of an empty row is minus infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    Sum,
    Max,
    Min,
    Prod,
}

/// A literal. Bool is `Int(0)` or `Int(1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Literal {
    /// By its bits, so that infinities and NaNs survive JSON and equality is exact.
    Float(FloatBits),
    Int(i64),
}

/// An f32 compared, hashed and serialised by its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FloatBits(pub u32);

impl Literal {
    /// A float literal.
    pub fn float(x: f32) -> Self {
        Literal::Float(FloatBits(x.to_bits()))
    }

    /// The value as f32, integers converted.
    pub fn as_f32(self) -> f32 {
        match self {
            Literal::Float(b) => f32::from_bits(b.0),
            Literal::Int(i) => i as f32,
        }
    }
}
