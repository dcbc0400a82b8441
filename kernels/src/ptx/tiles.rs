//! Operand tiles of matrix products on tensor cores: from global memory through a shared-memory pipeline into fragments.
//!
//! A tile row in shared memory is 128 bytes: 64 bf16 or 128 E4M3 elements, in 8 chunks of 16 bytes. Chunk c of row r lies at place
//! `c ^ (r % 8)`, so that both the copies and `ldmatrix` touch every bank once. An operand that is contiguous along `k` has a tile row for
//! each of its rows; one that is contiguous along the other axis is stored as it lies, in panels of 128 bytes by the tile's depth,
//! and `ldmatrix` transposes it.

use super::build::{Build, Float, Int, Ptr};
use crate::DType;
use inkwell::IntPredicate;
use inkwell::values::BasicMetadataValueEnum;

/// Bytes of a tile row.
pub const ROW_BYTES: i64 = 128;
const CHUNKS: i64 = 8;

/// How an operand travels to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Asynchronously in chunks of 16 bytes.
    Async,
    /// Element by element through registers: other formats, other strides, unaligned rows.
    Elements,
}

/// One operand of a product.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub arg: usize,
    /// Format in memory.
    pub dtype: DType,
    /// Bytes of an element in shared memory: 2 (bf16) or 1 (E4M3).
    pub element: i64,
    /// Extent of the axis that is not summed over, and of the one that is.
    pub extent: i64,
    pub k: i64,
    pub stride: i64,
    pub k_stride: i64,
    /// Rows of the block's tile.
    pub rows: i64,
    /// Threads that bring tiles: the block's first.
    pub threads: i64,
    pub copy: Copy,
}

impl Operand {
    /// Elements along `k` of a tile.
    pub fn depth(&self) -> i64 {
        ROW_BYTES / self.element
    }

    pub fn bytes(&self) -> i64 {
        self.rows * ROW_BYTES
    }

    /// True if tiles are stored with `k` along the row.
    pub fn k_major(&self) -> bool {
        self.k_stride == 1 || self.stride != 1
    }

    /// Whether 16-byte copies are possible: contiguous along one axis and aligned along all others.
    pub fn copy_for(&self, native: DType, offsets: &[i64]) -> Copy {
        let chunk = 16 / self.element;
        let aligned = |s: i64| s % chunk == 0;
        let other = if self.k_stride == 1 { self.stride } else { self.k_stride };
        let contiguous = self.k_stride == 1 || self.stride == 1;
        let fits = self.dtype == native && contiguous && aligned(other) && offsets.iter().all(|&o| aligned(o));
        if fits { Copy::Async } else { Copy::Elements }
    }
}

/// An operand's tile in the pipeline of one block.
pub struct Tiles<'c, 'b> {
    pub b: &'b Build<'c, 'b>,
    pub o: Operand,
    /// First element of the batch's matrix, i64.
    pub base: Int<'c>,
    /// First row of the block's tile, i32.
    pub origin: Int<'c>,
}

/// Where a chunk comes from and goes to.
struct Chunk<'c> {
    /// Offset in the tile, bytes.
    to: Int<'c>,
    /// Index along the axis that is not summed over, and along `k`.
    row: Int<'c>,
    k: Int<'c>,
}

