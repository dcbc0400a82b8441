//! Kernels with a thread for each element of the result.

use super::build::{Build, Int};
use super::module::Emitter;
use crate::KernelError;
use crate::program::Arg;

pub const THREADS: u32 = 256;

/// Bits of index arithmetic that hold every offset into some arguments, and every index below `count`.
pub fn index_width(args: &[Arg], count: u64) -> u32 {
    let most = args.iter().map(|a| a.elements).chain([count]).max().unwrap_or(0);
    if most < (1 << 31) - (1 << 16) { 32 } else { 64 }
}

/// Generates an entry that runs `body` for each index below `count`.
pub fn each<'c>(
    e: &Emitter<'c>,
    name: &str,
    args: &[Arg],
    count: u64,
    body: impl FnOnce(&Build<'c, '_>, Int<'c>),
) -> Result<(), KernelError> {
    if count == 0 {
        return Ok(());
    }
    let b = e.entry(name, args, count.div_ceil(THREADS as u64), THREADS, 0)?;
    let width = index_width(args, count);
    let i = b.add(b.mulc(b.zext(b.block_index(), width), THREADS as i64), b.zext(b.thread(), width));
    b.if_then(b.lt(i, b.like(i, count as i64)), || body(&b, i));
    b.finish();
    Ok(())
}

/// Splits a linear index by extents, outermost first; the first extent does not matter.
pub fn unravel<'c, const N: usize>(b: &Build<'c, '_>, linear: Int<'c>, extents: [u64; N]) -> [Int<'c>; N] {
    let mut rest = linear;
    let mut parts = [linear; N];
    for d in (0..N).rev() {
        parts[d] = if d == 0 { rest } else { b.uremc(rest, extents[d] as i64) };
        rest = if d == 0 { rest } else { b.udivc(rest, extents[d] as i64) };
    }
    parts
}

/// Joins indices by extents, outermost first.
pub fn ravel<'c, const N: usize>(b: &Build<'c, '_>, indices: [Int<'c>; N], extents: [u64; N]) -> Int<'c> {
    (1..N).fold(indices[0], |sum, d| b.add(b.mulc(sum, extents[d] as i64), indices[d]))
}
