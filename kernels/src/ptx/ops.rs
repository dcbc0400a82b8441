//! The scalar operators of kernel programs on values in registers.
//!
//! Where the CPU reports an error in the data (an integer division by zero) a GPU goes on, with quotient and remainder 0.

use super::build::{Build, Int, ok};
use super::math;
use super::value::Val;
use crate::KernelError;
use crate::program::{Binary, Fold, Kind, Literal, Unary};
use inkwell::{FloatPredicate, IntPredicate};

fn mismatch(op: impl std::fmt::Debug) -> KernelError {
    KernelError::Invalid { family: "row", reason: format!("{op:?} is applied to a kind that it does not take") }
}

impl<'c> Build<'c, '_> {
    pub fn literal(&self, kind: Kind, value: Literal) -> Val<'c> {
        let int = match value {
            Literal::Int(i) => i,
            Literal::Float(b) => f32::from_bits(b.0) as i64,
        };
        match kind {
            Kind::Float => Val::F(self.f32(value.as_f32())),
            Kind::Int => Val::I(self.i64(int)),
            Kind::Bool => Val::B(self.bool(int != 0)),
        }
    }

    pub fn unary(&self, op: Unary, x: Val<'c>) -> Result<Val<'c>, KernelError> {
        match x {
            Val::F(x) => self.unary_float(op, x),
            Val::I(x) => self.unary_int(op, x),
            Val::B(x) if op == Unary::Not => Ok(Val::B(self.not(x))),
            Val::B(_) => Err(mismatch(op)),
        }
    }

    fn unary_int(&self, op: Unary, x: Int<'c>) -> Result<Val<'c>, KernelError> {
        let negative = self.ltc(x, 0);
        let minus = self.sub(self.i64(0), x);
        Ok(Val::I(match op {
            Unary::Neg => minus,
            Unary::Abs => self.select(negative, minus, x),
            Unary::Sign => {
                let positive = self.zext(self.cmp(IntPredicate::SGT, x, self.i64(0)), 64);
                self.select(negative, self.i64(-1), positive)
            }
            _ => return Err(mismatch(op)),
        }))
    }

    fn unary_float(&self, op: Unary, x: super::build::Float<'c>) -> Result<Val<'c>, KernelError> {
        let one = self.f32(1.0);
        let root = || self.float_intrinsic("llvm.sqrt", &[x]);
        Ok(Val::F(match op {
            Unary::Neg => self.fneg(x),
            Unary::Abs => self.fabs(x),
            Unary::Sign => {
                let zero = self.fcmp(FloatPredicate::UEQ, x, self.f32(0.0));
                self.select(zero, x, self.float_intrinsic("llvm.copysign", &[one, x]))
            }
            Unary::Not => return Err(mismatch(op)),
            Unary::Exp => math::exp(self, x),
            Unary::Log => math::log(self, x),
            Unary::Log1p => math::log1p(self, x),
            Unary::Sqrt => root(),
            Unary::Rsqrt => self.fdiv(one, root()),
            Unary::Recip => self.fdiv(one, x),
            Unary::Sin => math::sin(self, x),
            Unary::Cos => math::cos(self, x),
            Unary::Tan => math::tan(self, x),
            Unary::Asin => math::asin(self, x),
            Unary::Acos => math::acos(self, x),
            Unary::Atan => math::atan(self, x),
            Unary::Sinh => math::sinh(self, x),
            Unary::Cosh => math::cosh(self, x),
            Unary::Asinh => math::asinh(self, x),
            Unary::Acosh => math::acosh(self, x),
            Unary::Atanh => math::atanh(self, x),
            Unary::Tanh => math::tanh(self, x),
            Unary::Erf => math::erf(self, x),
            Unary::Sigmoid => math::sigmoid(self, x),
            Unary::Softplus => math::softplus(self, x),
            Unary::Floor => self.float_intrinsic("llvm.floor", &[x]),
            Unary::Ceil => self.float_intrinsic("llvm.ceil", &[x]),
            Unary::Round => self.float_intrinsic("llvm.rint", &[x]),
            Unary::IsNan => return Ok(Val::B(self.fcmp(FloatPredicate::UNO, x, x))),
            Unary::IsInf => return Ok(Val::B(self.fcmp(FloatPredicate::OEQ, self.fabs(x), self.f32(f32::INFINITY)))),
            Unary::GeluErf => math::gelu_erf(self, x),
            Unary::GeluErfGrad => math::gelu_erf_grad(self, x),
            Unary::GeluTanh => math::gelu_tanh(self, x),
            Unary::GeluTanhGrad => math::gelu_tanh_grad(self, x),
        }))
    }

    pub fn binary(&self, op: Binary, x: Val<'c>, y: Val<'c>) -> Result<Val<'c>, KernelError> {
        match (x, y) {
            (Val::F(x), Val::F(y)) => self.binary_float(op, x, y),
            (Val::I(x), Val::I(y)) => self.binary_int(op, x, y),
            (Val::B(x), Val::B(y)) => self.binary_bool(op, x, y),
            _ => Err(mismatch(op)),
        }
    }

    fn binary_float(&self, op: Binary, x: super::build::Float<'c>, y: super::build::Float<'c>) -> Result<Val<'c>, KernelError> {
        let compare = |p| Ok(Val::B(self.fcmp(p, x, y)));
        Ok(Val::F(match op {
            Binary::Add => self.fadd(x, y),
            Binary::Sub => self.fsub(x, y),
            Binary::Mul => self.fmul(x, y),
            Binary::Div => self.fdiv(x, y),
            Binary::Min => self.fmin(x, y),
            Binary::Max => self.fmax(x, y),
            Binary::Pow => match y.is_const().then(|| y.get_constant()).flatten() {
                Some((2.0, _)) => self.fmul(x, x),
                Some((1.0, _)) => x,
                _ => math::pow(self, x, y),
            },
            Binary::Mod => math::modulo(self, x, y),
            Binary::Fmod => math::fmod(self, x, y),
            Binary::Eq => return compare(FloatPredicate::OEQ),
            Binary::Ne => return compare(FloatPredicate::UNE),
            Binary::Lt => return compare(FloatPredicate::OLT),
            Binary::Le => return compare(FloatPredicate::OLE),
            Binary::Gt => return compare(FloatPredicate::OGT),
            Binary::Ge => return compare(FloatPredicate::OGE),
            Binary::And | Binary::Or | Binary::Xor => return Err(mismatch(op)),
        }))
    }

    fn binary_int(&self, op: Binary, x: Int<'c>, y: Int<'c>) -> Result<Val<'c>, KernelError> {
        let compare = |p| Ok(Val::B(self.cmp(p, x, y)));
        let zero = self.eqc(y, 0);
        let or_zero = |r| self.select(zero, self.i64(0), r);
        // A divisor of 1 stands in for 0, whose quotient LLVM leaves undefined.
        let divisor = || self.select(zero, self.i64(1), y);
        let remainder = || or_zero(ok(self.b.build_int_signed_rem(x, divisor(), "")));
        Ok(Val::I(match op {
            Binary::Add => self.add(x, y),
            Binary::Sub => self.sub(x, y),
            Binary::Mul => self.mul(x, y),
            Binary::Div => or_zero(ok(self.b.build_int_signed_div(x, divisor(), ""))),
            Binary::Min => self.min(x, y),
            Binary::Max => self.max(x, y),
            Binary::Pow => self.power(x, y),
            Binary::Mod => {
                let r = remainder();
                let foreign = self.and(self.not(self.eqc(r, 0)), self.ltc(self.xor(r, y), 0));
                self.select(foreign, self.add(r, y), r)
            }
            Binary::Fmod => remainder(),
            Binary::Eq => return compare(IntPredicate::EQ),
            Binary::Ne => return compare(IntPredicate::NE),
            Binary::Lt => return compare(IntPredicate::SLT),
            Binary::Le => return compare(IntPredicate::SLE),
            Binary::Gt => return compare(IntPredicate::SGT),
            Binary::Ge => return compare(IntPredicate::SGE),
            Binary::And => self.and(x, y),
            Binary::Or => self.or(x, y),
            Binary::Xor => self.xor(x, y),
        }))
    }

    /// Integer power by squaring, wrapping; a negative exponent truncates toward zero.
    fn power(&self, x: Int<'c>, y: Int<'c>) -> Int<'c> {
        let (base, result) = (self.cell(x), self.cell(self.i64(1)));
        // 63 steps cover every exponent; a base of -1 or 1 with a negative one is the reciprocal, which equals its power.
        let (magnitude, negative) = (self.max(y, self.sub(self.i64(0), y)), self.ltc(y, 0));
        self.for_range(self.i64(0), self.i64(63), 1, |i| {
            let bit = self.andc(ok(self.b.build_right_shift(magnitude, i, false, "")), 1);
            let (b, r) = (self.get(&base), self.get(&result));
            self.set(&result, self.select(self.eqc(bit, 1), self.mul(r, b), r));
            self.set(&base, self.mul(b, b));
        });
        let unit = self.or(self.eqc(x, 1), self.eqc(x, -1));
        let vanishes = self.and(negative, self.not(unit));
        self.select(vanishes, self.i64(0), self.get(&result))
    }

    fn binary_bool(&self, op: Binary, x: Int<'c>, y: Int<'c>) -> Result<Val<'c>, KernelError> {
        Ok(Val::B(match op {
            Binary::And | Binary::Mul | Binary::Min => self.and(x, y),
            Binary::Or | Binary::Max | Binary::Add => self.or(x, y),
            Binary::Xor | Binary::Ne => self.xor(x, y),
            Binary::Eq => self.not(self.xor(x, y)),
            _ => return Err(mismatch(op)),
        }))
    }

    /// What a fold starts from.
    pub fn identity(&self, op: Fold, kind: Kind) -> Val<'c> {
        let (float, int) = match op {
            Fold::Sum => (0.0, 0),
            Fold::Prod => (1.0, 1),
            Fold::Max => (f32::NEG_INFINITY, i64::MIN),
            Fold::Min => (f32::INFINITY, i64::MAX),
        };
        match kind {
            Kind::Float => Val::F(self.f32(float)),
            _ => Val::I(self.i64(int)),
        }
    }

    /// One step of a fold.
    pub fn fold(&self, op: Fold, a: Val<'c>, b: Val<'c>) -> Result<Val<'c>, KernelError> {
        let op = match op {
            Fold::Sum => Binary::Add,
            Fold::Prod => Binary::Mul,
            Fold::Max => Binary::Max,
            Fold::Min => Binary::Min,
        };
        self.binary(op, a, b)
    }
}
