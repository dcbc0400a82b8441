//! Instructions that map registers to registers.

use crate::float::{from_bf16, from_e4m3, from_f16, to_bf16, to_e4m3, to_f16_exact};

/// Operands in, result out; registers hold bits, zero-extended.
pub type Op = fn([u64; 4]) -> u64;

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

fn bits(x: f32) -> u64 {
    x.to_bits() as u64
}

fn low(x: i64) -> u64 {
    x as u32 as u64
}

fn s(x: u64) -> i64 {
    x as i32 as i64
}

fn unordered(x: [u64; 4]) -> bool {
    f(x[0]).is_nan() || f(x[1]).is_nan()
}

fn flag(c: bool) -> u64 {
    c as u64
}

/// Maximum of numbers; a NaN loses. The positive zero is the larger.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        if a.is_nan() { b } else { a }
    } else if a > b || (a == b && b.is_sign_negative()) {
        a
    } else {
        b
    }
}

fn nan_or(a: f32, b: f32, x: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { x }
}

/// Count of operands and meaning of an opcode; None for one that this emulator does not know.
pub fn lookup(name: &str) -> Option<(usize, Op)> {
    integer(name).or_else(|| floating(name)).or_else(|| comparison(name)).or_else(|| conversion(name))
}

fn integer(name: &str) -> Option<(usize, Op)> {
    Some(match name {
        "mov.b32" | "mov.u32" | "mov.b64" | "mov.b16" | "mov.pred" => (1, |x| x[0]),
        "add.s32" => (2, |x| low(s(x[0]) + s(x[1]))),
        "sub.s32" => (2, |x| low(s(x[0]) - s(x[1]))),
        "mul.lo.s32" => (2, |x| low(s(x[0]) * s(x[1]))),
        "mul.hi.u32" => (2, |x| ((x[0] as u32 as u64) * (x[1] as u32 as u64)) >> 32),
        "mul.wide.s32" => (2, |x| (s(x[0]) * s(x[1])) as u64),
        "mul.wide.u32" => (2, |x| (x[0] as u32 as u64) * (x[1] as u32 as u64)),
        "mul.wide.u16" => (2, |x| (x[0] as u16 as u64) * (x[1] as u16 as u64)),
        "mad.lo.s32" => (3, |x| low(s(x[0]).wrapping_mul(s(x[1])).wrapping_add(s(x[2])))),
        "mad.lo.s64" => (3, |x| x[0].wrapping_mul(x[1]).wrapping_add(x[2])),
        "add.s64" => (2, |x| x[0].wrapping_add(x[1])),
        "sub.s64" => (2, |x| x[0].wrapping_sub(x[1])),
        "mul.lo.s64" => (2, |x| x[0].wrapping_mul(x[1])),
        "mul.hi.u64" => (2, |x| ((x[0] as u128 * x[1] as u128) >> 64) as u64),
        "mul.hi.s64" => (2, |x| ((x[0] as i64 as i128 * x[1] as i64 as i128) >> 64) as u64),
        "mul.hi.s32" => (2, |x| low((s(x[0]) * s(x[1])) >> 32)),
        "div.u32" => (2, |x| (x[0] as u32).checked_div(x[1] as u32).unwrap_or(u32::MAX) as u64),
        "rem.u32" => (2, |x| (x[0] as u32).checked_rem(x[1] as u32).unwrap_or(u32::MAX) as u64),
        "div.u64" => (2, |x| x[0].checked_div(x[1]).unwrap_or(u64::MAX)),
        "rem.u64" => (2, |x| x[0].checked_rem(x[1]).unwrap_or(u64::MAX)),
        "div.s64" => (2, |x| (x[0] as i64).wrapping_div(if x[1] == 0 { 1 } else { x[1] as i64 }) as u64),
        "rem.s64" => (2, |x| (x[0] as i64).wrapping_rem(if x[1] == 0 { 1 } else { x[1] as i64 }) as u64),
        "abs.s64" => (1, |x| (x[0] as i64).wrapping_abs() as u64),
        "neg.s64" => (1, |x| (x[0] as i64).wrapping_neg() as u64),
        "abs.s32" => (1, |x| (x[0] as i32).wrapping_abs() as u32 as u64),
        "neg.s32" => (1, |x| (x[0] as i32).wrapping_neg() as u32 as u64),
        "min.s32" => (2, |x| low(s(x[0]).min(s(x[1])))),
        "max.s32" => (2, |x| low(s(x[0]).max(s(x[1])))),
        "min.u32" | "min.u64" => (2, |x| x[0].min(x[1])),
        "max.u32" | "max.u64" => (2, |x| x[0].max(x[1])),
        "min.s64" => (2, |x| (x[0] as i64).min(x[1] as i64) as u64),
        "max.s64" => (2, |x| (x[0] as i64).max(x[1] as i64) as u64),
        "and.b32" | "and.b64" | "and.b16" | "and.pred" => (2, |x| x[0] & x[1]),
        "or.b32" | "or.b64" | "or.b16" | "or.pred" => (2, |x| x[0] | x[1]),
        "xor.b32" | "xor.b64" | "xor.b16" | "xor.pred" => (2, |x| x[0] ^ x[1]),
        "not.pred" => (1, |x| x[0] ^ 1),
        "not.b16" => (1, |x| !x[0] & 0xffff),
        "not.b32" => (1, |x| !x[0] & 0xffff_ffff),
        "not.b64" => (1, |x| !x[0]),
        "shl.b32" => (2, |x| if x[1] as u32 > 31 { 0 } else { (x[0] << (x[1] as u32)) & 0xffff_ffff }),
        "shl.b64" => (2, |x| if x[1] as u32 > 63 { 0 } else { x[0] << (x[1] as u32) }),
        "shl.b16" => (2, |x| if x[1] as u32 > 15 { 0 } else { (x[0] << (x[1] as u32)) & 0xffff }),
        "shr.u32" => (2, |x| if x[1] as u32 > 31 { 0 } else { x[0] >> (x[1] as u32) }),
        "shr.u64" => (2, |x| if x[1] as u32 > 63 { 0 } else { x[0] >> (x[1] as u32) }),
        "shr.u16" => (2, |x| if x[1] as u32 > 15 { 0 } else { x[0] >> (x[1] as u32) }),
        "shr.s32" => (2, |x| low(s(x[0]) >> (x[1] as u32).min(31))),
        "shr.s64" => (2, |x| ((x[0] as i64) >> (x[1] as u32).min(63)) as u64),
        "bfe.u64" => (3, |x| (x[0] >> (x[1] & 63)) & ((1 << (x[2] & 63)) - 1)),
        "bfe.u32" => (3, |x| (x[0] >> (x[1] & 31)) & ((1 << (x[2] & 31)) - 1)),
        "prmt.b32" => (3, |x| {
            let bytes = x[1] << 32 | x[0] & 0xffff_ffff;
            let pick = |i: u32| {
                let selector = x[2] >> (4 * i) & 15;
                let byte = bytes >> (8 * (selector & 7)) & 255;
                let chosen = if selector & 8 == 0 {
                    byte
                } else if byte & 128 == 0 {
                    0
                } else {
                    255
                };
                chosen << (8 * i)
            };
            (0..4).map(pick).sum()
        }),
        "popc.b32" => (1, |x| (x[0] as u32).count_ones() as u64),
        "selp.b16" | "selp.b32" | "selp.b64" | "selp.f32" => (3, |x| if x[2] & 1 == 1 { x[0] } else { x[1] }),
        _ => return None,
    })
}

