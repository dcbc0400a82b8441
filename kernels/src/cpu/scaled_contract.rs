//! The E4M3 product with fine-grained scales: for each group of 128 along `k` an f32 product of decoded panels, scaled by
//! `sa[i, g] * sb[g, j]` (rounded to f32) and added in f32, in ascending order of the groups.

use super::Buffer;
use super::contract::{store, tile};
use super::matrix::{Float, Operand, Shape, View, prefetch, product};
use super::tasks::{Tasks, flops};
use crate::KernelError;
use crate::cpu::math::Fma;
use crate::numerics::decode_e4m3;
use crate::numerics::simd::{Vectorised, dispatch};
use crate::program::{GROUP, ScaleGroup, ScaledContract, groups};

/// Two panels, a product and a sum of this extent stay in a level 2 cache of one mebibyte.
const TILE: usize = 256;
const DEPTH: usize = GROUP as usize;
/// Rows that are asked for before they are decoded.
const AHEAD: usize = 8;

struct Plan<'a> {
    k: &'a ScaledContract,
    tile: [usize; 2],
    groups: usize,
}

/// Addresses of a launch.
struct Operands {
    a: *const u8,
    a_scales: *const f32,
    b: *const u8,
    b_scales: *const f32,
    bias: Option<Operand>,
    c: Operand,
}

// SAFETY: tasks only read A and B, and write disjoint tiles of C.
unsafe impl Sync for Operands {}

impl Plan<'_> {
    fn new(k: &ScaledContract) -> Plan<'_> {
        Plan { k, tile: tile(1, k.m as usize, k.n as usize, [TILE, TILE]), groups: groups(k.k) as usize }
    }

    fn tasks(&self) -> Tasks {
        let [tm, tn] = self.tile;
        let (m, n) = (self.k.m as usize, self.k.n as usize);
        Tasks {
            count: m.div_ceil(tm) * n.div_ceil(tn),
            floats: (2 * tm * tn + (tm + tn) * DEPTH + tn) as u64,
            flops: flops(&[2, self.k.m, self.k.n, self.k.k]),
        }
    }

    /// Computes one tile.
    ///
    /// # Safety
    /// The addresses are those of valid arguments; `slot` has the floats that [`Plan::tasks`] says.
    unsafe fn run(&self, x: &Operands, task: usize, slot: &mut [f32]) {
        let [tm, tn] = self.tile;
        let across = (self.k.n as usize).div_ceil(tn);
        let (i, j) = (task / across * tm, task % across * tn);
        let (m, n) = (tm.min(self.k.m as usize - i), tn.min(self.k.n as usize - j));
        let (sums, slot) = slot.split_at_mut(tm * tn);
        let (part, slot) = slot.split_at_mut(tm * tn);
        let (panel_a, slot) = slot.split_at_mut(tm * DEPTH);
        let (panel_b, scales) = slot.split_at_mut(tn * DEPTH);
        sums[..m * n].fill(0.0);
        for g in 0..self.groups {
            let start = g * DEPTH;
            let depth = DEPTH.min(self.k.k as usize - start);
            // SAFETY: rows `i..i + m` of A, `j..j + n` of B and their columns from `start` are inside; the tile has `m * n`.
            unsafe {
                let a = self.decode(x.a, i, m, start, depth, panel_a);
                let b = self.decode(x.b, j, n, start, depth, panel_b);
                product(Shape { m, n, k: depth }, part.as_mut_ptr(), n, false, a, b.t(), 1.0);
                self.columns_scales(x.b_scales, g, j, &mut scales[..n]);
                let rows = x.a_scales.add(i * self.groups + g);
                dispatch(AddScaled { sums: &mut sums[..m * n], part, rows, stride: self.groups, columns: &scales[..n] });
            }
        }
        // SAFETY: this task alone writes the tile.
        unsafe { self.finish(x, [i, j], [m, n], sums, scales) }
    }

    /// Decodes `rows` rows from `first` on, `depth` columns from `start` on.
    ///
    /// # Safety
    /// They are inside the codes.
    unsafe fn decode(&self, codes: *const u8, first: usize, rows: usize, start: usize, depth: usize, panel: &mut [f32]) -> View {
        let k = self.k.k as usize;
        for (row, out) in panel.chunks_exact_mut(depth).take(rows).enumerate() {
            // SAFETY: the caller's promise.
            let codes = unsafe { std::slice::from_raw_parts(codes.add((first + row) * k + start), depth) };
            decode_e4m3(codes, out);
            // Rows are too far apart for the processor to guess the next ones.
            let ahead = codes.as_ptr().wrapping_add(AHEAD * k);
            prefetch(ahead);
            prefetch(ahead.wrapping_add(64));
        }
        View::rows(panel, depth)
    }

    /// Scales of columns from `j` on in group `g`.
    ///
    /// # Safety
    /// The columns are inside.
    unsafe fn columns_scales(&self, scales: *const f32, g: usize, j: usize, out: &mut [f32]) {
        for (column, out) in out.iter_mut().enumerate() {
            let row = match self.k.b_scales {
                ScaleGroup::Row => j + column,
                ScaleGroup::Block => (j + column) / DEPTH,
            };
            // SAFETY: the caller's promise.
            *out = unsafe { *scales.add(row * self.groups + g) };
        }
    }

    /// Adds the bias and stores a tile.
    ///
    /// # Safety
    /// As [`Plan::run`].
    unsafe fn finish(&self, x: &Operands, [i, j]: [usize; 2], [m, n]: [usize; 2], sums: &mut [f32], spare: &mut [f32]) {
        let bias = &mut spare[..n];
        if let Some(operand) = x.bias {
            // SAFETY: the bias has a value for each column.
            unsafe { operand.at(0, j).load_row(bias) };
        }
        for (row, sums) in sums.chunks_exact_mut(n).take(m).enumerate() {
            if x.bias.is_some() {
                sums.iter_mut().zip(bias.iter()).for_each(|(x, b)| *x += b);
            }
            // SAFETY: a row of this task's tile.
            unsafe { store(x.c.at(i + row, j), sums, self.k.epilogue.accumulate) };
        }
    }
}

