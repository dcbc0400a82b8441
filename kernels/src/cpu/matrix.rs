//! Matrices in memory, and their products through `faer`.
//!
//! `faer` packs operands into a buffer of its own, one for each thread, whose size follows from the caches; nothing else here
//! allocates. Its sequential product adds along `k` in an order that depends on the shape alone, so it is deterministic.

use crate::numerics::{bf16_to_f32, decode_e4m3, e4m3_to_f32, encode_e4m3, f32_to_bf16, f32_to_e4m3, round_bf16, widen_bf16};
use crate::{DType, KernelError};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::bf16;

/// An f32 matrix to multiply; strides in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub ptr: *const f32,
    pub rs: isize,
    pub cs: isize,
}

impl View {
    /// A row-major matrix with `ld` elements from row to row.
    pub(crate) fn rows(slice: &[f32], ld: usize) -> View {
        View { ptr: slice.as_ptr(), rs: ld as isize, cs: 1 }
    }

    /// The same matrix, transposed.
    pub(crate) fn t(self) -> View {
        View { rs: self.cs, cs: self.rs, ..self }
    }
}

/// Shape of a product `[m, k] x [k, n]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// `c (+)= alpha * a * b` on the calling thread; `c` has rows `ld` apart.
///
/// # Safety
/// Every element that the shape and strides reach is valid, and `c` overlaps neither operand.
pub(crate) unsafe fn product(shape: Shape, c: *mut f32, ld: usize, accumulate: bool, a: View, b: View, alpha: f32) {
    let Shape { m, n, k } = shape;
    let beta = if accumulate { Accum::Add } else { Accum::Replace };
    // SAFETY: the caller's promise.
    unsafe {
        let a = MatRef::from_raw_parts(a.ptr, m, k, a.rs, a.cs);
        let b = MatRef::from_raw_parts(b.ptr, k, n, b.rs, b.cs);
        matmul(MatMut::from_raw_parts_mut(c, m, n, ld as isize, 1), beta, a, b, alpha, Par::Seq);
    }
}

/// Asks for the cache line at an address, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; the processor ignores it where it cannot be followed.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Float formats that matrices are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    Bf16,
    E4m3,
}

impl Float {
    /// # Errors
    /// [`KernelError::Unsupported`] for integers and bools.
    pub(crate) fn of(dtype: DType, family: &str) -> Result<Float, KernelError> {
        match dtype {
            DType::F32 => Ok(Float::F32),
            DType::Bf16 => Ok(Float::Bf16),
            DType::E4m3 => Ok(Float::E4m3),
            other => Err(KernelError::Unsupported(format!("{family} of {other} operands on the CPU"))),
        }
    }

    pub(crate) fn size(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::Bf16 => 2,
            Float::E4m3 => 1,
        }
    }
}

/// A matrix as it lies in an argument; strides in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub ptr: *mut u8,
    pub float: Float,
    pub rs: isize,
    pub cs: isize,
}

// SAFETY: an operand is an address; whoever dereferences it answers for disjointness.
unsafe impl Send for Operand {}
// SAFETY: as above.
unsafe impl Sync for Operand {}

// Addresses wrap: those of an empty matrix, whose strides nothing bounds, are computed and not followed.
impl Operand {
    /// The submatrix that starts at `(i, j)`.
    pub(crate) fn at(self, i: usize, j: usize) -> Operand {
        self.offset((i as isize).wrapping_mul(self.rs).wrapping_add((j as isize).wrapping_mul(self.cs)))
    }

    /// The matrix that starts `elements` later.
    pub(crate) fn offset(self, elements: isize) -> Operand {
        Operand { ptr: self.ptr.wrapping_offset(elements.wrapping_mul(self.float.size() as isize)), ..self }
    }

    /// The same matrix, transposed.
    pub(crate) fn t(self) -> Operand {
        Operand { rs: self.cs, cs: self.rs, ..self }
    }