fn floating(name: &str) -> Option<(usize, Op)> {
    Some(match name {
        "add.rn.f32" => (2, |x| bits(f(x[0]) + f(x[1]))),
        "sub.rn.f32" => (2, |x| bits(f(x[0]) - f(x[1]))),
        "mul.rn.f32" => (2, |x| bits(f(x[0]) * f(x[1]))),
        "div.rn.f32" => (2, |x| bits(f(x[0]) / f(x[1]))),
        "fma.rn.f32" => (3, |x| bits(f(x[0]).mul_add(f(x[1]), f(x[2])))),
        "rcp.rn.f32" => (1, |x| bits(1.0 / f(x[0]))),
        "sqrt.rn.f32" => (1, |x| bits(f(x[0]).sqrt())),
        "neg.f32" => (1, |x| bits(-f(x[0]))),
        "abs.f32" => (1, |x| bits(f(x[0]).abs())),
        // The sign of the first, the magnitude of the second.
        "copysign.f32" => (2, |x| bits(f(x[1]).copysign(f(x[0])))),
        "max.f32" => (2, |x| bits(larger(f(x[0]), f(x[1])))),
        "min.f32" => (2, |x| bits(-larger(-f(x[0]), -f(x[1])))),
        "max.NaN.f32" => (2, |x| bits(nan_or(f(x[0]), f(x[1]), larger(f(x[0]), f(x[1]))))),
        "min.NaN.f32" => (2, |x| bits(nan_or(f(x[0]), f(x[1]), -larger(-f(x[0]), -f(x[1]))))),
        "add.rn.f64" => (2, |x| (d(x[0]) + d(x[1])).to_bits()),
        "sub.rn.f64" => (2, |x| (d(x[0]) - d(x[1])).to_bits()),
        "mul.rn.f64" => (2, |x| (d(x[0]) * d(x[1])).to_bits()),
        "div.rn.f64" => (2, |x| (d(x[0]) / d(x[1])).to_bits()),
        "fma.rn.f64" => (3, |x| d(x[0]).mul_add(d(x[1]), d(x[2])).to_bits()),
        "neg.f64" => (1, |x| (-d(x[0])).to_bits()),
        "abs.f64" => (1, |x| d(x[0]).abs().to_bits()),
        _ => return None,
    })
}

