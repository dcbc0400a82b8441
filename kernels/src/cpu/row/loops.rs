//! Loops over slices for one operator, compiled for what the processor has.
//!
//! A loop is chosen once, when a program is compiled, and called through a pointer with up to three operands. An operand is either
//! a slice as long as the result or one value for all of it.

use crate::cpu::math::{Fma, Fused, Split};

/// `(result, x, y, z, elements)`. Every operand is valid for its kind; the result overlaps none.
pub type MapFn = unsafe fn(*mut u8, *const u8, *const u8, *const u8, usize);

/// What the processor offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Base,
    Avx2,
    Avx512,
}

impl Isa {
    /// The best that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512dq") {
                return Isa::Avx512;
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Base
    }
}

/// A scalar function of up to three operands.
pub trait Scalar {
    type X: Copy;
    type Y: Copy;
    type Z: Copy;
    type Out: Copy;
    fn eval<F: Fma>(x: Self::X, y: Self::Y, z: Self::Z) -> Self::Out;
    /// True for an operand that `eval` is not for.
    #[inline(always)]
    fn exceptional(_: Self::X) -> bool {
        false
    }
    /// What to do with an exceptional operand.
    fn slow(x: Self::X, y: Self::Y, z: Self::Z) -> Self::Out {
        Self::eval::<Split>(x, y, z)
    }
    /// Whether any operand is exceptional.
    const EXCEPTIONS: bool = false;
}

/// Which operands are one value for the whole slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broadcast(pub [bool; 3]);

#[inline(always)]
unsafe fn body<S: Scalar, F: Fma, const B: u8>(out: *mut u8, x: *const u8, y: *const u8, z: *const u8, n: usize) {
    let (out, x, y, z) = (out.cast::<S::Out>(), x.cast::<S::X>(), y.cast::<S::Y>(), z.cast::<S::Z>());
    // Read once: the compiler cannot know that the result does not overlap.
    // SAFETY: the caller gives one element at least, and slices of `n` that `out` does not overlap.
    unsafe {
        if n == 0 {
            return;
        }
        let (x0, y0, z0) = (x.read(), y.read(), z.read());
        let out = std::slice::from_raw_parts_mut(out, n);
        let xs = std::slice::from_raw_parts(x, if B & 1 == 0 { n } else { 1 });
        let ys = std::slice::from_raw_parts(y, if B & 2 == 0 { n } else { 1 });
        let zs = std::slice::from_raw_parts(z, if B & 4 == 0 { n } else { 1 });
        for i in 0..n {
            let x = if B & 1 == 0 { *xs.get_unchecked(i) } else { x0 };
            let y = if B & 2 == 0 { *ys.get_unchecked(i) } else { y0 };
            let z = if B & 4 == 0 { *zs.get_unchecked(i) } else { z0 };
            *out.get_unchecked_mut(i) = S::eval::<F>(x, y, z);
        }
        if S::EXCEPTIONS && xs.iter().any(|&x| S::exceptional(x)) {
            for (i, out) in out.iter_mut().enumerate() {
                let x = if B & 1 == 0 { xs[i] } else { x0 };
                if S::exceptional(x) {
                    *out = S::slow(x, if B & 2 == 0 { ys[i] } else { y0 }, if B & 4 == 0 { zs[i] } else { z0 });
                }
            }
        }
    }
}

unsafe fn base<S: Scalar, const B: u8>(out: *mut u8, x: *const u8, y: *const u8, z: *const u8, n: usize) {
    unsafe { body::<S, Split, B>(out, x, y, z, n) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<S: Scalar, const B: u8>(out: *mut u8, x: *const u8, y: *const u8, z: *const u8, n: usize) {
    unsafe { body::<S, Fused, B>(out, x, y, z, n) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn avx512<S: Scalar, const B: u8>(out: *mut u8, x: *const u8, y: *const u8, z: *const u8, n: usize) {
    unsafe { body::<S, Fused, B>(out, x, y, z, n) }
}

fn select<S: Scalar, const B: u8>(isa: Isa) -> MapFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::<S, B>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::<S, B>,
        _ => base::<S, B>,
    }
}

/// Placeholder for an operand that an operator does not have: pass any valid pointer.
pub type Unused = [u8; 0];

/// The loop of an operator of one operand.
pub fn unary<S: Scalar<Y = Unused, Z = Unused>>(isa: Isa) -> MapFn {
    select::<S, 6>(isa)
}

/// The loop of an operator of two operands, not both of them one value.
pub fn binary<S: Scalar<Z = Unused>>(isa: Isa, broadcast: Broadcast) -> MapFn {
    match broadcast.0 {
        [true, _, _] => select::<S, 5>(isa),
        [_, true, _] => select::<S, 6>(isa),
        _ => select::<S, 4>(isa),
    }
}

/// The loop of an operator of three operands, not all of them one value.
pub fn ternary<S: Scalar>(isa: Isa, broadcast: Broadcast) -> MapFn {
    match broadcast.0 {
        [false, false, false] => select::<S, 0>(isa),
        [true, false, false] => select::<S, 1>(isa),
        [false, true, false] => select::<S, 2>(isa),
        [true, true, _] => select::<S, 3>(isa),
        [false, false, true] => select::<S, 4>(isa),
        [true, false, true] => select::<S, 5>(isa),
        [false, true, true] => select::<S, 6>(isa),
    }
}
