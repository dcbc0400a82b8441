//! Loops that move a run of elements between a tile and an argument, converting on the way.

use super::loops::Isa;
use super::numbers;
use crate::DType;
use crate::program::Kind;

/// `(to, step of to, from, step of from, elements)`, steps in elements. The runs do not overlap.
pub type RunFn = unsafe fn(*mut u8, i64, *const u8, i64, usize);

/// A conversion of one element, given what is at its destination.
trait Convert {
    type From: Copy;
    type To: Copy;
    /// True where the destination is read.
    const UPDATES: bool = false;
    fn convert(from: Self::From, old: Self::To) -> Self::To;
}

#[inline(always)]
unsafe fn body<C: Convert>(to: *mut u8, to_step: i64, from: *const u8, from_step: i64, n: usize) {
    let (to, from) = (to.cast::<C::To>(), from.cast::<C::From>());
    // SAFETY: the caller gives runs of `n` elements with these steps.
    unsafe {
        match (to_step, from_step) {
            (1, 1) => {
                let from = std::slice::from_raw_parts(from, n);
                if C::UPDATES {
                    let to = std::slice::from_raw_parts_mut(to, n);
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = C::convert(*from, *to));
                } else {
                    let to = std::slice::from_raw_parts_mut(to, n);
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = C::convert(*from, std::mem::zeroed()));
                }
            }
            (1, 0) if !C::UPDATES => {
                let value = C::convert(from.read(), std::mem::zeroed());
                std::slice::from_raw_parts_mut(to, n).fill(value);
            }
            // Strided on one side, as a transposition is.
            (1, _) => {
                let to = std::slice::from_raw_parts_mut(to, n);
                for (i, to) in to.iter_mut().enumerate() {
                    let old = if C::UPDATES { *to } else { std::mem::zeroed() };
                    *to = C::convert(from.wrapping_offset(i as isize * from_step as isize).read(), old);
                }
            }
            (_, 1) => {
                let from = std::slice::from_raw_parts(from, n);
                for (i, from) in from.iter().enumerate() {
                    let to = to.wrapping_offset(i as isize * to_step as isize);
                    let old = if C::UPDATES { to.read() } else { std::mem::zeroed() };
                    to.write(C::convert(*from, old));
                }
            }
            _ => {
                for i in 0..n as isize {
                    let to = to.wrapping_offset(i * to_step as isize);
                    let old = if C::UPDATES { to.read() } else { std::mem::zeroed() };
                    to.write(C::convert(from.wrapping_offset(i * from_step as isize).read(), old));
                }
            }
        }
    }
}

