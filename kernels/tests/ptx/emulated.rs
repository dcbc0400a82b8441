//! Every family's kernels, emulated, against the CPU.

use super::agree::{CLOSE, EXACT, Tolerance, agree, agree_backward};
use super::{attention, contract, direct, programs, quantize};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Attention, Kernel};

/// Below every bound that the cases index.
const INDICES: u64 = 40;

#[test]
fn row_programs_agree_with_the_cpu() {
    programs::small().iter().for_each(|(name, kernel)| agree(name, kernel, CLOSE, INDICES));
}

#[test]
fn operators_agree_with_the_cpu() {
    for op in programs::UNARIES {
        agree(&format!("unary_{op:?}"), &programs::elementwise(300, DType::F32, op), CLOSE, INDICES);
    }
    for op in programs::BINARIES {
        agree(&format!("binary_{op:?}"), &programs::pairwise(300, DType::F32, op), CLOSE, INDICES);
        agree(&format!("narrow_{op:?}"), &programs::pairwise(301, DType::Bf16, op), CLOSE, INDICES);
    }
}

#[test]
fn quantizers_agree_with_the_cpu_bit_for_bit() {
    quantize::kernels().iter().for_each(|(name, kernel)| agree(name, kernel, EXACT, INDICES));
}

#[test]
fn dense_products_agree_with_the_cpu() {
    let size = |k: &Kernel| match k {
        // The CPU has no dense product of codes.
        Kernel::Contract(c) if c.a.dtype == DType::E4m3 => u64::MAX,
        Kernel::Contract(c) => c.m * c.n * c.k,
        _ => 0,
    };
    let close = Tolerance { relative: 1e-5, absolute: 2e-5 };
    contract::dense_kernels().iter().filter(|(_, k)| size(k) < 1 << 21).for_each(|(name, kernel)| agree(name, kernel, close, INDICES));
}

#[test]
fn large_tiles_agree_with_the_cpu() {
    let close = Tolerance { relative: 1e-5, absolute: 2e-5 };
    contract::large_kernels().iter().for_each(|(name, kernel)| agree(name, kernel, close, INDICES));
}

#[test]
fn scaled_products_agree_with_the_cpu() {
    let close = Tolerance { relative: 1e-5, absolute: 1e-4 };
    let size = |k: &Kernel| if let Kernel::ScaledContract(c) = k { c.m * c.n * c.k } else { 0 };
    contract::scaled_kernels().iter().filter(|(_, k)| size(k) < 1 << 23).for_each(|(name, kernel)| agree(name, kernel, close, INDICES));
}

#[test]
fn direct_kernels_agree_with_the_cpu() {
    let all = [direct::conv_kernels(), direct::pool_kernels(), direct::scatter_kernels(), direct::scan_kernels()].concat();
    let close = Tolerance { relative: 1e-5, absolute: 1e-5 };
    all.iter().for_each(|(name, kernel)| agree(name, kernel, close, INDICES));
}

#[test]
fn attention_agrees_with_the_cpu() {
    let close = Tolerance { relative: 2e-5, absolute: 2e-5 };
    let small = |k: &Attention| k.batch * k.heads * k.q_len * k.kv_len * (k.depth + k.v_depth) <= 1 << 22;
    for (name, k) in attention::cases().into_iter().filter(|(_, k)| small(k)) {
        agree(&format!("attention_{name}"), &Kernel::Attention(k.clone()), close, INDICES);
        agree_backward(&format!("attention_grad_{name}"), &k, close);
    }
}
