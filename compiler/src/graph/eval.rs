//! The reference interpreter: what every operator means, computed plainly on host data.
//!
//! It folds constants ([`eval_node`]) and serves tests as the truth ([`eval`] with [`Rounding::Exact`] has neither f32 arithmetic
//! nor storage formats, so that central differences are sharp). It favours plainness over speed.

mod attention;
mod composite;
mod contract;
mod run;
mod scalar;
mod update;
mod views;
mod window;

pub use run::{Sources, run};

use super::*;

/// Largest number of elements that a result may have.
pub const MAX_ELEMENTS: u64 = 1 << 28;

/// A tensor on the host; bools are integers 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<u64>,
    pub data: Data,
}

/// Row-major elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Float(Vec<f64>),
    Int(Vec<i64>),
}

/// What happens to floats on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Scalar arithmetic rounds to f32, each result to its dtype, as the graph's meaning has it. Sums run in f64.
    Stored,
    /// All in f64, casts between float formats do nothing.
    Exact,
}

/// Evaluates one node on constants; results are rounded to their dtypes.
///
/// # Errors
/// A sentence without a subject, as [`Op::infer`]'s: an index out of range, a result of more than [`MAX_ELEMENTS`] elements, or an operator
/// that has no value at compile time (sources, quantizers).
pub fn eval_node(op: &Op, inputs: &[&ConstData], result_types: &[TensorType]) -> Result<Vec<ConstData>, String> {
    let tensors: Vec<Tensor> = inputs.iter().map(|c| Tensor::from_const(c)).collect();
    let results = eval(op, &tensors.iter().collect::<Vec<_>>(), result_types, Rounding::Stored)?;
    results.iter().zip(result_types).map(|(t, ty)| t.to_const(ty)).collect()
}

/// Evaluates one node; `types` are those of its results.
///
/// # Errors
/// As [`eval_node`].
pub fn eval(op: &Op, inputs: &[&Tensor], types: &[TensorType], rounding: Rounding) -> Result<Vec<Tensor>, String> {
    if types.iter().any(|t| t.elements() > MAX_ELEMENTS) {
        return Err(format!("has a result of more than {MAX_ELEMENTS} elements"));
    }
    let results = dispatch(op, inputs, types, rounding)?;
    if results.len() != types.len() || results.iter().zip(types).any(|(r, t)| r.shape != t.shape || r.data.len() as u64 != t.elements()) {
        return Err("evaluates to another shape than it was inferred to have".into());
    }
    Ok(results.into_iter().zip(types).map(|(r, ty)| r.stored(ty.dtype, rounding)).collect())
}

fn dispatch(op: &Op, inputs: &[&Tensor], types: &[TensorType], rounding: Rounding) -> Result<Vec<Tensor>, String> {
    let first = types.first().ok_or("has no result")?;
    let shape = &first.shape;
    let one = |t: Tensor| Ok(vec![t]);
    match op {
        Op::Constant(data) => one(Tensor::from_const(data)),
        Op::Map(expr, dtype) => one(scalar::map(expr, *dtype, inputs, shape, rounding)?),
        Op::Reduce { op, .. } => one(contract::reduce(*op, inputs[0], shape)?),
        Op::Matmul { trans_a, trans_b, .. } => one(contract::matmul(inputs[0], inputs[1], *trans_a, *trans_b, shape)?),
        Op::Reshape(_) => one(Tensor { shape: shape.clone(), data: inputs[0].data.clone() }),
        Op::Transpose(perm) => one(views::transpose(inputs[0], perm, shape)),
        Op::Slice { starts, steps, .. } => one(views::slice(inputs[0], starts, steps, shape)),
        Op::Pad { low, .. } => one(views::pad(inputs[0], low, shape)),
        Op::Concat { axis } => one(views::concat(inputs, *axis, shape)),
        Op::Broadcast(_) => one(views::broadcast_to(inputs[0], shape)),
        Op::Iota { axis, .. } => one(views::iota(shape, *axis)),
        Op::Take => one(views::take(inputs[0], inputs[1], shape)?),
        Op::MaskGradient => one(inputs[0].clone()),
        Op::PutAdd { extent, .. } => one(views::put_add(inputs[0], inputs[1], *extent, shape)?),
        Op::CumSum { axis, exclusive, reverse } => one(views::cum_sum(inputs[0], *axis, *exclusive, *reverse)),
        Op::Conv(c) => one(window::conv(c, inputs, shape)?),
        Op::ConvDgrad(c) => one(window::conv_dgrad(c, inputs, shape)?),
        Op::ConvWgrad(c) => one(window::conv_wgrad(c, inputs, shape)?),
        Op::Pool { op, window } => one(window::pool(*op, window, inputs[0], shape)?),
        Op::PoolGrad { op, window } => one(window::pool_grad(*op, window, inputs)?),
        Op::Norm(n) => composite::norm(n, inputs, types),
        Op::NormGrad(n) => composite::norm_grad(n, inputs, types),
        Op::Softmax { log } => one(composite::softmax(*log, inputs[0])?),
        Op::SoftmaxGrad { log } => one(composite::softmax_grad(*log, inputs)?),
        Op::Attention(a) => attention::forward(a, inputs, types),
        Op::AttentionGrad(a) => attention::backward(a, inputs, types),
        Op::Rotary { rotated, interleaved, inverse } => one(composite::rotary(*rotated, *interleaved, *inverse, inputs)?),
        Op::CrossEntropy(c) => composite::cross_entropy(c, inputs, types),
        Op::CrossEntropyGrad(c) => one(composite::cross_entropy_grad(c, inputs)?),
        Op::SumSquares | Op::FinishNorm { .. } | Op::Optimize(_) | Op::AccumulateGradient => update::eval(op, inputs),
        Op::Input { .. } | Op::Parameter(_) | Op::State { .. } | Op::Control | Op::DecayOf(_) => Err("has no value at compile time".into()),
        Op::Quantize { .. } | Op::ScaledMatmul { .. } => Err("is not evaluated by the reference".into()),
    }
}

