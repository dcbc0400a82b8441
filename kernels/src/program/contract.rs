//! Matrix products.
//!
//! Dense: `C[z, i, j] = epilogue(sum_k A[z, i, k] * B[z, k, j])`, each operand with strides of its own, so that a transpose or
//! a broadcast batch costs nothing. Products are exact for bf16 and f32 operands in f32 accumulation; the order is a back end's own.
//!
//! Scaled: `C[i, j] = epilogue(sum_g sa[i, g] * sb[g, j] * sum_{k in group g} A[i, k] * B[j, k])` with groups of 128 along `k`, inner
//! sums in f32 (or the tensor core's accumulator), outer sum in f32 in ascending `g`.

use super::{Arg, Mode, volume};
use crate::{DType, KernelError};
use serde::{Deserialize, Serialize};

/// Where a matrix of a batched product lies in its argument, in elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Matrix {
    pub dtype: DType,
    /// Elements of the whole buffer.
    pub elements: u64,
    pub offset: u64,
    /// One for each batch dimension; 0 broadcasts.
    pub batch_strides: Vec<u64>,
    pub row_stride: u64,
    pub col_stride: u64,
}

/// What happens to a product before it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epilogue {
    /// Adds a vector `[n]` of this format, an argument after A and B.
    pub bias: Option<DType>,
    /// Adds to what C holds (f32 only) instead of overwriting it.
    pub accumulate: bool,
}

/// A dense batched matrix product. Arguments: A, B, [bias], C.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Contract {
    pub batch: Vec<u64>,
    pub m: u64,
    pub n: u64,
    pub k: u64,
    /// `[m, k]`: row stride steps `m`, column stride steps `k`.
    pub a: Matrix,
    /// `[k, n]`: row stride steps `k`, column stride steps `n`.
    pub b: Matrix,
    /// `[m, n]`.
    pub c: Matrix,
    pub epilogue: Epilogue,
}

/// Scale layout of the right operand of a [`ScaledContract`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleGroup {
    /// One scale for 128 x 128 elements: `[ceil(n / 128), ceil(k / 128)]`.
    Block,
    /// One scale for 1 x 128 elements: `[n, ceil(k / 128)]`.
    Row,
}

/// An E4M3 matrix product with fine-grained scales; both operands K-major and contiguous.
///
/// Arguments: A codes `[m, k]`, A scales f32 `[m, ceil(k / 128)]`, B codes `[n, k]`, B scales f32, [bias], C `[m, n]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScaledContract {
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub b_scales: ScaleGroup,
    /// f32 or bf16.
    pub c: DType,
    pub epilogue: Epilogue,
}

/// Elements along `k` that share a scale.
pub const GROUP: u64 = 128;

/// Number of groups along an extent.
pub const fn groups(extent: u64) -> u64 {
    extent.div_ceil(GROUP)
}

impl Contract {
    pub(super) fn args(&self) -> Vec<Arg> {
        let read = |m: &Matrix| Arg { dtype: m.dtype, elements: m.elements, mode: Mode::Read };
        let mut args = vec![read(&self.a), read(&self.b)];
        args.extend(self.epilogue.bias.map(|dtype| Arg { dtype, elements: self.n, mode: Mode::Read }));
        let mode = if self.epilogue.accumulate { Mode::Update } else { Mode::Write };
        args.push(Arg { dtype: self.c.dtype, elements: self.c.elements, mode });
        args
    }

    pub(super) fn verify(&self) -> Result<(), KernelError> {
        super::verify::contract(self)
    }
}

impl ScaledContract {
    pub(super) fn args(&self) -> Vec<Arg> {
        let arg = |dtype, elements| Arg { dtype, elements, mode: Mode::Read };
        let b_scales = match self.b_scales {
            ScaleGroup::Block => volume(&[groups(self.n), groups(self.k)]),
            ScaleGroup::Row => volume(&[self.n, groups(self.k)]),
        };
        let mut args = vec![
            arg(DType::E4m3, volume(&[self.m, self.k])),
            arg(DType::F32, volume(&[self.m, groups(self.k)])),
            arg(DType::E4m3, volume(&[self.n, self.k])),
            arg(DType::F32, b_scales),
        ];
        args.extend(self.epilogue.bias.map(|dtype| arg(dtype, self.n)));
        let mode = if self.epilogue.accumulate { Mode::Update } else { Mode::Write };
        args.push(Arg { dtype: self.c, elements: volume(&[self.m, self.n]), mode });
        args
    }

    pub(super) fn verify(&self) -> Result<(), KernelError> {
        super::verify::scaled_contract(self)
    }
}
