//! Prefix sums: ranges of columns over the threads.

use super::Buffer;
use super::tasks::{Shared, Tasks};
use crate::numerics::{bf16_to_f32, f32_to_bf16};
use crate::program::Scan;
use crate::{DType, KernelError};
use half::bf16;

const COLUMNS: usize = 64;

fn tasks(k: &Scan) -> Tasks {
    // Without elements there is nothing to write.
    let outer = if k.extent == 0 { 0 } else { k.outer };
    Tasks { count: outer as usize * (k.inner as usize).div_ceil(COLUMNS), floats: 0, flops: 4 * k.outer * k.extent * k.inner }
}

/// Scans one range of columns. `T` is stored, `S` summed.
///
/// # Safety
/// `x` and `y` hold the kernel's elements, and the range is this task's own.
unsafe fn columns<T: Copy, S: Copy + Default>(
    k: &Scan,
    task: usize,
    x: *const T,
    y: *mut T,
    add: impl Fn(S, T) -> S,
    store: impl Fn(S) -> T,
) {
    let (inner, extent) = (k.inner as usize, k.extent as usize);
    let across = inner.div_ceil(COLUMNS);
    let (outer, first) = (task / across, task % across * COLUMNS);
    let width = COLUMNS.min(inner - first);
    let mut sums = [S::default(); COLUMNS];
    for step in 0..extent {
        let row = if k.reverse { extent - 1 - step } else { step };
        let at = (outer * extent + row) * inner + first;
        for (i, sum) in sums[..width].iter_mut().enumerate() {
            // SAFETY: row and column are inside.
            unsafe {
                let next = add(*sum, *x.add(at + i));
                *y.add(at + i) = store(if k.exclusive { *sum } else { next });
                *sum = next;
            }
        }
    }
}

/// Runs the kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::Unsupported`] for formats without sums.
pub(crate) unsafe fn run(k: &Scan, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let [x, y] = args else {
        return Err(KernelError::Invalid { family: "scan", reason: format!("{} arguments", args.len()) });
    };
    let (x, y) = (Shared(x.ptr), Shared(y.ptr));
    // SAFETY: ranges of columns are disjoint, and the arguments valid.
    unsafe {
        match k.dtype {
            DType::F32 => tasks(k).run(scratch, |i, _| {
                columns::<f32, f32>(k, i, x.get().cast(), y.get().cast(), |s, x| s + x, |s| s);
            }),
            DType::Bf16 => tasks(k).run(scratch, |i, _| {
                columns::<bf16, f32>(k, i, x.get().cast(), y.get().cast(), |s, x| s + bf16_to_f32(x), f32_to_bf16);
            }),
            DType::I64 => tasks(k).run(scratch, |i, _| {
                columns::<i64, i64>(k, i, x.get().cast(), y.get().cast(), i64::wrapping_add, |s| s);
            }),
            DType::I32 => tasks(k).run(scratch, |i, _| {
                columns::<i32, i64>(k, i, x.get().cast(), y.get().cast(), |s, x| s.wrapping_add(i64::from(x)), |s| s as i32);
            }),
            other => Err(KernelError::Unsupported(format!("prefix sums of {other}"))),
        }
    }
}
