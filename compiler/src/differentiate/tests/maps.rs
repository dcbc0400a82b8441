use super::*;
use fp8c_kernels::program::{Kind, Literal, Unary};

/// Checks `op` on arguments between two bounds, alone and inside an expression.
fn check_unary(op: Unary, low: f64, high: f64) {
    let mut case = Case::new();
    let x = case.between(&[3, 5], low, high);
    let y = case.add(Op::Map(Expr::unary(op), DType::F32), &[x]);
    case.check(y);

    // op(x) * x + op(x): the operator is not the last, so that its value is computed again.
    let mut case = Case::new();
    let x = case.between(&[7], low, high);
    let body = vec![ExprNode::Operand(0), ExprNode::Unary(op, 0), ExprNode::Binary(Binary::Mul, 1, 0), ExprNode::Binary(Binary::Add, 2, 1)];
    let y = case.add(Op::Map(Expr { body }, DType::F32), &[x]);
    case.check(y);
}

#[test]
fn unary_functions_have_the_slope_that_differences_show() {
    use Unary::*;
    for op in [Neg, Exp, Sin, Cos, Atan, Sinh, Cosh, Asinh, Tanh, Erf, Sigmoid, Softplus, GeluErf, GeluTanh] {
        check_unary(op, -2.0, 2.0);
    }
    for op in [Abs, Log, Log1p, Sqrt, Rsqrt, Recip] {
        check_unary(op, 0.3, 2.0);
    }
    for op in [Tan, Asin, Acos, Atanh] {
        check_unary(op, -0.8, 0.8);
    }
    check_unary(Abs, -2.0, -0.3);
    check_unary(Acosh, 1.3, 3.0);
}

#[test]
fn steps_are_flat() {
    for op in [Unary::Floor, Unary::Ceil, Unary::Round, Unary::Sign] {
        let mut case = Case::new();
        let x = case.between(&[4], 0.1, 0.4);
        let body = vec![ExprNode::Operand(0), ExprNode::Unary(op, 0), ExprNode::Binary(Binary::Add, 1, 0)];
        let y = case.add(Op::Map(Expr { body }, DType::F32), &[x]);
        case.check(y);
    }
}

#[test]
fn binary_functions_have_the_slopes_that_differences_show() {
    use Binary::*;
    for op in [Add, Sub, Mul, Div, Min, Max, Pow, Mod, Fmod] {
        let mut case = Case::new();
        let (x, y) = (case.between(&[2, 3], 0.6, 2.0), case.between(&[2, 3], 0.61, 1.9));
        let z = case.add(Op::Map(Expr::binary(op), DType::F32), &[x, y]);
        case.check(z);
    }
    for (op, signs) in [(Mod, [-1.0, 1.0]), (Fmod, [-1.0, 1.0]), (Mod, [1.0, -1.0]), (Fmod, [1.0, -1.0])] {
        let mut case = Case::new();
        let (x, y) = (case.random(6, 2.1, 2.4), case.random(6, 0.61, 0.65));
        let x = case.parameter(&[6], x.iter().map(|v| v * signs[0]).collect(), true);
        let y = case.parameter(&[6], y.iter().map(|v| v * signs[1]).collect(), true);
        let z = case.add(Op::Map(Expr::binary(op), DType::F32), &[x, y]);
        case.check(z);
    }
}

#[test]
fn broadcast_operands_get_the_sum_of_their_gradient() {
    let shapes: [[&[u64]; 2]; 5] = [[&[2, 3, 4], &[4]], [&[2, 3, 4], &[3, 1]], [&[2, 1, 4], &[5, 1]], [&[3], &[1]], [&[2, 3], &[]]];
    for [a, b] in shapes {
        for op in [Binary::Add, Binary::Mul] {
            let mut case = Case::new();
            let (x, y) = (case.any(a), case.any(b));
            let z = case.add(Op::Map(Expr::binary(op), DType::F32), &[x, y]);
            case.check(z);
        }
    }
}