impl Data {
    pub fn len(&self) -> usize {
        match self {
            Data::Float(v) => v.len(),
            Data::Int(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements at these positions.
    fn pick(&self, at: &[usize]) -> Data {
        match self {
            Data::Float(v) => Data::Float(at.iter().map(|&i| v[i]).collect()),
            Data::Int(v) => Data::Int(at.iter().map(|&i| v[i]).collect()),
        }
    }

    fn zeros_like(&self, n: usize) -> Data {
        match self {
            Data::Float(_) => Data::Float(vec![0.0; n]),
            Data::Int(_) => Data::Int(vec![0; n]),
        }
    }
}

impl Tensor {
    pub fn float(shape: impl Into<Vec<u64>>, data: Vec<f64>) -> Self {
        Tensor { shape: shape.into(), data: Data::Float(data) }
    }

    pub fn int(shape: impl Into<Vec<u64>>, data: Vec<i64>) -> Self {
        Tensor { shape: shape.into(), data: Data::Int(data) }
    }

    /// All zeros of a type.
    pub fn zeros(ty: &TensorType) -> Self {
        let n = ty.elements() as usize;
        match ty.dtype.is_float() {
            true => Tensor::float(ty.shape.clone(), vec![0.0; n]),
            false => Tensor::int(ty.shape.clone(), vec![0; n]),
        }
    }

    /// The elements of a float tensor.
    ///
    /// # Errors
    /// When it holds integers.
    pub fn floats(&self) -> Result<&[f64], String> {
        match &self.data {
            Data::Float(v) => Ok(v),
            Data::Int(_) => Err("needs a float where it has an integer".into()),
        }
    }

    /// The elements of an integer or bool tensor.
    ///
    /// # Errors
    /// When it holds floats.
    pub fn ints(&self) -> Result<&[i64], String> {
        match &self.data {
            Data::Int(v) => Ok(v),
            Data::Float(_) => Err("needs an integer where it has a float".into()),
        }
    }

    pub fn from_const(c: &ConstData) -> Self {
        let data = match c.ty.dtype.is_float() {
            true => Data::Float(c.to_f32().into_iter().map(f64::from).collect()),
            false => Data::Int(c.to_i64()),
        };
        Tensor { shape: c.ty.shape.clone(), data }
    }

    /// The elements in the storage format of `ty`.
    ///
    /// # Errors
    /// For E4M3, which the reference does not round to.
    pub fn to_const(&self, ty: &TensorType) -> Result<ConstData, String> {
        let bytes = match (&self.data, ty.dtype) {
            (Data::Float(v), DType::F32) => v.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
            (Data::Float(v), DType::Bf16) => v.iter().flat_map(|x| half::bf16::from_f32(*x as f32).to_le_bytes()).collect(),
            (Data::Int(v), DType::I64) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Data::Int(v), DType::I32) => v.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect(),
            (Data::Int(v), DType::Bool) => v.iter().map(|x| (*x != 0) as u8).collect(),
            (_, dtype) => return Err(format!("cannot store its result as {dtype}")),
        };
        Ok(ConstData { ty: ty.clone(), bytes })
    }

    /// Rounds to a dtype's values.
    fn stored(mut self, dtype: DType, rounding: Rounding) -> Self {
        match &mut self.data {
            Data::Float(v) if rounding == Rounding::Stored => v.iter_mut().for_each(|x| *x = scalar::round_float(*x, dtype)),
            Data::Float(_) => {}
            Data::Int(v) => v.iter_mut().for_each(|x| *x = scalar::wrap_int(*x, dtype)),
        }
        self
    }
}

/// Row-major strides, in elements.
pub fn strides(shape: &[u64]) -> Vec<i64> {
    let mut out = vec![1i64; shape.len()];
    for d in (1..shape.len()).rev() {
        out[d - 1] = out[d].saturating_mul(shape[d] as i64);
    }
    out
}

/// Strides that read `shape` as if it were broadcast to `to`: 0 along axes of extent 1.
pub fn broadcast_strides(shape: &[u64], to: &[u64]) -> Vec<i64> {
    let own = strides(shape);
    let lead = to.len() - shape.len();
    (0..to.len()).map(|d| if d < lead || shape[d - lead] == 1 { 0 } else { own[d - lead] }).collect()
}

/// Calls `f` with the offset of every operand at each point of `shape`, in row-major order. Operands are `(offset, strides)`.
pub(super) fn walk<const N: usize>(shape: &[u64], operands: [(i64, Vec<i64>); N], mut f: impl FnMut([usize; N])) {
    if shape.contains(&0) {
        return;
    }
    let mut at = operands.each_ref().map(|(offset, _)| *offset);
    let mut index = vec![0u64; shape.len()];
    loop {
        f(at.map(|a| a as usize));
        let mut d = shape.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            (0..N).for_each(|n| at[n] += operands[n].1[d]);
            if index[d] < shape[d] {
                break;
            }
            (0..N).for_each(|n| at[n] -= operands[n].1[d] * shape[d] as i64);
            index[d] = 0;
        }
    }
}

/// A tensor of `shape` that reads `t` with an offset and strides.
pub(super) fn strided(t: &Tensor, shape: &[u64], offset: i64, strides: Vec<i64>) -> Tensor {
    let mut at = vec![];
    walk(shape, [(offset, strides)], |[i]| at.push(i));
    Tensor { shape: shape.to_vec(), data: t.data.pick(&at) }
}
