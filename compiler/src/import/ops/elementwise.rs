//! Scalar functions of one, two or more tensors that broadcast.

use super::call::{Call, dtype_of_code};
use super::expr::{At, Scalar};
use super::{Outcome, Rule, Table};
use crate::graph::{Expr, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Kind, Unary};

pub(super) const OPS: Table = &[
    ("Abs", Rule::Unary(Unary::Abs)),
    ("Acos", Rule::Unary(Unary::Acos)),
    ("Acosh", Rule::Unary(Unary::Acosh)),
    ("Add", Rule::Binary(Binary::Add)),
    ("And", Rule::Binary(Binary::And)),
    ("Asin", Rule::Unary(Unary::Asin)),
    ("Asinh", Rule::Unary(Unary::Asinh)),
    ("Atan", Rule::Unary(Unary::Atan)),
    ("Atanh", Rule::Unary(Unary::Atanh)),
    ("Cast", Rule::Call(cast)),
    ("CastLike", Rule::Call(cast_like)),
    ("Ceil", Rule::Unary(Unary::Ceil)),
    ("Clip", Rule::Call(clip)),
    ("Cos", Rule::Unary(Unary::Cos)),
    ("Cosh", Rule::Unary(Unary::Cosh)),
    ("Div", Rule::Binary(Binary::Div)),
    ("Dropout", Rule::Call(dropout)),
    ("Equal", Rule::Binary(Binary::Eq)),
    ("Erf", Rule::Unary(Unary::Erf)),
    ("Exp", Rule::Unary(Unary::Exp)),
    ("Floor", Rule::Unary(Unary::Floor)),
    ("Greater", Rule::Binary(Binary::Gt)),
    ("GreaterOrEqual", Rule::Binary(Binary::Ge)),
    ("Identity", Rule::Call(identity)),
    ("IsInf", Rule::Call(is_inf)),
    ("IsNaN", Rule::Unary(Unary::IsNan)),
    ("Less", Rule::Binary(Binary::Lt)),
    ("LessOrEqual", Rule::Binary(Binary::Le)),
    ("Log", Rule::Unary(Unary::Log)),
    ("Max", Rule::Call(max)),
    ("Mean", Rule::Call(mean)),
    ("Min", Rule::Call(min)),
    ("Mod", Rule::Call(modulo)),
    ("Mul", Rule::Binary(Binary::Mul)),
    ("Neg", Rule::Unary(Unary::Neg)),
    ("Not", Rule::Unary(Unary::Not)),
    ("Or", Rule::Binary(Binary::Or)),
    ("Pow", Rule::Call(pow)),
    ("Reciprocal", Rule::Unary(Unary::Recip)),
    ("Round", Rule::Unary(Unary::Round)),
    ("Sign", Rule::Unary(Unary::Sign)),
    ("Sin", Rule::Unary(Unary::Sin)),
    ("Sinh", Rule::Unary(Unary::Sinh)),
    ("Sqrt", Rule::Unary(Unary::Sqrt)),
    ("Sub", Rule::Binary(Binary::Sub)),
    ("Sum", Rule::Call(sum)),
    ("Tan", Rule::Unary(Unary::Tan)),
    ("Where", Rule::Call(select)),
    ("Xor", Rule::Binary(Binary::Xor)),
];

/// One scalar function; the kinds it takes are those that [`Unary`] documents.
pub(super) fn unary(call: &mut Call, op: Unary) -> Outcome {
    let x = call.input(0)?;
    let dtype = call.dtype(x);
    let fits = match (op, Kind::from(dtype)) {
        (Unary::Not, kind) => kind == Kind::Bool,
        (Unary::Neg | Unary::Abs | Unary::Sign, kind) => kind != Kind::Bool,
        (_, kind) => kind == Kind::Float,
    };
    if !fits {
        return Err(format!("cannot take {dtype}"));
    }
    let tests = matches!(op, Unary::IsNan | Unary::IsInf);
    call.map(Expr::unary(op), &[x], if tests { DType::Bool } else { dtype }).map(|v| vec![v])
}

/// One scalar function of two operands of one type.
pub(super) fn binary(call: &mut Call, op: Binary) -> Outcome {
    let (x, y) = (call.input(0)?, call.input(1)?);
    let (a, b) = (call.dtype(x), call.dtype(y));
    if a != b {
        return Err(format!("needs operands of one type, has {a} and {b}"));
    }
    let fits = match op {
        Binary::And | Binary::Or | Binary::Xor => a == DType::Bool,
        Binary::Eq => true,
        _ => a != DType::Bool,
    };
    match fits {
        true => call.binary(op, x, y).map(|v| vec![v]),
        false => Err(format!("cannot take {a}")),
    }
}

/// Folds any number of operands, left to right.
fn variadic(call: &mut Call, op: Binary) -> Result<ValueId, String> {
    let inputs = call.all_inputs()?;
    let dtype = call.dtype(inputs[0]);
    if dtype == DType::Bool || inputs.iter().any(|&v| call.dtype(v) != dtype) {
        return Err("needs numbers of one type".into());
    }
    let mut result = inputs[0];
    for &x in &inputs[1..] {
        result = call.binary(op, result, x)?;
    }
    Ok(result)
}

