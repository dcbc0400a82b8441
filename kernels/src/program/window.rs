//! Convolution and pooling over two spatial dimensions, NCHW. One-dimensional ones have height 1.
//!
//! Output position (y, x) reads input row `y * stride[0] + r * dilation[0] - pad[0]`, and columns likewise; outside the image is 0 for
//! convolution, and excluded for pooling.

use super::{Arg, Mode, volume};
use crate::{DType, KernelError};
use serde::{Deserialize, Serialize};

/// The geometry that convolution and pooling share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Window {
    pub input: [u64; 2],
    pub output: [u64; 2],
    pub kernel: [u64; 2],
    pub stride: [u64; 2],
    pub dilation: [u64; 2],
    /// Rows above and columns left of the image.
    pub pad: [u64; 2],
}

/// Which of the three products of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConvPass {
    /// Arguments: x, w, [bias], y (write).
    Fprop,
    /// Arguments: dy, w, dx (write).
    Dgrad,
    /// Arguments: dy, x, dw (write; f32).
    Wgrad,
}

/// A grouped convolution: x `[batch, cin, h, w]`, w `[cout, cin / groups, kh, kw]`, y `[batch, cout, oh, ow]`, contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Conv {
    pub pass: ConvPass,
    pub batch: u64,
    pub cin: u64,
    pub cout: u64,
    pub groups: u64,
    pub window: Window,
    pub bias: bool,
    /// f32 or bf16, of x, y and their gradients.
    pub dtype: DType,
    /// Format of w (fprop and dgrad); dw is always f32.
    pub weight: DType,
}

impl Conv {
    pub(super) fn args(&self) -> Vec<Arg> {
        let pixels = |hw: [u64; 2], c: u64| volume(&[self.batch, c, hw[0], hw[1]]);
        let arg = |dtype, elements, mode| Arg { dtype, elements, mode };
        let x = |mode| arg(self.dtype, pixels(self.window.input, self.cin), mode);
        let y = |mode| arg(self.dtype, pixels(self.window.output, self.cout), mode);
        let taps = volume(&[self.cout, self.cin / self.groups.max(1), self.window.kernel[0], self.window.kernel[1]]);
        match self.pass {
            ConvPass::Fprop => {
                let mut args = vec![x(Mode::Read), arg(self.weight, taps, Mode::Read)];
                args.extend(self.bias.then(|| arg(self.weight, self.cout, Mode::Read)));
                args.push(y(Mode::Write));
                args
            }
            ConvPass::Dgrad => vec![y(Mode::Read), arg(self.weight, taps, Mode::Read), x(Mode::Write)],
            ConvPass::Wgrad => vec![y(Mode::Read), x(Mode::Read), arg(DType::F32, taps, Mode::Write)],
        }
    }

    pub(super) fn verify(&self) -> Result<(), KernelError> {
        super::verify::conv(self)
    }
}

/// What a pooling window computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolOp {
    Max,
    /// Divides by the number of positions inside the image.
    Average,
    /// Divides by the number of positions inside the image and its padding `pad_end` included.
    AverageWithPadding {
        pad_end: [u64; 2],
    },
}

/// Pooling of `[planes, h, w]`. Forward arguments: x, y (write). Backward: x, dy, dx (write); a maximum's gradient goes to the
/// first position, in row-major order, that attains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pool {
    pub op: PoolOp,
    pub backward: bool,
    pub planes: u64,
    pub window: Window,
    pub dtype: DType,
}

impl Pool {
    pub(super) fn args(&self) -> Vec<Arg> {
        let arg = |hw: [u64; 2], mode| Arg { dtype: self.dtype, elements: volume(&[self.planes, hw[0], hw[1]]), mode };
        let (x, y) = (self.window.input, self.window.output);
        match self.backward {
            false => vec![arg(x, Mode::Read), arg(y, Mode::Write)],
            true => vec![arg(x, Mode::Read), arg(y, Mode::Read), arg(x, Mode::Write)],
        }
    }

    pub(super) fn verify(&self) -> Result<(), KernelError> {
        super::verify::pool(self)
    }
}
