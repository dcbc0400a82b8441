//! Runs the steps of a compiled program on one tile after another.

use super::access::{Access, Region};
use super::compile::{Compiled, Place};
use super::folds::ACCUMULATOR;
use super::layout::{Order, Part};
use super::schedule::{Gather, Move, Phase, Step, Value};
use super::transfers::RunFn;
use super::values::{Rank, size};
use crate::KernelError;
use crate::cpu::Buffer;
use crate::numerics::{ScaleMode, quantize_group};
use crate::program::{Arg, GROUP, MAX_DIMS};
use std::sync::Mutex;

/// What all workers of a launch share.
pub struct Launch<'a> {
    pub compiled: &'a Compiled,
    pub args: &'a [Buffer],
    pub dtypes: &'a [Arg],
    pub uniform: *mut u8,
    /// The first index out of range that a worker met.
    pub failure: &'a Mutex<Option<KernelError>>,
}

// SAFETY: tasks write to disjoint elements of the arguments (verified), and read `uniform` only.
unsafe impl Sync for Launch<'_> {}

/// One worker's view of the values: where each is, for the rows and tile at hand.
pub struct Frame<'a> {
    launch: &'a Launch<'a>,
    places: Vec<*mut u8>,
    rows: *mut u8,
    tile: *mut u8,
    region: Region,
    /// Points of the region by part: rows outside, columns, lanes.
    outer: usize,
    columns: usize,
    lanes: usize,
}

impl<'a> Frame<'a> {
    /// # Safety
    /// `rows` has room for `row_bytes`, `tile` for `tile_bytes` of the program.
    pub unsafe fn new(launch: &'a Launch<'a>, rows: *mut u8, tile: *mut u8) -> Self {
        let place = |place: &Place| match *place {
            Place::Nowhere => std::ptr::null_mut(),
            Place::Uniform(at) => launch.uniform.wrapping_add(at),
            Place::Row(at) => rows.wrapping_add(at),
            Place::Tile(at) => tile.wrapping_add(at),
        };
        let places = launch.compiled.places.iter().map(place).collect();
        let region = Region { first: [0; MAX_DIMS], extent: [1; MAX_DIMS], dims: launch.compiled.layout.dims.len() };
        Frame { launch, places, rows, tile, region, outer: 1, columns: 1, lanes: 1 }
    }

    /// Moves on to the set of rows with this number.
    pub fn seek_rows(&mut self, number: usize) {
        let lanes = self.launch.compiled.layout.tiles(Part::Lane);
        self.seek(Part::Lane, number % lanes);
        self.seek(Part::Outer, number / lanes);
        self.outer = self.points(Part::Outer);
        self.lanes = self.points(Part::Lane);
    }

    /// Moves on to the piece of the rows with this number.
    fn seek_columns(&mut self, number: usize) {
        self.seek(Part::Column, number);
        self.columns = self.points(Part::Column);
    }

    fn seek(&mut self, part: Part, mut number: usize) {
        for (d, dim) in self.launch.compiled.layout.dims.iter().enumerate().rev().filter(|(_, dim)| dim.part == part) {
            let tiles = dim.extent.div_ceil(dim.tile);
            let first = number % tiles * dim.tile;
            number /= tiles;
            self.region.first[d] = first as i64;
            self.region.extent[d] = dim.tile.min(dim.extent - first);
        }
    }

    fn points(&self, part: Part) -> usize {
        let dims = self.launch.compiled.layout.dims.iter().enumerate().filter(|(_, dim)| dim.part == part);
        dims.map(|(d, _)| self.region.extent[d]).product()
    }

    /// Empties the accumulators of a phase.
    ///
    /// # Safety
    /// `rows` as for [`Frame::new`].
    pub unsafe fn start(&mut self, phase: &Phase, rows: *mut u8) {
        for &fold in &phase.folds {
            let empty = self.launch.compiled.schedule.folds[fold].empty;
            let first = rows.wrapping_add(self.launch.compiled.accumulator(fold)).cast::<[u8; ACCUMULATOR]>();
            // SAFETY: the accumulators of a set of rows have room for all of them.
            (0..self.outer * self.lanes).for_each(|i| unsafe { first.add(i).write(empty) });
        }
    }

