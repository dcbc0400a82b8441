//! Activation functions: scalar expressions with attributes.

use super::call::Call;
use super::expr::{At, Scalar};
use super::{Outcome, Rule, Table};
use crate::graph::ValueId;
use fp8c_kernels::program::{Binary, Unary};

pub(super) const OPS: Table = &[
    ("Celu", Rule::Call(celu)),
    ("Elu", Rule::Call(elu)),
    ("Gelu", Rule::Call(gelu)),
    ("HardSigmoid", Rule::Call(hard_sigmoid)),
    ("HardSwish", Rule::Call(hard_swish)),
    ("LeakyRelu", Rule::Call(leaky_relu)),
    ("Mish", Rule::Call(mish)),
    ("PRelu", Rule::Call(prelu)),
    ("Relu", Rule::Call(relu)),
    ("Selu", Rule::Call(selu)),
    ("Shrink", Rule::Call(shrink)),
    ("Sigmoid", Rule::Unary(Unary::Sigmoid)),
    ("Softplus", Rule::Unary(Unary::Softplus)),
    ("Softsign", Rule::Call(softsign)),
    ("Swish", Rule::Call(swish)),
    ("Tanh", Rule::Unary(Unary::Tanh)),
    ("ThresholdedRelu", Rule::Call(thresholded_relu)),
];

/// Applies a scalar expression of one float operand.
fn apply(call: &mut Call, x: ValueId, build: impl FnOnce(&mut Scalar, At) -> At) -> Outcome {
    let mut e = Scalar::default();
    let x0 = e.operand(0);
    build(&mut e, x0);
    let dtype = call.dtype(x);
    call.map(e.finish(), &[x], dtype).map(|v| vec![v])
}

/// `alpha * (exp(x / width) - 1)` for negative x; the argument is kept from overflowing where the branch is not taken.
fn expm1_of_negative(e: &mut Scalar, x: At, alpha: f32, width: f32) -> At {
    let low = e.with(Binary::Min, x, 0.0);
    let scaled = if width == 1.0 { low } else { e.with(Binary::Div, low, width) };
    let exp = e.unary(Unary::Exp, scaled);
    let less_one = e.with(Binary::Sub, exp, 1.0);
    e.with(Binary::Mul, less_one, alpha)
}

/// `x > 0 ? x : negative`
fn positive_or(e: &mut Scalar, x: At, negative: At) -> At {
    let c = e.with(Binary::Gt, x, 0.0);
    e.select(c, x, negative)
}

fn celu(call: &mut Call) -> Outcome {
    let (x, alpha) = (call.float_input(0)?, call.float("alpha", 1.0)?);
    apply(call, x, |e, x| {
        let negative = expm1_of_negative(e, x, alpha, alpha);
        positive_or(e, x, negative)
    })
}

fn elu(call: &mut Call) -> Outcome {
    let (x, alpha) = (call.float_input(0)?, call.float("alpha", 1.0)?);
    apply(call, x, |e, x| {
        let negative = expm1_of_negative(e, x, alpha, 1.0);
        positive_or(e, x, negative)
    })
}

fn selu(call: &mut Call) -> Outcome {
    let (x, alpha, gamma) = (call.float_input(0)?, call.float("alpha", 1.673_263_2)?, call.float("gamma", 1.050_701)?);
    apply(call, x, |e, x| {
        let negative = expm1_of_negative(e, x, alpha, 1.0);
        let y = positive_or(e, x, negative);
        e.with(Binary::Mul, y, gamma)
    })
}

fn gelu(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    let op = match call.string("approximate", "none")? {
        "none" => Unary::GeluErf,
        "tanh" => Unary::GeluTanh,
        other => return Err(format!("asks for the approximation {other}; none and tanh exist")),
    };
    call.unary(op, x).map(|v| vec![v])
}

