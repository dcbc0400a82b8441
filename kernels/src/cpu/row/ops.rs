//! The scalar operators as types, so that each has loops of its own.

use super::loops::{Broadcast, Isa, MapFn, Scalar, Unused, binary, ternary, unary};
use super::numbers;
use crate::DType;
use crate::cpu::math::{self, Fma};
use crate::program::{Binary, Kind, Unary};
use std::marker::PhantomData;

/// Declares operators of one operand as types with a loop each, and the function that finds it.
macro_rules! unary_operators {
    ($find:ident, $x:ty => $out:ty { $($name:ident = |$a:ident, $f:ident| $value:expr,)* }) => {
        $(pub struct $name;
        impl Scalar for $name {
            type X = $x;
            type Y = Unused;
            type Z = Unused;
            type Out = $out;
            #[inline(always)]
            fn eval<$f: Fma>($a: $x, _: Unused, _: Unused) -> $out {
                $value
            }
        })*
        fn $find(op: Unary, isa: Isa) -> Option<MapFn> {
            match op {
                $(Unary::$name => Some(unary::<$name>(isa)),)*
                _ => None,
            }
        }
    };
}

/// Floats to floats.
mod float {
    use super::*;
    unary_operators!(find, f32 => f32 {
        Neg = |x, F| -x,
        Abs = |x, F| x.abs(),
        Sign = |x, F| if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x },
        Exp = |x, F| math::exp::<F>(x),
        Log = |x, F| math::log::<F>(x),
        Log1p = |x, F| math::log1p::<F>(x),
        Sqrt = |x, F| x.sqrt(),
        Rsqrt = |x, F| 1.0 / x.sqrt(),
        Recip = |x, F| 1.0 / x,
        Tan = |x, F| x.tan(),
        Asin = |x, F| x.asin(),
        Acos = |x, F| x.acos(),
        Atan = |x, F| x.atan(),
        Sinh = |x, F| x.sinh(),
        Cosh = |x, F| x.cosh(),
        // Through f64: those of f32 overflow, and lose digits near their zeros.
        Asinh = |x, F| f64::from(x).asinh() as f32,
        Acosh = |x, F| f64::from(x).acosh() as f32,
        Atanh = |x, F| f64::from(x).atanh() as f32,
        Tanh = |x, F| math::tanh::<F>(x),
        Erf = |x, F| math::erf::<F>(x),
        Sigmoid = |x, F| math::sigmoid::<F>(x),
        Softplus = |x, F| math::softplus::<F>(x),
        Floor = |x, F| x.floor(),
        Ceil = |x, F| x.ceil(),
        Round = |x, F| x.round_ties_even(),
        GeluErf = |x, F| math::gelu_erf::<F>(x),
        GeluErfGrad = |x, F| math::gelu_erf_grad::<F>(x),
        GeluTanh = |x, F| math::gelu_tanh::<F>(x),
        GeluTanhGrad = |x, F| math::gelu_tanh_grad::<F>(x),
    });
    pub fn of(op: Unary, isa: Isa) -> Option<MapFn> {
        match op {
            Unary::Sin => Some(unary::<Sin>(isa)),
            Unary::Cos => Some(unary::<Cos>(isa)),
            _ => find(op, isa),
        }
    }

    struct Sin;
    struct Cos;

    fn far(x: f32) -> bool {
        x.abs() > math::MAX_ANGLE
    }

    impl Scalar for Sin {
        type X = f32;
        type Y = Unused;
        type Z = Unused;
        type Out = f32;
        const EXCEPTIONS: bool = true;
        #[inline(always)]
        fn eval<F: Fma>(x: f32, _: Unused, _: Unused) -> f32 {
            math::sin(x)
        }
        #[inline(always)]
        fn exceptional(x: f32) -> bool {
            far(x)
        }
        fn slow(x: f32, _: Unused, _: Unused) -> f32 {
            x.sin()
        }
    }

    impl Scalar for Cos {
        type X = f32;
        type Y = Unused;
        type Z = Unused;
        type Out = f32;
        const EXCEPTIONS: bool = true;
        #[inline(always)]
        fn eval<F: Fma>(x: f32, _: Unused, _: Unused) -> f32 {
            math::cos(x)
        }
        #[inline(always)]
        fn exceptional(x: f32) -> bool {
            far(x)
        }
        fn slow(x: f32, _: Unused, _: Unused) -> f32 {
            x.cos()
        }
    }
}

