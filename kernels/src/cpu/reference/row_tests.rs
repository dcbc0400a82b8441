//! Row programs on the CPU against the reference: random programs bit for bit, known ones within rounding.

use super::generator::{Builder, Generator, access};
use super::row::reference;
use super::{Data, Random, norm_error, run, same, tolerance};
use crate::program::*;
use crate::{DType, KernelError};
use proptest::prelude::*;

impl Builder {
    /// Reads a new argument with these strides.
    fn load(&mut self, dtype: DType, elements: u64, strides: &[i64]) -> Var {
        let arg = self.arg(dtype, elements, Mode::Read);
        self.push(Stmt::Load { arg, access: access(strides), indexed: None })
    }

    fn store(&mut self, dtype: DType, elements: u64, strides: &[i64], x: Var) {
        let arg = self.arg(dtype, elements, Mode::Write);
        self.push(Stmt::Store { arg, access: access(strides), x });
    }

    fn reduce(&mut self, op: Fold, x: Var) -> Var {
        self.push(Stmt::Reduce { op, x })
    }
}

/// Checks a program against the reference: written floats within rounding, all else exactly.
fn check(kernel: &Kernel, inputs: &[Data]) {
    let Kernel::Row(p) = kernel else { panic!("not a row program") };
    let (out, expected) = (run(kernel, inputs), reference(p, inputs));
    for (i, arg) in p.args.iter().enumerate() {
        if arg.dtype.is_float() && arg.dtype != DType::E4m3 {
            let error = norm_error(&out[i].values(), &expected[i].values());
            assert!(error < tolerance(arg.dtype), "argument {i}: {error} in {p:?}");
        } else {
            same(&out[i], &expected[i]).unwrap_or_else(|e| panic!("argument {i}: {e} in {p:?}"));
        }
    }
}

fn softmax(rows: u64, len: u64, strides: [i64; 2]) -> Kernel {
    let mut b = Builder::new(&[rows, len], 1);
    let x = b.load(DType::F32, rows * len, &strides);
    let max = b.reduce(Fold::Max, x);
    let shifted = b.binary(Binary::Sub, x, max);
    let e = b.unary(Unary::Exp, shifted);
    let sum = b.reduce(Fold::Sum, e);
    let y = b.binary(Binary::Div, e, sum);
    b.store(DType::F32, rows * len, &strides, y);
    b.kernel()
}

#[test]
fn softmax_agrees_along_either_axis_for_short_long_and_huge_rows() {
    for (rows, len) in [(1, 1), (7, 3), (300, 10), (33, 768), (3, 5000), (2, 70_000), (1, 300_001), (40, 20_000)] {
        for strides in [[len as i64, 1], [1, rows as i64]] {
            let kernel = softmax(rows, len, strides);
            check(&kernel, &Random::new(rows ^ len).inputs(&kernel));
        }
    }
}

#[test]
fn layer_norm_forward_and_backward_agree() {
    for (rows, len) in [(5u64, 64u64), (130, 768), (2, 9000)] {
        let n = rows * len;
        let along = [len as i64, 1];
        let mut b = Builder::new(&[rows, len], 1);
        let (x, scale, dy) = (b.load(DType::Bf16, n, &along), b.load(DType::F32, len, &[0, 1]), b.load(DType::F32, n, &along));
        let (inv, eps) = (b.float(1.0 / len as f32), b.float(1e-5));
        let mean = |b: &mut Builder, x: Var| {
            let sum = b.reduce(Fold::Sum, x);
            b.binary(Binary::Mul, sum, inv)
        };
        let mu = mean(&mut b, x);
        let centred = b.binary(Binary::Sub, x, mu);
        let square = b.binary(Binary::Mul, centred, centred);
        let variance = mean(&mut b, square);
        let shifted = b.binary(Binary::Add, variance, eps);
        let rstd = b.unary(Unary::Rsqrt, shifted);
        let normed = b.binary(Binary::Mul, centred, rstd);
        let y = b.binary(Binary::Mul, normed, scale);
        b.store(DType::Bf16, n, &along, y);
        b.store(DType::F32, rows, &[1, 0], rstd);
        let g = b.binary(Binary::Mul, dy, scale);
        let gx = b.binary(Binary::Mul, g, normed);
        let (mg, mgx) = (mean(&mut b, g), mean(&mut b, gx));
        let part = b.binary(Binary::Mul, normed, mgx);
        let d = b.binary(Binary::Sub, g, mg);
        let d = b.binary(Binary::Sub, d, part);
        let dx = b.binary(Binary::Mul, d, rstd);
        b.store(DType::F32, n, &along, dx);
        let kernel = b.kernel();
        check(&kernel, &Random::new(len).inputs(&kernel));
    }
}

