//! Dense batched products: tiles of C over the threads, each a sequential `faer` product.
//!
//! f32 operands with a unit stride are multiplied where they lie; others are converted panel by panel into scratch. Tile sizes
//! depend on the shape alone, not on the number of threads, so that the same bytes come out on any machine of one kind.

use super::Buffer;
use super::matrix::{Float, Operand, Shape, View, product};
use super::tasks::{Tasks, flops};
use crate::KernelError;
use crate::program::{Contract, Matrix};

const TILE: usize = 256;
/// Depth of a converted panel.
const DEPTH: usize = 512;
/// Tiles are not split below this extent to make more of them.
const LEAST_TILE: usize = 48;
/// As many tiles as are wanted, so that a few threads finish together.
const ENOUGH_TILES: usize = 16;

/// Extents of a tile of an `m x n` result, of which there are `batch`.
pub(crate) fn tile(batch: usize, m: usize, n: usize, largest: [usize; 2]) -> [usize; 2] {
    let [mut tm, mut tn] = [m.clamp(1, largest[0]), n.clamp(1, largest[1])];
    loop {
        let tiles = batch.saturating_mul(m.div_ceil(tm)).saturating_mul(n.div_ceil(tn));
        let wide = if tm >= tn { &mut tm } else { &mut tn };
        if tiles >= ENOUGH_TILES || *wide < 2 * LEAST_TILE {
            return [tm, tn];
        }
        *wide = wide.div_ceil(2).next_multiple_of(16);
    }
}

