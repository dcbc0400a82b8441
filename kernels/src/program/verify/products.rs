//! Matrix products, quantizers, scatter-add, prefix sums and optimizer steps.

use super::overlap::{Image, Prover};
use super::{Family, MAX_DIMS};
use crate::program::{Contract, Epilogue, Matrix, Quantize, ScaledContract, Scan, ScatterAdd, Update};
use crate::{DType, KernelError};

pub(in crate::program) fn contract(k: &Contract) -> Result<(), KernelError> {
    let family = Family("contract");
    family.require(k.batch.len() <= MAX_DIMS, "too many batch dimensions")?;
    family.arguments(&k.args())?;
    for (name, matrix, rows, cols) in [("A", &k.a, k.m, k.k), ("B", &k.b, k.k, k.n), ("C", &k.c, k.m, k.n)] {
        matrix_inside(family, name, matrix, &k.batch, rows, cols)?;
    }
    family.require(k.a.dtype.is_float() && k.b.dtype.is_float(), "operands must be floats")?;
    result(family, k.c.dtype, &k.epilogue)?;
    let mut dims: Vec<(i128, i128, i128)> = Vec::new();
    let extents = k.batch.iter().zip(&k.c.batch_strides).map(|(&e, &s)| (e, s));
    for (extent, stride) in extents.chain([(k.m, k.c.row_stride), (k.n, k.c.col_stride)]) {
        dims.push((stride.into(), 0, extent.into()));
    }
    let empty = dims.iter().any(|d| d.2 == 0);
    family.require(empty || Prover::new().one_to_one(&Image { offset: 0, dims }), "C may be hit twice")
}

fn matrix_inside(family: Family, name: &str, m: &Matrix, batch: &[u64], rows: u64, cols: u64) -> Result<(), KernelError> {
    family.require(m.batch_strides.len() == batch.len(), "an operand has not one stride for each batch dimension")?;
    let extents: Vec<u64> = batch.iter().copied().chain([rows, cols]).collect();
    family.volume(&extents, name)?;
    let strides = m.batch_strides.iter().copied().chain([m.row_stride, m.col_stride]);
    let dims: Vec<(u64, u64)> = extents.into_iter().zip(strides).collect();
    family.strided(name, m.elements, m.offset, &dims)
}

/// Checks the formats of a product's result and epilogue.
fn result(family: Family, c: DType, epilogue: &Epilogue) -> Result<(), KernelError> {
    family.require(matches!(c, DType::F32 | DType::Bf16), "C must be f32 or bf16")?;
    family.require(!epilogue.accumulate || c == DType::F32, "only f32 accumulates")?;
    family.require(epilogue.bias.is_none_or(|b| matches!(b, DType::F32 | DType::Bf16)), "the bias must be f32 or bf16")
}

pub(in crate::program) fn scaled_contract(k: &ScaledContract) -> Result<(), KernelError> {
    let family = Family("scaled_contract");
    for extents in [[k.m, k.k], [k.n, k.k], [k.m, k.n]] {
        family.volume(&extents, "a matrix")?;
    }
    family.arguments(&k.args())?;
    result(family, k.c, &k.epilogue)
}

pub(in crate::program) fn quantize(k: &Quantize) -> Result<(), KernelError> {
    let family = Family("quantize");
    family.volume(&[k.rows, k.cols], "the matrix")?;
    family.arguments(&k.args())?;
    family.require(matches!(k.source, DType::F32 | DType::Bf16), "the source must be f32 or bf16")
}

pub(in crate::program) fn scatter_add(k: &ScatterAdd) -> Result<(), KernelError> {
    let family = Family("scatter_add");
    family.volume(&[k.outer, k.picks, k.inner], "the source")?;
    family.volume(&[k.outer, k.extent, k.inner], "the destination")?;
    family.arguments(&k.args())?;
    family.require(matches!(k.index, DType::I64 | DType::I32), "the index must be i64 or i32")?;
    family.require(k.src.is_float(), "the source must be a float")?;
    family.require(matches!(k.dst, DType::F32 | DType::Bf16), "the destination must be f32 or bf16")
}

pub(in crate::program) fn scan(k: &Scan) -> Result<(), KernelError> {
    let family = Family("scan");
    family.volume(&[k.outer, k.extent, k.inner], "the tensor")?;
    family.arguments(&k.args())?;
    family.require(matches!(k.dtype, DType::F32 | DType::Bf16 | DType::I64 | DType::I32), "the dtype must be f32, bf16, i64 or i32")
}

pub(in crate::program) fn update(k: &Update) -> Result<(), KernelError> {
    let family = Family("update");
    family.require(k.elements <= Update::MAX_ELEMENTS, "the parameter is too large")?;
    family.require(matches!(k.gradient, DType::F32 | DType::Bf16), "the gradient must be f32 or bf16")?;
    family.require(matches!(k.master, DType::F32 | DType::Bf16), "the parameter must be f32 or bf16")?;
    family.require(matches!(k.moments, DType::F32 | DType::Bf16 | DType::E4m3), "moments must be f32, bf16 or e4m3")
}