#[test]
fn an_optimizer_updates_in_place() {
    for n in [1u64, 1000, 100_003] {
        let mut b = Builder::new(&[n], 0);
        let g = b.load(DType::F32, n, &[1]);
        let control = b.arg(DType::F32, 8, Mode::Read);
        let scalar =
            |b: &mut Builder, offset| b.push(Stmt::Load { arg: control, access: Access { offset, ..access(&[0]) }, indexed: None });
        let (rate, keep) = (scalar(&mut b, 3), scalar(&mut b, 5));
        let state: Vec<u32> = [DType::F32, DType::Bf16, DType::Bf16].map(|d| b.arg(d, n, Mode::Update)).to_vec();
        let old: Vec<Var> = state.iter().map(|&arg| b.push(Stmt::Load { arg, access: access(&[1]), indexed: None })).collect();
        let zero = b.float(0.0);
        let go = b.binary(Binary::Gt, keep, zero);
        let (beta, rest, eps) = (b.float(0.9), b.float(0.1), b.float(1e-3));
        let (m0, m1) = (b.binary(Binary::Mul, old[1], beta), b.binary(Binary::Mul, g, rest));
        let m = b.binary(Binary::Add, m0, m1);
        let v0 = b.unary(Unary::Abs, old[2]);
        let g2 = b.binary(Binary::Mul, g, g);
        let v = b.binary(Binary::Add, v0, g2);
        let root = b.unary(Unary::Sqrt, v);
        let below = b.binary(Binary::Add, root, eps);
        let step = b.binary(Binary::Div, m, below);
        let step = b.binary(Binary::Mul, step, rate);
        let p = b.binary(Binary::Sub, old[0], step);
        for ((arg, new), old) in state.into_iter().zip([p, m, v]).zip(old) {
            let x = b.push(Stmt::Select { c: go, x: new, y: old });
            b.push(Stmt::Store { arg, access: access(&[1]), x });
        }
        let kernel = b.kernel();
        let mut inputs = Random::new(n).inputs(&kernel);
        for keep in [0.0, 1.0] {
            inputs[1] = Data::new(DType::F32, &[0.0, 0.0, 0.0, 0.01, 0.0, keep, 0.0, 0.0]);
            check(&kernel, &inputs);
            if keep == 0.0 {
                assert!(run(&kernel, &inputs) == inputs, "a skipped update changed something");
            }
        }
    }
}

#[test]
fn column_sums_agree_and_accumulate() {
    for (rows, columns) in [(1000u64, 3u64), (4096, 768), (20_000, 64), (17, 4097)] {
        let mut b = Builder::new(&[columns, rows], 1);
        let x = b.load(DType::Bf16, rows * columns, &[1, columns as i64]);
        let sum = b.reduce(Fold::Sum, x);
        let total = b.arg(DType::F32, columns, Mode::Update);
        b.push(Stmt::Accumulate { arg: total, access: access(&[1, 0]), x: sum });
        b.store(DType::F32, columns, &[1, 0], sum);
        let kernel = b.kernel();
        check(&kernel, &Random::new(rows).inputs(&kernel));
    }
}

