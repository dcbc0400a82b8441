//! Kernels whose addresses or order depend on data: scatter-add and prefix sums.

use super::{Arg, Mode, volume};
use crate::{DType, KernelError};
use serde::{Deserialize, Serialize};

/// `dst[o, index[o|0, j, i|0], i] += src[o, j, i]`, in ascending `j`, after `dst` was set to zero (unless `accumulate`).
///
/// Source `[outer, picks, inner]`, destination f32 or bf16 `[outer, extent, inner]` with f32 sums, contiguous. The index has the
/// source's shape, with extent 1 along `outer` or `inner` where it does not vary; values in `[0, extent)`, others are
/// [`KernelError::IndexOutOfRange`] on the CPU and skipped on a GPU. Arguments: src, index, dst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScatterAdd {
    pub outer: u64,
    pub picks: u64,
    pub inner: u64,
    pub extent: u64,
    pub index_outer: bool,
    pub index_inner: bool,
    pub src: DType,
    /// i64 or i32.
    pub index: DType,
    pub dst: DType,
    pub accumulate: bool,
}

impl ScatterAdd {
    pub(super) fn args(&self) -> Vec<Arg> {
        let along = |varies: bool, extent: u64| if varies { extent } else { 1 };
        let index = volume(&[self.picks, along(self.index_outer, self.outer), along(self.index_inner, self.inner)]);
        let mode = if self.accumulate { Mode::Update } else { Mode::Write };
        vec![
            Arg { dtype: self.src, elements: volume(&[self.outer, self.picks, self.inner]), mode: Mode::Read },
            Arg { dtype: self.index, elements: index, mode: Mode::Read },
            Arg { dtype: self.dst, elements: volume(&[self.outer, self.extent, self.inner]), mode },
        ]
    }

    pub(super) fn verify(&self) -> Result<(), KernelError> {
        super::verify::scatter_add(self)
    }
}

/// Prefix sums along the middle axis of `[outer, extent, inner]`. Arguments: x, y (write).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scan {
    pub outer: u64,
    pub extent: u64,
    pub inner: u64,
    pub exclusive: bool,
    pub reverse: bool,
    /// f32, bf16, i64 or i32.
    pub dtype: DType,
}

impl Scan {
    pub(super) fn args(&self) -> Vec<Arg> {
        let elements = volume(&[self.outer, self.extent, self.inner]);
        [Mode::Read, Mode::Write].map(|mode| Arg { dtype: self.dtype, elements, mode }).to_vec()
    }

    pub(super) fn verify(&self) -> Result<(), KernelError> {
        super::verify::scan(self)
    }
}
