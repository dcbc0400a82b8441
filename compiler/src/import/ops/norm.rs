//! Normalisations.

use super::call::{Call, axes, axis, volume};
use super::expr::Scalar;
use super::{Outcome, Rule, Table};
use crate::graph::{NormOp, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, FloatBits, Fold, PoolOp, Unary, Window};

pub(super) const OPS: Table = &[
    ("BatchNormalization", Rule::Call(batch_normalization)),
    ("GroupNormalization", Rule::Call(group_normalization)),
    ("InstanceNormalization", Rule::Call(instance_normalization)),
    ("LRN", Rule::Call(local_response_normalization)),
    ("LayerNormalization", Rule::Call(layer_normalization)),
    ("LpNormalization", Rule::Call(lp_normalization)),
    ("MeanVarianceNormalization", Rule::Call(mean_variance_normalization)),
    ("RMSNormalization", Rule::Call(rms_normalization)),
];

fn layer_normalization(call: &mut Call) -> Outcome {
    composite(call, true)
}

fn rms_normalization(call: &mut Call) -> Outcome {
    composite(call, false)
}

/// Over the axes from `axis` on. Scale and bias that do not have the normalised shape are applied afterwards, or broadcast to it.
fn composite(call: &mut Call, center: bool) -> Outcome {
    let (x, mut scale) = (call.float_input(0)?, call.float_input(1)?);
    let mut bias = call.optional(2).filter(|_| center);
    let shape = call.shape(x);
    let first = axis(call.int("axis", -1)?, shape.len())?;
    let (axes, dtype, normalised) = (shape.len() - first, call.dtype(x), shape[first..].to_vec());
    let eps = FloatBits(call.float("epsilon", 1e-5)?.to_bits());
    if [Some(scale), bias].into_iter().flatten().any(|v| call.rank(v) > axes) {
        return scaled_afterwards(call, x, scale, bias, NormOp { center, axes, eps, bias: false, dtype });
    }
    scale = call.broadcast(scale, normalised.clone())?;
    if let Some(b) = bias {
        bias = Some(call.broadcast(b, normalised)?);
    }
    let norm = NormOp { center, axes, eps, bias: bias.is_some(), dtype };
    let inputs: Vec<ValueId> = [x, scale].into_iter().chain(bias).collect();
    call.emit(Op::Norm(norm), &inputs)
}

/// A norm with unit scale, then scale and bias of any shape that broadcasts.
fn scaled_afterwards(call: &mut Call, x: ValueId, scale: ValueId, bias: Option<ValueId>, norm: NormOp) -> Outcome {
    let (shape, dtype) = (call.shape(x), norm.dtype);
    let unit = call.filled(1.0, dtype, shape[shape.len() - norm.axes..].to_vec())?;
    let mut results = call.emit(Op::Norm(norm), &[x, unit])?;
    let mut y = call.binary(Binary::Mul, results[0], scale)?;
    if let Some(bias) = bias {
        y = call.binary(Binary::Add, y, bias)?;
    }
    if call.shape(y) != shape {
        return Err("needs a scale and a bias that broadcast to the input".into());
    }
    results[0] = y;
    Ok(results)
}

/// `(x - mean) / sqrt(variance + eps)` over the given axes, in f32.
fn standardised(call: &mut Call, x: ValueId, axes: &[usize], eps: f32) -> Result<ValueId, String> {
    let shape = call.shape(x);
    let count = axes.iter().fold(1u64, |n, &a| n.saturating_mul(shape[a])) as f32;
    let x = call.cast(x, DType::F32)?;
    let sum = call.reduce(Fold::Sum, x, axes, DType::F32)?;
    let mean = call.with(Binary::Div, sum, count)?;
    let centered = call.binary(Binary::Sub, x, mean)?;
    let squares = call.binary(Binary::Mul, centered, centered)?;
    let sum = call.reduce(Fold::Sum, squares, axes, DType::F32)?;
    let mut e = Scalar::default();
    let s = e.operand(0);
    let variance = e.with(Binary::Div, s, count);
    let shifted = e.with(Binary::Add, variance, eps);
    e.unary(Unary::Rsqrt, shifted);
    let rstd = call.map(e.finish(), &[sum], DType::F32)?;
    call.binary(Binary::Mul, centered, rstd)
}

