//! Convolution, pooling, scatter-add and prefix sums through ptxas.

use super::assembler::check;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Conv, ConvPass, Kernel, Pool, PoolOp, Scan, ScatterAdd, Window};

/// A window whose output extent follows from the rest, with the same padding on both sides.
pub fn window(input: [u64; 2], kernel: [u64; 2], stride: [u64; 2], dilation: [u64; 2], pad: [u64; 2]) -> Window {
    let output = [0, 1].map(|d| (input[d] + 2 * pad[d] - dilation[d] * (kernel[d] - 1) - 1) / stride[d] + 1);
    Window { input, output, kernel, stride, dilation, pad }
}

pub fn conv_kernels() -> Vec<(String, Kernel)> {
    let plain = window([9, 11], [3, 3], [1, 1], [1, 1], [1, 1]);
    let strided = window([12, 10], [3, 2], [2, 3], [2, 1], [1, 0]);
    let mut all = vec![];
    for pass in [ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad] {
        for (name, window, groups) in [("plain", plain, 1), ("strided", strided, 2), ("depthwise", plain, 4)] {
            let conv = |dtype, weight, bias| Kernel::Conv(Conv { pass, batch: 3, cin: 4, cout: 8, groups, window, bias, dtype, weight });
            all.push((format!("conv_{pass:?}_{name}_f32"), conv(DType::F32, DType::F32, false)));
            all.push((format!("conv_{pass:?}_{name}_bf16"), conv(DType::Bf16, DType::F32, pass == ConvPass::Fprop)));
        }
    }
    all
}

pub fn pool_kernels() -> Vec<(String, Kernel)> {
    let windows = [window([8, 9], [2, 3], [2, 2], [1, 1], [0, 1]), window([7, 7], [3, 3], [1, 2], [1, 2], [1, 1])];
    let ops = [PoolOp::Max, PoolOp::Average, PoolOp::AverageWithPadding { pad_end: [1, 0] }];
    let mut all = vec![];
    for (i, window) in windows.into_iter().enumerate() {
        for (op, backward) in ops.into_iter().flat_map(|op| [(op, false), (op, true)]) {
            let dtype = [DType::F32, DType::Bf16][i];
            let kind = ["max", "average", "padded"][ops.iter().position(|&o| o == op).unwrap()];
            let pool = Pool { op, backward, planes: 5, window, dtype };
            all.push((format!("pool_{kind}_{}_{i}", if backward { "backward" } else { "forward" }), Kernel::Pool(pool)));
        }
    }
    all
}

pub fn scatter_kernels() -> Vec<(String, Kernel)> {
    let base = ScatterAdd {
        outer: 1,
        picks: 100,
        inner: 70,
        extent: 90,
        index_outer: false,
        index_inner: false,
        src: DType::Bf16,
        index: DType::I64,
        dst: DType::F32,
        accumulate: true,
    };
    let wide = ScatterAdd { inner: 300, extent: 1000, accumulate: false, dst: DType::Bf16, index: DType::I32, ..base };
    let batched = ScatterAdd { outer: 3, index_outer: true, src: DType::F32, ..base };
    let varying = ScatterAdd { index_inner: true, accumulate: false, outer: 2, index_outer: true, ..base };
    let all = [("scatter_rows", base), ("scatter_wide", wide), ("scatter_batched", batched), ("scatter_varying", varying)];
    all.map(|(name, k)| (name.to_string(), Kernel::ScatterAdd(k))).to_vec()
}

pub fn scan_kernels() -> Vec<(String, Kernel)> {
    let dtypes = [DType::F32, DType::Bf16, DType::I64, DType::I32];
    let scan = |(i, dtype): (usize, DType)| {
        let kernel = Scan { outer: 3, extent: 50, inner: 7, exclusive: i % 2 == 0, reverse: i >= 2, dtype };
        (format!("scan_{dtype}"), Kernel::Scan(kernel))
    };
    dtypes.into_iter().enumerate().map(scan).collect()
}

#[test]
fn direct_kernels_assemble_without_spills() {
    let all = [conv_kernels(), pool_kernels(), scatter_kernels(), scan_kernels()].concat();
    all.iter().for_each(|(name, kernel)| check(name, kernel));
}