impl<'c> Tiles<'c, '_> {
    /// The `q`-th chunk of tile `step`.
    fn chunk(&self, q: Int<'c>, step: Int<'c>) -> Chunk<'c> {
        let (b, o) = (self.b, &self.o);
        let (line, c) = (b.udivc(q, CHUNKS), b.andc(q, CHUNKS - 1));
        let place = b.xor(c, b.andc(line, 7));
        let to = b.add(b.mulc(line, ROW_BYTES), b.mulc(place, 16));
        let (k0, along) = (b.mulc(step, o.depth()), b.mulc(c, 16 / o.element));
        if o.k_major() {
            return Chunk { to, row: b.add(self.origin, line), k: b.add(k0, along) };
        }
        let (panel, k) = (b.udivc(line, o.depth()), b.uremc(line, o.depth()));
        let row = b.add(b.add(self.origin, b.mulc(panel, ROW_BYTES / o.element)), along);
        Chunk { to, row, k: b.add(k0, k) }
    }

    /// Starts to bring tile `step` (along `k`) to `tile` in shared memory, by the block's first threads. Elements outside the matrix become zeros.
    pub fn fetch(&self, tile: Ptr<'c>, step: Int<'c>) {
        let (b, chunks) = (self.b, self.o.rows * CHUNKS);
        match self.o.copy {
            Copy::Async => {
                let starts = (0..chunks).step_by(self.o.threads as usize);
                starts.for_each(|first| self.copy(tile, &self.chunk(b.addc(b.thread(), first), step)));
            }
            // Not written out: every element in flight takes a register.
            Copy::Elements => {
                b.for_range(b.thread(), b.i32(chunks as i32), self.o.threads, |q| self.elements(tile, &self.chunk(q, step)));
            }
        }
    }

    fn offset(&self, row: Int<'c>, k: Int<'c>) -> Int<'c> {
        let (b, o) = (self.b, &self.o);
        let rows = b.mulc(b.to_i64(row), o.stride);
        b.add(b.add(self.base, rows), b.mulc(b.to_i64(k), o.k_stride))
    }

    fn copy(&self, tile: Ptr<'c>, chunk: &Chunk<'c>) {
        let (b, o) = (self.b, &self.o);
        let to: BasicMetadataValueEnum = b.at(tile, chunk.to, 1).into();
        let from = |offset| -> BasicMetadataValueEnum { b.at(b.arg(o.arg), offset, o.element as u64).into() };
        let offset = self.offset(chunk.row, chunk.k);
        // Along the contiguous axis a chunk may be cut; along the other it is there or not.
        let ((along, length), (across, count)) = match o.k_major() {
            true => ((chunk.k, o.k), (chunk.row, o.extent)),
            false => ((chunk.row, o.extent), (chunk.k, o.k)),
        };
        let (tile_length, tile_count) = if o.k_major() { (o.depth(), o.rows) } else { (o.rows, o.depth()) };
        if length % tile_length == 0 && count % tile_count == 0 {
            b.call("llvm.nvvm.cp.async.cg.shared.global.16", &[], &[to, from(offset)]);
            return;
        }
        let left = b.mulc(b.sub(b.like(along, length), along), o.element);
        let left = b.max(b.minc(left, 16), b.i32(0));
        let bytes = if count % tile_count == 0 { left } else { b.select(b.ltc(across, count), left, b.i32(0)) };
        let inside = b.cmp(IntPredicate::SGT, bytes, b.i32(0));
        let offset = b.select(inside, offset, self.base);
        b.call("llvm.nvvm.cp.async.cg.shared.global.16.s", &[], &[to, from(offset), bytes.into()]);
    }

    fn elements(&self, tile: Ptr<'c>, chunk: &Chunk<'c>) {
        let (b, o) = (self.b, &self.o);
        let element = |i: i64| {
            let (row, k) = if o.k_major() { (chunk.row, b.addc(chunk.k, i)) } else { (b.addc(chunk.row, i), chunk.k) };
            let inside = b.and(b.ltc(row, o.extent), b.ltc(k, o.k));
            let at = b.select(inside, self.offset(row, k), self.base);
            match o.element {
                1 => {
                    let code = b.load(b.int_type(8), b.at(b.arg(o.arg), at, 1), 1).into_int_value();
                    b.select(inside, code, b.like(code, 0))
                }
                _ => {
                    let v = b.load_elem(b.arg(o.arg), o.dtype, at);
                    b.bf16_bits(b.select(inside, b.to_float(v), b.f32(0.0)))
                }
            }
        };
        let per_word = 4 / o.element;
        let word = |w: i64| {
            let parts = (0..per_word).map(|i| b.shl(b.zext(element(w * per_word + i), 32), 8 * o.element * i));
            parts.reduce(|x, y| b.or(x, y)).unwrap_or_else(|| b.i32(0))
        };
        let words: Vec<_> = (0..4).map(|w| word(w).into()).collect();
        b.store(b.at(tile, chunk.to, 1), b.vector(&words).into_vector_value(), 16);
    }

    /// [`Tiles::fragment`] of every slice of the tile.
    pub fn slices(&self, tile: Ptr<'c>, row: Int<'c>, left: bool) -> [[Int<'c>; 4]; 4] {
        [0, 1, 2, 3].map(|kk| self.fragment(tile, row, kk, left))
    }

    /// Four 8 x 8 (times 16 bits) matrices: 16 rows from `row` on, 32 bytes of `k` from slice `kk` on.
    ///
    /// `left` orders them as the left operand of `mma` wants: rows before `k`. The right operand's order is two neighbouring 8-row
    /// fragments.
    pub fn fragment(&self, tile: Ptr<'c>, row: Int<'c>, kk: i64, left: bool) -> [Int<'c>; 4] {
        let (b, o) = (self.b, &self.o);
        let lane = b.andc(b.thread(), 31);
        let (low, middle, high) = (b.andc(lane, 7), b.andc(b.shr(lane, 3), 1), b.shr(lane, 4));
        // Which half of the rows and of the slice this lane's address stands for.
        let (row_half, k_half) = if left { (middle, high) } else { (high, middle) };
        let at = if o.k_major() {
            let line = b.add(row, b.add(low, b.mulc(row_half, 8)));
            let place = b.xor(b.addc(k_half, 2 * kk), low);
            b.add(b.mulc(line, ROW_BYTES), b.mulc(place, 16))
        } else {
            let line = b.addc(b.add(low, b.mulc(k_half, 8)), 16 * kk);
            let (panel, within) = (b.udivc(row, 64), b.uremc(row, 64));
            let place = b.xor(b.add(b.udivc(within, 8), row_half), low);
            b.add(b.mulc(b.add(b.mulc(panel, o.depth()), line), ROW_BYTES), b.mulc(place, 16))
        };
        let name = match o.k_major() {
            true => "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16",
            false => "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.trans.b16",
        };
        let from = b.at(tile, at, 1);
        let four = b.value(b.call(name, &[from.get_type().into()], &[from.into()]));
        [0, 1, 2, 3].map(|i| b.member(four, i).into_int_value())
    }
}

