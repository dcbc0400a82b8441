//! Quantizers through ptxas.

use super::assembler::check;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Kernel, Layout, Quantize};

pub fn kernels() -> Vec<(String, Kernel)> {
    let layouts = [Layout::Rows, Layout::Columns, Layout::RowsAndColumns, Layout::Blocks, Layout::BlocksBoth];
    let shapes = [(256, 384), (130, 72), (77, 131), (1, 5)];
    let sources = [DType::F32, DType::Bf16];
    let each = |(layout, (rows, cols), source): (Layout, (u64, u64), DType)| {
        let kernel = Quantize { rows, cols, source, layout, power_of_two: rows == 130 };
        (format!("quantize_{layout:?}_{source}_{rows}x{cols}"), Kernel::Quantize(kernel))
    };
    let all = layouts.iter().flat_map(|&l| shapes.iter().flat_map(move |&s| sources.map(|d| (l, s, d))));
    all.map(each).collect()
}

#[test]
fn quantizers_assemble_without_spills() {
    kernels().iter().for_each(|(name, kernel)| check(name, kernel));
}
