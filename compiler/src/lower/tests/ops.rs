//! Core operators, one at a time and with views around them.

use super::*;
use fp8c_kernels::program::{PoolOp, Window};

const F: DType = DType::F32;
const B: DType = DType::Bf16;

fn slice(starts: &[i64], steps: &[i64], sizes: &[u64]) -> Op {
    Op::Slice { starts: starts.to_vec(), steps: steps.to_vec(), sizes: sizes.to_vec() }
}

#[test]
fn chains_of_maps_with_broadcasts_and_rounding() {
    for dtype in [F, B] {
        let mut c = Case::new();
        let (x, row, column) = (c.input(dtype, &[4, 6, 32]), c.input(dtype, &[32]), c.input(dtype, &[6, 1]));
        let a = c.binary(Binary::Add, x, row);
        let b = c.unary(Unary::Tanh, a);
        let d = c.binary(Binary::Mul, b, column);
        let e = c.binary(Binary::Sub, d, a);
        c.output(e);
        c.output(b);
        c.check();
    }
}

#[test]
fn views_of_every_kind_under_a_map() {
    let mut c = Case::new();
    let x = c.input(F, &[4, 6, 8]);
    let t = c.transpose(&[2, 0, 1], x);
    let r = c.reshape(&[4, 2, 24], t);
    let s = c.one(slice(&[0, 1, 23], &[1, 1, -2], &[4, 1, 12]), &[r]);
    let p = c.one(Op::Pad { low: vec![1, 0, 2], high: vec![0, 3, 1] }, &[s]);
    let n = c.unary(Unary::Neg, p);
    c.output(n);
    let b = c.one(Op::Broadcast(vec![4, 6, 12]), &[s]);
    let m = c.unary(Unary::Exp, b);
    c.output(m);
    c.check();
}

#[test]
fn views_that_are_results_themselves_are_copied() {
    let mut c = Case::new();
    let x = c.input(F, &[3, 5]);
    let t = c.transpose(&[1, 0], x);
    c.output(x);
    c.output(t);
    let e = c.unary(Unary::Exp, x);
    let r = c.reshape(&[15], e);
    c.output(r);
    let k = c.constant(ConstData::f32([2], &[1.0, 1.0]));
    c.output(k);
    c.check();
}

#[test]
fn a_padded_expression_is_zero_outside() {
    let mut c = Case::new();
    let x = c.input(F, &[4, 6]);
    let e = c.unary(Unary::Exp, x);
    let p = c.one(Op::Pad { low: vec![0, 2], high: vec![1, 0] }, &[e]);
    let y = c.unary(Unary::Neg, p);
    c.output(y);
    c.check();
}

#[test]
fn a_reshape_that_no_stride_expresses_is_copied() {
    let mut c = Case::new();
    let x = c.input(F, &[6, 4]);
    let t = c.transpose(&[1, 0], x);
    let r = c.reshape(&[8, 3], t);
    let s = c.transpose(&[1, 0], r);
    let y = c.unary(Unary::Exp, s);
    c.output(y);
    c.check();
}

#[test]
fn reductions_along_any_axes_with_maps_around_them() {
    for (shape, axes) in [
        (vec![4u64, 40], vec![1usize]),
        (vec![40, 4], vec![0]),
        (vec![3, 4, 5], vec![0, 2]),
        (vec![3, 4, 5], vec![0, 1, 2]),
        (vec![1, 4, 1], vec![0, 2]),
        (vec![2048, 24], vec![0]),
        (vec![8192], vec![0]),
        (vec![4, 3, 2000], vec![0, 2]),
    ] {
        for dtype in [F, B] {
            let mut c = Case::new();
            let x = c.input(dtype, &shape);
            let e = c.unary(Unary::Exp, x);
            let s = c.one(Op::Reduce { op: Fold::Sum, axes: axes.clone(), dtype: F }, &[e]);
            let r = c.unary(Unary::Recip, s);
            c.output(r);
            let m = c.reduce(Fold::Max, &axes, x);
            let y = c.binary(Binary::Sub, x, m);
            c.output(y);
            c.check();
        }
    }
}

#[test]
fn integers_and_bools_are_computed_exactly() {
    let mut c = Case::new();
    let x = c.indices(&[5, 7], 100);
    let iota = c.one(Op::Iota { shape: vec![5, 7], axis: 1 }, &[]);
    let less = c.one(Op::Map(Expr::binary(Binary::Lt), DType::Bool), &[x, iota]);
    let picked = c.one(Op::Map(Expr::select(), DType::I64), &[less, x, iota]);
    let sum = c.reduce(Fold::Sum, &[1], picked);
    for v in [less, picked, sum, iota] {
        c.output(v);
    }
    let narrow = c.one(Op::Map(Expr::identity(), DType::I32), &[picked]);
    let float = c.one(Op::Map(Expr::identity(), F), &[narrow]);
    c.output(float);
    c.check();
}