/// `y * scale + bias`, both `[channels]` along axis 1 of a tensor of this rank.
fn by_channel(call: &mut Call, y: ValueId, scale: ValueId, bias: ValueId, dtype: DType) -> Result<ValueId, String> {
    let rank = call.rank(y);
    let along = |call: &mut Call, v: ValueId| {
        let mut shape = vec![1; rank];
        shape[1] = volume(&call.shape(v))?;
        call.reshape(v, shape)
    };
    let (scale, bias) = (along(call, scale)?, along(call, bias)?);
    let mut e = Scalar::default();
    let (y0, s, b) = (e.operand(0), e.operand(1), e.operand(2));
    let scaled = e.binary(Binary::Mul, y0, s);
    e.binary(Binary::Add, scaled, b);
    call.map(e.finish(), &[y, scale, bias], dtype)
}

/// The image, checked to be `[n, c, ..]` with scale and bias of `channels` elements.
fn image(call: &Call, channels: impl Fn(u64) -> u64) -> Result<(ValueId, ValueId, ValueId, Vec<u64>), String> {
    let (x, scale, bias) = (call.float_input(0)?, call.float_input(1)?, call.float_input(2)?);
    let shape = call.shape(x);
    let fits = shape.len() >= 2 && [scale, bias].iter().all(|&v| call.shape(v) == [channels(shape[1])]);
    match fits {
        true => Ok((x, scale, bias, shape)),
        false => Err("needs an input [n, c, ..] and a scale and a bias for its channels".into()),
    }
}

fn instance_normalization(call: &mut Call) -> Outcome {
    let (x, scale, bias, shape) = image(call, |c| c)?;
    let eps = call.float("epsilon", 1e-5)?;
    let y = standardised(call, x, &(2..shape.len()).collect::<Vec<_>>(), eps)?;
    let dtype = call.dtype(x);
    by_channel(call, y, scale, bias, dtype).map(|v| vec![v])
}

/// Scale and bias are one a group before opset 21, one a channel since.
fn group_normalization(call: &mut Call) -> Outcome {
    let groups = u64::try_from(call.int("num_groups", 0)?).ok().filter(|&g| g > 0).ok_or("needs a positive num_groups")?;
    let by_group = call.opset() < 21;
    let (x, scale, bias, shape) = image(call, |c| if by_group { groups } else { c })?;
    if shape[1] % groups != 0 {
        return Err(format!("cannot split {} channels into {groups} groups", shape[1]));
    }
    let (eps, dtype) = (call.float("epsilon", 1e-5)?, call.dtype(x));
    let grouped = call.reshape(x, vec![shape[0], groups, volume(&shape[1..])? / groups])?;
    let y = standardised(call, grouped, &[2], eps)?;
    if by_group {
        let y = by_channel(call, y, scale, bias, dtype)?;
        return call.reshape(y, shape).map(|v| vec![v]);
    }
    let y = call.reshape(y, shape)?;
    by_channel(call, y, scale, bias, dtype).map(|v| vec![v])
}

/// With the running statistics, as at inference.
fn batch_normalization(call: &mut Call) -> Outcome {
    if call.flag("training_mode")? || (1..5).any(|i| call.wants(i)) {
        return Err("updates its running statistics (training_mode); export the model in evaluation mode".into());
    }
    let (x, scale, bias, shape) = image(call, |c| c)?;
    let (mean, variance) = (call.float_input(3)?, call.float_input(4)?);
    let along = |call: &mut Call, v: ValueId| {
        let mut to = vec![1; shape.len()];
        to[1] = shape[1];
        call.reshape(v, to)
    };
    let (mean, variance) = (along(call, mean)?, along(call, variance)?);
    let mut e = Scalar::default();
    let v = e.operand(0);
    let shifted = e.with(Binary::Add, v, call.float("epsilon", 1e-5)?);
    e.unary(Unary::Rsqrt, shifted);
    let rstd = call.map(e.finish(), &[variance], DType::F32)?;
    let mut e = Scalar::default();
    let (x0, m, r) = (e.operand(0), e.operand(1), e.operand(2));
    let centered = e.binary(Binary::Sub, x0, m);
    e.binary(Binary::Mul, centered, r);
    let y = call.map(e.finish(), &[x, mean, rstd], DType::F32)?;
    let dtype = call.dtype(x);
    by_channel(call, y, scale, bias, dtype).map(|v| vec![v])
}