#[test]
fn powers_by_a_constant_are_what_differences_show() {
    for exponent in [0.0, 1.0, 2.0, 3.0, 0.5, -0.5, -1.0, 2.7] {
        let mut case = Case::new();
        let x = case.between(&[6], 0.4, 2.0);
        let y = case.add(Op::Map(Expr::with_constant(Binary::Pow, exponent), DType::F32), &[x]);
        let z = case.add(Op::Map(Expr::binary(Binary::Add), DType::F32), &[x, y]);
        case.check(z);

        // The exponent as a constant of the graph.
        let mut case = Case::new();
        let x = case.between(&[2, 3], 0.4, 2.0);
        let c = case.constant(ConstData::f32([1], &[exponent]));
        let y = case.add(Op::Map(Expr::binary(Binary::Pow), DType::F32), &[x, c]);
        let z = case.add(Op::Map(Expr::binary(Binary::Add), DType::F32), &[x, y]);
        case.check(z);
    }
}

#[test]
fn a_value_used_twice_by_one_expression_counts_twice() {
    let mut case = Case::new();
    let x = case.any(&[5]);
    let y = case.add(Op::Map(Expr::binary(Binary::Mul), DType::F32), &[x, x]);
    case.check(y);
}

#[test]
fn select_passes_the_gradient_of_the_branch_it_takes() {
    let mut case = Case::new();
    let (x, y) = (case.any(&[4, 2]), case.any(&[2]));
    let mask = case.constant(ConstData { ty: TensorType::new(DType::Bool, [4, 1]), bytes: vec![1, 0, 0, 1] });
    let z = case.add(Op::Map(Expr::select(), DType::F32), &[mask, x, y]);
    case.check(z);
}

#[test]
fn a_deep_expression_shares_its_subexpressions() {
    // silu(a * x + b) * y
    use ExprNode::{Operand, Unary as U};
    let b = |op, x, y| ExprNode::Binary(op, x, y);
    let c = |x: f32| ExprNode::Const { kind: Kind::Float, value: Literal::float(x) };
    let body = vec![
        Operand(0),
        c(1.5),
        b(Binary::Mul, 0, 1),
        c(0.25),
        b(Binary::Add, 2, 3),
        U(Unary::Sigmoid, 4),
        b(Binary::Mul, 4, 5),
        Operand(1),
        b(Binary::Mul, 6, 7),
    ];
    let mut case = Case::new();
    let (x, y) = (case.any(&[3, 3]), case.any(&[3, 3]));
    let z = case.add(Op::Map(Expr { body }, DType::F32), &[x, y]);
    case.check(z);
}

#[test]
fn relu_is_flat_at_zero_and_takes_its_slope_from_its_result() {
    let mut case = Case::new();
    let x = case.parameter(&[3], vec![-1.0, 0.0, 2.0], true);
    let y = case.add(Op::Map(Expr::with_constant(Binary::Max, 0.0), DType::F32), &[x]);
    case.loss_of(y);
    let joint = with_gradients(case.graph.clone(), case.graph.loss.unwrap(), false).unwrap();
    let gradient = joint.gradients[0].value;
    let values = case.values(&joint, &case.values);
    let slopes: Vec<bool> = values[gradient.index()].floats().unwrap().iter().map(|g| *g != 0.0).collect();
    assert_eq!(slopes, [false, false, true]);
    let relu = joint.nodes.iter().find(|n| n.op == Op::Map(Expr::with_constant(Binary::Max, 0.0), DType::F32)).unwrap();
    assert!(joint.def(gradient).inputs.contains(&relu.results[0]) && !joint.def(gradient).inputs.contains(&relu.inputs[0]));
}

#[test]
fn operands_that_tie_share_the_gradient_of_a_maximum() {
    let mut case = Case::new();
    let (x, y) = (case.parameter(&[2], vec![1.0, 3.0], true), case.parameter(&[2], vec![1.0, 2.0], true));
    let z = case.add(Op::Map(Expr::binary(Binary::Max), DType::F32), &[x, y]);
    case.loss_of(z);
    let joint = with_gradients(case.graph.clone(), case.graph.loss.unwrap(), false).unwrap();
    let values = case.values(&joint, &case.values);
    let of = |i: usize| values[joint.gradients[i].value.index()].floats().unwrap().to_vec();
    assert_eq!(of(0)[0], of(1)[0]);
    assert!(of(0)[1] > 0.0 && of(1)[1] == 0.0);
}
