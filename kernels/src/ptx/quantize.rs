//! Quantizers.
//!
//! Row-wise codes alone: a warp takes a group of 128. Everything else: a block takes a 128 x 128 tile, which lies in shared memory
//! in the source's format while rows (a warp each), columns (two threads each, 64 rows a thread) and the tile as a whole find
//! their largest magnitudes. Elements outside the matrix are zeros, which change no maximum.

use super::build::{Build, Float, Int, Ptr};
use super::module::Emitter;
use super::value::Val;
use crate::program::{GROUP, Layout, Quantize, groups};
use crate::{DType, KernelError};
use inkwell::values::FloatValue;

const THREADS: u32 = 256;
const WARPS: i64 = THREADS as i64 / 32;
const TILE: i64 = GROUP as i64;
/// Elements of a row of the tile in shared memory: padded, and a multiple of what a lane stores at once.
const PITCH: i64 = TILE + 8;

/// Generates the single entry of a quantizer.
pub fn generate(e: &Emitter<'_>, k: &Quantize, name: &str) -> Result<(), KernelError> {
    if k.rows == 0 || k.cols == 0 {
        return Ok(());
    }
    // Rows and columns are numbered in 32 bits.
    if [k.rows, k.cols].iter().any(|&extent| extent >= 1 << 30) {
        return Err(KernelError::Unsupported(format!("quantizing {} x {}", k.rows, k.cols)));
    }
    let args = crate::program::Kernel::Quantize(*k).args();
    if k.layout == Layout::Rows {
        let all = k.rows * groups(k.cols);
        let b = e.entry(name, &args, all.div_ceil(WARPS as u64), THREADS, 0)?;
        let tile = Tile { b: &b, k, shared: None };
        tile.row_groups(all);
        b.finish();
        return Ok(());
    }
    let tile_bytes = (TILE * PITCH) as u32 * k.source.size() as u32;
    let b = e.entry(name, &args, groups(k.rows) * groups(k.cols), THREADS, tile_bytes + 4 * MAXIMA as u32)?;
    let shared = Some(Shared { tile: b.shared(), maxima: b.at(b.shared(), b.i32(tile_bytes as i32), 1) });
    Tile { b: &b, k, shared }.tile();
    b.finish();
    Ok(())
}

/// f32 slots for maxima: one for each column and half.
const MAXIMA: i64 = 2 * TILE;

struct Shared<'c> {
    tile: Ptr<'c>,
    maxima: Ptr<'c>,
}

struct Tile<'c, 'b, 'k> {
    b: &'b Build<'c, 'b>,
    k: &'k Quantize,
    shared: Option<Shared<'c>>,
}