fn comparison(name: &str) -> Option<(usize, Op)> {
    Some(match name {
        "setp.eq.b16" | "setp.eq.b32" | "setp.eq.b64" | "setp.eq.s32" | "setp.eq.s64" => (2, |x| flag(x[0] == x[1])),
        "setp.ne.b16" | "setp.ne.b32" | "setp.ne.b64" | "setp.ne.s32" | "setp.ne.s64" => (2, |x| flag(x[0] != x[1])),
        "setp.lt.s32" => (2, |x| flag(s(x[0]) < s(x[1]))),
        "setp.le.s32" => (2, |x| flag(s(x[0]) <= s(x[1]))),
        "setp.gt.s32" => (2, |x| flag(s(x[0]) > s(x[1]))),
        "setp.ge.s32" => (2, |x| flag(s(x[0]) >= s(x[1]))),
        "setp.lt.s64" => (2, |x| flag((x[0] as i64) < x[1] as i64)),
        "setp.le.s64" => (2, |x| flag(x[0] as i64 <= x[1] as i64)),
        "setp.gt.s64" => (2, |x| flag(x[0] as i64 > x[1] as i64)),
        "setp.ge.s64" => (2, |x| flag(x[0] as i64 >= x[1] as i64)),
        "setp.lt.u32" | "setp.lt.u64" | "setp.lt.u16" => (2, |x| flag(x[0] < x[1])),
        "setp.le.u32" | "setp.le.u64" | "setp.le.u16" => (2, |x| flag(x[0] <= x[1])),
        "setp.gt.u32" | "setp.gt.u64" | "setp.gt.u16" => (2, |x| flag(x[0] > x[1])),
        "setp.ge.u32" | "setp.ge.u64" | "setp.ge.u16" => (2, |x| flag(x[0] >= x[1])),
        "setp.lt.f32" => (2, |x| flag(f(x[0]) < f(x[1]))),
        "setp.le.f32" => (2, |x| flag(f(x[0]) <= f(x[1]))),
        "setp.gt.f32" => (2, |x| flag(f(x[0]) > f(x[1]))),
        "setp.ge.f32" => (2, |x| flag(f(x[0]) >= f(x[1]))),
        "setp.eq.f32" => (2, |x| flag(f(x[0]) == f(x[1]))),
        "setp.ne.f32" => (2, |x| flag(f(x[0]) < f(x[1]) || f(x[0]) > f(x[1]))),
        "setp.neu.f32" => (2, |x| flag(f(x[0]) != f(x[1]))),
        "setp.equ.f32" => (2, |x| flag(unordered(x) || f(x[0]) == f(x[1]))),
        "setp.ltu.f32" => (2, |x| flag(unordered(x) || f(x[0]) < f(x[1]))),
        "setp.leu.f32" => (2, |x| flag(unordered(x) || f(x[0]) <= f(x[1]))),
        "setp.gtu.f32" => (2, |x| flag(unordered(x) || f(x[0]) > f(x[1]))),
        "setp.geu.f32" => (2, |x| flag(unordered(x) || f(x[0]) >= f(x[1]))),
        "setp.num.f32" => (2, |x| flag(!unordered(x))),
        "setp.nan.f32" => (2, |x| flag(unordered(x))),
        "setp.lt.f64" => (2, |x| flag(d(x[0]) < d(x[1]))),
        "setp.eq.f64" => (2, |x| flag(d(x[0]) == d(x[1]))),
        _ => return None,
    })
}

