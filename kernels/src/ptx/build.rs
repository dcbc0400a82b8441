//! Small typed helpers over inkwell's builder: arithmetic, control flow, memory, threads.
//!
//! inkwell returns an error where an operand has a foreign type or where no block is set. The helpers here take typed values and
//! a builder is positioned from birth, so those errors are impossible; [`ok`] states that once.

use super::module::{Emitter, SHARED, STATIC_SHARED_MAX};
use crate::program::Arg;
use inkwell::basic_block::BasicBlock;
use inkwell::builder::{Builder, BuilderError};
use inkwell::intrinsics::Intrinsic;
use inkwell::module::Linkage;
use inkwell::types::{BasicMetadataTypeEnum, BasicType, BasicTypeEnum};
use inkwell::values::{
    BasicMetadataValueEnum, BasicValue, BasicValueEnum, CallSiteValue, FloatValue, FunctionValue, IntValue, PointerValue,
};
use inkwell::{AddressSpace, FloatPredicate, IntPredicate};
use std::cell::RefCell;
use std::marker::PhantomData;

/// An integer (or bool) value of the kernel.
pub type Int<'c> = IntValue<'c>;
/// A float value of the kernel.
pub type Float<'c> = FloatValue<'c>;
/// An address, of global or of shared memory by its type.
pub type Ptr<'c> = PointerValue<'c>;

/// A mutable variable of the kernel; becomes registers.
#[derive(Clone, Copy)]
pub struct Cell<'c, V> {
    slot: Ptr<'c>,
    ty: BasicTypeEnum<'c>,
    kind: PhantomData<V>,
}

/// Writes the body of one entry point.
pub struct Build<'c, 'e> {
    pub e: &'e Emitter<'c>,
    pub b: Builder<'c>,
    function: FunctionValue<'c>,
    args: Vec<Arg>,
    /// Holds the cells' slots; branches to the body when the entry is finished.
    slots: BasicBlock<'c>,
    body: BasicBlock<'c>,
    shared: RefCell<Option<Ptr<'c>>>,
    shared_bytes: u32,
    shared_align: std::cell::Cell<u32>,
}

/// Unwraps a builder's result: see the module's invariant.
pub fn ok<T>(result: Result<T, BuilderError>) -> T {
    result.expect("operands have the operator's types and the builder is positioned")
}

impl<'c, 'e> Build<'c, 'e> {
    /// Positions a builder at the start of an empty entry point.
    pub(super) fn new(e: &'e Emitter<'c>, function: FunctionValue<'c>, args: &[Arg], shared_bytes: u32) -> Self {
        let (slots, body) = (e.ctx.append_basic_block(function, "slots"), e.ctx.append_basic_block(function, "body"));
        let b = e.ctx.create_builder();
        b.position_at_end(body);
        Build {
            e,
            b,
            function,
            args: args.to_vec(),
            slots,
            body,
            shared: RefCell::new(None),
            shared_bytes,
            shared_align: std::cell::Cell::new(128),
        }
    }

    /// Ends the entry point.
    pub fn finish(self) {
        ok(self.b.build_return(None));
        self.b.position_at_end(self.slots);
        ok(self.b.build_unconditional_branch(self.body));
    }

