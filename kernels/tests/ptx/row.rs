//! Row programs through ptxas.

use super::assembler::check;
use super::programs::{self, BINARIES, UNARIES, elementwise, pairwise};
use fp8c_kernels::DType;

#[test]
fn row_programs_assemble_without_spills() {
    programs::all().iter().for_each(|(name, kernel)| check(name, kernel));
}

#[test]
fn every_operator_assembles() {
    for op in UNARIES {
        check(&format!("unary_{op:?}"), &elementwise(1024, DType::F32, op));
    }
    for op in BINARIES {
        check(&format!("binary_{op:?}"), &pairwise(1024, DType::F32, op));
        check(&format!("integer_{op:?}"), &pairwise(1024, DType::I64, op));
    }
    for dtype in [DType::Bf16, DType::E4m3, DType::I32] {
        check(&format!("negate_{dtype}"), &elementwise(1000, dtype, fp8c_kernels::program::Unary::Neg));
    }
}