impl<'c> Tile<'c, '_, '_> {
    /// Four neighbouring elements of a row, zeros outside the matrix.
    fn load(&self, row: Int<'c>, col: Int<'c>) -> Vec<Float<'c>> {
        let (b, k) = (self.b, self.k);
        let base = b.add(b.mulc(b.to_i64(row), k.cols as i64), b.to_i64(col));
        let in_row = b.ltc(row, k.rows as i64);
        if k.cols % 4 == 0 {
            let inside = b.and(in_row, b.ltc(col, k.cols as i64));
            let at = b.select(inside, base, b.i64(0));
            let values = b.load_elems(b.arg(0), k.source, at, 4);
            return values.into_iter().map(|v| b.select(inside, b.to_float(v), b.f32(0.0))).collect();
        }
        let lane = |l: i64| {
            let inside = b.and(in_row, b.ltc(b.addc(col, l), k.cols as i64));
            let v = b.load_elem(b.arg(0), k.source, b.select(inside, b.addc(base, l), b.i64(0)));
            b.select(inside, b.to_float(v), b.f32(0.0))
        };
        (0..4).map(lane).collect()
    }

    /// Stores neighbouring codes at `base + position` of an argument where position + lane < limit; `limit` is the row's length.
    #[expect(clippy::too_many_arguments, reason = "each is a value of the code under construction")]
    fn codes(&self, arg: usize, base: Int<'c>, position: Int<'c>, limit: u64, x: &[Float<'c>], inverse: Float<'c>, row_inside: Int<'c>) {
        let b = self.b;
        let scaled: Vec<Val<'c>> = x.iter().map(|&x| Val::F(b.fmul(x, inverse))).collect();
        let piece = [16, 8, 4, 2, 1].into_iter().find(|p| limit.is_multiple_of(*p as u64) && x.len().is_multiple_of(*p)).unwrap_or(1);
        for (i, part) in scaled.chunks(piece).enumerate() {
            let at = b.addc(position, (i * piece) as i64);
            b.if_then(b.and(row_inside, b.ltc(at, limit as i64)), || {
                b.store_elems(b.arg(arg), DType::E4m3, b.add(base, b.to_i64(at)), part);
            });
        }
    }

    fn amax(&self, x: &[Float<'c>]) -> Float<'c> {
        x.iter().fold(self.b.f32(0.0), |m, &x| self.b.fmax_number(m, self.b.fabs(x)))
    }

    /// Codes and scale of the row group that a warp holds, four elements a lane.
    fn row_group(&self, x: &[Float<'c>], row: Int<'c>, col: Int<'c>) {
        let (b, k) = (self.b, self.k);
        let scale = b.scale_of(b.warp_max(self.amax(x)), k.power_of_two);
        let inside = b.ltc(row, k.rows as i64);
        let row = b.to_i64(row);
        self.codes(1, b.mulc(row, k.cols as i64), col, k.cols, x, b.fdiv(b.f32(1.0), scale), inside);
        let first = b.and(inside, b.eqc(b.andc(b.thread(), 31), 0));
        b.if_then(first, || {
            let group = b.to_i64(b.udivc(col, TILE));
            b.store_f32(b.arg(2), b.add(b.mulc(row, groups(k.cols) as i64), group), scale);
        });
    }

    /// A warp for each group of each row.
    fn row_groups(&self, all: u64) {
        let (b, k) = (self.b, self.k);
        let width = if all < 1 << 30 { 32 } else { 64 };
        let (thread, block) = (b.thread(), b.zext(b.block_index(), width));
        let group = b.add(b.mulc(block, WARPS), b.zext(b.udivc(thread, 32), width));
        b.if_then(b.ltc(group, all as i64), || {
            let per_row = groups(k.cols) as i64;
            let (row, part) = (b.udivc(group, per_row), b.uremc(group, per_row));
            let col = b.add(b.mulc(part, TILE), b.mulc(b.zext(b.andc(thread, 31), width), 4));
            self.row_group(&self.load(row, col), row, col);
        });
    }

    fn tile(&self) {
        let (b, k) = (self.b, self.k);
        let Some(shared) = &self.shared else { return };
        let across = groups(k.cols) as i64;
        let (block, thread) = (b.block_index(), b.thread());
        let (tile_row, tile_col) = (b.udivc(block, across), b.uremc(block, across));
        let (row0, col0) = (b.mulc(tile_row, TILE), b.mulc(tile_col, TILE));
        let (warp, lane) = (b.udivc(thread, 32), b.andc(thread, 31));
        let col = b.mulc(lane, 4);
        let amax = b.cell(b.f32(0.0));
        b.for_range(warp, b.i32(TILE as i32), WARPS, |r| {
            let (row, col) = (b.add(row0, r), b.add(col0, col));
            let x = self.load(row, col);
            let values: Vec<Val<'c>> = x.iter().map(|&x| Val::F(x)).collect();
            b.store_elems(shared.tile, k.source, b.add(b.mulc(r, PITCH), b.mulc(lane, 4)), &values);
            match k.layout {
                Layout::RowsAndColumns => self.row_group(&x, row, col),
                Layout::Blocks | Layout::BlocksBoth => b.set(&amax, b.fmax_number(b.get(&amax), self.amax(&x))),
                Layout::Rows | Layout::Columns => {}
            }
        });
        match k.layout {
            Layout::RowsAndColumns => self.columns(row0, col0, 3, None),
            Layout::Rows | Layout::Columns => self.columns(row0, col0, 1, None),
            Layout::Blocks | Layout::BlocksBoth => {
                let scale = self.block_scale(shared, b.get(&amax));
                self.block_scales(tile_row, tile_col, scale);
                self.block_rows(shared, row0, col0, scale);
                if k.layout == Layout::BlocksBoth {
                    self.columns(row0, col0, 3, Some(scale));
                }
            }
        }
    }

    /// The scale of the whole tile, known to every thread. Leaves the tile visible to all.
    fn block_scale(&self, shared: &Shared<'c>, own: Float<'c>) -> Float<'c> {
        let b = self.b;
        let (thread, own) = (b.thread(), b.warp_max(own));
        b.if_then(b.eqc(b.andc(thread, 31), 0), || b.store_f32(shared.maxima, b.udivc(thread, 32), own));
        b.barrier();
        let amax = (0..WARPS).fold(b.f32(0.0), |m, w| b.fmax_number(m, b.load_f32(shared.maxima, b.i32(w as i32))));
        b.scale_of(amax, self.k.power_of_two)
    }

    fn block_scales(&self, tile_row: Int<'c>, tile_col: Int<'c>, scale: Float<'c>) {
        let (b, k) = (self.b, self.k);
        b.if_then(b.eqc(b.thread(), 0), || {
            b.store_f32(b.arg(2), b.add(b.mulc(tile_row, groups(k.cols) as i64), tile_col), scale);
            if k.layout == Layout::BlocksBoth {
                b.store_f32(b.arg(4), b.add(b.mulc(tile_col, groups(k.rows) as i64), tile_row), scale);
            }
        });
    }

    /// Codes of the tile's rows by the tile's scale.
    fn block_rows(&self, shared: &Shared<'c>, row0: Int<'c>, col0: Int<'c>, scale: Float<'c>) {
        let (b, k) = (self.b, self.k);
        let (warp, lane) = (b.udivc(b.thread(), 32), b.andc(b.thread(), 31));
        let inverse = b.fdiv(b.f32(1.0), scale);
        b.for_range(warp, b.i32(TILE as i32), WARPS, |r| {
            let row = b.add(row0, r);
            let at = b.add(b.mulc(r, PITCH), b.mulc(lane, 4));
            let x: Vec<Float<'c>> = b.load_elems(shared.tile, k.source, at, 4).into_iter().map(|v| b.to_float(v)).collect();
            let base = b.mulc(b.to_i64(row), k.cols as i64);
            self.codes(1, base, b.add(col0, b.mulc(lane, 4)), k.cols, &x, inverse, b.ltc(row, k.rows as i64));
        });
    }

    /// Codes of the tile's columns, transposed, into argument `out` and scales into the next: by each column's own scale, or by
    /// a common one.
    fn columns(&self, row0: Int<'c>, col0: Int<'c>, out: usize, common: Option<Float<'c>>) {
        let (b, k) = (self.b, self.k);
        let Some(shared) = &self.shared else { return };
        let thread = b.thread();
        let (half, c) = (b.udivc(thread, TILE), b.uremc(thread, TILE));
        let first = b.mulc(half, TILE / 2);
        let sixteen = |r: Int<'c>| -> Vec<FloatValue<'c>> {
            let at = |i: i64| b.add(b.mulc(b.addc(r, i), PITCH), c);
            (0..16).map(|i| b.to_float(b.load_elem(shared.tile, k.source, at(i)))).collect()
        };
        let last = b.addc(first, TILE / 2);
        let scale = common.unwrap_or_else(|| {
            b.barrier();
            let amax = b.cell(b.f32(0.0));
            b.for_range(first, last, 16, |r| b.set(&amax, b.fmax_number(b.get(&amax), self.amax(&sixteen(r)))));
            let own = b.get(&amax);
            b.store_f32(shared.maxima, thread, own);
            b.barrier();
            let other = b.load_f32(shared.maxima, b.xorc(thread, TILE));
            b.scale_of(b.fmax_number(own, other), k.power_of_two)
        });
        let inverse = b.fdiv(b.f32(1.0), scale);
        let col = b.add(col0, c);
        let inside = b.ltc(col, k.cols as i64);
        let base = b.mulc(b.to_i64(col), k.rows as i64);
        b.for_range(first, last, 16, |r| self.codes(out, base, b.add(row0, r), k.rows, &sixteen(r), inverse, inside));
        if common.is_none() {
            b.if_then(b.and(inside, b.eqc(half, 0)), || {
                let at = b.add(b.mulc(b.to_i64(col), groups(k.rows) as i64), b.to_i64(b.udivc(row0, TILE)));
                b.store_f32(b.arg(out + 1), at, scale);
            });
        }
    }
}