#[test]
fn a_gather_reads_rows_by_index_and_reports_one_out_of_range() {
    let (tokens, vocab, depth) = (37u64, 11u64, 65u64);
    let mut b = Builder::new(&[tokens, depth], 1);
    let index = b.load(DType::I64, tokens, &[1, 0]);
    let table = b.arg(DType::Bf16, vocab * depth, Mode::Read);
    let indexed = Some(Indexed { index, stride: depth as i64, bound: vocab as i64 });
    let x = b.push(Stmt::Load { arg: table, access: access(&[0, 1]), indexed });
    b.store(DType::Bf16, tokens * depth, &[depth as i64, 1], x);
    let kernel = b.kernel();
    let mut random = Random::new(3);
    let mut inputs = random.inputs(&kernel);
    let mut indices: Vec<f32> = (0..tokens).map(|_| random.below(vocab) as f32).collect();
    inputs[0] = Data::new(DType::I64, &indices);
    check(&kernel, &inputs);
    for bad in [-1.0, 11.0, 1e18] {
        indices[20] = bad;
        inputs[0] = Data::new(DType::I64, &indices);
        let error = super::try_launch(&kernel, &inputs, 2).expect_err("out of range");
        assert_eq!(error, KernelError::IndexOutOfRange { index: bad as i64, bound: 11 });
    }
}

#[test]
fn a_quantizing_store_writes_codes_and_scales_of_each_group() {
    for (rows, len) in [(1u64, 5u64), (9, 128), (4, 1000), (3, 20_001)] {
        let mut b = Builder::new(&[rows, len], 1);
        let x = b.load(DType::F32, rows * len, &[len as i64, 1]);
        let sum = b.reduce(Fold::Sum, x);
        let y = b.binary(Binary::Add, x, sum);
        let y = if rows == 4 { x } else { y };
        let codes = b.arg(DType::E4m3, rows * len, Mode::Write);
        let scales = b.arg(DType::F32, rows * len.div_ceil(128), Mode::Write);
        b.push(Stmt::StoreQuantized { codes, access: access(&[len as i64, 1]), scales, power_of_two: true, x: y });
        let kernel = b.kernel();
        // Small integers: sums are exact whatever their order.
        let mut inputs = Random::new(len).inputs(&kernel);
        let whole: Vec<f32> = inputs[0].values().iter().map(|x| (x * 4.0).round() as f32).collect();
        inputs[0] = Data::new(DType::F32, &whole);
        check(&kernel, &inputs);
    }
}

#[test]
fn an_empty_row_folds_to_the_neutral_value() {
    let mut b = Builder::new(&[3, 0], 1);
    let x = b.load(DType::F32, 0, &[0, 1]);
    for fold in [Fold::Sum, Fold::Prod, Fold::Max, Fold::Min] {
        let y = b.reduce(fold, x);
        b.store(DType::F32, 3, &[1, 0], y);
    }
    let kernel = b.kernel();
    let out = run(&kernel, &Random::new(1).inputs(&kernel));
    for (out, expected) in out[1..].iter().zip([0.0, 1.0, f64::NEG_INFINITY, f64::INFINITY]) {
        assert_eq!(out.values(), [expected; 3]);
    }
}

#[test]
fn a_buffer_that_is_too_short_is_refused() {
    let kernel = softmax(4, 4, [4, 1]);
    let buffer = crate::cpu::Buffer { ptr: std::ptr::null_mut(), bytes: 60 };
    // SAFETY: refused before anything is touched.
    let refused = unsafe { crate::cpu::launch(&kernel, &[buffer; 2], buffer) };
    assert_eq!(refused, Err(KernelError::Binding { arg: 0, have: 60, need: 64 }));
}

fn check_random(seed: u64) -> Result<(), TestCaseError> {
    let (kernel, inputs) = Generator::new(Random::new(seed)).finish();
    let Kernel::Row(p) = &kernel else { unreachable!("a row program") };
    prop_assert_eq!(kernel.verify(), Ok(()), "{:?}", p);
    let (out, expected) = (run(&kernel, &inputs), reference(p, &inputs));
    for i in 0..p.args.len() {
        if let Err(e) = same(&out[i], &expected[i]) {
            return Err(TestCaseError::fail(format!("argument {i}: {e} in {p:?}")));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn random_programs_agree_with_the_reference(seed: u64) {
        check_random(seed)?;
    }
}