/// A product with C's columns contiguous (the transposed problem where its rows are).
struct Plan<'a> {
    batch: &'a [u64],
    m: usize,
    n: usize,
    k: usize,
    a: (Operand, &'a [u64]),
    b: (Operand, &'a [u64]),
    c: (Operand, &'a [u64]),
    bias: Option<Operand>,
    bias_on_rows: bool,
    accumulate: bool,
    tile: [usize; 2],
}

fn operand<'a>(x: &'a Matrix, arg: Option<&Buffer>) -> Result<(Operand, &'a [u64]), KernelError> {
    let float = Float::of(x.dtype, "contract")?;
    let ptr = arg.map_or(std::ptr::null_mut(), |b| b.ptr);
    let whole = Operand { ptr, float, rs: x.row_stride as isize, cs: x.col_stride as isize };
    Ok((whole.offset(x.offset as isize), &x.batch_strides))
}

impl<'a> Plan<'a> {
    /// Without `args` the addresses are null: enough to ask for scratch.
    fn new(k: &'a Contract, args: &[Buffer]) -> Result<Self, KernelError> {
        let (a, b) = (operand(&k.a, args.first())?, operand(&k.b, args.get(1))?);
        let c = operand(&k.c, args.last())?;
        let bias = match k.epilogue.bias {
            Some(dtype) => {
                let ptr = args.get(2).map_or(std::ptr::null_mut(), |b| b.ptr);
                Some(Operand { ptr, float: Float::of(dtype, "contract")?, rs: 0, cs: 1 })
            }
            None => None,
        };
        let (m, n) = (k.m as usize, k.n as usize);
        let accumulate = k.epilogue.accumulate;
        let mut plan = Plan { batch: &k.batch, m, n, k: k.k as usize, a, b, c, bias, bias_on_rows: false, accumulate, tile: [1, 1] };
        if plan.c.0.cs != 1 && plan.c.0.rs == 1 {
            let swap = |(x, strides): (Operand, &'a [u64])| (x.t(), strides);
            plan = Plan { m: n, n: m, a: swap(plan.b), b: swap(plan.a), c: swap(plan.c), bias_on_rows: true, ..plan };
        }
        let direct = !plan.a.0.needs_panel() && !plan.b.0.needs_panel() && plan.in_place();
        let largest = if direct { [2 * TILE, 2 * TILE] } else { [TILE, TILE] };
        plan.tile = tile(plan.batches(), plan.m, plan.n, largest);
        Ok(plan)
    }

    fn batches(&self) -> usize {
        self.batch.iter().product::<u64>() as usize
    }

    /// Whether products go straight into C.
    fn in_place(&self) -> bool {
        self.c.0.float == Float::F32 && self.c.0.cs == 1
    }

    fn panel_depth(&self) -> usize {
        if self.a.0.needs_panel() || self.b.0.needs_panel() { self.k.min(DEPTH) } else { self.k }
    }

    /// Floats of the panels of A and B and of the tile of C.
    fn floats(&self) -> [usize; 3] {
        let [tm, tn] = self.tile;
        let panel = |x: &Operand, extent: usize| if x.needs_panel() { extent * self.panel_depth() } else { 0 };
        let c = if self.in_place() { 0 } else { tm * tn };
        [panel(&self.a.0, tm), panel(&self.b.0, tn), c].map(|f| f.next_multiple_of(16))
    }

    fn tasks(&self) -> Tasks {
        let [tm, tn] = self.tile;
        let bias = if self.bias.is_some() { tm.max(tn) } else { 0 };
        Tasks {
            count: self.batches() * self.m.div_ceil(tm) * self.n.div_ceil(tn),
            floats: (self.floats().iter().sum::<usize>() + bias) as u64,
            flops: flops(&[2, self.batches() as u64, self.m as u64, self.n as u64, self.k as u64]),
        }
    }

    /// Element offset of batch `z` under an operand's strides.
    fn batch_offset(&self, mut z: usize, strides: &[u64]) -> isize {
        let mut offset = 0u64;
        for (extent, stride) in self.batch.iter().zip(strides).rev() {
            offset = offset.wrapping_add((z as u64 % extent).wrapping_mul(*stride));
            z /= *extent as usize;
        }
        offset as isize
    }

    /// Computes one tile.
    ///
    /// # Safety
    /// The operands' addresses are those of valid arguments; `slot` has the floats that [`Plan::tasks`] says.
    unsafe fn run(&self, task: usize, slot: &mut [f32]) {
        let [tm, tn] = self.tile;
        let (down, across) = (self.m.div_ceil(tm), self.n.div_ceil(tn));
        let (i, j) = (task / across % down * tm, task % across * tn);
        let (m, n) = (tm.min(self.m - i), tn.min(self.n - j));
        let z = task / across / down;
        let [fa, fb, fc] = self.floats();
        let (panel_a, slot) = slot.split_at_mut(fa);
        let (panel_b, slot) = slot.split_at_mut(fb);
        let (tile_c, bias) = slot.split_at_mut(fc);
        let a = self.a.0.offset(self.batch_offset(z, self.a.1)).at(i, 0);
        let b = self.b.0.offset(self.batch_offset(z, self.b.1)).at(0, j);
        let c = self.c.0.offset(self.batch_offset(z, self.c.1)).at(i, j);
        let in_place = self.in_place();
        let (sum, ld) = if in_place { (c.ptr.cast::<f32>(), c.rs as usize) } else { (tile_c.as_mut_ptr(), n) };
        let step = self.panel_depth().max(1);
        let mut first = !(in_place && self.accumulate);
        for p in (0..self.k.max(1)).step_by(step) {
            let depth = step.min(self.k - p);
            // SAFETY: the tile lies inside the operands, which the kernel's verification has proved to lie in the arguments.
            unsafe {
                let a: View = a.at(0, p).view(m, depth, panel_a);
                let b: View = b.at(p, 0).view(depth, n, panel_b);
                product(Shape { m, n, k: depth }, sum, ld, !first, a, b, 1.0);
            }
            first = false;
        }
        // SAFETY: as above, and this task alone writes the tile.
        unsafe { self.finish(c, [i, j], [m, n], (sum, ld), bias) }
    }

    /// Adds the bias and stores a tile of sums.
    ///
    /// # Safety
    /// As [`Plan::run`]; `sum` holds `m` rows of `n`, `ld` apart.
    unsafe fn finish(&self, c: Operand, at: [usize; 2], [m, n]: [usize; 2], (sum, ld): (*mut f32, usize), scratch: &mut [f32]) {
        let bias = match self.bias {
            Some(bias) => {
                let (start, len) = if self.bias_on_rows { (at[0], m) } else { (at[1], n) };
                // SAFETY: the bias has an element for each row or column.
                unsafe { bias.at(0, start).load_row(&mut scratch[..len]) };
                &scratch[..len]
            }
            None if self.in_place() => return,
            None => &[],
        };
        for i in 0..m {
            // SAFETY: row `i` of the tile.
            let row = unsafe { std::slice::from_raw_parts_mut(sum.add(i * ld), n) };
            match (bias.is_empty(), self.bias_on_rows) {
                (true, _) => {}
                (false, true) => row.iter_mut().for_each(|x| *x += bias[i]),
                (false, false) => row.iter_mut().zip(bias).for_each(|(x, b)| *x += b),
            }
            if !self.in_place() {
                // SAFETY: row `i` of C's tile.
                unsafe { store(c.at(i, 0), row, self.accumulate) };
            }
        }
    }
}

/// Stores a row of results, added to what C holds where asked.
///
/// # Safety
/// The row is valid and this task's own.
pub(crate) unsafe fn store(c: Operand, row: &mut [f32], accumulate: bool) {
    if accumulate {
        for (j, x) in row.iter_mut().enumerate() {
            let mut old = [0.0];
            // SAFETY: element `j` of the row.
            unsafe { c.at(0, j).load_row(&mut old) };
            *x += old[0];
        }
    }
    // SAFETY: the caller's promise.
    unsafe { c.store_row(row) }
}

/// Scratch bytes for a pool of `threads`.
pub(crate) fn scratch(k: &Contract, threads: usize) -> u64 {
    Plan::new(k, &[]).map_or(0, |plan| plan.tasks().scratch(threads))
}

/// Runs the kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::Unsupported`] for operands that are neither f32 nor bf16.
pub(crate) unsafe fn run(k: &Contract, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let plan = Plan::new(k, args)?;
    // SAFETY: tiles are disjoint, and the arguments valid.
    unsafe { plan.tasks().run(scratch, |i, slot| plan.run(i, slot)) }
}
