//! Geometry of convolution and pooling windows.

use super::build::{Build, Int};
use crate::program::Window;

/// The window's rows and columns, one axis at a time: 0 is vertical.
pub struct Axis<'c, 'b> {
    b: &'b Build<'c, 'b>,
    pub input: i64,
    pub output: i64,
    pub kernel: i64,
    stride: i64,
    dilation: i64,
    pad: i64,
}

impl<'c, 'b> Axis<'c, 'b> {
    pub fn of(b: &'b Build<'c, 'b>, w: &Window, d: usize) -> Self {
        let at = |x: [u64; 2]| x[d] as i64;
        Axis {
            b,
            input: at(w.input),
            output: at(w.output),
            kernel: at(w.kernel),
            stride: at(w.stride),
            dilation: at(w.dilation),
            pad: at(w.pad),
        }
    }

    /// The input position that tap `r` of output position `o` reads, and whether it lies in the image.
    pub fn read(&self, o: Int<'c>, r: Int<'c>) -> (Int<'c>, Int<'c>) {
        let b = self.b;
        let at = b.addc(b.add(b.mulc(o, self.stride), b.mulc(r, self.dilation)), -self.pad);
        (at, b.and(b.not(b.ltc(at, 0)), b.ltc(at, self.input)))
    }

    /// The output position whose tap `r` reads input position `i`, and whether there is one.
    pub fn written(&self, i: Int<'c>, r: Int<'c>) -> (Int<'c>, Int<'c>) {
        let b = self.b;
        let ahead = b.sub(b.addc(i, self.pad), b.mulc(r, self.dilation));
        // Negative positions are told apart before the unsigned quotient is trusted.
        let (o, rest) = (b.udivc(ahead, self.stride), b.uremc(ahead, self.stride));
        let there = b.and(b.not(b.ltc(ahead, 0)), b.eqc(rest, 0));
        (o, b.and(there, b.ltc(o, self.output)))
    }

    /// Runs `body` on each tap.
    pub fn taps(&self, like: Int<'c>, body: impl FnOnce(Int<'c>)) {
        self.b.for_range(self.b.like(like, 0), self.b.like(like, self.kernel), 1, body);
    }

    /// How many taps of output position `o` lie in the image, or in its padding of `pad_end` behind it too.
    pub fn count(&self, o: Int<'c>, pad_end: Option<i64>) -> Int<'c> {
        let b = self.b;
        let count = b.cell(b.like(o, 0));
        self.taps(o, |r| {
            let (at, inside) = self.read(o, r);
            let counts = pad_end.map_or(inside, |end| b.ltc(at, self.input + end));
            b.set(&count, b.add(b.get(&count), b.zext(counts, o.get_type().get_bit_width())));
        });
        b.get(&count)
    }
}

/// Where a tap leads from a position along one axis, and whether there is such a place: [`Axis::read`] or [`Axis::written`].
type Step<'c, 'b> = fn(&Axis<'c, 'b>, Int<'c>, Int<'c>) -> (Int<'c>, Int<'c>);

/// Runs `body` with the place and the number (row, column) of each tap from position `at` that leads into the image.
pub fn taps_inside<'c, 'b>(
    [vertical, horizontal]: [&Axis<'c, 'b>; 2],
    step: Step<'c, 'b>,
    [y, x]: [Int<'c>; 2],
    body: impl FnOnce([Int<'c>; 2], [Int<'c>; 2]),
) {
    let b = vertical.b;
    vertical.taps(y, |r| {
        let (to_y, row_inside) = step(vertical, y, r);
        b.if_then(row_inside, || {
            horizontal.taps(x, |s| {
                let (to_x, inside) = step(horizontal, x, s);
                b.if_then(inside, || body([to_y, to_x], [r, s]));
            });
        });
    });
}