/// `max(0, min(1, alpha * x + beta))`
fn hard_sigmoid_of(e: &mut Scalar, x: At, alpha: f32, beta: f32) -> At {
    let scaled = e.with(Binary::Mul, x, alpha);
    let shifted = e.with(Binary::Add, scaled, beta);
    let low = e.with(Binary::Min, shifted, 1.0);
    e.with(Binary::Max, low, 0.0)
}

fn hard_sigmoid(call: &mut Call) -> Outcome {
    let (x, alpha, beta) = (call.float_input(0)?, call.float("alpha", 0.2)?, call.float("beta", 0.5)?);
    apply(call, x, |e, x| hard_sigmoid_of(e, x, alpha, beta))
}

fn hard_swish(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    apply(call, x, |e, x| {
        let gate = hard_sigmoid_of(e, x, 1.0 / 6.0, 0.5);
        e.binary(Binary::Mul, x, gate)
    })
}

fn swish(call: &mut Call) -> Outcome {
    let (x, alpha) = (call.float_input(0)?, call.float("alpha", 1.0)?);
    apply(call, x, |e, x| {
        let scaled = if alpha == 1.0 { x } else { e.with(Binary::Mul, x, alpha) };
        let gate = e.unary(Unary::Sigmoid, scaled);
        e.binary(Binary::Mul, x, gate)
    })
}

fn mish(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    apply(call, x, |e, x| {
        let plus = e.unary(Unary::Softplus, x);
        let gate = e.unary(Unary::Tanh, plus);
        e.binary(Binary::Mul, x, gate)
    })
}

fn leaky_relu(call: &mut Call) -> Outcome {
    let (x, alpha) = (call.float_input(0)?, call.float("alpha", 0.01)?);
    apply(call, x, |e, x| {
        let negative = e.with(Binary::Mul, x, alpha);
        positive_or(e, x, negative)
    })
}

fn prelu(call: &mut Call) -> Outcome {
    let (x, slope) = (call.float_input(0)?, call.float_input(1)?);
    let (dtype, shape) = (call.dtype(x), call.shape(x));
    let mut e = Scalar::default();
    let (x0, x1) = (e.operand(0), e.operand(1));
    let negative = e.binary(Binary::Mul, x0, x1);
    positive_or(&mut e, x0, negative);
    let y = call.map(e.finish(), &[x, slope], dtype)?;
    match call.shape(y) == shape {
        true => Ok(vec![y]),
        false => Err("needs a slope that broadcasts to the input".into()),
    }
}

fn relu(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    match call.dtype(x).is_float() {
        true => call.with(Binary::Max, x, 0.0).map(|v| vec![v]),
        false => {
            let zero = call.scalar(0.0, call.dtype(x))?;
            call.binary(Binary::Max, x, zero).map(|v| vec![v])
        }
    }
}

/// `x + bias` below `-lambd`, `x - bias` above `lambd`, else 0.
fn shrink(call: &mut Call) -> Outcome {
    let (x, bias, lambd) = (call.float_input(0)?, call.float("bias", 0.0)?, call.float("lambd", 0.5)?);
    apply(call, x, |e, x| {
        let (below, above) = (e.with(Binary::Lt, x, -lambd), e.with(Binary::Gt, x, lambd));
        let (plus, minus, zero) = (e.with(Binary::Add, x, bias), e.with(Binary::Sub, x, bias), e.float(0.0));
        let upper = e.select(above, minus, zero);
        e.select(below, plus, upper)
    })
}

fn softsign(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    apply(call, x, |e, x| {
        let abs = e.unary(Unary::Abs, x);
        let divisor = e.with(Binary::Add, abs, 1.0);
        e.binary(Binary::Div, x, divisor)
    })
}

fn thresholded_relu(call: &mut Call) -> Outcome {
    let (x, alpha) = (call.float_input(0)?, call.float("alpha", 1.0)?);
    apply(call, x, |e, x| {
        let (c, zero) = (e.with(Binary::Gt, x, alpha), e.float(0.0));
        e.select(c, x, zero)
    })
}
