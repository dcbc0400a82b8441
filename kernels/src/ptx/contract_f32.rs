//! Dense matrix products in true f32, for operands that bf16 does not hold.
//!
//! 256 threads; tiles of both operands lie in shared memory as f32, `k` outermost, twice, so that the next pair is on its way while
//! one is multiplied. A thread's results are groups of 4 x 4, spread over the tile 64 apart.

use super::build::{Build, Cell, Float, Int, Ptr};
use super::contract::{batch_and_tile, batch_base, output};
use super::module::Emitter;
use super::tiles::raster;
use super::value::Val;
use crate::program::{Contract, Kernel, Matrix};
use crate::{DType, KernelError};
use inkwell::values::FloatValue;

const THREADS: u32 = 256;
/// Elements along `k` of a tile.
const DEPTH: i64 = 16;
/// `k` steps written out in the inner loop.
const UNROLL: i64 = 4;

/// Generates the single entry of a product.
pub fn generate(e: &Emitter<'_>, k: &Contract, name: &str, batches: u64) -> Result<(), KernelError> {
    let blocks = |side: u64| batches * k.m.div_ceil(side) * k.n.div_ceil(side);
    let side: i64 = if blocks(128) >= 100 && k.m > 64 && k.n > 64 { 128 } else { 64 };
    let [tiles_m, tiles_n] = [k.m, k.n].map(|x| x.div_ceil(side as u64) as i64);
    let shared = 4 * DEPTH * pitch(side) * 4;
    let grid = batches * (tiles_m * tiles_n) as u64;
    let b = e.entry(name, &Kernel::Contract(k.clone()).args(), grid, THREADS, shared as u32)?;
    let (z, tile) = batch_and_tile(&b, tiles_m * tiles_n, batches);
    let (tile_m, tile_n) = raster(&b, tile, tiles_m, tiles_n);
    let (row0, col0) = (b.mulc(tile_m, side), b.mulc(tile_n, side));
    let source = |m: &Matrix, arg, extent: u64, strides: [u64; 2], origin| Source {
        b: &b,
        arg,
        dtype: m.dtype,
        base: batch_base(&b, &k.batch, m, z),
        origin,
        extent: extent as i64,
        k: k.k as i64,
        strides: strides.map(|s| s as i64),
        aligned: m.batch_strides.iter().chain([&m.offset]).all(|s| s % 4 == 0),
        side,
    };
    let left = source(&k.a, 0, k.m, [k.a.row_stride, k.a.col_stride], row0);
    let right = source(&k.b, 1, k.n, [k.b.col_stride, k.b.row_stride], col0);
    let groups = side / 64;
    let sums = Sums { b: &b, side, cells: (0..16 * groups * groups).map(|_| b.cell(b.f32(0.0))).collect() };
    if k.k > 0 {
        multiply(&b, &left, &right, &sums, k.k.div_ceil(DEPTH as u64) as i64);
    }
    let out = output(&b, k, batch_base(&b, &k.batch, &k.c, z), [side, side]);
    for (row, col, cells) in sums.quads() {
        let values: Vec<Float<'_>> = cells.iter().map(|c| b.get(c)).collect();
        out.store(b.add(row0, row), b.add(col0, col), &values);
    }
    b.finish();
    Ok(())
}

/// Elements of a tile's row in shared memory.
fn pitch(side: i64) -> i64 {
    side + 4
}