    /// Whether [`Operand::view`] converts, and needs a buffer of `rows * cols`.
    pub(crate) fn needs_panel(self) -> bool {
        self.float != Float::F32 || (self.rs != 1 && self.cs != 1)
    }

    /// The matrix in f32: in place where it can be multiplied as it lies, else converted into `panel`.
    ///
    /// # Safety
    /// All `rows * cols` elements are valid.
    pub(crate) unsafe fn view(self, rows: usize, cols: usize, panel: &mut [f32]) -> View {
        if !self.needs_panel() {
            return View { ptr: self.ptr.cast(), rs: self.rs, cs: self.cs };
        }
        // SAFETY: the caller's promise; the transposed matrix has the same elements.
        unsafe {
            if self.cs == 1 || self.rs != 1 {
                self.load(rows, cols, panel);
                View::rows(panel, cols)
            } else {
                self.t().load(cols, rows, panel);
                View::rows(panel, rows).t()
            }
        }
    }

    /// Converts to a row-major f32 matrix.
    ///
    /// # Safety
    /// All `rows * cols` elements are valid.
    pub(crate) unsafe fn load(self, rows: usize, cols: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(cols.max(1)).take(rows).enumerate() {
            // SAFETY: row `i` is one of the `rows`.
            unsafe { self.at(i, 0).load_row(out) };
        }
    }

    /// Converts the first row.
    ///
    /// # Safety
    /// The row has `out.len()` valid elements.
    pub(crate) unsafe fn load_row(self, out: &mut [f32]) {
        let n = out.len();
        // SAFETY: the caller's promise, and arguments are aligned.
        unsafe {
            match (self.float, self.cs) {
                (Float::F32, 1) => out.copy_from_slice(std::slice::from_raw_parts(self.ptr.cast(), n)),
                (Float::Bf16, 1) => widen_bf16(std::slice::from_raw_parts(self.ptr.cast(), n), out),
                (Float::E4m3, 1) => decode_e4m3(std::slice::from_raw_parts(self.ptr, n), out),
                (Float::F32, cs) => strided(self.ptr.cast::<f32>(), cs).zip(out).for_each(|(p, x)| *x = *p),
                (Float::Bf16, cs) => strided(self.ptr.cast::<bf16>(), cs).zip(out).for_each(|(p, x)| *x = bf16_to_f32(*p)),
                (Float::E4m3, cs) => strided(self.ptr, cs).zip(out).for_each(|(p, x)| *x = e4m3_to_f32(*p)),
            }
        }
    }

    /// Writes the first row, rounded to nearest even.
    ///
    /// # Safety
    /// The row has `values.len()` valid elements, written by nobody else.
    pub(crate) unsafe fn store_row(self, values: &[f32]) {
        let n = values.len();
        // SAFETY: the caller's promise, and arguments are aligned.
        unsafe {
            match (self.float, self.cs) {
                (Float::F32, 1) => std::slice::from_raw_parts_mut(self.ptr.cast(), n).copy_from_slice(values),
                (Float::Bf16, 1) => round_bf16(values, std::slice::from_raw_parts_mut(self.ptr.cast(), n)),
                (Float::E4m3, 1) => encode_e4m3(values, 1.0, std::slice::from_raw_parts_mut(self.ptr, n)),
                (Float::F32, cs) => strided(self.ptr.cast::<f32>(), cs).zip(values).for_each(|(p, x)| *p = *x),
                (Float::Bf16, cs) => strided(self.ptr.cast::<bf16>(), cs).zip(values).for_each(|(p, x)| *p = f32_to_bf16(*x)),
                (Float::E4m3, cs) => strided(self.ptr, cs).zip(values).for_each(|(p, x)| *p = f32_to_e4m3(*x)),
            }
        }
    }
}

/// Addresses `stride` elements apart.
fn strided<T>(first: *mut T, stride: isize) -> impl Iterator<Item = *mut T> {
    (0isize..).map(move |i| first.wrapping_byte_offset(i.wrapping_mul(stride).wrapping_mul(size_of::<T>() as isize)))
}
