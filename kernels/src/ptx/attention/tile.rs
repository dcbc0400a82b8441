//! Tile products of attention in f32: 256 threads, 64 x 64 scores, operands staged through shared memory 32 deep.
//!
//! Thread (ty, tx) of 16 x 16 holds rows `4 ty + a` and columns `tx + 16 c` of whatever a tile product gives. Pitches are odd, so that
//! neither walking down nor across a staged tile meets a bank twice.

use super::SIDE;
use crate::DType;
use crate::program::Heads;
use crate::ptx::build::{Build, Cell, Float, Int, Ptr};
use crate::ptx::epilogue::alignment;
use crate::ptx::value::Val;
use inkwell::values::FloatValue;

pub const THREADS: u32 = 256;
/// Elements of depth staged at a time.
const DEPTH: i64 = 32;
const PITCH: i64 = DEPTH + 1;
const WEIGHT_PITCH: i64 = SIDE + 1;
/// Rows, and columns of a square tile, that a thread holds.
pub const OWN: i64 = 4;

const STAGED: i64 = SIDE * PITCH * 4;
const WEIGHTS: i64 = SIDE * WEIGHT_PITCH * 4;
/// Shared memory of a kernel: two staged operands and one tile of weights.
pub const SHARED: u32 = (2 * STAGED + WEIGHTS) as u32;

/// A `[positions, depth]` operand of one batch and head.
#[derive(Clone, Copy)]
pub struct Rows<'c> {
    pub arg: usize,
    /// First element, i64.
    pub base: Int<'c>,
    pub stride: i64,
    pub count: i64,
    pub depth: i64,
    /// True if four neighbours from a multiple of four on are one aligned piece.
    pub aligned: bool,
}

/// A thread's part of a 64 x 64 tile, rows outermost.
pub type Scores<'c> = Vec<Float<'c>>;

/// The tile machinery of one entry.
pub struct Tiles<'c, 'b> {
    pub b: &'b Build<'c, 'b>,
    pub dtype: DType,
}

