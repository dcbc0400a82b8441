//! Pooling: a thread for each element of the result.

use super::build::{Build, Float, Int};
use super::direct::{each, ravel, unravel};
use super::module::Emitter;
use super::value::Val;
use super::window::{Axis, taps_inside};
use crate::KernelError;
use crate::program::{Kernel, Pool, PoolOp};
use inkwell::FloatPredicate;

/// Generates the single entry of a pooling kernel.
pub fn generate(e: &Emitter<'_>, k: &Pool, name: &str) -> Result<(), KernelError> {
    let args = Kernel::Pool(*k).args();
    let last = args.len() - 1;
    each(e, name, &args, args[last].elements, |b, i| {
        let v = if k.backward { backward(b, k, i) } else { forward(b, k, i) };
        b.store_elem(b.arg(last), k.dtype, i, Val::F(v));
    })
}

fn axes<'c, 'b>(b: &'b Build<'c, 'b>, k: &Pool) -> (Axis<'c, 'b>, Axis<'c, 'b>) {
    (Axis::of(b, &k.window, 0), Axis::of(b, &k.window, 1))
}

fn read<'c>(b: &Build<'c, '_>, k: &Pool, at: [Int<'c>; 3]) -> Float<'c> {
    let [h, w] = k.window.input;
    b.to_float(b.load_elem(b.arg(0), k.dtype, ravel(b, at, [k.planes, h, w])))
}

/// What an average divides by at an output position.
fn divisor<'c>(b: &Build<'c, '_>, k: &Pool, [oy, ox]: [Int<'c>; 2]) -> Float<'c> {
    let ends = match k.op {
        PoolOp::AverageWithPadding { pad_end } => pad_end.map(|p| Some(p as i64)),
        PoolOp::Max | PoolOp::Average => [None; 2],
    };
    let (vertical, horizontal) = axes(b, k);
    let count = b.mul(vertical.count(oy, ends[0]), horizontal.count(ox, ends[1]));
    b.to_float(Val::I(count))
}

fn forward<'c>(b: &Build<'c, '_>, k: &Pool, i: Int<'c>) -> Float<'c> {
    let [h, w] = k.window.output;
    let [plane, oy, ox] = unravel(b, i, [k.planes, h, w]);
    if k.op == PoolOp::Max {
        return maximum(b, k, [plane, oy, ox]).0;
    }
    let (vertical, horizontal) = axes(b, k);
    let sum = b.cell(b.f32(0.0));
    taps_inside([&vertical, &horizontal], Axis::read, [oy, ox], |[iy, ix], _| {
        b.set(&sum, b.fadd(b.get(&sum), read(b, k, [plane, iy, ix])));
    });
    b.fdiv(b.get(&sum), divisor(b, k, [oy, ox]))
}

/// The largest value of a window, or its first NaN, and the position in the plane that holds it first.
fn maximum<'c>(b: &Build<'c, '_>, k: &Pool, [plane, oy, ox]: [Int<'c>; 3]) -> (Float<'c>, Int<'c>) {
    let (vertical, horizontal) = axes(b, k);
    let (best, at) = (b.cell(b.f32(f32::NEG_INFINITY)), b.cell(b.like(plane, -1)));
    taps_inside([&vertical, &horizontal], Axis::read, [oy, ox], |[iy, ix], _| {
        let (v, old) = (read(b, k, [plane, iy, ix]), b.get(&best));
        // Unordered or greater, unless a NaN stands already; the first position counts even if it is minus infinity.
        let better = b.and(b.fcmp(FloatPredicate::UGT, v, old), b.fcmp(FloatPredicate::ORD, old, old));
        let better = b.or(better, b.ltc(b.get(&at), 0));
        b.set(&best, b.select(better, v, old));
        let here = b.add(b.mulc(iy, horizontal.input), ix);
        b.set(&at, b.select(better, here, b.get(&at)));
    });
    (b.get(&best), b.get(&at))
}

fn backward<'c>(b: &Build<'c, '_>, k: &Pool, i: Int<'c>) -> Float<'c> {
    let [h, w] = k.window.input;
    let [plane, iy, ix] = unravel(b, i, [k.planes, h, w]);
    let (vertical, horizontal) = axes(b, k);
    let sum = b.cell(b.f32(0.0));
    taps_inside([&vertical, &horizontal], Axis::written, [iy, ix], |[oy, ox], _| {
        let [oh, ow] = k.window.output;
        let dy = b.to_float(b.load_elem(b.arg(1), k.dtype, ravel(b, [plane, oy, ox], [k.planes, oh, ow])));
        let share = match k.op {
            PoolOp::Max => {
                let here = b.add(b.mulc(iy, w as i64), ix);
                let (_, first) = maximum(b, k, [plane, oy, ox]);
                b.select(b.cmp(inkwell::IntPredicate::EQ, here, first), dy, b.f32(0.0))
            }
            PoolOp::Average | PoolOp::AverageWithPadding { .. } => b.fdiv(dy, divisor(b, k, [oy, ox])),
        };
        b.set(&sum, b.fadd(b.get(&sum), share));
    });
    b.get(&sum)
}