fn multiply<'c>(b: &Build<'c, '_>, left: &Source<'c, '_>, right: &Source<'c, '_>, sums: &Sums<'c, '_>, steps: i64) {
    let tile_bytes = 4 * DEPTH * pitch(left.side);
    let tiles = |buffer: Int<'c>| {
        let base = b.at(b.shared(), b.mulc(buffer, 2 * tile_bytes), 1);
        (base, b.at(base, b.i32(tile_bytes as i32), 1))
    };
    let held: Vec<Cell<'c, FloatValue<'c>>> = (0..2 * left.elements()).map(|_| b.cell(b.f32(0.0))).collect();
    let (held_a, held_b) = held.split_at(left.elements());
    let fetch = |step: Int<'c>| {
        left.load(step, held_a);
        right.load(step, held_b);
    };
    let put = |buffer: Int<'c>| {
        let (a, c) = tiles(buffer);
        left.put(a, held_a);
        right.put(c, held_b);
    };
    fetch(b.i32(0));
    put(b.i32(0));
    b.barrier();
    b.for_range(b.i32(0), b.i32(steps as i32), 1, |step| {
        let buffer = b.andc(step, 1);
        let next = b.addc(step, 1);
        b.if_then(b.ltc(next, steps), || fetch(next));
        let (tile_a, tile_b) = tiles(buffer);
        b.for_range(b.i32(0), b.i32(DEPTH as i32), UNROLL, |k| (0..UNROLL).for_each(|u| sums.step(tile_a, tile_b, b.addc(k, u))));
        // Nobody reads the other buffer: the barrier that ended the last step stands between.
        put(b.xorc(buffer, 1));
        b.barrier();
    });
}

/// One operand on its way to shared memory.
struct Source<'c, 'b> {
    b: &'b Build<'c, 'b>,
    arg: usize,
    dtype: DType,
    base: Int<'c>,
    origin: Int<'c>,
    extent: i64,
    k: i64,
    /// Along the axis that is kept, and along `k`.
    strides: [i64; 2],
    /// True if the matrix starts at a multiple of four elements in each batch.
    aligned: bool,
    side: i64,
}