/// Floats to bools.
mod test {
    use super::*;
    unary_operators!(find, f32 => u8 {
        IsNan = |x, F| x.is_nan() as u8,
        IsInf = |x, F| x.is_infinite() as u8,
    });
    pub fn of(op: Unary, isa: Isa) -> Option<MapFn> {
        find(op, isa)
    }
}

/// Integers to integers.
mod int {
    use super::*;
    unary_operators!(find, i64 => i64 {
        Neg = |x, F| x.wrapping_neg(),
        Abs = |x, F| x.wrapping_abs(),
        Sign = |x, F| x.signum(),
    });
    pub fn of(op: Unary, isa: Isa) -> Option<MapFn> {
        find(op, isa)
    }
}

/// Bools to bools.
mod logic {
    use super::*;
    unary_operators!(find, u8 => u8 {
        Not = |x, F| x ^ 1,
    });
    pub fn of(op: Unary, isa: Isa) -> Option<MapFn> {
        find(op, isa)
    }
}

/// Declares operators of two operands as types with three loops each, and the function that finds them.
macro_rules! binary_operators {
    ($find:ident, $x:ty => $out:ty { $($name:ident = |$a:ident, $b:ident| $value:expr,)* }) => {
        $(struct $name;
        impl Scalar for $name {
            type X = $x;
            type Y = $x;
            type Z = Unused;
            type Out = $out;
            #[inline(always)]
            fn eval<F: Fma>($a: $x, $b: $x, _: Unused) -> $out {
                $value
            }
        })*
        pub fn $find(op: Binary, isa: Isa, broadcast: Broadcast) -> Option<MapFn> {
            match op {
                $(Binary::$name => Some(binary::<$name>(isa, broadcast)),)*
                _ => None,
            }
        }
    };
}

mod arithmetic {
    use super::*;
    binary_operators!(of_floats, f32 => f32 {
        Add = |x, y| x + y,
        Sub = |x, y| x - y,
        Mul = |x, y| x * y,
        Div = |x, y| x / y,
        Min = |x, y| numbers::min(x, y),
        Max = |x, y| numbers::max(x, y),
        Pow = |x, y| numbers::pow(x, y),
        Mod = |x, y| numbers::modulo(x, y),
        Fmod = |x, y| x % y,
    });
}

mod int_arithmetic {
    use super::*;
    binary_operators!(of_ints, i64 => i64 {
        Add = |x, y| x.wrapping_add(y),
        Sub = |x, y| x.wrapping_sub(y),
        Mul = |x, y| x.wrapping_mul(y),
        Div = |x, y| numbers::int_div(x, y),
        Min = |x, y| x.min(y),
        Max = |x, y| x.max(y),
        Pow = |x, y| numbers::int_pow(x, y),
        Mod = |x, y| numbers::int_mod(x, y),
        Fmod = |x, y| numbers::int_rem(x, y),
    });
}

mod comparison {
    use super::*;
    binary_operators!(of_floats, f32 => u8 {
        Eq = |x, y| (x == y) as u8,
        Ne = |x, y| (x != y) as u8,
        Lt = |x, y| (x < y) as u8,
        Le = |x, y| (x <= y) as u8,
        Gt = |x, y| (x > y) as u8,
        Ge = |x, y| (x >= y) as u8,
    });
}

mod int_comparison {
    use super::*;
    binary_operators!(of_ints, i64 => u8 {
        Eq = |x, y| (x == y) as u8,
        Ne = |x, y| (x != y) as u8,
        Lt = |x, y| (x < y) as u8,
        Le = |x, y| (x <= y) as u8,
        Gt = |x, y| (x > y) as u8,
        Ge = |x, y| (x >= y) as u8,
    });
}

mod logic_of_two {
    use super::*;
    binary_operators!(of_bools, u8 => u8 {
        Eq = |x, y| (x == y) as u8,
        Ne = |x, y| x ^ y,
        And = |x, y| x & y,
        Or = |x, y| x | y,
        Xor = |x, y| x ^ y,
    });
}

/// The loop of a unary operator on a kind; `None` where it does not take the kind.
pub fn of_unary(op: Unary, kind: Kind, isa: Isa) -> Option<MapFn> {
    match kind {
        Kind::Float => test::of(op, isa).or_else(|| float::of(op, isa)),
        Kind::Int => int::of(op, isa),
        Kind::Bool => logic::of(op, isa),
    }
}