    /// Takes the accumulators of a phase from another place, folding them into its own.
    ///
    /// # Safety
    /// As for [`Frame::new`].
    pub unsafe fn merge(&mut self, phase: &Phase, other: *const u8) {
        for &fold in &phase.folds {
            let at = self.launch.compiled.accumulator(fold);
            let merge = self.launch.compiled.schedule.folds[fold].merge;
            // SAFETY: both places have accumulators for all rows of the set.
            unsafe { merge(self.rows.wrapping_add(at), other.wrapping_add(at), self.outer * self.lanes) };
        }
    }

    /// Runs the steps that are run once a launch.
    ///
    /// # Safety
    /// The arguments are as the program says.
    pub unsafe fn uniform(&mut self) {
        let launch = self.launch;
        launch.compiled.schedule.uniform.iter().for_each(|step| unsafe { self.step(step, launch.uniform) });
    }

    /// Runs the steps that a phase runs once for a set of rows.
    ///
    /// # Safety
    /// As for [`Frame::uniform`].
    pub unsafe fn head(&mut self, phase: &Phase) {
        let (columns, region) = (self.columns, self.region);
        for (d, dim) in self.launch.compiled.layout.dims.iter().enumerate() {
            if dim.part == Part::Column {
                (self.region.first[d], self.region.extent[d]) = (0, 1);
            }
        }
        self.columns = 1;
        let rows = self.rows;
        phase.head.iter().for_each(|step| unsafe { self.step(step, rows) });
        (self.columns, self.region) = (columns, region);
    }

    /// Runs the steps of a phase on pieces of the rows, folding into the accumulators at `rows`.
    ///
    /// # Safety
    /// As for [`Frame::uniform`], and [`Frame::new`] for `rows`.
    pub unsafe fn body(&mut self, phase: &Phase, pieces: std::ops::Range<usize>, rows: *mut u8) {
        if phase.body.is_empty() {
            return;
        }
        for piece in pieces {
            self.seek_columns(piece);
            phase.body.iter().for_each(|step| unsafe { self.step(step, rows) });
        }
    }

    fn at(&self, v: Value) -> *mut u8 {
        self.places[v.0]
    }

    fn rank(&self, v: Value) -> Rank {
        self.launch.compiled.schedule.values[v.0].rank
    }

    fn bytes(&self, v: Value) -> usize {
        size(self.launch.compiled.schedule.values[v.0].kind)
    }

    /// Values of a rank in the region.
    fn count(&self, rank: Rank) -> usize {
        match rank {
            Rank::Uniform => 1,
            Rank::Row => self.outer * self.lanes,
            Rank::Tile => self.outer * self.columns * self.lanes,
        }
    }

    fn element(&self, arg: usize, at: i64) -> *mut u8 {
        let bytes = self.launch.dtypes[arg].dtype.size() as i64;
        self.launch.args[arg].ptr.wrapping_offset(at.wrapping_mul(bytes) as isize)
    }

    unsafe fn step(&mut self, step: &Step, rows: *mut u8) {
        // SAFETY: verified accesses stay inside the arguments, which `launch` has measured; places have room for a whole tile.
        unsafe {
            match step {
                Step::Const { out, bits } => self.at(*out).copy_from_nonoverlapping(bits.as_ptr(), self.bytes(*out)),
                Step::Load { out, access, run, gather: None, direct } => self.load(*out, access, *run, *direct),
                Step::Load { out, access, run, gather: Some(gather), .. } => self.gather(*out, access, *run, gather),
                Step::Index { out, dim } => self.index(*out, *dim),
                Step::Map { .. } => self.map(step),
                Step::Expand { out, x } => self.expand(*out, *x),
                Step::Fold { x, fold } => {
                    let totals = rows.wrapping_add(self.launch.compiled.accumulator(*fold));
                    let tile = self.launch.compiled.schedule.folds[*fold].tile;
                    tile(totals, self.at(*x), self.outer, self.columns, self.lanes);
                }
                Step::Finish { out, fold } => {
                    let totals = self.rows.wrapping_add(self.launch.compiled.accumulator(*fold));
                    let finish = self.launch.compiled.schedule.folds[*fold].finish;
                    finish(self.at(*out), totals, self.count(Rank::Row));
                }
                Step::Store { x, access, run } => self.store(*x, access, *run),
                Step::Quantize { x, codes, scales, mode } => self.quantize(*x, codes, scales, *mode),
            }
        }
    }