fn conversion(name: &str) -> Option<(usize, Op)> {
    Some(match name {
        "cvt.u32.u16" | "cvt.u64.u16" => (1, |x| x[0] & 0xffff),
        "cvt.u16.u32" | "cvt.u16.u64" => (1, |x| x[0] & 0xffff),
        "cvt.u32.u64" => (1, |x| x[0] & 0xffff_ffff),
        "cvt.u64.u32" => (1, |x| x[0] & 0xffff_ffff),
        "cvt.s64.s32" => (1, |x| s(x[0]) as u64),
        "cvt.s32.s16" => (1, |x| low(x[0] as u16 as i16 as i64)),
        "cvt.rn.f32.s32" => (1, |x| bits(x[0] as i32 as f32)),
        "cvt.rn.f32.u32" => (1, |x| bits(x[0] as u32 as f32)),
        "cvt.rn.f32.s64" => (1, |x| bits(x[0] as i64 as f32)),
        "cvt.rn.f32.u64" => (1, |x| bits(x[0] as f32)),
        // NaN to 64 bits gives the lowest integer, says the manual.
        "cvt.rzi.s64.f32" => (1, |x| if f(x[0]).is_nan() { 1 << 63 } else { f(x[0]) as i64 as u64 }),
        "cvt.rzi.s32.f32" => (1, |x| low(f(x[0]) as i32 as i64)),
        "cvt.rni.f32.f32" => (1, |x| bits(f(x[0]).round_ties_even())),
        "cvt.rmi.f32.f32" => (1, |x| bits(f(x[0]).floor())),
        "cvt.rpi.f32.f32" => (1, |x| bits(f(x[0]).ceil())),
        "cvt.rzi.f32.f32" => (1, |x| bits(f(x[0]).trunc())),
        "cvt.rzi.f64.f64" => (1, |x| d(x[0]).trunc().to_bits()),
        "cvt.f64.f32" => (1, |x| (f(x[0]) as f64).to_bits()),
        "cvt.rn.f32.f64" => (1, |x| bits(d(x[0]) as f32)),
        "cvt.rn.bf16.f32" => (1, |x| to_bf16(f(x[0])) as u64),
        "cvt.f32.bf16" => (1, |x| bits(from_bf16(x[0] as u16))),
        "cvt.rn.bf16x2.f32" => (2, |x| (to_bf16(f(x[0])) as u64) << 16 | to_bf16(f(x[1])) as u64),
        "cvt.rn.satfinite.e4m3x2.f32" => (2, |x| (to_e4m3(f(x[0])) as u64) << 8 | to_e4m3(f(x[1])) as u64),
        "cvt.rn.f16x2.e4m3x2" => (1, |x| {
            let half = |code: u64| to_f16_exact(from_e4m3(code as u8)) as u64;
            half(x[0] >> 8) << 16 | half(x[0] & 255)
        }),
        "cvt.f32.f16" => (1, |x| bits(from_f16(x[0] as u16))),
        _ => return None,
    })
}