#[test]
fn products_read_transposed_sliced_and_broadcast_operands_in_place() {
    let mut c = Case::new();
    let (x, w, b) = (c.input(F, &[2, 6, 16]), c.input(F, &[1, 24, 16]), c.input(F, &[24]));
    let y = c.matmul(false, true, x, w);
    let y = c.binary(Binary::Add, y, b);
    c.output(y);
    let q = c.one(slice(&[0, 0, 8], &[1; 3], &[2, 6, 16]), &[y]);
    let heads = c.reshape(&[2, 6, 4, 4], q);
    let heads = c.transpose(&[0, 2, 1, 3], heads);
    let scores = c.matmul(false, true, heads, heads);
    c.output(scores);
    let (x2, y2) = (c.reshape(&[12, 16], x), c.reshape(&[12, 24], y));
    let dw = c.matmul(true, false, x2, y2);
    c.output(dw);
    let program = lower(&c.graph, Options::default()).unwrap();
    let rows = program.units.iter().filter(|u| u.kernel.family() == "row").count();
    assert_eq!(rows, 0, "no operand of a product is copied:\n{}", print(&program));
    c.check();
}

#[test]
fn a_product_in_bf16_keeps_its_rounding_before_the_bias() {
    let mut c = Case::new();
    let (x, w, b) = (c.input(B, &[8, 64]), c.input(B, &[64, 16]), c.input(F, &[16]));
    let narrow = c.matmul(false, false, x, w);
    let y = c.one(Op::Map(Expr::binary(Binary::Add), B), &[narrow, b]);
    c.output(y);
    let wide = c.one(Op::Matmul { trans_a: false, trans_b: false, dtype: F }, &[x, w]);
    let z = c.one(Op::Map(Expr::binary(Binary::Add), B), &[wide, b]);
    c.output(z);
    let program = lower(&c.graph, Options::default()).unwrap();
    assert_eq!(program.units.len(), 3, "one product takes its bias, the other does not:\n{}", print(&program));
    c.check();
}

#[test]
fn gathers_scatters_and_prefix_sums() {
    let mut c = Case::new();
    let (table, ids) = (c.input(F, &[1, 10, 8]), c.indices(&[1, 6, 1], 10));
    let rows = c.one(Op::Take, &[table, ids]);
    let y = c.unary(Unary::Exp, rows);
    c.output(y);
    let back = c.one(Op::PutAdd { extent: 10, dtype: F }, &[y, ids]);
    c.output(back);
    let sum = c.one(Op::CumSum { axis: 1, exclusive: true, reverse: true }, &[back]);
    c.output(sum);
    let t = c.transpose(&[0, 2, 1], table);
    let ids2 = c.indices(&[1, 3, 10], 8);
    let picked = c.one(Op::Take, &[t, ids2]);
    c.output(picked);
    c.check();
}

#[test]
fn concatenations_are_written_in_place() {
    let mut c = Case::new();
    let (x, y) = (c.input(F, &[3, 4]), c.input(F, &[3, 2]));
    let (e, m) = (c.unary(Unary::Exp, x), c.matmul(false, true, y, y));
    let j = c.one(Op::Concat { axis: 1 }, &[e, m, y, y]);
    c.output(j);
    let n = c.unary(Unary::Neg, j);
    c.output(n);
    let t = c.transpose(&[1, 0], e);
    let u = c.reshape(&[2, 2, 3], t);
    let k = c.one(Op::Concat { axis: 0 }, &[u, u]);
    c.output(k);
    c.check();
}

#[test]
fn a_concatenation_that_reads_itself() {
    let mut c = Case::new();
    let x = c.input(F, &[3, 4]);
    let a = c.unary(Unary::Exp, x);
    let b = c.unary(Unary::Neg, a);
    let j = c.one(Op::Concat { axis: 0 }, &[a, b]);
    let k = c.one(Op::Concat { axis: 0 }, &[j, b]);
    c.output(k);
    c.check();
}

#[test]
fn convolution_and_pooling() {
    let window = |input: [u64; 2], output: [u64; 2], stride: u64, pad: u64| Window {
        input,
        output,
        kernel: [3, 3],
        stride: [stride; 2],
        dilation: [1, 1],
        pad: [pad; 2],
    };
    let mut c = Case::new();
    let (x, w, b) = (c.input(F, &[2, 4, 8, 8]), c.input(F, &[6, 2, 3, 3]), c.input(F, &[6]));
    let conv = ConvOp { groups: 2, window: window([8, 8], [8, 8], 1, 1), dtype: F };
    let y = c.one(Op::Conv(conv.clone()), &[x, w, b]);
    c.output(y);
    let pooled = c.one(Op::Pool { op: PoolOp::Max, window: window([8, 8], [4, 4], 2, 1) }, &[y]);
    c.output(pooled);
    let back = c.one(Op::PoolGrad { op: PoolOp::Max, window: window([8, 8], [4, 4], 2, 1) }, &[y, pooled]);
    let dx = c.one(Op::ConvDgrad(conv.clone()), &[back, w]);
    let dw = c.one(Op::ConvWgrad(conv), &[back, x]);
    c.output(dx);
    c.output(dw);
    let t = c.transpose(&[0, 1, 3, 2], x);
    let plain = ConvOp { groups: 1, window: window([8, 8], [6, 6], 1, 0), dtype: F };
    let w2 = c.input(F, &[3, 4, 3, 3]);
    let z = c.one(Op::Conv(plain), &[t, w2]);
    c.output(z);
    c.check();
}

#[test]
fn nothing_is_computed_that_nobody_reads() {
    let mut c = Case::new();
    let x = c.input(F, &[3]);
    c.unary(Unary::Exp, x);
    let y = c.unary(Unary::Neg, x);
    c.output(y);
    let program = lower(&c.graph, Options::default()).unwrap();
    assert_eq!((program.units.len(), program.buffers.len()), (1, 2));
}
