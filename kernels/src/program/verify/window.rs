//! Convolution and pooling.

use super::Family;
use crate::program::{Conv, Pool, PoolOp, Window};
use crate::{DType, KernelError};

/// Largest extent, stride, dilation and padding: positions stay far inside 64 bits.
const MAX_EXTENT: u64 = 1 << 30;

pub(in crate::program) fn conv(k: &Conv) -> Result<(), KernelError> {
    let family = Family("conv");
    family.require(k.groups > 0 && k.cin.is_multiple_of(k.groups) && k.cout.is_multiple_of(k.groups), "groups must divide the channels")?;
    window(family, &k.window)?;
    let [input, output, kernel] = [k.window.input, k.window.output, k.window.kernel];
    family.volume(&[k.batch, k.cin, input[0], input[1]], "x")?;
    family.volume(&[k.batch, k.cout, output[0], output[1]], "y")?;
    family.volume(&[k.cout, k.cin / k.groups, kernel[0], kernel[1]], "w")?;
    family.arguments(&k.args())?;
    let float = |d| matches!(d, DType::F32 | DType::Bf16);
    family.require(float(k.dtype) && float(k.weight), "formats must be f32 or bf16")
}

pub(in crate::program) fn pool(k: &Pool) -> Result<(), KernelError> {
    let family = Family("pool");
    window(family, &k.window)?;
    for image in [k.window.input, k.window.output] {
        family.volume(&[k.planes, image[0], image[1]], "an image")?;
    }
    if let PoolOp::AverageWithPadding { pad_end } = k.op {
        family.require(pad_end.iter().all(|&p| p <= MAX_EXTENT), "the padding is too large")?;
    }
    family.arguments(&k.args())?;
    family.require(matches!(k.dtype, DType::F32 | DType::Bf16), "the dtype must be f32 or bf16")
}

fn window(family: Family, w: &Window) -> Result<(), KernelError> {
    let all = [w.input, w.output, w.kernel, w.stride, w.dilation, w.pad];
    family.require(all.as_flattened().iter().all(|&x| x <= MAX_EXTENT), "an extent of the window is too large")?;
    let positive = [w.kernel, w.stride, w.dilation];
    family.require(positive.as_flattened().iter().all(|&x| x > 0), "kernel, stride and dilation must be positive")
}