/// The four results of `mma`: rows `lane / 4` and that plus 8, columns `2 * (lane % 4)` and the next.
pub type Accumulator<'c> = [Float<'c>; 4];

impl<'c> Build<'c, '_> {
    pub fn commit_copies(&self) {
        self.call("llvm.nvvm.cp.async.commit.group", &[], &[]);
    }

    /// Starts to copy four bytes to shared memory.
    pub fn copy_word(&self, to: Ptr<'c>, from: Ptr<'c>) {
        self.call("llvm.nvvm.cp.async.ca.shared.global.4", &[], &[to.into(), from.into()]);
    }

    /// Waits until at most `pending` groups of this thread's copies are under way.
    pub fn wait_copies(&self, pending: i32) {
        self.call("llvm.nvvm.cp.async.wait.group", &[], &[self.i32(pending).into()]);
    }

    /// `c + a * b` on a tensor core: 16 x 8, 16 bf16 or 32 E4M3 deep.
    pub fn mma(&self, element: i64, a: [Int<'c>; 4], b: [Int<'c>; 2], c: Accumulator<'c>) -> Accumulator<'c> {
        let name = match element {
            1 => "llvm.nvvm.mma.m16n8k32.row.col.f32.e4m3.e4m3.f32",
            _ => "llvm.nvvm.mma.m16n8k16.row.col.bf16",
        };
        let operands = a.iter().chain(&b).map(|&x| x.into()).chain(c.iter().map(|&x| x.into()));
        let d = self.value(self.call(name, &[], &operands.collect::<Vec<_>>()));
        [0, 1, 2, 3].map(|i| self.member(d, i).into_float_value())
    }
}

/// Runs `consume` on each of `steps` pairs of tiles, with `stages` pairs in shared memory and the copies of the later ones under way.
pub fn pipeline<'c>(left: &Tiles<'c, '_>, right: &Tiles<'c, '_>, steps: i64, stages: i64, consume: impl FnOnce(Ptr<'c>, Ptr<'c>, Int<'c>)) {
    let b = left.b;
    let stage = left.o.bytes() + right.o.bytes();
    let fetch = |place: Int<'c>, step: Int<'c>| {
        let tile = b.at(b.shared(), place, 1);
        left.fetch(tile, step);
        right.fetch(b.at(tile, b.i32(left.o.bytes() as i32), 1), step);
    };
    for s in 0..stages - 1 {
        if s < steps {
            fetch(b.i32((s * stage) as i32), b.i32(s as i32));
        }
        b.commit_copies();
    }
    let next_place = |place: Int<'c>| b.select(b.eqc(place, (stages - 1) * stage), b.i32(0), b.addc(place, stage));
    let (read, write) = (b.cell(b.i32(0)), b.cell(b.i32(((stages - 1) * stage) as i32)));
    b.for_range(b.i32(0), b.i32(steps as i32), 1, |step| {
        // The tile to read has arrived for all threads, and all are done with the tile to write, which they read one step ago.
        b.wait_copies(stages as i32 - 2);
        b.barrier();
        let ahead = b.addc(step, stages - 1);
        if steps >= stages {
            b.if_then(b.ltc(ahead, steps), || fetch(b.get(&write), ahead));
        }
        b.commit_copies();
        let tile = b.at(b.shared(), b.get(&read), 1);
        consume(tile, b.at(tile, b.i32(left.o.bytes() as i32), 1), step);
        b.set(&read, next_place(b.get(&read)));
        b.set(&write, next_place(b.get(&write)));
    });
}

/// The tile of a block: groups of up to 8 tile rows share the tiles of the right operand while those are in cache.
pub fn raster<'c>(b: &Build<'c, '_>, block: Int<'c>, tiles_m: i64, tiles_n: i64) -> (Int<'c>, Int<'c>) {
    let group = (1..=8).rev().find(|g| tiles_m % g == 0).unwrap_or(1);
    let per_group = group * tiles_n;
    let (g, within) = (b.udivc(block, per_group), b.uremc(block, per_group));
    (b.add(b.mulc(g, group), b.uremc(within, group)), b.udivc(within, group))
}