impl<'c> Source<'c, '_> {
    /// Elements of a tile that a thread brings.
    fn elements(&self) -> usize {
        (self.side * DEPTH / THREADS as i64) as usize
    }

    /// True if a thread's four neighbours lie along `k`.
    fn along_k(&self) -> bool {
        self.strides[0] != 1
    }

    /// Row (in the tile) and `k` (in the tile) of the first of four elements.
    fn quad(&self, i: i64) -> (Int<'c>, Int<'c>) {
        let b = self.b;
        let q = b.addc(b.thread(), i * THREADS as i64);
        match self.along_k() {
            true => (b.udivc(q, DEPTH / 4), b.mulc(b.uremc(q, DEPTH / 4), 4)),
            false => (b.mulc(b.uremc(q, self.side / 4), 4), b.udivc(q, self.side / 4)),
        }
    }

    /// Loads the thread's part of tile `step`; zeros outside the matrix.
    fn load(&self, step: Int<'c>, held: &[Cell<'c, FloatValue<'c>>]) {
        let b = self.b;
        for (i, cells) in held.chunks(4).enumerate() {
            let (row, k) = self.quad(i as i64);
            let (row, k) = (b.add(self.origin, row), b.add(b.mulc(step, DEPTH), k));
            let offset = b.add(b.mulc(b.to_i64(row), self.strides[0]), b.mulc(b.to_i64(k), self.strides[1]));
            let offset = b.add(self.base, offset);
            let values = if self.whole() { self.vector(row, k, offset) } else { self.scalars(row, k, offset) };
            cells.iter().zip(values).for_each(|(c, v)| b.set(c, v));
        }
    }

    /// True if four neighbours are one aligned piece, inside the matrix or outside as one.
    fn whole(&self) -> bool {
        let (along, other, length) = match self.along_k() {
            true => (self.strides[1], self.strides[0], self.k),
            false => (self.strides[0], self.strides[1], self.extent),
        };
        along == 1 && other % 4 == 0 && length % 4 == 0 && self.aligned
    }

    /// Whether a point lies in the matrix; None if it always does.
    fn inside(&self, row: Int<'c>, k: Int<'c>) -> Option<Int<'c>> {
        let b = self.b;
        let row = (self.extent % self.side != 0).then(|| b.ltc(row, self.extent));
        let k = (self.k % DEPTH != 0).then(|| b.ltc(k, self.k));
        row.into_iter().chain(k).reduce(|x, y| b.and(x, y))
    }

    fn vector(&self, row: Int<'c>, k: Int<'c>, offset: Int<'c>) -> Vec<Float<'c>> {
        let b = self.b;
        let inside = self.inside(row, k);
        let at = inside.map_or(offset, |c| b.select(c, offset, self.base));
        let values = b.load_elems(b.arg(self.arg), self.dtype, at, 4).into_iter();
        values.map(|v| inside.map_or(b.to_float(v), |c| b.select(c, b.to_float(v), b.f32(0.0)))).collect()
    }

    fn scalars(&self, row: Int<'c>, k: Int<'c>, offset: Int<'c>) -> Vec<Float<'c>> {
        let b = self.b;
        let (row_step, k_step) = if self.along_k() { (0, 1) } else { (1, 0) };
        let one = |i: i64| {
            let inside = self.inside(b.addc(row, i * row_step), b.addc(k, i * k_step));
            let at = b.addc(offset, i * (row_step * self.strides[0] + k_step * self.strides[1]));
            let at = inside.map_or(at, |c| b.select(c, at, self.base));
            let v: Val<'c> = b.load_elem(b.arg(self.arg), self.dtype, at);
            inside.map_or(b.to_float(v), |c| b.select(c, b.to_float(v), b.f32(0.0)))
        };
        (0..4).map(one).collect()
    }

    /// Stores what [`Source::load`] brought.
    fn put(&self, tile: Ptr<'c>, held: &[Cell<'c, FloatValue<'c>>]) {
        let b = self.b;
        for (i, cells) in held.chunks(4).enumerate() {
            let (row, k) = self.quad(i as i64);
            let at = b.add(b.mulc(k, pitch(self.side)), row);
            let values: Vec<Val<'c>> = cells.iter().map(|c| Val::F(b.get(c))).collect();
            match self.along_k() {
                true => values.iter().enumerate().for_each(|(j, &v)| {
                    b.store_elem(tile, DType::F32, b.addc(at, j as i64 * pitch(self.side)), v);
                }),
                false => b.store_elems(tile, DType::F32, at, &values),
            }
        }
    }
}

/// A thread's results.
struct Sums<'c, 'b> {
    b: &'b Build<'c, 'b>,
    side: i64,
    /// Row groups outermost, then rows, column groups, columns.
    cells: Vec<Cell<'c, FloatValue<'c>>>,
}

impl<'c> Sums<'c, '_> {
    fn groups(&self) -> i64 {
        self.side / 64
    }

    /// Adds the products of one `k`.
    fn step(&self, tile_a: Ptr<'c>, tile_b: Ptr<'c>, k: Int<'c>) {
        let b = self.b;
        let line = b.mulc(k, pitch(self.side));
        let (tx, ty) = (b.andc(b.thread(), 15), b.shr(b.thread(), 4));
        let values = |tile, t| -> Vec<Float<'c>> {
            let group = |g: i64| b.load_elems(tile, DType::F32, b.addc(b.add(line, b.mulc(t, 4)), 64 * g), 4);
            (0..self.groups()).flat_map(group).map(|v| b.to_float(v)).collect()
        };
        let (x, y) = (values(tile_a, ty), values(tile_b, tx));
        for (i, &x) in x.iter().enumerate() {
            for (j, &y) in y.iter().enumerate() {
                let cell = &self.cells[i * 4 * self.groups() as usize + j];
                b.set(cell, b.fma(x, y, b.get(cell)));
            }
        }
    }

    /// Row, first column and cells of each run of four results.
    fn quads(&self) -> Vec<(Int<'c>, Int<'c>, &[Cell<'c, FloatValue<'c>>])> {
        let b = self.b;
        let (tx, ty) = (b.andc(b.thread(), 15), b.shr(b.thread(), 4));
        let groups = self.groups() as usize;
        let place = |(q, cells)| {
            let (row, col_group) = (q / groups, q % groups);
            let row = b.addc(b.mulc(ty, 4), (64 * (row / 4) + row % 4) as i64);
            (row, b.addc(b.mulc(tx, 4), 64 * col_group as i64), cells)
        };
        self.cells.chunks(4).enumerate().map(place).collect()
    }
}
