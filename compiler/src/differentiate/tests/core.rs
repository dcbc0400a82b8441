use super::*;
use fp8c_kernels::program::{PoolOp, Window};

#[test]
fn reductions_are_what_differences_show() {
    for op in [Fold::Sum, Fold::Max, Fold::Min, Fold::Prod] {
        for axes in [vec![0], vec![1], vec![0, 2], vec![]] {
            let mut case = Case::new();
            let x = case.any(&[3, 4, 2]);
            let y = case.add(Op::Reduce { op, axes, dtype: DType::F32 }, &[x]);
            case.check(y);
        }
    }
}

#[test]
fn a_product_with_zeros_has_the_gradient_of_its_other_factors() {
    let mut case = Case::new();
    let x = case.parameter(&[3, 3], vec![1.0, 0.0, 3.0, 0.0, 0.0, 2.0, 2.0, -1.0, 0.5], true);
    let y = case.add(Op::Reduce { op: Fold::Prod, axes: vec![1], dtype: DType::F32 }, &[x]);
    case.check(y);
}

#[test]
fn a_maximum_shares_its_gradient_evenly_among_ties() {
    let mut case = Case::new();
    let x = case.parameter(&[4], vec![2.0, 5.0, 5.0, 1.0], true);
    let y = case.add(Op::Reduce { op: Fold::Max, axes: vec![0], dtype: DType::F32 }, &[x]);
    case.loss_of(y);
    let joint = with_gradients(case.graph.clone(), case.graph.loss.unwrap(), false).unwrap();
    let values = case.values(&joint, &case.values);
    let g = values[joint.gradients[0].value.index()].floats().unwrap();
    assert!(g[0] == 0.0 && g[3] == 0.0 && g[1] == g[2] && g[1] > 0.2);
}

#[test]
fn matrix_products_of_every_orientation_and_broadcast_are_what_differences_show() {
    let batches: [[&[u64]; 2]; 7] =
        [[&[], &[]], [&[3], &[3]], [&[3], &[1]], [&[1], &[3]], [&[2, 3], &[1, 3]], [&[2, 3], &[2, 1]], [&[2, 1], &[1, 3]]];
    for [of_a, of_b] in batches {
        for (trans_a, trans_b) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut case = Case::new();
            let a = [of_a, if trans_a { &[4, 2] } else { &[2, 4] }].concat();
            let b = [of_b, if trans_b { &[5, 4] } else { &[4, 5] }].concat();
            let (a, b) = (case.any(&a), case.any(&b));
            let y = case.add(Op::Matmul { trans_a, trans_b, dtype: DType::F32 }, &[a, b]);
            case.check(y);
        }
    }
}

#[test]
fn a_shared_weight_gets_one_product_over_all_rows() {
    let mut case = Case::new();
    let (x, w) = (case.any(&[2, 3, 4]), case.any(&[1, 4, 5]));
    let y = case.add(Op::Matmul { trans_a: false, trans_b: false, dtype: DType::F32 }, &[x, w]);
    case.loss_of(y);
    let joint = with_gradients(case.graph.clone(), case.graph.loss.unwrap(), false).unwrap();
    let shapes: Vec<&[u64]> =
        joint.nodes.iter().filter(|n| matches!(n.op, Op::Matmul { .. })).map(|n| joint.ty(n.results[0]).shape.as_slice()).collect();
    assert_eq!(shapes, [vec![2, 3, 5], vec![4, 5], vec![2, 3, 4]]);
    let backward = joint.nodes.iter().filter(|n| n.epoch() == Epoch::Backward);
    assert!(backward.clone().all(|n| !matches!(n.op, Op::Reduce { .. } | Op::Transpose(_))));
}

#[test]
fn views_are_what_differences_show() {
    let slice =
        |starts: &[i64], steps: &[i64], sizes: &[u64]| Op::Slice { starts: starts.to_vec(), steps: steps.to_vec(), sizes: sizes.to_vec() };
    let ops = [
        Op::Reshape(vec![6, 4]),
        Op::Transpose(vec![2, 0, 1]),
        Op::Pad { low: vec![1, 0, 2], high: vec![0, 3, 1] },
        Op::Broadcast(vec![2, 2, 3, 4]),
        slice(&[0, 1, 0], &[1, 1, 1], &[2, 2, 4]),
        slice(&[0, 1, 1], &[1, 1, 1], &[2, 2, 2]),
        slice(&[1, 2, 3], &[-1, -1, -1], &[2, 3, 4]),
        slice(&[0, 0, 1], &[1, 2, 2], &[2, 2, 2]),
        slice(&[1, 2, 3], &[-1, -2, -3], &[1, 2, 2]),
        slice(&[0, 0, 2], &[1, 1, 5], &[2, 3, 1]),
    ];
    for op in ops {
        let mut case = Case::new();
        let x = case.any(&[2, 3, 4]);
        let y = case.add(op, &[x]);
        case.check(y);
    }
    let mut case = Case::new();
    let (x, y) = (case.any(&[2, 1, 3]), case.any(&[2, 1, 3]));
    let wide = case.add(Op::Broadcast(vec![4, 2, 5, 3]), &[x]);
    let z = case.add(Op::Map(Expr::binary(Binary::Mul), DType::F32), &[wide, y]);
    case.check(z);
}

#[test]
fn concatenated_values_each_get_their_part() {
    let mut case = Case::new();
    let (x, y) = (case.any(&[2, 3]), case.any(&[2, 2]));
    let z = case.add(Op::Concat { axis: 1 }, &[x, y, x]);
    case.check(z);
}

