//! Values of kernel programs in registers, and their storage formats in memory.

use super::build::{Build, Float, Int, Ptr, ok};
use super::math::Machine;
use crate::DType;
use crate::program::Kind;
use inkwell::types::{BasicType, BasicTypeEnum};
use inkwell::values::{BasicValueEnum, FloatValue};
use inkwell::{FloatPredicate, IntPredicate};

/// A value by its kind: f32, i64 or bool.
#[derive(Clone, Copy, Debug)]
pub enum Val<'c> {
    F(Float<'c>),
    I(Int<'c>),
    B(Int<'c>),
}

impl<'c> Val<'c> {
    pub fn kind(self) -> Kind {
        match self {
            Val::F(_) => Kind::Float,
            Val::I(_) => Kind::Int,
            Val::B(_) => Kind::Bool,
        }
    }

    pub fn raw(self) -> BasicValueEnum<'c> {
        match self {
            Val::F(x) => x.into(),
            Val::I(x) | Val::B(x) => x.into(),
        }
    }
}

impl<'c> Build<'c, '_> {
    /// The value of a kind that a raw one holds.
    pub fn as_kind(&self, kind: Kind, raw: BasicValueEnum<'c>) -> Val<'c> {
        match kind {
            Kind::Float => Val::F(raw.into_float_value()),
            Kind::Int => Val::I(raw.into_int_value()),
            Kind::Bool => Val::B(raw.into_int_value()),
        }
    }

    pub fn zero(&self, kind: Kind) -> Val<'c> {
        match kind {
            Kind::Float => Val::F(self.f32(0.0)),
            Kind::Int => Val::I(self.i64(0)),
            Kind::Bool => Val::B(self.bool(false)),
        }
    }

    pub fn to_float(&self, v: Val<'c>) -> Float<'c> {
        let f32_type = self.e.ctx.f32_type();
        match v {
            Val::F(x) => x,
            Val::I(x) => ok(self.b.build_signed_int_to_float(x, f32_type, "")),
            Val::B(x) => ok(self.b.build_unsigned_int_to_float(x, f32_type, "")),
        }
    }

    /// Floats truncate and saturate, NaN gives 0.
    pub fn to_int(&self, v: Val<'c>, bits: u32) -> Int<'c> {
        match v {
            Val::F(x) => {
                let types = [self.int_type(bits).into(), self.f32_type()];
                self.value(self.call("llvm.fptosi.sat", &types, &[x.into()])).into_int_value()
            }
            Val::I(x) => self.resize(x, bits),
            Val::B(x) => self.zext(x, bits),
        }
    }

    pub fn to_bool(&self, v: Val<'c>) -> Int<'c> {
        match v {
            Val::F(x) => self.fcmp(FloatPredicate::UNE, x, self.f32(0.0)),
            Val::I(x) => self.cmp(IntPredicate::NE, x, self.i64(0)),
            Val::B(x) => x,
        }
    }

    pub fn to_kind(&self, v: Val<'c>, kind: Kind) -> Val<'c> {
        match kind {
            Kind::Float => Val::F(self.to_float(v)),
            Kind::Int => Val::I(self.to_int(v, 64)),
            Kind::Bool => Val::B(self.to_bool(v)),
        }
    }

    /// The type that holds an element's bits in memory.
    pub fn storage(&self, dtype: DType) -> BasicTypeEnum<'c> {
        match dtype {
            DType::F32 => self.f32_type(),
            d => self.int_type(8 * d.size() as u32).into(),
        }
    }

    /// bf16 bits of an f32, rounded to nearest even.
    ///
    /// As assembly: of a value of bf16 type, LLVM would make bf16 arithmetic wherever that gives the same.
    pub fn bf16_bits(&self, x: Float<'c>) -> Int<'c> {
        self.assembly("cvt.rn.bf16.f32 $0, $1;", "=h,f", self.int_type(16).into(), &[x.into()]).into_int_value()
    }

    /// Two bf16, `lo` in the low half.
    pub fn bf16_pair(&self, lo: Float<'c>, hi: Float<'c>) -> Int<'c> {
        let text = "cvt.rn.bf16x2.f32 $0, $1, $2;";
        self.assembly(text, "=r,f,f", self.int_type(32).into(), &[hi.into(), lo.into()]).into_int_value()
    }

    pub fn bf16_value(&self, bits: Int<'c>) -> Float<'c> {
        self.from_bits(self.shl(self.zext(bits, 32), 16))
    }

    /// [`Build::shuffle_xor`] of a value of any kind.
    pub fn shuffle_xor_value(&self, v: Val<'c>, mask: i32) -> Val<'c> {
        match v {
            Val::F(x) => Val::F(self.shuffle_xor_f32(x, mask)),
            Val::I(x) => Val::I(self.shuffle_xor_i64(x, mask)),
            Val::B(x) => Val::B(self.eqc(self.shuffle_xor(self.zext(x, 32), mask), 1)),
        }
    }

    /// The dequantizing scale of a group: `max(amax, 1e-12) / 448`, 1 for a group of zeros, rounded up to a power of two if asked.
    pub fn scale_of(&self, amax: Float<'c>, power_of_two: bool) -> Float<'c> {
        let exact = self.fdiv(self.fmax_number(amax, self.f32(1e-12)), self.f32(448.0));
        let scale = match power_of_two {
            true => self.from_bits(self.andc(self.addc(self.bits(exact), 0x7f_ffff), 0xff80_0000u32 as i32 as i64)),
            false => exact,
        };
        self.select(self.fcmp(FloatPredicate::OEQ, amax, self.f32(0.0)), self.f32(1.0), scale)
    }

    /// Two E4M3 codes, `lo` in the low byte; rounds to nearest even and saturates.
    pub fn e4m3_pair(&self, lo: Float<'c>, hi: Float<'c>) -> Int<'c> {
        self.value(self.call("llvm.nvvm.ff.to.e4m3x2.rn", &[], &[hi.into(), lo.into()])).into_int_value()
    }

    /// The f32 of a code in the low byte.
    pub fn e4m3_value(&self, code: Int<'c>) -> Float<'c> {
        let halves = self.value(self.call("llvm.nvvm.e4m3x2.to.f16x2.rn", &[], &[self.zext(code, 16).into()]));
        // As bits: of a value of half type, LLVM would make half arithmetic wherever that gives the same.
        let bits = ok(self.b.build_bit_cast(halves, self.int_type(32), "")).into_int_value();
        let half = self.zext(bits, 16);
        self.value(self.call("llvm.convert.from.fp16", &[self.f32_type()], &[half.into()])).into_float_value()
    }

    /// The value of an element's bits.
    pub fn decode(&self, dtype: DType, raw: BasicValueEnum<'c>) -> Val<'c> {
        match dtype {
            DType::F32 => Val::F(raw.into_float_value()),
            DType::Bf16 => Val::F(self.bf16_value(raw.into_int_value())),
            DType::E4m3 => Val::F(self.e4m3_value(raw.into_int_value())),
            DType::I64 | DType::I32 => Val::I(self.to_i64(raw.into_int_value())),
            DType::Bool => Val::B(self.cmp(IntPredicate::NE, raw.into_int_value(), self.like(raw.into_int_value(), 0))),
        }
    }

    /// An element's bits for a value of any kind.
    pub fn encode(&self, dtype: DType, v: Val<'c>) -> BasicValueEnum<'c> {
        match dtype {
            DType::F32 => self.to_float(v).into(),
            DType::Bf16 => self.bf16_bits(self.to_float(v)).into(),
            DType::E4m3 => {
                let pair = self.e4m3_pair(self.to_float(v), self.f32(0.0));
                self.zext(pair, 8).into()
            }
            DType::I64 => self.to_int(v, 64).into(),
            DType::I32 => self.to_int(v, 32).into(),
            DType::Bool => self.zext(self.to_bool(v), 8).into(),
        }
    }

    /// Rounds to a format and comes back.
    pub fn cast(&self, v: Val<'c>, to: DType) -> Val<'c> {
        self.decode(to, self.encode(to, v))
    }

    /// Element `index` of a buffer.
    pub fn load_elem(&self, base: Ptr<'c>, dtype: DType, index: Int<'c>) -> Val<'c> {
        let at = self.at(base, index, dtype.size());
        self.decode(dtype, self.load(self.storage(dtype), at, dtype.size()))
    }

    /// `lanes` neighbouring elements, in accesses of at most 16 bytes; `index` is a multiple of `lanes`.
    pub fn load_elems(&self, base: Ptr<'c>, dtype: DType, index: Int<'c>, lanes: usize) -> Vec<Val<'c>> {
        let wide = lanes.min((16 / dtype.size()) as usize);
        if wide == 1 {
            return (0..lanes).map(|i| self.load_elem(base, dtype, self.addc(index, i as i64))).collect();
        }
        let ty = match self.storage(dtype) {
            BasicTypeEnum::FloatType(t) => t.vec_type(wide as u32).as_basic_type_enum(),
            t => t.into_int_type().vec_type(wide as u32).as_basic_type_enum(),
        };
        let part = |i: usize| {
            let at = self.at(base, self.addc(index, i as i64), dtype.size());
            let vector = self.load(ty, at, wide as u64 * dtype.size());
            (0..wide).map(|l| self.decode(dtype, self.lane(vector, l))).collect::<Vec<_>>()
        };
        (0..lanes).step_by(wide).flat_map(part).collect()
    }

    pub fn store_elem(&self, base: Ptr<'c>, dtype: DType, index: Int<'c>, v: Val<'c>) {
        self.store(self.at(base, index, dtype.size()), self.encode(dtype, v), dtype.size());
    }

    /// Stores neighbouring elements; `index` is a multiple of their number.
    pub fn store_elems(&self, base: Ptr<'c>, dtype: DType, index: Int<'c>, values: &[Val<'c>]) {
        let wide = values.len().min((16 / dtype.size()) as usize);
        for (i, part) in values.chunks(wide).enumerate() {
            let at = self.at(base, self.addc(index, (i * wide) as i64), dtype.size());
            let pairs = |join: &dyn Fn(Float<'c>, Float<'c>) -> Int<'c>| {
                part.chunks(2).map(|p| join(self.to_float(p[0]), self.to_float(p[1])).into()).collect::<Vec<BasicValueEnum<'c>>>()
            };
            // The conversion instructions make pairs.
            let raw = match dtype {
                DType::E4m3 if wide.is_multiple_of(2) => pairs(&|lo, hi| self.e4m3_pair(lo, hi)),
                DType::Bf16 if wide.is_multiple_of(2) => pairs(&|lo, hi| self.bf16_pair(lo, hi)),
                _ => part.iter().map(|&v| self.encode(dtype, v)).collect(),
            };
            let value = if raw.len() == 1 { raw[0] } else { self.vector(&raw) };
            self.store(at, value, wide as u64 * dtype.size());
        }
    }
}

impl<'c> Machine for Build<'c, '_> {
    type F = Float<'c>;
    type D = FloatValue<'c>;
    type I = Int<'c>;
    type B = Int<'c>;

    fn f(&self, x: f32) -> Self::F {
        self.f32(x)
    }

    fn add(&self, a: Self::F, b: Self::F) -> Self::F {
        self.fadd(a, b)
    }

    fn sub(&self, a: Self::F, b: Self::F) -> Self::F {
        self.fsub(a, b)
    }

    fn mul(&self, a: Self::F, b: Self::F) -> Self::F {
        self.fmul(a, b)
    }

    fn div(&self, a: Self::F, b: Self::F) -> Self::F {
        self.fdiv(a, b)
    }

    fn fma(&self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        Build::fma(self, a, b, c)
    }

    fn abs(&self, a: Self::F) -> Self::F {
        self.fabs(a)
    }

    fn sqrt(&self, a: Self::F) -> Self::F {
        self.float_intrinsic("llvm.sqrt", &[a])
    }

    fn rint(&self, a: Self::F) -> Self::F {
        self.float_intrinsic("llvm.rint", &[a])
    }

    fn copysign(&self, a: Self::F, s: Self::F) -> Self::F {
        self.float_intrinsic("llvm.copysign", &[a, s])
    }

    fn bits(&self, a: Self::F) -> Self::I {
        Build::bits(self, a)
    }

    fn from_bits(&self, a: Self::I) -> Self::F {
        Build::from_bits(self, a)
    }

    fn float(&self, a: Self::I) -> Self::F {
        ok(self.b.build_signed_int_to_float(a, self.e.ctx.f32_type(), ""))
    }

    fn i(&self, x: i32) -> Self::I {
        self.i32(x)
    }

    fn iadd(&self, a: Self::I, b: Self::I) -> Self::I {
        Build::add(self, a, b)
    }

    fn isub(&self, a: Self::I, b: Self::I) -> Self::I {
        Build::sub(self, a, b)
    }

    fn iand(&self, a: Self::I, c: i32) -> Self::I {
        self.andc(a, c as i64)
    }

    fn ishl(&self, a: Self::I, c: u32) -> Self::I {
        self.shl(a, c as i64)
    }

    fn isar(&self, a: Self::I, c: u32) -> Self::I {
        self.sar(a, c as i64)
    }

    fn ieq(&self, a: Self::I, c: i32) -> Self::B {
        self.eqc(a, c as i64)
    }

    fn lt(&self, a: Self::F, b: Self::F) -> Self::B {
        self.fcmp(FloatPredicate::OLT, a, b)
    }

    fn eq(&self, a: Self::F, b: Self::F) -> Self::B {
        self.fcmp(FloatPredicate::OEQ, a, b)
    }

    fn and(&self, a: Self::B, b: Self::B) -> Self::B {
        Build::and(self, a, b)
    }

    fn xor(&self, a: Self::B, b: Self::B) -> Self::B {
        Build::xor(self, a, b)
    }

    fn not(&self, a: Self::B) -> Self::B {
        Build::not(self, a)
    }

    fn select(&self, c: Self::B, a: Self::F, b: Self::F) -> Self::F {
        Build::select(self, c, a, b)
    }

    fn iselect(&self, c: Self::B, a: Self::I, b: Self::I) -> Self::I {
        Build::select(self, c, a, b)
    }

    fn d(&self, x: f64) -> Self::D {
        self.e.ctx.f64_type().const_float(x)
    }

    fn widen(&self, a: Self::F) -> Self::D {
        ok(self.b.build_float_ext(a, self.e.ctx.f64_type(), ""))
    }

    fn narrow(&self, a: Self::D) -> Self::F {
        ok(self.b.build_float_trunc(a, self.e.ctx.f32_type(), ""))
    }

    fn dadd(&self, a: Self::D, b: Self::D) -> Self::D {
        self.fadd(a, b)
    }

    fn dsub(&self, a: Self::D, b: Self::D) -> Self::D {
        self.fsub(a, b)
    }

    fn dmul(&self, a: Self::D, b: Self::D) -> Self::D {
        self.fmul(a, b)
    }

    fn ddiv(&self, a: Self::D, b: Self::D) -> Self::D {
        self.fdiv(a, b)
    }

    fn dfma(&self, a: Self::D, b: Self::D, c: Self::D) -> Self::D {
        Build::fma(self, a, b, c)
    }

    fn dtrunc(&self, a: Self::D) -> Self::D {
        self.float_intrinsic("llvm.trunc", &[a])
    }

    fn dlow(&self, a: Self::D) -> Self::I {
        let bits = ok(self.b.build_bit_cast(a, self.int_type(64), "")).into_int_value();
        self.zext(bits, 32)
    }
}