unsafe fn base<C: Convert>(to: *mut u8, to_step: i64, from: *const u8, from_step: i64, n: usize) {
    unsafe { body::<C>(to, to_step, from, from_step, n) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<C: Convert>(to: *mut u8, to_step: i64, from: *const u8, from_step: i64, n: usize) {
    unsafe { body::<C>(to, to_step, from, from_step, n) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn avx512<C: Convert>(to: *mut u8, to_step: i64, from: *const u8, from_step: i64, n: usize) {
    unsafe { body::<C>(to, to_step, from, from_step, n) }
}

fn select<C: Convert>(isa: Isa) -> RunFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::<C>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::<C>,
        _ => base::<C>,
    }
}

/// Declares conversions; `$old` is what is at the destination, for those that update it.
macro_rules! conversions {
    ($($name:ident: $from:ty => $to:ty = |$x:ident| $value:expr,)*) => {
        $(struct $name;
        impl Convert for $name {
            type From = $from;
            type To = $to;
            #[inline(always)]
            fn convert($x: $from, _: $to) -> $to {
                $value
            }
        })*
    };
    (update $($name:ident: $from:ty => $to:ty = |$x:ident, $old:ident| $value:expr,)*) => {
        $(struct $name;
        impl Convert for $name {
            type From = $from;
            type To = $to;
            const UPDATES: bool = true;
            #[inline(always)]
            fn convert($x: $from, $old: $to) -> $to {
                $value
            }
        })*
    };
}

conversions! {
    CopyF32: f32 => f32 = |x| x,
    FromBf16: u16 => f32 = |x| numbers::from_bf16(x),
    FromE4m3: u8 => f32 = |x| numbers::from_e4m3(x),
    CopyI64: i64 => i64 = |x| x,
    FromI32: i32 => i64 = |x| i64::from(x),
    // Any byte but 0 is true: a bool argument may come from outside.
    FromBool: u8 => u8 = |x| (x != 0) as u8,
    FloatToBf16: f32 => u16 = |x| numbers::to_bf16(x),
    FloatToE4m3: f32 => u8 = |x| numbers::to_e4m3(x),
    FloatToI64: f32 => i64 = |x| x as i64,
    FloatToI32: f32 => i32 = |x| x as i32,
    FloatToBool: f32 => u8 = |x| (x != 0.0) as u8,
    IntToF32: i64 => f32 = |x| x as f32,
    IntToBf16: i64 => u16 = |x| numbers::to_bf16(x as f32),
    IntToE4m3: i64 => u8 = |x| numbers::to_e4m3(x as f32),
    IntToI32: i64 => i32 = |x| x as i32,
    IntToBool: i64 => u8 = |x| (x != 0) as u8,
    BoolToF32: u8 => f32 = |x| f32::from(x),
    BoolToBf16: u8 => u16 = |x| numbers::to_bf16(f32::from(x)),
    BoolToE4m3: u8 => u8 = |x| numbers::to_e4m3(f32::from(x)),
    BoolToI64: u8 => i64 = |x| i64::from(x),
    BoolToI32: u8 => i32 = |x| i32::from(x),
}

conversions! {
    update
    AddF32: f32 => f32 = |x, old| old + x,
    AddBf16: f32 => u16 = |x, old| numbers::to_bf16(numbers::from_bf16(old) + x),
    AddE4m3: f32 => u8 = |x, old| numbers::to_e4m3(numbers::from_e4m3(old) + x),
    AddI64: i64 => i64 = |x, old| old.wrapping_add(x),
    AddI32: i64 => i32 = |x, old| (i64::from(old).wrapping_add(x)) as i32,
}

/// The loop that reads a format.
pub fn load(from: DType, isa: Isa) -> RunFn {
    match from {
        DType::F32 => select::<CopyF32>(isa),
        DType::Bf16 => select::<FromBf16>(isa),
        DType::E4m3 => select::<FromE4m3>(isa),
        DType::I64 => select::<CopyI64>(isa),
        DType::I32 => select::<FromI32>(isa),
        DType::Bool => select::<FromBool>(isa),
    }
}

/// The loop that writes a kind in a format.
pub fn store(from: Kind, to: DType, isa: Isa) -> RunFn {
    match (from, to) {
        (Kind::Float, DType::F32) => select::<CopyF32>(isa),
        (Kind::Float, DType::Bf16) => select::<FloatToBf16>(isa),
        (Kind::Float, DType::E4m3) => select::<FloatToE4m3>(isa),
        (Kind::Float, DType::I64) => select::<FloatToI64>(isa),
        (Kind::Float, DType::I32) => select::<FloatToI32>(isa),
        (Kind::Float, DType::Bool) => select::<FloatToBool>(isa),
        (Kind::Int, DType::F32) => select::<IntToF32>(isa),
        (Kind::Int, DType::Bf16) => select::<IntToBf16>(isa),
        (Kind::Int, DType::E4m3) => select::<IntToE4m3>(isa),
        (Kind::Int, DType::I64) => select::<CopyI64>(isa),
        (Kind::Int, DType::I32) => select::<IntToI32>(isa),
        (Kind::Int, DType::Bool) => select::<IntToBool>(isa),
        (Kind::Bool, DType::F32) => select::<BoolToF32>(isa),
        (Kind::Bool, DType::Bf16) => select::<BoolToBf16>(isa),
        (Kind::Bool, DType::E4m3) => select::<BoolToE4m3>(isa),
        (Kind::Bool, DType::I64) => select::<BoolToI64>(isa),
        (Kind::Bool, DType::I32) => select::<BoolToI32>(isa),
        (Kind::Bool, DType::Bool) => select::<FromBool>(isa),
    }
}

/// The loop that adds to a format a value of the format's own kind; `None` for bools.
pub fn accumulate(to: DType, isa: Isa) -> Option<RunFn> {
    match to {
        DType::F32 => Some(select::<AddF32>(isa)),
        DType::Bf16 => Some(select::<AddBf16>(isa)),
        DType::E4m3 => Some(select::<AddE4m3>(isa)),
        DType::I64 => Some(select::<AddI64>(isa)),
        DType::I32 => Some(select::<AddI32>(isa)),
        DType::Bool => None,
    }
}
