//! Convolutions, directly: a thread for each element of y or dx, a warp for each element of dw.

use super::build::{Build, Float, Int};
use super::direct::{THREADS, each, index_width, ravel, unravel};
use super::module::Emitter;
use super::value::Val;
use super::window::{Axis, taps_inside};
use crate::program::{Conv, ConvPass, Kernel};
use crate::{DType, KernelError};

/// Generates the single entry of a pass.
pub fn generate(e: &Emitter<'_>, k: &Conv, name: &str) -> Result<(), KernelError> {
    let args = Kernel::Conv(*k).args();
    let last = args.len() - 1;
    let count = args[last].elements;
    match k.pass {
        ConvPass::Fprop => each(e, name, &args, count, |b, i| b.store_elem(b.arg(last), k.dtype, i, Val::F(fprop(b, k, i)))),
        ConvPass::Dgrad => each(e, name, &args, count, |b, i| b.store_elem(b.arg(last), k.dtype, i, Val::F(dgrad(b, k, i)))),
        ConvPass::Wgrad => wgrad(e, k, name, count),
    }
}

/// Channels of a group, on the input's and on the output's side.
fn group_channels(k: &Conv) -> [u64; 2] {
    [k.cin / k.groups.max(1), k.cout / k.groups.max(1)]
}

fn input<'c>(b: &Build<'c, '_>, k: &Conv, arg: usize, [n, c, y, x]: [Int<'c>; 4]) -> Float<'c> {
    let [h, w] = k.window.input;
    b.to_float(b.load_elem(b.arg(arg), k.dtype, ravel(b, [n, c, y, x], [k.batch, k.cin, h, w])))
}

fn output<'c>(b: &Build<'c, '_>, k: &Conv, arg: usize, [n, c, y, x]: [Int<'c>; 4]) -> Float<'c> {
    let [h, w] = k.window.output;
    b.to_float(b.load_elem(b.arg(arg), k.dtype, ravel(b, [n, c, y, x], [k.batch, k.cout, h, w])))
}

fn weight<'c>(b: &Build<'c, '_>, k: &Conv, at: [Int<'c>; 4]) -> Float<'c> {
    let [kh, kw] = k.window.kernel;
    b.to_float(b.load_elem(b.arg(1), k.weight, ravel(b, at, [k.cout, group_channels(k)[0], kh, kw])))
}

fn fprop<'c>(b: &Build<'c, '_>, k: &Conv, i: Int<'c>) -> Float<'c> {
    let [h, w] = k.window.output;
    let [n, co, oy, ox] = unravel(b, i, [k.batch, k.cout, h, w]);
    let (vertical, horizontal) = (Axis::of(b, &k.window, 0), Axis::of(b, &k.window, 1));
    let [inputs, outputs] = group_channels(k);
    let first = b.mulc(b.udivc(co, outputs as i64), inputs as i64);
    let sum = b.cell(b.f32(0.0));
    b.for_range(b.like(i, 0), b.like(i, inputs as i64), 1, |c| {
        taps_inside([&vertical, &horizontal], Axis::read, [oy, ox], |[iy, ix], [r, s]| {
            let x = input(b, k, 0, [n, b.add(first, c), iy, ix]);
            b.set(&sum, b.fma(x, weight(b, k, [co, c, r, s]), b.get(&sum)));
        });
    });
    let bias = k.bias.then(|| b.to_float(b.load_elem(b.arg(2), k.weight, co)));
    bias.map_or_else(|| b.get(&sum), |v| b.fadd(b.get(&sum), v))
}

fn dgrad<'c>(b: &Build<'c, '_>, k: &Conv, i: Int<'c>) -> Float<'c> {
    let [h, w] = k.window.input;
    let [n, ci, iy, ix] = unravel(b, i, [k.batch, k.cin, h, w]);
    let (vertical, horizontal) = (Axis::of(b, &k.window, 0), Axis::of(b, &k.window, 1));
    let [inputs, outputs] = group_channels(k);
    let first = b.mulc(b.udivc(ci, inputs as i64), outputs as i64);
    let within = b.uremc(ci, inputs as i64);
    let sum = b.cell(b.f32(0.0));
    b.for_range(b.like(i, 0), b.like(i, outputs as i64), 1, |c| {
        let co = b.add(first, c);
        taps_inside([&vertical, &horizontal], Axis::written, [iy, ix], |[oy, ox], [r, s]| {
            let dy = output(b, k, 0, [n, co, oy, ox]);
            b.set(&sum, b.fma(dy, weight(b, k, [co, within, r, s]), b.get(&sum)));
        });
    });
    b.get(&sum)
}

fn wgrad(e: &Emitter<'_>, k: &Conv, name: &str, count: u64) -> Result<(), KernelError> {
    if count == 0 {
        return Ok(());
    }
    let args = Kernel::Conv(*k).args();
    let warps = THREADS as u64 / 32;
    let b = e.entry(name, &args, count.div_ceil(warps), THREADS, 0)?;
    let width = index_width(&args, k.batch * k.window.output[0] * k.window.output[1]);
    let (thread, block) = (b.zext(b.thread(), width), b.zext(b.block_index(), width));
    let element = b.add(b.mulc(block, warps as i64), b.udivc(thread, 32));
    // Uniform in a warp, as the shuffles inside need it.
    b.if_then(b.ltc(element, count as i64), || {
        let lane = b.andc(thread, 31);
        let sum = wgrad_part(&b, k, element, lane);
        let total = [16, 8, 4, 2, 1].into_iter().fold(sum, |v, mask| b.fadd(v, b.shuffle_xor_f32(v, mask)));
        b.if_then(b.eqc(lane, 0), || b.store_elem(b.arg(2), DType::F32, element, Val::F(total)));
    });
    b.finish();
    Ok(())
}

/// A lane's share of one element of dw: every 32nd position of the output.
fn wgrad_part<'c>(b: &Build<'c, '_>, k: &Conv, element: Int<'c>, lane: Int<'c>) -> Float<'c> {
    let [inputs, outputs] = group_channels(k);
    let [kh, kw] = k.window.kernel;
    let [h, w] = k.window.output;
    let [co, c, r, s] = unravel(b, element, [k.cout, inputs, kh, kw]);
    let ci = b.add(b.mulc(b.udivc(co, outputs as i64), inputs as i64), c);
    let (vertical, horizontal) = (Axis::of(b, &k.window, 0), Axis::of(b, &k.window, 1));
    let sum = b.cell(b.f32(0.0));
    b.for_range(lane, b.like(lane, (k.batch * h * w) as i64), 32, |p| {
        let [n, oy, ox] = unravel(b, p, [k.batch, h, w]);
        let ((iy, row_inside), (ix, col_inside)) = (vertical.read(oy, r), horizontal.read(ox, s));
        b.if_then(b.and(row_inside, col_inside), || {
            let product = (output(b, k, 0, [n, co, oy, ox]), input(b, k, 1, [n, ci, iy, ix]));
            b.set(&sum, b.fma(product.0, product.1, b.get(&sum)));
        });
    });
    b.get(&sum)
}
