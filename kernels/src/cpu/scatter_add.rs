//! Scatter-add: ranges of columns over the threads, each adding in ascending order of the picks.

use super::Buffer;
use super::loops::add_scaled;
use super::matrix::{Float, Operand};
use super::tasks::{Shared, Tasks};
use crate::program::ScatterAdd;
use crate::{DType, KernelError};

/// Columns of a task where sums run in the destination.
const COLUMNS: usize = 256;
/// Floats of scratch that sums which cannot run in the destination should not exceed, if one cache line of columns allows.
const SUMS: usize = 1 << 18;
const LINE: usize = 16;

struct Plan<'a> {
    k: &'a ScatterAdd,
    src: Operand,
    dst: Operand,
    index: Shared<u8>,
    columns: usize,
}

impl<'a> Plan<'a> {
    fn new(k: &'a ScatterAdd, args: &[Buffer]) -> Result<Plan<'a>, KernelError> {
        let inner = k.inner as usize;
        let ptr = |i: usize| args.get(i).map_or(std::ptr::null_mut(), |b| b.ptr);
        let matrix = |i, dtype| Ok(Operand { ptr: ptr(i), float: Float::of(dtype, "scatter_add")?, rs: inner as isize, cs: 1 });
        let (src, dst) = (matrix(0, k.src)?, matrix(2, k.dst)?);
        if !matches!(k.index, DType::I64 | DType::I32) {
            return Err(KernelError::Unsupported(format!("scatter_add by {} indices on the CPU", k.index)));
        }
        let widest = match dst.float {
            Float::F32 => COLUMNS,
            _ => (SUMS / (k.extent as usize).max(1)).clamp(LINE, COLUMNS) / LINE * LINE,
        };
        // A few tasks for each thread of a small machine.
        let share = (inner * k.outer as usize).div_ceil(16).next_multiple_of(LINE);
        let columns = widest.min(share).clamp(1, inner.max(1));
        Ok(Plan { k, src, dst, index: Shared(ptr(1)), columns })
    }

    fn tasks(&self) -> Tasks {
        let sums = if self.dst.float == Float::F32 { 0 } else { self.columns * self.k.extent as usize };
        let src = if self.src.float == Float::F32 { 0 } else { self.columns };
        Tasks {
            // Without a destination there is nothing to write.
            count: if self.k.extent == 0 { 0 } else { self.k.outer as usize * (self.k.inner as usize).div_ceil(self.columns) },
            floats: (sums + src) as u64,
            flops: 4 * self.k.outer * self.k.inner * (self.k.picks + self.k.extent),
        }
    }

    /// Indices in the argument.
    fn indices(&self) -> usize {
        let outer = if self.k.index_outer { self.k.outer } else { 1 };
        let inner = if self.k.index_inner { self.k.inner } else { 1 };
        (outer * self.k.picks * inner) as usize
    }

    /// # Safety
    /// `i` is below [`Plan::indices`].
    unsafe fn index(&self, i: usize) -> i64 {
        // SAFETY: the caller's promise.
        unsafe {
            match self.k.index {
                DType::I32 => i64::from(*self.index.get().cast::<i32>().add(i)),
                _ => *self.index.get().cast::<i64>().add(i),
            }
        }
    }

    /// # Safety
    /// The addresses are those of valid arguments, and every index is in range.
    unsafe fn run(&self, task: usize, slot: &mut [f32]) {
        let (inner, extent, picks) = (self.k.inner as usize, self.k.extent as usize, self.k.picks as usize);
        let across = inner.div_ceil(self.columns);
        let (outer, first) = (task / across, task % across * self.columns);
        let width = self.columns.min(inner - first);
        let dst = self.dst.at(outer * extent, first);
        let src = self.src.at(outer * picks, first);
        let in_place = self.dst.float == Float::F32;
        let (sums, wide) = slot.split_at_mut(if in_place { 0 } else { self.columns * extent });
        let (base, ld) = if in_place { (dst.ptr.cast::<f32>(), inner) } else { (sums.as_mut_ptr(), width) };
        // SAFETY: row `i` of the sums, which are this task's own.
        let row = |i: usize| unsafe { std::slice::from_raw_parts_mut(base.add(i * ld), width) };
        // SAFETY: rows of the arguments.
        unsafe {
            for i in 0..extent {
                match (self.k.accumulate, in_place) {
                    (true, true) => {}
                    (true, false) => dst.at(i, 0).load_row(row(i)),
                    (false, _) => row(i).fill(0.0),
                }
            }
            for j in 0..picks {
                let source = match self.src.float {
                    Float::F32 => std::slice::from_raw_parts(src.at(j, 0).ptr.cast::<f32>(), width),
                    _ => {
                        src.at(j, 0).load_row(&mut wide[..width]);
                        &wide[..width]
                    }
                };
                let at = if self.k.index_outer { outer * picks + j } else { j };
                if self.k.index_inner {
                    for (i, x) in source.iter().enumerate() {
                        row(self.index(at * inner + first + i) as usize)[i] += x;
                    }
                } else {
                    add_scaled(row(self.index(at) as usize), 1.0, source);
                }
            }
            if !in_place {
                (0..extent).for_each(|i| dst.at(i, 0).store_row(row(i)));
            }
        }
    }
}

/// Scratch bytes for a pool of `threads`.
pub(crate) fn scratch(k: &ScatterAdd, threads: usize) -> u64 {
    Plan::new(k, &[]).map_or(0, |plan| plan.tasks().scratch(threads))
}

/// Runs the kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::IndexOutOfRange`] for an index outside the axis, before anything is written.
pub(crate) unsafe fn run(k: &ScatterAdd, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let plan = Plan::new(k, args)?;
    let bound = k.extent as i64;
    for i in 0..plan.indices() {
        // SAFETY: below the count.
        let index = unsafe { plan.index(i) };
        if !(0..bound).contains(&index) {
            return Err(KernelError::IndexOutOfRange { index, bound });
        }
    }
    // SAFETY: columns are disjoint, the arguments valid, and the indices checked.
    unsafe { plan.tasks().run(scratch, |i, slot| plan.run(i, slot)) }
}