fn mean_variance_normalization(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    let list = call.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    let axes = axes(&list, call.rank(x))?;
    // The operator's definition adds 1e-9 to the deviation; to the variance it is as good as 0.
    let y = standardised(call, x, &axes, 1e-9)?;
    let dtype = call.dtype(x);
    call.cast(y, dtype).map(|v| vec![v])
}

/// `x / norm(x)` along one axis, 0 where the norm is.
fn lp_normalization(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    let along = axis(call.int("axis", -1)?, call.rank(x))?;
    let square = match call.int("p", 2)? {
        1 => false,
        2 => true,
        p => return Err(format!("has the norm of order {p}; 1 and 2 exist")),
    };
    let mut e = Scalar::default();
    let x0 = e.operand(0);
    if square {
        e.binary(Binary::Mul, x0, x0)
    } else {
        e.unary(Unary::Abs, x0)
    };
    let powers = call.map(e.finish(), &[x], DType::F32)?;
    let sum = call.reduce(Fold::Sum, powers, &[along], DType::F32)?;
    let norm = if square { call.unary(Unary::Sqrt, sum)? } else { sum };
    let mut e = Scalar::default();
    let (x0, n) = (e.operand(0), e.operand(1));
    let zero = e.float(0.0);
    let one = e.float(1.0);
    let empty = e.binary(Binary::Eq, n, zero);
    let divisor = e.select(empty, one, n);
    e.binary(Binary::Div, x0, divisor);
    let dtype = call.dtype(x);
    call.map(e.finish(), &[x, norm], dtype).map(|v| vec![v])
}

/// `x / (bias + alpha / size * sum of squares of the channels around)^beta`; the sum is an average pool along the channels.
fn local_response_normalization(call: &mut Call) -> Outcome {
    let x = call.float_input(0)?;
    let (shape, dtype) = (call.shape(x), call.dtype(x));
    let size = u64::try_from(call.int("size", 0)?).ok().filter(|s| (1..1 << 20).contains(s)).ok_or("needs a positive size")?;
    if shape.len() < 2 {
        return Err("needs an input [n, c, ..]".into());
    }
    let (before, channels, rest) = ((size - 1) / 2, shape[1], volume(&shape[2..])?);
    let mut e = Scalar::default();
    let x0 = e.operand(0);
    e.binary(Binary::Mul, x0, x0);
    let squares = call.map(e.finish(), &[x], DType::F32)?;
    let planes = call.reshape(squares, vec![shape[0], 1, channels, rest])?;
    let image = [channels, rest];
    let window = Window { input: image, output: image, kernel: [size, 1], stride: [1, 1], dilation: [1, 1], pad: [before, 0] };
    let op = PoolOp::AverageWithPadding { pad_end: [size - 1 - before, 0] };
    let means = call.one(Op::Pool { op, window }, &[planes])?;
    let means = call.reshape(means, shape)?;
    let (alpha, beta, bias) = (call.float("alpha", 1e-4)?, call.float("beta", 0.75)?, call.float("bias", 1.0)?);
    let mut e = Scalar::default();
    let (x0, mean) = (e.operand(0), e.operand(1));
    let scaled = e.with(Binary::Mul, mean, alpha);
    let shifted = e.with(Binary::Add, scaled, bias);
    let power = e.with(Binary::Pow, shifted, beta);
    e.binary(Binary::Div, x0, power);
    call.map(e.finish(), &[x, means], dtype).map(|v| vec![v])
}