    unsafe fn load(&mut self, out: Value, access: &Access, run: RunFn, direct: bool) {
        let Some(mut transfer) = access.transfer(&self.region) else { return unsafe { self.clear(out) } };
        transfer.simplify();
        let arg = access.arg;
        if direct && transfer.whole && transfer.single().is_some_and(|s| s.memory == 1 && s.tile == 1) {
            self.places[out.0] = self.element(arg, transfer.memory);
            return;
        }
        if direct {
            self.reset(out);
        }
        if !transfer.whole {
            unsafe { self.clear(out) };
        }
        let (to, bytes) = (self.at(out), self.bytes(out));
        transfer.runs(|memory, tile, step| unsafe {
            run(to.wrapping_add(tile as usize * bytes), step.tile, self.element(arg, memory), step.memory, step.count);
        });
    }

    /// Takes a value back to its own place.
    fn reset(&mut self, v: Value) {
        if let Place::Tile(at) = self.launch.compiled.places[v.0] {
            self.places[v.0] = self.tile.wrapping_add(at);
        }
    }

    unsafe fn clear(&mut self, out: Value) {
        self.reset(out);
        let bytes = self.count(self.rank(out)) * self.bytes(out);
        unsafe { self.at(out).write_bytes(0, bytes) };
    }

    unsafe fn gather(&mut self, out: Value, access: &Access, run: RunFn, gather: &Gather) {
        let Some(mut outside) = access.transfer(&self.region) else { return unsafe { self.clear(out) } };
        if !outside.whole {
            unsafe { self.clear(out) };
        }
        let mut inside = outside.split_inner(gather.dims);
        inside.simplify();
        let (to, bytes, indices) = (self.at(out), self.bytes(out), self.at(gather.index).cast::<i64>());
        outside.each(|memory, tile| {
            // SAFETY: indices have the place of the value that is read by them.
            let index = unsafe { indices.add(tile as usize).read() };
            if index < 0 || index >= gather.bound {
                // What the place holds is not used: the launch fails.
                return self.fail(index, gather.bound);
            }
            let begin = memory.wrapping_add(index.wrapping_mul(gather.stride));
            inside.runs(|memory, at, step| unsafe {
                let from = self.element(access.arg, begin.wrapping_add(memory));
                run(to.wrapping_add((tile + at) as usize * bytes), step.tile, from, step.memory, step.count);
            });
        });
    }

    fn fail(&self, index: i64, bound: i64) {
        // A poisoned lock means that another worker panicked, which rayon passes on.
        if let Ok(mut failure) = self.launch.failure.lock() {
            failure.get_or_insert(KernelError::IndexOutOfRange { index, bound });
        }
    }

    unsafe fn index(&mut self, out: Value, dim: Option<usize>) {
        let count = self.count(self.rank(out));
        // SAFETY: the place has room for a tile.
        let values = unsafe { std::slice::from_raw_parts_mut(self.at(out).cast::<i64>(), count) };
        let Some(dim) = dim else { return values.fill(0) };
        let inner: usize = self.region.extent[dim + 1..self.region.dims].iter().product();
        let (first, extent) = (self.region.first[dim], self.region.extent[dim] as i64);
        let mut index = first;
        for run in values.chunks_mut(inner.max(1)) {
            run.fill(index);
            index = if index + 1 == first + extent { first } else { index + 1 };
        }
    }

