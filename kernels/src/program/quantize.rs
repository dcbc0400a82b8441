//! Quantizers: a matrix `[rows, cols]` to E4M3 codes and f32 scales.
//!
//! For a group of elements with `amax = max|x|`: `s = max(amax, 1e-12) / 448` (1 where amax is 0), rounded up to a power of two if asked;
//! `code = e4m3(x * (1 / s))`, round to nearest even, saturating. The reciprocal is rounded to f32 once.

use super::{Arg, Mode, groups, volume};
use crate::{DType, KernelError};
use serde::{Deserialize, Serialize};

/// Which codes a [`Quantize`] makes, all from the unquantized values, in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// 1 x 128 along columns. Outputs: codes `[rows, cols]`, scales `[rows, groups(cols)]`.
    Rows,
    /// 128 x 1 along rows, stored transposed. Outputs: codes `[cols, rows]`, scales `[cols, groups(rows)]`.
    Columns,
    /// Both of the above, in that order.
    RowsAndColumns,
    /// 128 x 128. Outputs: codes `[rows, cols]`, scales `[groups(rows), groups(cols)]`.
    Blocks,
    /// 128 x 128, and the same bytes and scales transposed: codes, scales, codes `[cols, rows]`, scales `[groups(cols), groups(rows)]`.
    BlocksBoth,
}

/// A quantizer. Arguments: source, then the outputs of its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Quantize {
    pub rows: u64,
    pub cols: u64,
    /// f32 or bf16, contiguous.
    pub source: DType,
    pub layout: Layout,
    pub power_of_two: bool,
}

impl Quantize {
    pub(super) fn args(&self) -> Vec<Arg> {
        let n = volume(&[self.rows, self.cols]);
        let mut args = vec![Arg { dtype: self.source, elements: n, mode: Mode::Read }];
        let mut out = |scales: u64| {
            args.push(Arg { dtype: DType::E4m3, elements: n, mode: Mode::Write });
            args.push(Arg { dtype: DType::F32, elements: scales, mode: Mode::Write });
        };
        let (by_row, by_col) = (volume(&[self.rows, groups(self.cols)]), volume(&[self.cols, groups(self.rows)]));
        let by_block = volume(&[groups(self.rows), groups(self.cols)]);
        match self.layout {
            Layout::Rows => out(by_row),
            Layout::Columns => out(by_col),
            Layout::RowsAndColumns => {
                out(by_row);
                out(by_col);
            }
            Layout::Blocks => out(by_block),
            Layout::BlocksBoth => {
                out(by_block);
                out(by_block);
            }
        }
        args
    }

    pub(super) fn verify(&self) -> Result<(), KernelError> {
        super::verify::quantize(self)
    }
}