/// `sums[i, j] += (rows[i] * columns[j]) * part[i, j]`.
struct AddScaled<'a> {
    sums: &'a mut [f32],
    part: &'a [f32],
    rows: *const f32,
    stride: usize,
    columns: &'a [f32],
}

impl Vectorised for AddScaled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        let n = self.columns.len();
        for (i, (sums, part)) in self.sums.chunks_exact_mut(n).zip(self.part.chunks_exact(n)).enumerate() {
            // SAFETY: `sums` is cut to the tile's rows, each of which has a scale.
            let row = unsafe { *self.rows.add(i * self.stride) };
            for ((sum, part), column) in sums.iter_mut().zip(part).zip(self.columns) {
                *sum += row * column * part;
            }
        }
    }
}

/// Scratch bytes for a pool of `threads`.
pub(crate) fn scratch(k: &ScaledContract, threads: usize) -> u64 {
    Plan::new(k).tasks().scratch(threads)
}

/// Runs the kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::Unsupported`] for a result that is neither f32 nor bf16.
pub(crate) unsafe fn run(k: &ScaledContract, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let [a, a_scales, b, b_scales, rest @ ..] = args else {
        return Err(KernelError::Invalid { family: "scaled_contract", reason: format!("{} arguments", args.len()) });
    };
    let [bias @ .., c] = rest else {
        return Err(KernelError::Invalid { family: "scaled_contract", reason: "no result".into() });
    };
    let bias = match (k.epilogue.bias, bias) {
        (Some(dtype), [bias]) => Some(Operand { ptr: bias.ptr, float: Float::of(dtype, "scaled_contract")?, rs: 0, cs: 1 }),
        _ => None,
    };
    let x = Operands {
        a: a.ptr,
        a_scales: a_scales.ptr.cast(),
        b: b.ptr,
        b_scales: b_scales.ptr.cast(),
        bias,
        c: Operand { ptr: c.ptr, float: Float::of(k.c, "scaled_contract")?, rs: k.n as isize, cs: 1 },
    };
    let plan = Plan::new(k);
    // SAFETY: tiles are disjoint, and the arguments valid.
    unsafe { plan.tasks().run(scratch, |i, slot| plan.run(&x, i, slot)) }
}