    unsafe fn map(&mut self, step: &Step) {
        let Step::Map { out, map, operands, by_run } = step else { return };
        let count = self.count(self.rank(*out));
        let (runs, length) = match *by_run {
            false => (1, count),
            true if self.by_lanes() => (self.columns, self.lanes),
            true => (self.outer, self.columns),
        };
        let mut to = self.at(*out);
        let to_step = length * self.bytes(*out);
        let mut from = operands.map(|o| self.at(o.value).cast_const());
        let steps = operands.map(|o| match o.moves {
            Move::Still => 0,
            Move::One => o.bytes,
            Move::Run => o.bytes * length,
        });
        for _ in 0..runs {
            // SAFETY: all places have room for a tile, which the runs divide.
            unsafe { map(to, from[0], from[1], from[2], length) };
            to = to.wrapping_add(to_step);
            from.iter_mut().zip(steps).for_each(|(from, step)| *from = from.wrapping_add(step));
        }
    }

    /// True where rows lie side by side.
    fn by_lanes(&self) -> bool {
        self.launch.compiled.layout.order == Order::Lanes
    }

    unsafe fn expand(&mut self, out: Value, x: Value) {
        let (from, to) = (self.rank(x), self.rank(out));
        let count = self.count(to);
        let (to, x_at) = (self.at(out), self.at(x));
        // SAFETY: the places have room for values of their ranks.
        unsafe {
            match self.bytes(out) {
                1 => self.repeat::<u8>(to, x_at, from, count),
                4 => self.repeat::<u32>(to, x_at, from, count),
                _ => self.repeat::<u64>(to, x_at, from, count),
            }
        }
    }

    unsafe fn repeat<T: Copy>(&self, to: *mut u8, from: *const u8, rank: Rank, count: usize) {
        // SAFETY: as in `expand`.
        let (to, from) = unsafe {
            let to = std::slice::from_raw_parts_mut(to.cast::<T>(), count);
            (to, std::slice::from_raw_parts(from.cast::<T>(), self.count(rank)))
        };
        match rank {
            Rank::Uniform => to.fill(from[0]),
            Rank::Row if self.by_lanes() => to.chunks_exact_mut(self.lanes).for_each(|line| line.copy_from_slice(from)),
            _ => to.chunks_exact_mut(self.columns.max(1)).zip(from).for_each(|(row, x)| row.fill(*x)),
        }
    }

    unsafe fn store(&mut self, x: Value, access: &Access, run: RunFn) {
        let Some(mut transfer) = access.transfer(&self.region) else { return };
        transfer.simplify();
        let (from, bytes) = (self.at(x), self.bytes(x));
        transfer.runs(|memory, tile, step| {
            let to = self.element(access.arg, memory);
            // SAFETY: the elements are in the argument, and no other worker writes them.
            unsafe { run(to, step.memory, from.wrapping_add(tile as usize * bytes), step.tile, step.count) };
        });
    }

    unsafe fn quantize(&mut self, x: Value, codes: &Access, scales: &Access, mode: ScaleMode) {
        let mut rows = self.region;
        let mut first = 0;
        for (d, _) in self.launch.compiled.layout.dims.iter().enumerate().filter(|(_, dim)| dim.part == Part::Column) {
            first = rows.first[d] as usize;
            rows.extent[d] = 1;
        }
        let (Some(codes_at), Some(scales_at)) = (codes.transfer(&rows), scales.transfer(&rows)) else { return };
        let (values, columns) = (self.at(x).cast::<f32>(), self.columns);
        codes_at.each(|memory, row| {
            // SAFETY: the row is in the tile, its codes in their argument, with stride 1.
            let (values, out) = unsafe {
                let out = std::slice::from_raw_parts_mut(self.element(codes.arg, memory), columns);
                (std::slice::from_raw_parts(values.add(row as usize * columns), columns), out)
            };
            let group = (first / GROUP as usize) as i64;
            let mut scale = self.element(scales.arg, scales_at.at_tile(row) + group).cast::<f32>();
            for (values, codes) in values.chunks(GROUP as usize).zip(out.chunks_mut(GROUP as usize)) {
                // SAFETY: there is a scale for each group of each row.
                unsafe { scale.write(quantize_group(values, mode, codes)) };
                scale = scale.wrapping_add(1);
            }
        });
    }
}