/// The loop of a binary operator on a kind; `None` where it does not take the kind.
pub fn of_binary(op: Binary, kind: Kind, isa: Isa, broadcast: Broadcast) -> Option<MapFn> {
    match kind {
        Kind::Float => arithmetic::of_floats(op, isa, broadcast).or_else(|| comparison::of_floats(op, isa, broadcast)),
        Kind::Int => int_arithmetic::of_ints(op, isa, broadcast).or_else(|| int_comparison::of_ints(op, isa, broadcast)),
        Kind::Bool => logic_of_two::of_bools(op, isa, broadcast),
    }
}

struct Select<T>(PhantomData<T>);

impl<T: Copy> Scalar for Select<T> {
    type X = u8;
    type Y = T;
    type Z = T;
    type Out = T;
    #[inline(always)]
    fn eval<F: Fma>(c: u8, x: T, y: T) -> T {
        if c != 0 { x } else { y }
    }
}

/// The loop of a selection between values of a kind.
pub fn of_select(kind: Kind, isa: Isa, broadcast: Broadcast) -> MapFn {
    match kind {
        Kind::Float => ternary::<Select<f32>>(isa, broadcast),
        Kind::Int => ternary::<Select<i64>>(isa, broadcast),
        Kind::Bool => ternary::<Select<u8>>(isa, broadcast),
    }
}

/// Declares conversions as types with a loop each.
macro_rules! casts {
    ($($name:ident: $x:ty => $out:ty = |$a:ident| $value:expr,)*) => {
        $(struct $name;
        impl Scalar for $name {
            type X = $x;
            type Y = Unused;
            type Z = Unused;
            type Out = $out;
            #[inline(always)]
            fn eval<F: Fma>($a: $x, _: Unused, _: Unused) -> $out {
                $value
            }
        })*
    };
}

casts! {
    Same: f32 => f32 = |x| x,
    ToBf16: f32 => f32 = |x| numbers::from_bf16(numbers::to_bf16(x)),
    ToE4m3: f32 => f32 = |x| numbers::from_e4m3(numbers::to_e4m3(x)),
    FloatToI64: f32 => i64 = |x| x as i64,
    FloatToI32: f32 => i64 = |x| i64::from(x as i32),
    FloatToBool: f32 => u8 = |x| (x != 0.0) as u8,
    IntToF32: i64 => f32 = |x| x as f32,
    IntToBf16: i64 => f32 = |x| numbers::from_bf16(numbers::to_bf16(x as f32)),
    IntToE4m3: i64 => f32 = |x| numbers::from_e4m3(numbers::to_e4m3(x as f32)),
    SameInt: i64 => i64 = |x| x,
    IntToI32: i64 => i64 = |x| i64::from(x as i32),
    IntToBool: i64 => u8 = |x| (x != 0) as u8,
    BoolToFloat: u8 => f32 = |x| f32::from(x),
    BoolToInt: u8 => i64 = |x| i64::from(x),
    SameBool: u8 => u8 = |x| x,
}

/// The loop of a conversion from a kind to a format and back to that format's kind.
pub fn of_cast(from: Kind, to: DType, isa: Isa) -> MapFn {
    match (from, to) {
        (Kind::Float, DType::F32) => unary::<Same>(isa),
        (Kind::Float, DType::Bf16) => unary::<ToBf16>(isa),
        (Kind::Float, DType::E4m3) => unary::<ToE4m3>(isa),
        (Kind::Float, DType::I64) => unary::<FloatToI64>(isa),
        (Kind::Float, DType::I32) => unary::<FloatToI32>(isa),
        (Kind::Float, DType::Bool) => unary::<FloatToBool>(isa),
        (Kind::Int, DType::F32) => unary::<IntToF32>(isa),
        (Kind::Int, DType::Bf16) => unary::<IntToBf16>(isa),
        (Kind::Int, DType::E4m3) => unary::<IntToE4m3>(isa),
        (Kind::Int, DType::I64) => unary::<SameInt>(isa),
        (Kind::Int, DType::I32) => unary::<IntToI32>(isa),
        (Kind::Int, DType::Bool) => unary::<IntToBool>(isa),
        (Kind::Bool, DType::F32 | DType::Bf16 | DType::E4m3) => unary::<BoolToFloat>(isa),
        (Kind::Bool, DType::I64 | DType::I32) => unary::<BoolToInt>(isa),
        (Kind::Bool, DType::Bool) => unary::<SameBool>(isa),
    }
}