impl<'c> Tiles<'c, '_> {
    /// The operand of a batch and head.
    pub fn rows(&self, arg: usize, h: &Heads, batch: Int<'c>, head: Int<'c>, count: u64, depth: u64) -> Rows<'c> {
        let b = self.b;
        let base = b.addc(b.mulc(b.to_i64(batch), h.batch as i64), h.offset as i64);
        let base = b.add(base, b.mulc(b.to_i64(head), h.head as i64));
        let aligned = alignment([h.offset, h.batch, h.head, h.position, depth].map(|s| s as i64)) >= 4;
        Rows { arg, base, stride: h.position as i64, count: count as i64, depth: depth as i64, aligned }
    }

    pub fn ty(&self) -> Int<'c> {
        self.b.shr(self.b.thread(), 4)
    }

    pub fn tx(&self) -> Int<'c> {
        self.b.andc(self.b.thread(), 15)
    }

    /// Row of the tile that a thread's `a`-th row is.
    pub fn row(&self, a: i64) -> Int<'c> {
        self.b.addc(self.b.mulc(self.ty(), OWN), a)
    }

    /// Column of the tile that a thread's `c`-th column is.
    pub fn col(&self, c: i64) -> Int<'c> {
        self.b.addc(self.tx(), 16 * c)
    }

    fn staged(&self, which: i64) -> Ptr<'c> {
        self.b.at(self.b.shared(), self.b.i32((which * STAGED) as i32), 1)
    }

    fn weights(&self) -> Ptr<'c> {
        self.staged(2)
    }

    /// Four elements of a row, zeros outside.
    fn quad(&self, r: &Rows<'c>, row: Int<'c>, d: Int<'c>) -> Vec<Float<'c>> {
        let b = self.b;
        let inside = b.ltc(row, r.count);
        let at = b.add(b.add(r.base, b.mulc(b.to_i64(row), r.stride)), b.to_i64(d));
        let zero = b.f32(0.0);
        if r.aligned {
            let inside = if r.depth % DEPTH == 0 { inside } else { b.and(inside, b.ltc(d, r.depth)) };
            let values = b.load_elems(b.arg(r.arg), self.dtype, b.select(inside, at, r.base), 4);
            return values.into_iter().map(|v| b.select(inside, b.to_float(v), zero)).collect();
        }
        let one = |i: i64| {
            let inside = b.and(inside, b.ltc(b.addc(d, i), r.depth));
            let v = b.load_elem(b.arg(r.arg), self.dtype, b.select(inside, b.addc(at, i), r.base));
            b.select(inside, b.to_float(v), zero)
        };
        (0..4).map(one).collect()
    }

    /// Brings 64 rows from `first` on, at depths from `d0` on, to a staging place.
    fn stage(&self, which: i64, r: &Rows<'c>, first: Int<'c>, d0: Int<'c>) {
        let b = self.b;
        let (line, d) = (b.udivc(b.thread(), DEPTH / 4), b.mulc(b.andc(b.thread(), DEPTH / 4 - 1), 4));
        let lines = THREADS as i64 / (DEPTH / 4);
        for half in 0..SIDE / lines {
            let line = b.addc(line, half * lines);
            let values = self.quad(r, b.add(first, line), b.add(d0, d));
            let at = b.add(b.mulc(line, PITCH), d);
            values.into_iter().enumerate().for_each(|(i, v)| b.store_f32(self.staged(which), b.addc(at, i as i64), v));
        }
    }

    /// The scores of 64 rows of `x` against 64 rows of `y`: inner products over the depth.
    pub fn products(&self, x: &Rows<'c>, x0: Int<'c>, y: &Rows<'c>, y0: Int<'c>) -> Scores<'c> {
        let b = self.b;
        let sums: Vec<Cell<'c, FloatValue<'c>>> = (0..OWN * OWN).map(|_| b.cell(b.f32(0.0))).collect();
        b.for_range(b.i32(0), b.i32(x.depth as i32), DEPTH, |d0| {
            b.barrier();
            self.stage(0, x, x0, d0);
            self.stage(1, y, y0, d0);
            b.barrier();
            b.for_range(b.i32(0), b.i32(DEPTH as i32), 4, |d| {
                for d in (0..4).map(|i| b.addc(d, i)) {
                    let at = |line| b.add(b.mulc(line, PITCH), d);
                    let left: Vec<_> = (0..OWN).map(|a| b.load_f32(self.staged(0), at(self.row(a)))).collect();
                    let right: Vec<_> = (0..OWN).map(|c| b.load_f32(self.staged(1), at(self.col(c)))).collect();
                    for (i, cell) in sums.iter().enumerate() {
                        b.set(cell, b.fma(left[i / OWN as usize], right[i % OWN as usize], b.get(cell)));
                    }
                }
            });
        });
        sums.iter().map(|c| b.get(c)).collect()
    }

    /// Makes a tile of weights visible to the block.
    pub fn put_weights(&self, w: &Scores<'c>) {
        let b = self.b;
        // Whoever still reads the last tile of weights does so before this.
        b.barrier();
        for (i, &v) in w.iter().enumerate() {
            let (a, c) = (i as i64 / OWN, i as i64 % OWN);
            b.store_f32(self.weights(), b.add(b.mulc(self.row(a), WEIGHT_PITCH), self.col(c)), v);
        }
        b.barrier();
    }

    /// Adds `weights * y` (or `weights^T * y`) to a result of 64 rows: `y` has 64 rows from `y0` on.
    pub fn accumulate(&self, sums: &Results<'c>, y: &Rows<'c>, y0: Int<'c>, transposed: bool) {
        let b = self.b;
        for part in 0..sums.parts {
            b.barrier();
            self.stage(0, y, y0, b.i32((part * DEPTH) as i32));
            b.barrier();
            b.for_range(b.i32(0), b.i32(SIDE as i32), 4, |j| {
                for j in (0..4).map(|i| b.addc(j, i)) {
                    let weight = |i: Int<'c>| {
                        let (row, col) = if transposed { (j, i) } else { (i, j) };
                        b.load_f32(self.weights(), b.add(b.mulc(row, WEIGHT_PITCH), col))
                    };
                    let left: Vec<_> = (0..OWN).map(|a| weight(self.row(a))).collect();
                    let right: Vec<_> = (0..2).map(|c| b.load_f32(self.staged(0), b.add(b.mulc(j, PITCH), self.col(c)))).collect();
                    for (a, &w) in left.iter().enumerate() {
                        for (c, &v) in right.iter().enumerate() {
                            let cell = sums.cell(a as i64, part, c as i64);
                            b.set(cell, b.fma(w, v, b.get(cell)));
                        }
                    }
                }
            });
        }
    }

    /// Stores a result of 64 rows from `first` on, each row times its factor.
    pub fn store(&self, sums: &Results<'c>, r: &Rows<'c>, first: Int<'c>, factors: &[Float<'c>]) {
        let b = self.b;
        for (a, &factor) in factors.iter().enumerate() {
            let row = b.add(first, self.row(a as i64));
            b.if_then(b.ltc(row, r.count), || {
                let line = b.add(r.base, b.mulc(b.to_i64(row), r.stride));
                for (part, c) in (0..sums.parts).flat_map(|p| [(p, 0), (p, 1)]) {
                    let d = b.addc(self.col(c), part * DEPTH);
                    let v = b.fmul(b.get(sums.cell(a as i64, part, c)), factor);
                    let write = || b.store_elem(b.arg(r.arg), self.dtype, b.add(line, b.to_i64(d)), Val::F(v));
                    if (part + 1) * DEPTH <= r.depth { write() } else { b.if_then(b.ltc(d, r.depth), write) }
                }
            });
        }
    }

    /// A fold over the 16 threads that share rows.
    pub fn across(&self, x: Float<'c>, fold: impl Fn(Float<'c>, Float<'c>) -> Float<'c>) -> Float<'c> {
        [8, 4, 2, 1].into_iter().fold(x, |v, mask| fold(v, self.b.shuffle_xor_f32(v, mask)))
    }

    /// For each of a thread's rows, the inner product of that row of two operands.
    pub fn row_products(&self, x: &Rows<'c>, y: &Rows<'c>, first: Int<'c>) -> Vec<Float<'c>> {
        let b = self.b;
        let one = |a: i64| {
            let row = b.add(first, self.row(a));
            let sum = b.cell(b.f32(0.0));
            b.if_then(b.ltc(row, x.count), || {
                b.for_range(self.tx(), b.i32(x.depth as i32), 16, |d| {
                    let at = |r: &Rows<'c>| b.add(b.add(r.base, b.mulc(b.to_i64(row), r.stride)), b.to_i64(d));
                    let value = |r: &Rows<'c>| b.to_float(b.load_elem(b.arg(r.arg), self.dtype, at(r)));
                    b.set(&sum, b.fma(value(x), value(y), b.get(&sum)));
                });
            });
            self.across(b.get(&sum), |x, y| b.fadd(x, y))
        };
        (0..OWN).map(one).collect()
    }

    pub fn results(&self, depth: i64) -> Results<'c> {
        let parts = (depth + DEPTH - 1) / DEPTH;
        Results { parts, cells: (0..OWN * parts * 2).map(|_| self.b.cell(self.b.f32(0.0))).collect() }
    }
}

/// A thread's part of a result of 64 rows: rows `4 ty + a`, depths `32 part + 16 c + tx`.
pub struct Results<'c> {
    parts: i64,
    cells: Vec<Cell<'c, FloatValue<'c>>>,
}

impl<'c> Results<'c> {
    fn cell(&self, a: i64, part: i64, c: i64) -> &Cell<'c, FloatValue<'c>> {
        &self.cells[((a * self.parts + part) * 2 + c) as usize]
    }

    /// Multiplies each row by its factor.
    pub fn scale(&self, b: &Build<'c, '_>, factors: &[Float<'c>]) {
        for (cells, &factor) in self.cells.chunks(2 * self.parts as usize).zip(factors) {
            cells.iter().for_each(|c| b.set(c, b.fmul(b.get(c), factor)));
        }
    }
}