/// A graph that cuts `[4, 6]` along the last axis at these ranges and multiplies each piece by itself.
fn sliced(ranges: &[(i64, u64)]) -> (Case, ValueId) {
    let mut case = Case::new();
    let x = case.any(&[4, 6]);
    let x = case.add(Op::Map(Expr::unary(fp8c_kernels::program::Unary::Tanh), DType::F32), &[x]);
    let mut squares = vec![];
    for &(start, size) in ranges {
        let piece = case.add(Op::Slice { starts: vec![0, start], steps: vec![1, 1], sizes: vec![4, size] }, &[x]);
        squares.push(case.add(Op::Map(Expr::binary(Binary::Mul), DType::F32), &[piece, piece]));
    }
    let y = case.add(Op::Concat { axis: 1 }, &squares);
    (case, y)
}

#[test]
fn slices_of_one_value_are_what_differences_show() {
    let cuts: [&[(i64, u64)]; 5] =
        [&[(0, 2), (2, 2), (4, 2)], &[(4, 2), (0, 1)], &[(0, 4), (2, 4)], &[(1, 2), (3, 1), (1, 2)], &[(0, 6), (2, 1)]];
    for ranges in cuts {
        let (case, y) = sliced(ranges);
        case.check(y);
    }
}

#[test]
fn slices_that_tile_an_axis_are_concatenated_not_padded() {
    let (mut case, y) = sliced(&[(2, 2), (0, 2), (4, 2)]);
    case.loss_of(y);
    let joint = with_gradients(case.graph.clone(), case.graph.loss.unwrap(), false).unwrap();
    let backward: Vec<&Node> = joint.nodes.iter().filter(|n| n.epoch() == Epoch::Backward).collect();
    assert_eq!(backward.iter().filter(|n| matches!(n.op, Op::Concat { .. })).count(), 1);
    assert!(backward.iter().all(|n| !matches!(n.op, Op::Pad { .. })));
}

#[test]
fn a_masked_gradient_is_zero_where_the_mask_is_and_the_mask_is_gone() {
    let mut case = Case::new();
    let x = case.any(&[3, 2]);
    let mask = case.constant(ConstData { ty: TensorType::new(DType::Bool, [3, 1]), bytes: vec![1, 0, 1] });
    let y = case.add(Op::MaskGradient, &[x, mask]);
    case.loss_of(y);
    let joint = with_gradients(case.graph.clone(), case.graph.loss.unwrap(), false).unwrap();
    joint.verify().unwrap();
    let values = case.values(&joint, &case.values);
    let dx = values[joint.gradients[0].value.index()].floats().unwrap();
    assert!(dx[..2].iter().chain(&dx[4..]).all(|g| *g != 0.0) && dx[2..4] == [0.0, 0.0], "{dx:?}");
    let joint = joint.without_dead_code().unwrap().0;
    assert!(joint.nodes.iter().all(|n| n.op != Op::MaskGradient));
}

#[test]
fn gathers_scatters_and_prefix_sums_are_what_differences_show() {
    let mut case = Case::new();
    let x = case.any(&[2, 5, 3]);
    let ids = case.ints(&[1, 4, 1], &[4, 0, 0, 2]);
    let y = case.add(Op::Take, &[x, ids]);
    case.check(y);

    let mut case = Case::new();
    let x = case.any(&[2, 3, 2]);
    let ids = case.ints(&[2, 2, 2], &[0, 1, 2, 0, 1, 1, 2, 2]);
    let y = case.add(Op::Take, &[x, ids]);
    case.check(y);

    let mut case = Case::new();
    let x = case.any(&[2, 3, 2]);
    let ids = case.ints(&[1, 3, 1], &[3, 1, 3]);
    let y = case.add(Op::PutAdd { extent: 4, dtype: DType::F32 }, &[x, ids]);
    case.check(y);

    for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut case = Case::new();
        let x = case.any(&[2, 4, 3]);
        let y = case.add(Op::CumSum { axis: 1, exclusive, reverse }, &[x]);
        case.check(y);
    }
}

fn window(input: [u64; 2], kernel: [u64; 2], stride: [u64; 2], dilation: [u64; 2], pad: [u64; 2]) -> Window {
    let out = |d: usize| (input[d] + 2 * pad[d] - dilation[d] * (kernel[d] - 1) - 1) / stride[d] + 1;
    Window { input, output: [out(0), out(1)], kernel, stride, dilation, pad }
}

#[test]
fn convolutions_are_what_differences_show() {
    let plain = window([5, 4], [3, 2], [1, 1], [1, 1], [0, 0]);
    let odd = window([6, 7], [2, 3], [2, 3], [2, 1], [1, 2]);
    for (w, cin, cout, groups) in [(plain, 2, 3, 1), (odd, 4, 6, 2), (odd, 3, 3, 3)] {
        for bias in [false, true] {
            let mut case = Case::new();
            let x = case.any(&[2, cin, w.input[0], w.input[1]]);
            let k = case.any(&[cout, cin / groups, w.kernel[0], w.kernel[1]]);
            let mut inputs = vec![x, k];
            if bias {
                inputs.push(case.any(&[cout]));
            }
            let y = case.add(Op::Conv(ConvOp { groups, window: w, dtype: DType::F32 }), &inputs);
            case.check(y);
        }
    }
}

#[test]
fn pooling_is_what_differences_show() {
    let w = window([5, 6], [2, 3], [2, 1], [1, 2], [1, 1]);
    for op in [PoolOp::Max, PoolOp::Average, PoolOp::AverageWithPadding { pad_end: [1, 1] }] {
        let mut case = Case::new();
        let x = case.any(&[2, 2, 5, 6]);
        let y = case.add(Op::Pool { op, window: w }, &[x]);
        case.check(y);
    }
}
