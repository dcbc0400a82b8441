//! Scores: scale, soft cap, bias, mask; and which tiles a mask leaves.

use super::SIDE;
use crate::program::{Attention, Bias};
use crate::ptx::build::{Build, Float, Int};
use crate::ptx::math;
use crate::ptx::value::Val;
use crate::{DType, KernelError};

/// What scores one batch and head.
pub struct Scorer<'c, 'b> {
    pub b: &'b Build<'c, 'b>,
    pub k: &'b Attention,
    /// First element of the bias, i64.
    bias: Option<(Bias, Int<'c>)>,
}

/// A score and its derivative by the inner product, but for the scale.
pub struct Score<'c> {
    /// Minus infinity where the mask excludes.
    pub z: Float<'c>,
    /// Absent where it is 1.
    pub slope: Option<Float<'c>>,
}

/// Argument of the bias, when there is one; those after it move up by one.
const BIAS: usize = 3;

impl<'c, 'b> Scorer<'c, 'b> {
    pub fn new(b: &'b Build<'c, 'b>, k: &'b Attention, batch: Int<'c>, head: Int<'c>) -> Self {
        let base = |m: &Bias| b.add(b.mulc(b.to_i64(batch), m.batch as i64), b.mulc(b.to_i64(head), m.head as i64));
        Scorer { b, k, bias: k.bias.map(|m| (m, base(&m))) }
    }

    /// Position of a query among the keys, less the query's own position.
    fn shift(k: &Attention) -> i64 {
        if k.mask.align_end { k.kv_len as i64 - k.q_len as i64 } else { 0 }
    }

    /// The score of query `i` and key `j` from their inner product.
    pub fn score(&self, product: Float<'c>, i: Int<'c>, j: Int<'c>) -> Score<'c> {
        let (b, k) = (self.b, self.k);
        let z = b.fmul(product, b.f32(f32::from_bits(k.scale.0)));
        let (z, slope) = match k.softcap {
            None => (z, None),
            Some(cap) => {
                let cap = b.f32(f32::from_bits(cap.0));
                let t = math::tanh(b, b.fdiv(z, cap));
                (b.fmul(cap, t), Some(b.fma(b.fneg(t), t, b.f32(1.0))))
            }
        };
        let (i_inside, j_inside) = (b.ltc(i, k.q_len as i64), b.ltc(j, k.kv_len as i64));
        let mut seen = b.and(i_inside, j_inside);
        let place = b.addc(i, Self::shift(k));
        if k.mask.causal {
            seen = b.and(seen, b.not(b.lt(place, j)));
        }
        if let Some(window) = k.mask.window {
            let window = window.min(1 << 31) as i64;
            seen = b.and(seen, b.lt(b.to_i64(place), b.addc(b.to_i64(j), window)));
        }
        let (z, seen) = self.biased(z, seen, i, j);
        Score { z: b.select(seen, z, b.f32(f32::NEG_INFINITY)), slope }
    }

    fn biased(&self, z: Float<'c>, seen: Int<'c>, i: Int<'c>, j: Int<'c>) -> (Float<'c>, Int<'c>) {
        let b = self.b;
        let Some((m, base)) = &self.bias else { return (z, seen) };
        let offset = b.add(b.mulc(b.to_i64(i), m.query as i64), b.mulc(b.to_i64(j), m.key as i64));
        // An excluded position may lie outside the bias.
        let at = b.select(seen, b.add(*base, offset), b.i64(0));
        match b.load_elem(b.arg(BIAS), m.dtype, at) {
            Val::B(keep) => (z, b.and(seen, keep)),
            v => (b.fadd(z, b.to_float(v)), seen),
        }
    }

    /// `exp(z - m)`, zero for what the mask excludes (even where `m` is minus infinity).
    pub fn probability(&self, z: Float<'c>, m: Float<'c>) -> Float<'c> {
        let b = self.b;
        let excluded = b.fcmp(inkwell::FloatPredicate::OEQ, z, b.f32(f32::NEG_INFINITY));
        b.select(excluded, b.f32(0.0), math::exp(b, b.fsub(z, m)))
    }

    /// The first key tile's start and the end of the keys that any of 64 queries from `i0` on sees.
    pub fn key_range(&self, i0: Int<'c>) -> (Int<'c>, Int<'c>) {
        let (b, k) = (self.b, self.k);
        let (shift, keys) = (Self::shift(k), b.i32(k.kv_len as i32));
        let end = match k.mask.causal {
            true => b.min(b.max(b.addc(i0, SIDE + shift), b.i32(0)), keys),
            false => keys,
        };
        let start = match k.mask.window {
            Some(w) if w < 1 << 30 => b.max(b.addc(i0, shift - w as i64 + 1), b.i32(0)),
            _ => b.i32(0),
        };
        (b.andc(start, -SIDE), end)
    }

    /// The first query tile's start and the end of the queries that see any of 64 keys from `j0` on.
    pub fn query_range(&self, j0: Int<'c>) -> (Int<'c>, Int<'c>) {
        let (b, k) = (self.b, self.k);
        let (shift, queries) = (Self::shift(k), b.i32(k.q_len as i32));
        let start = match k.mask.causal {
            true => b.max(b.addc(j0, -shift), b.i32(0)),
            false => b.i32(0),
        };
        let end = match k.mask.window {
            Some(w) if w < 1 << 30 => b.min(b.max(b.addc(j0, SIDE - 1 + w as i64 - shift), b.i32(0)), queries),
            _ => queries,
        };
        (b.andc(start, -SIDE), end)
    }
}

/// Number of the argument that follows q, k, v and the bias by `after`.
pub fn arg_after(k: &Attention, after: usize) -> usize {
    BIAS + k.bias.is_some() as usize + after
}

/// Refuses what the kernels have no code for.
pub fn check_bias(k: &Attention) -> Result<(), KernelError> {
    match k.bias.map(|m| m.dtype) {
        None | Some(DType::F32 | DType::Bf16 | DType::Bool) => Ok(()),
        Some(d) => Err(KernelError::Invalid { family: "attention", reason: format!("a bias of format {d}") }),
    }
}