fn max(call: &mut Call) -> Outcome {
    variadic(call, Binary::Max).map(|v| vec![v])
}

fn min(call: &mut Call) -> Outcome {
    variadic(call, Binary::Min).map(|v| vec![v])
}

fn sum(call: &mut Call) -> Outcome {
    variadic(call, Binary::Add).map(|v| vec![v])
}

fn mean(call: &mut Call) -> Outcome {
    let total = variadic(call, Binary::Add)?;
    match (call.node.inputs.len(), call.dtype(total).is_float()) {
        (_, false) => Err("needs floats".into()),
        (1, _) => Ok(vec![total]),
        (n, _) => call.with(Binary::Div, total, n as f32).map(|v| vec![v]),
    }
}

fn identity(call: &mut Call) -> Outcome {
    Ok(vec![call.input(0)?])
}

fn cast(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let to = dtype_of_code(call.int("to", 0)?)?;
    call.cast(x, to).map(|v| vec![v])
}

fn cast_like(call: &mut Call) -> Outcome {
    let (x, like) = (call.input(0)?, call.input(1)?);
    let to = call.dtype(like);
    call.cast(x, to).map(|v| vec![v])
}

/// Dropout as it acts at inference: the identity. Training with it would need its random mask.
fn dropout(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let ratio = call.const_data(1, "the ratio")?.map_or(0.5, |d| d.to_f32().first().copied().unwrap_or(0.5));
    let training = call.const_data(2, "training_mode")?.is_some_and(|d| d.to_i64().first() == Some(&1));
    if training && ratio != 0.0 {
        return Err(format!("drops elements at random (training_mode, ratio {ratio}); export the model in evaluation mode"));
    }
    let mut results = vec![x];
    if call.wants(1) {
        let shape = call.shape(x);
        results.push(call.filled(1.0, DType::Bool, shape)?);
    }
    Ok(results)
}

/// `min(max(x, low), high)`: the upper bound wins where the bounds cross.
fn clip(call: &mut Call) -> Outcome {
    let mut x = call.input(0)?;
    let dtype = call.dtype(x);
    for (i, op) in [(1, Binary::Max), (2, Binary::Min)] {
        let Some(bound) = call.optional(i) else { continue };
        if call.dtype(bound) != dtype || dtype == DType::Bool {
            return Err("needs numbers of one type".into());
        }
        let bound = call.reshape(bound, vec![])?;
        x = call.binary(op, x, bound)?;
    }
    Ok(vec![x])
}

fn is_inf(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    let (negative, positive) = (call.int("detect_negative", 1)? != 0, call.int("detect_positive", 1)? != 0);
    let mut e = Scalar::default();
    let x0 = e.operand(0);
    match (negative, positive) {
        (true, true) => drop(e.unary(Unary::IsInf, x0)),
        (true, false) => drop(e.with(Binary::Eq, x0, f32::NEG_INFINITY)),
        (false, true) => drop(e.with(Binary::Eq, x0, f32::INFINITY)),
        (false, false) => drop(e.literal(0.0, DType::Bool)),
    }
    call.map(e.finish(), &[x], DType::Bool).map(|v| vec![v])
}

/// Sign of the divisor, or of the dividend with `fmod`.
fn modulo(call: &mut Call) -> Outcome {
    let op = if call.flag("fmod")? { Binary::Fmod } else { Binary::Mod };
    binary(call, op)
}

/// Base and exponent may be of different types; the result is of the base's.
fn pow(call: &mut Call) -> Outcome {
    let (x, y) = (call.input(0)?, call.input(1)?);
    let (base, exponent) = (call.dtype(x), call.dtype(y));
    if base == DType::Bool || exponent == DType::Bool {
        return Err("cannot take bool".into());
    }
    if base.is_float() == exponent.is_float() {
        return call.map(Expr::binary(Binary::Pow), &[x, y], base).map(|v| vec![v]);
    }
    let mut e = Scalar::default();
    let operands = [e.operand(0), e.operand(1)];
    let float = |e: &mut Scalar, at: At, dtype: DType| if dtype.is_float() { at } else { e.cast(at, DType::F32) };
    let (b, p) = (float(&mut e, operands[0], base), float(&mut e, operands[1], exponent));
    let power = e.binary(Binary::Pow, b, p);
    if !base.is_float() {
        e.cast(power, base);
    }
    call.map(e.finish(), &[x, y], base).map(|v| vec![v])
}

fn select(call: &mut Call) -> Outcome {
    let (c, x, y) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (a, b) = (call.dtype(x), call.dtype(y));
    if call.dtype(c) != DType::Bool || a != b {
        return Err(format!("needs a bool condition and branches of one type, has {}, {a} and {b}", call.dtype(c)));
    }
    call.map(Expr::select(), &[c, x, y], a).map(|v| vec![v])
}
