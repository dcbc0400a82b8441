//! Runs of elements between a tile and an argument.

use super::layout::Layout;
use crate::program::{self, MAX_DIMS};

/// An access in the dimensions of a layout.
#[derive(Clone, Debug)]
pub struct Access {
    pub arg: usize,
    offset: i64,
    strides: Vec<i64>,
    /// `(dimension, lower, upper)`.
    guards: Vec<(usize, i64, i64)>,
    /// A guard excludes every point.
    never: bool,
}

/// A box of points: first index and extent along each dimension.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub first: [i64; MAX_DIMS],
    pub extent: [usize; MAX_DIMS],
    pub dims: usize,
}

/// One dimension of a transfer: elements, and the steps between them in the argument and in the tile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    pub count: usize,
    pub memory: i64,
    pub tile: i64,
}

/// Where the elements of a region lie in an argument and in a tile.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Element of the argument, and of the tile, where the region begins.
    pub memory: i64,
    pub tile: i64,
    steps: [Step; MAX_DIMS],
    dims: usize,
    /// False where guards exclude a part of the region.
    pub whole: bool,
}

/// Elements of a step that stays within a few cache lines.
const NEAR: u64 = 64;

impl Access {
    pub fn new(layout: &Layout, arg: u32, access: &program::Access) -> Access {
        let mut guards = Vec::new();
        let mut never = false;
        for g in &access.guards {
            match layout.find(g.dim) {
                Some(d) => guards.push((d, g.lower, g.upper)),
                // A dimension of one index.
                None => never |= g.lower > 0 || g.upper < 1,
            }
        }
        Access { arg: arg as usize, offset: access.offset, strides: layout.strides(&access.strides), guards, never }
    }

    /// Dimensions along which the address or the guards change, as bits.
    pub fn moving_dims(&self) -> u32 {
        let moving = self.strides.iter().enumerate().filter(|(_, s)| **s != 0).map(|(d, _)| d);
        moving.chain(self.guards.iter().map(|g| g.0)).fold(0, |bits, d| bits | 1 << d)
    }

    /// The transfer of a region, `None` if guards exclude all of it.
    pub fn transfer(&self, region: &Region) -> Option<Transfer> {
        let (mut first, mut extent) = (region.first, region.extent);
        for &(d, lower, upper) in &self.guards {
            let low = first[d].max(lower);
            let high = (first[d] + extent[d] as i64).min(upper);
            (first[d], extent[d]) = (low, (high - low).max(0) as usize);
        }
        if self.never || extent[..region.dims].contains(&0) {
            return None;
        }
        let mut transfer = Transfer { memory: self.offset, tile: 0, steps: [Step::default(); MAX_DIMS], dims: 0, whole: true };
        let mut tile_stride = 1i64;
        for d in (0..region.dims).rev() {
            // Wrapping: only the sum is known to be an element of the argument.
            transfer.memory = transfer.memory.wrapping_add(self.strides[d].wrapping_mul(first[d]));
            transfer.tile += tile_stride * (first[d] - region.first[d]);
            transfer.whole &= extent[d] == region.extent[d];
            transfer.steps[d] = Step { count: extent[d], memory: self.strides[d], tile: tile_stride };
            tile_stride *= region.extent[d] as i64;
        }
        transfer.dims = region.dims;
        Some(transfer)
    }
}

impl Transfer {
    /// Takes the inner dimensions that are not in `outside` off, as a transfer from the same beginning.
    pub fn split_inner(&mut self, outside: u32) -> Transfer {
        let mut inner = Transfer { memory: 0, tile: 0, ..*self };
        let at = (0..self.dims).rev().find(|&d| outside >> d & 1 == 1).map_or(0, |d| d + 1);
        inner.steps.copy_within(at..self.dims, 0);
        inner.dims = self.dims - at;
        self.dims = at;
        inner
    }

    /// Merges the dimensions that are walked as one, and puts the one that is nearest to contiguous innermost.
    pub fn simplify(&mut self) {
        let mut merged: [Step; MAX_DIMS] = [Step::default(); MAX_DIMS];
        let mut n = 0;
        // Innermost first.
        for step in self.steps[..self.dims].iter().rev().filter(|s| s.count != 1) {
            let inner = if n > 0 { &mut merged[n - 1] } else { &mut merged[0] };
            let count = inner.count as i64;
            if n > 0 && step.memory == inner.memory.wrapping_mul(count) && step.tile == inner.tile * count {
                inner.count *= step.count;
            } else {
                merged[n] = *step;
                n += 1;
            }
        }
        if n > 1 && merged[0].memory.unsigned_abs() > NEAR {
            // Stride 1 in memory is worth more than in the tile, which is in the cache. What lies near is in the cache, too.
            if let Some(line) = merged[1..n].iter().position(|s| s.memory.unsigned_abs() == 1 && s.count >= 8) {
                merged.swap(0, line + 1);
            }
        }
        merged[..n].reverse();
        (self.steps, self.dims) = (merged, n);
    }

    /// The only run, if that is all there is.
    pub fn single(&self) -> Option<Step> {
        match self.dims {
            0 => Some(Step { count: 1, memory: 1, tile: 1 }),
            1 => Some(self.steps[0]),
            _ => None,
        }
    }

    /// Calls `run(memory, tile, innermost step)` for each run of the innermost dimension.
    #[inline]
    pub fn runs(&self, mut run: impl FnMut(i64, i64, Step)) {
        if let Some(step) = self.single() {
            return run(self.memory, self.tile, step);
        }
        let inner = self.steps[self.dims - 1];
        self.points(self.dims - 1, |memory, tile| run(memory, tile, inner));
    }

    /// Calls `visit(memory, tile)` for each point.
    pub fn each(&self, visit: impl FnMut(i64, i64)) {
        self.points(self.dims, visit);
    }

    /// Element of the argument where an element of the tile lies.
    pub fn at_tile(&self, tile: i64) -> i64 {
        let mut rest = tile - self.tile;
        self.steps[..self.dims].iter().fold(self.memory, |memory, step| {
            let index = if step.count > 1 { rest / step.tile } else { 0 };
            rest -= index * step.tile;
            memory.wrapping_add(index.wrapping_mul(step.memory))
        })
    }

    /// Visits the points of the first `dims` dimensions in row-major order.
    #[inline]
    fn points(&self, dims: usize, mut visit: impl FnMut(i64, i64)) {
        let mut index = [0usize; MAX_DIMS];
        let (mut memory, mut tile) = (self.memory, self.tile);
        loop {
            visit(memory, tile);
            let mut d = dims;
            loop {
                if d == 0 {
                    return;
                }
                d -= 1;
                let step = self.steps[d];
                index[d] += 1;
                memory = memory.wrapping_add(step.memory);
                tile += step.tile;
                if index[d] < step.count {
                    break;
                }
                let back = step.count as i64;
                memory = memory.wrapping_sub(step.memory.wrapping_mul(back));
                tile -= step.tile * back;
                index[d] = 0;
            }
        }
    }
}