    /// The address of argument `i`, in global memory.
    pub fn arg(&self, i: usize) -> Ptr<'c> {
        self.function.get_nth_param(i as u32).expect("the entry has a parameter for each argument").into_pointer_value()
    }

    /// What the kernel says about argument `i`.
    pub fn arg_info(&self, i: usize) -> Arg {
        self.args[i]
    }

    /// Aligns the entry's shared memory to more than 128 bytes; before its first use.
    pub fn align_shared(&self, bytes: u32) {
        self.shared_align.set(bytes);
    }

    /// The entry's shared memory, aligned to 128 bytes if [`Build::align_shared`] does not say otherwise.
    pub fn shared(&self) -> Ptr<'c> {
        *self.shared.borrow_mut().get_or_insert_with(|| {
            let dynamic = self.shared_bytes > STATIC_SHARED_MAX;
            let ty = self.e.ctx.i8_type().array_type(if dynamic { 0 } else { self.shared_bytes });
            let name = format!("{}_shared", self.function.get_name().to_string_lossy());
            let global = self.e.module.add_global(ty, Some(AddressSpace::from(SHARED)), &name);
            global.set_alignment(self.shared_align.get());
            match dynamic {
                true => global.set_linkage(Linkage::External),
                false => {
                    global.set_linkage(Linkage::Internal);
                    global.set_initializer(&ty.get_undef());
                }
            }
            global.as_pointer_value()
        })
    }

    // Constants and types.

    pub fn i32(&self, x: i32) -> Int<'c> {
        self.e.ctx.i32_type().const_int(x as u32 as u64, false)
    }

    pub fn i64(&self, x: i64) -> Int<'c> {
        self.e.ctx.i64_type().const_int(x as u64, false)
    }

    pub fn bool(&self, x: bool) -> Int<'c> {
        self.e.ctx.bool_type().const_int(x as u64, false)
    }

    pub fn f32(&self, x: f32) -> Float<'c> {
        self.from_bits(self.i32(x.to_bits() as i32))
    }

    pub fn f32_type(&self) -> BasicTypeEnum<'c> {
        self.e.ctx.f32_type().into()
    }

    pub fn int_type(&self, bits: u32) -> inkwell::types::IntType<'c> {
        match bits {
            1 => self.e.ctx.bool_type(),
            8 => self.e.ctx.i8_type(),
            16 => self.e.ctx.i16_type(),
            32 => self.e.ctx.i32_type(),
            _ => self.e.ctx.i64_type(),
        }
    }

    // Integers.

    pub fn add(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        ok(self.b.build_int_add(a, b, ""))
    }

    pub fn sub(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        ok(self.b.build_int_sub(a, b, ""))
    }

    pub fn mul(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        ok(self.b.build_int_mul(a, b, ""))
    }

    pub fn and(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        ok(self.b.build_and(a, b, ""))
    }

    pub fn or(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        ok(self.b.build_or(a, b, ""))
    }

    pub fn xor(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        ok(self.b.build_xor(a, b, ""))
    }

    pub fn not(&self, a: Int<'c>) -> Int<'c> {
        ok(self.b.build_not(a, ""))
    }

    /// A constant of the type of `like`.
    pub fn like(&self, like: Int<'c>, x: i64) -> Int<'c> {
        like.get_type().const_int(x as u64, true)
    }

    pub fn addc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        self.add(a, self.like(a, c))
    }

    pub fn mulc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        self.mul(a, self.like(a, c))
    }

    pub fn andc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        self.and(a, self.like(a, c))
    }

    pub fn xorc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        self.xor(a, self.like(a, c))
    }

    pub fn shl(&self, a: Int<'c>, c: i64) -> Int<'c> {
        ok(self.b.build_left_shift(a, self.like(a, c), ""))
    }

    /// Logical shift right.
    pub fn shr(&self, a: Int<'c>, c: i64) -> Int<'c> {
        ok(self.b.build_right_shift(a, self.like(a, c), false, ""))
    }

    /// Arithmetic shift right.
    pub fn sar(&self, a: Int<'c>, c: i64) -> Int<'c> {
        ok(self.b.build_right_shift(a, self.like(a, c), true, ""))
    }

    /// Unsigned quotient by a constant.
    pub fn udivc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        ok(self.b.build_int_unsigned_div(a, self.like(a, c), ""))
    }

    /// Unsigned remainder by a constant.
    pub fn uremc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        ok(self.b.build_int_unsigned_rem(a, self.like(a, c), ""))
    }

    pub fn cmp(&self, op: IntPredicate, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        ok(self.b.build_int_compare(op, a, b, ""))
    }

    /// Signed `a < b`.
    pub fn lt(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        self.cmp(IntPredicate::SLT, a, b)
    }

    /// Signed `a < c`.
    pub fn ltc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        self.lt(a, self.like(a, c))
    }

    pub fn eqc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        self.cmp(IntPredicate::EQ, a, self.like(a, c))
    }

    /// Signed minimum.
    pub fn min(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        self.select(self.lt(a, b), a, b)
    }

    pub fn minc(&self, a: Int<'c>, c: i64) -> Int<'c> {
        self.min(a, self.like(a, c))
    }

    /// Signed maximum.
    pub fn max(&self, a: Int<'c>, b: Int<'c>) -> Int<'c> {
        self.select(self.lt(a, b), b, a)
    }

    /// Sign-extends or truncates to 64 bits.
    pub fn to_i64(&self, a: Int<'c>) -> Int<'c> {
        self.resize(a, 64)
    }

    /// Sign-extends or truncates.
    pub fn resize(&self, a: Int<'c>, bits: u32) -> Int<'c> {
        ok(self.b.build_int_cast_sign_flag(a, self.int_type(bits), true, ""))
    }

    /// Zero-extends or truncates.
    pub fn zext(&self, a: Int<'c>, bits: u32) -> Int<'c> {
        ok(self.b.build_int_cast_sign_flag(a, self.int_type(bits), false, ""))
    }

    // Floats.

    pub fn fadd(&self, a: Float<'c>, b: Float<'c>) -> Float<'c> {
        ok(self.b.build_float_add(a, b, ""))
    }

    pub fn fsub(&self, a: Float<'c>, b: Float<'c>) -> Float<'c> {
        ok(self.b.build_float_sub(a, b, ""))
    }

    pub fn fmul(&self, a: Float<'c>, b: Float<'c>) -> Float<'c> {
        ok(self.b.build_float_mul(a, b, ""))
    }

    /// Correctly rounded quotient.
    pub fn fdiv(&self, a: Float<'c>, b: Float<'c>) -> Float<'c> {
        ok(self.b.build_float_div(a, b, ""))
    }

    pub fn fneg(&self, a: Float<'c>) -> Float<'c> {
        ok(self.b.build_float_neg(a, ""))
    }

    pub fn fcmp(&self, op: FloatPredicate, a: Float<'c>, b: Float<'c>) -> Int<'c> {
        ok(self.b.build_float_compare(op, a, b, ""))
    }

    /// Calls an LLVM intrinsic that is overloaded on the type of its arguments, and returns that type.
    pub fn float_intrinsic(&self, name: &str, args: &[Float<'c>]) -> Float<'c> {
        let operands: Vec<BasicMetadataValueEnum> = args.iter().map(|&a| a.into()).collect();
        self.value(self.call(name, &[args[0].get_type().into()], &operands)).into_float_value()
    }

    /// `a * b + c`, rounded once.
    pub fn fma(&self, a: Float<'c>, b: Float<'c>, c: Float<'c>) -> Float<'c> {
        self.float_intrinsic("llvm.fma", &[a, b, c])
    }

    pub fn fabs(&self, a: Float<'c>) -> Float<'c> {
        self.float_intrinsic("llvm.fabs", &[a])
    }

    /// Maximum that propagates NaN.
    pub fn fmax(&self, a: Float<'c>, b: Float<'c>) -> Float<'c> {
        self.float_intrinsic("llvm.maximum", &[a, b])
    }

    /// Minimum that propagates NaN.
    pub fn fmin(&self, a: Float<'c>, b: Float<'c>) -> Float<'c> {
        self.float_intrinsic("llvm.minimum", &[a, b])
    }

    /// The larger number; of a number and a NaN, the number.
    pub fn fmax_number(&self, a: Float<'c>, b: Float<'c>) -> Float<'c> {
        self.float_intrinsic("llvm.maxnum", &[a, b])
    }

    /// The bits of an f32.
    pub fn bits(&self, a: Float<'c>) -> Int<'c> {
        ok(self.b.build_bit_cast(a, self.int_type(32), "")).into_int_value()
    }

    /// The f32 of given bits.
    #[expect(clippy::wrong_self_convention, reason = "the builder converts, it is not converted")]
    pub fn from_bits(&self, a: Int<'c>) -> Float<'c> {
        ok(self.b.build_bit_cast(a, self.e.ctx.f32_type(), "")).into_float_value()
    }

    pub fn select<V: BasicValue<'c> + TryFrom<BasicValueEnum<'c>>>(&self, c: Int<'c>, a: V, b: V) -> V {
        typed(ok(self.b.build_select(c, a, b, "")))
    }

    // Control flow.

    fn block(&self) -> BasicBlock<'c> {
        self.e.ctx.append_basic_block(self.function, "")
    }

    fn branch(&self, to: BasicBlock<'c>) {
        ok(self.b.build_unconditional_branch(to));
    }

    /// Runs `then` where `c` holds.
    pub fn if_then(&self, c: Int<'c>, then: impl FnOnce()) {
        let (yes, end) = (self.block(), self.block());
        ok(self.b.build_conditional_branch(c, yes, end));
        self.b.position_at_end(yes);
        then();
        self.branch(end);
        self.b.position_at_end(end);
    }

    /// Runs `then` where `c` holds and `other` where it does not.
    pub fn if_else(&self, c: Int<'c>, then: impl FnOnce(), other: impl FnOnce()) {
        let (yes, no, end) = (self.block(), self.block(), self.block());
        ok(self.b.build_conditional_branch(c, yes, no));
        self.b.position_at_end(yes);
        then();
        self.branch(end);
        self.b.position_at_end(no);
        other();
        self.branch(end);
        self.b.position_at_end(end);
    }

    /// `for i in (lo..hi).step_by(step)`, signed, in the type of `lo`.
    pub fn for_range(&self, lo: Int<'c>, hi: Int<'c>, step: i64, body: impl FnOnce(Int<'c>)) {
        let before = ok(self.b.get_insert_block().ok_or(BuilderError::UnsetPosition));
        let (top, end) = (self.block(), self.block());
        ok(self.b.build_conditional_branch(self.lt(lo, hi), top, end));
        self.b.position_at_end(top);
        let phi = ok(self.b.build_phi(lo.get_type(), ""));
        let i = phi.as_basic_value().into_int_value();
        body(i);
        let next = ok(self.b.build_int_nsw_add(i, self.like(i, step), ""));
        let last = ok(self.b.get_insert_block().ok_or(BuilderError::UnsetPosition));
        phi.add_incoming(&[(&lo, before), (&next, last)]);
        ok(self.b.build_conditional_branch(self.lt(next, hi), top, end));
        self.b.position_at_end(end);
    }

    /// `while condition() { body() }`.
    pub fn while_true(&self, condition: impl FnOnce() -> Int<'c>, body: impl FnOnce()) {
        let (top, inside, end) = (self.block(), self.block(), self.block());
        self.branch(top);
        self.b.position_at_end(top);
        ok(self.b.build_conditional_branch(condition(), inside, end));
        self.b.position_at_end(inside);
        body();
        self.branch(top);
        self.b.position_at_end(end);
    }

    /// A variable that starts as `init`.
    pub fn cell<V: BasicValue<'c>>(&self, init: V) -> Cell<'c, V> {
        let ty = init.as_basic_value_enum().get_type();
        let here = ok(self.b.get_insert_block().ok_or(BuilderError::UnsetPosition));
        self.b.position_at_end(self.slots);
        let slot = ok(self.b.build_alloca(ty, ""));
        self.b.position_at_end(here);
        ok(self.b.build_store(slot, init));
        Cell { slot, ty, kind: PhantomData }
    }

    pub fn get<V: TryFrom<BasicValueEnum<'c>>>(&self, cell: &Cell<'c, V>) -> V {
        typed(ok(self.b.build_load(cell.ty, cell.slot, "")))
    }

    pub fn set<V: BasicValue<'c>>(&self, cell: &Cell<'c, V>, value: V) {
        ok(self.b.build_store(cell.slot, value));
    }

    // Memory.

    /// `base + index * bytes`, in bytes.
    pub fn at(&self, base: Ptr<'c>, index: Int<'c>, bytes: u64) -> Ptr<'c> {
        let offset = self.mulc(self.to_i64(index), bytes as i64);
        // SAFETY: builds an instruction; whether the address is in bounds is the kernel's affair, and no `inbounds` is claimed.
        ok(unsafe { self.b.build_gep(self.e.ctx.i8_type(), base, &[offset], "") })
    }

    /// Loads a value of a type from an address aligned to `align` bytes.
    pub fn load(&self, ty: impl BasicType<'c>, from: Ptr<'c>, align: u64) -> BasicValueEnum<'c> {
        let value = ok(self.b.build_load(ty, from, ""));
        self.align(value.as_instruction_value(), align);
        value
    }

    /// Stores a value at an address aligned to `align` bytes.
    pub fn store(&self, to: Ptr<'c>, value: impl BasicValue<'c>, align: u64) {
        let store = ok(self.b.build_store(to, value));
        self.align(Some(store), align);
    }

    fn align(&self, access: Option<inkwell::values::InstructionValue<'c>>, align: u64) {
        let set = access.map(|i| i.set_alignment(align as u32));
        assert!(matches!(set, Some(Ok(()))), "a load or store takes a power of two as its alignment");
    }

    /// Loads an f32 (global or shared).
    pub fn load_f32(&self, base: Ptr<'c>, index: Int<'c>) -> Float<'c> {
        self.load(self.e.ctx.f32_type(), self.at(base, index, 4), 4).into_float_value()
    }

    /// Stores an f32 (global or shared).
    pub fn store_f32(&self, base: Ptr<'c>, index: Int<'c>, value: Float<'c>) {
        self.store(self.at(base, index, 4), value, 4);
    }

    /// Lane `i` of a vector.
    pub fn lane(&self, vector: BasicValueEnum<'c>, i: usize) -> BasicValueEnum<'c> {
        ok(self.b.build_extract_element(vector.into_vector_value(), self.i32(i as i32), ""))
    }

    /// A vector of values of one type.
    pub fn vector(&self, lanes: &[BasicValueEnum<'c>]) -> BasicValueEnum<'c> {
        let n = lanes.len() as u32;
        let ty = match lanes[0].get_type() {
            BasicTypeEnum::FloatType(t) => t.vec_type(n),
            t => t.into_int_type().vec_type(n),
        };
        let start = ty.get_undef();
        let place = |v, (i, x): (usize, &BasicValueEnum<'c>)| ok(self.b.build_insert_element(v, *x, self.i32(i as i32), ""));
        lanes.iter().enumerate().fold(start, place).into()
    }

    /// Member `i` of an intrinsic's result structure.
    pub fn member(&self, s: BasicValueEnum<'c>, i: u32) -> BasicValueEnum<'c> {
        ok(self.b.build_extract_value(s.into_struct_value(), i, ""))
    }

    // Threads.

    /// Calls an LLVM intrinsic by name; `types` choose among overloads.
    pub fn call(&self, name: &str, types: &[BasicTypeEnum<'c>], args: &[BasicMetadataValueEnum<'c>]) -> CallSiteValue<'c> {
        let declared = Intrinsic::find(name).and_then(|i| i.get_declaration(&self.e.module, types));
        let function = declared.unwrap_or_else(|| panic!("LLVM 22 has the intrinsic {name}"));
        ok(self.b.build_call(function, args, ""))
    }

    /// The value that a call returns.
    pub fn value(&self, call: CallSiteValue<'c>) -> BasicValueEnum<'c> {
        call.try_as_basic_value().unwrap_basic()
    }

    /// An instruction without side effects that LLVM does not look into.
    pub fn assembly(
        &self,
        text: &str,
        constraints: &str,
        result: BasicTypeEnum<'c>,
        args: &[BasicMetadataValueEnum<'c>],
    ) -> BasicValueEnum<'c> {
        let types: Vec<BasicMetadataTypeEnum<'c>> =
            args.iter().filter_map(|a| BasicValueEnum::try_from(*a).ok()).map(|v| v.get_type().into()).collect();
        let ty = result.fn_type(&types, false);
        let code = self.e.ctx.create_inline_asm(ty, text.to_string(), constraints.to_string(), false, false, None, false);
        self.value(ok(self.b.build_indirect_call(ty, code, args, "")))
    }

    fn special(&self, name: &str) -> Int<'c> {
        self.value(self.call(name, &[], &[])).into_int_value()
    }

    pub fn thread(&self) -> Int<'c> {
        self.special("llvm.nvvm.read.ptx.sreg.tid.x")
    }

    pub fn block_index(&self) -> Int<'c> {
        self.special("llvm.nvvm.read.ptx.sreg.ctaid.x")
    }

    /// Waits for all threads of the block, and makes shared and global writes among them visible.
    pub fn barrier(&self) {
        self.call("llvm.nvvm.barrier.cta.sync.aligned.all", &[], &[self.i32(0).into()]);
    }

    /// Waits for all lanes of the warp, and makes writes among them visible.
    pub fn warp_barrier(&self) {
        self.call("llvm.nvvm.bar.warp.sync", &[], &[self.i32(-1).into()]);
    }

    /// The value of the lane whose number differs by `mask` (all 32 lanes take part).
    pub fn shuffle_xor(&self, x: Int<'c>, mask: i32) -> Int<'c> {
        let args = [self.i32(-1).into(), x.into(), self.i32(mask).into(), self.i32(31).into()];
        self.value(self.call("llvm.nvvm.shfl.sync.bfly.i32", &[], &args)).into_int_value()
    }

    /// [`Build::shuffle_xor`] of an f32.
    pub fn shuffle_xor_f32(&self, x: Float<'c>, mask: i32) -> Float<'c> {
        let args = [self.i32(-1).into(), x.into(), self.i32(mask).into(), self.i32(31).into()];
        self.value(self.call("llvm.nvvm.shfl.sync.bfly.f32", &[], &args)).into_float_value()
    }

    /// The value of lane `from` (all 32 lanes take part).
    pub fn shuffle(&self, x: Int<'c>, from: Int<'c>) -> Int<'c> {
        let args = [self.i32(-1).into(), x.into(), from.into(), self.i32(31).into()];
        self.value(self.call("llvm.nvvm.shfl.sync.idx.i32", &[], &args)).into_int_value()
    }

    /// A bit for each lane: where `c` holds (all 32 lanes take part).
    pub fn ballot(&self, c: Int<'c>) -> Int<'c> {
        self.value(self.call("llvm.nvvm.vote.ballot.sync", &[], &[self.i32(-1).into(), c.into()])).into_int_value()
    }

    /// Number of zeros below the lowest set bit of a value that is not 0.
    pub fn trailing_zeros(&self, x: Int<'c>) -> Int<'c> {
        let args = [x.into(), self.bool(true).into()];
        self.value(self.call("llvm.cttz", &[x.get_type().into()], &args)).into_int_value()
    }

    /// [`Build::shuffle_xor`] of 64 bits, in halves.
    pub fn shuffle_xor_i64(&self, x: Int<'c>, mask: i32) -> Int<'c> {
        let (low, high) = (self.zext(x, 32), self.zext(self.shr(x, 32), 32));
        let (low, high) = (self.shuffle_xor(low, mask), self.shuffle_xor(high, mask));
        self.or(self.zext(low, 64), self.shl(self.zext(high, 64), 32))
    }

    /// The largest value of the warp's lanes.
    pub fn warp_max(&self, x: Float<'c>) -> Float<'c> {
        [16, 8, 4, 2, 1].into_iter().fold(x, |m, mask| self.fmax_number(m, self.shuffle_xor_f32(m, mask)))
    }
}

/// Narrows a value to the type that its maker gave it.
fn typed<'c, V: TryFrom<BasicValueEnum<'c>>>(value: BasicValueEnum<'c>) -> V {
    V::try_from(value).unwrap_or_else(|_| panic!("an operator on one type gives that type"))
}
