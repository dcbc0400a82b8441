//! Result types of operators.

use super::*;
use fp8c_kernels::program::{Layout, groups};

impl Op {
    /// Types of the results, from the types of the inputs.
    ///
    /// # Errors
    /// A sentence without a subject ("needs ...", "cannot ...") when the inputs do not fit.
    pub fn infer(&self, inputs: &[&TensorType], parameters: &[Parameter]) -> Result<Vec<TensorType>, String> {
        let n = inputs.len();
        let (least, most) = self.arity();
        if n < least || n > most {
            return Err(format!("needs {least} to {most} inputs, has {n}"));
        }
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(format!("needs {what}, has {n} inputs")) };
        let one = |ty: TensorType| Ok(vec![ty]);
        let same = |i: usize| inputs[i].clone();
        let f32_of = |shape: &[u64]| TensorType::new(DType::F32, shape);
        match self {
            Op::Input { .. } => Err("has no type of its own".into()),
            Op::Parameter(p) => one(parameters.get(*p).ok_or("names no parameter")?.ty.clone()),
            Op::Constant(data) => one(data.ty.clone()),
            Op::State { parameter, dtype, grouped, .. } => {
                let of = &parameters.get(*parameter).ok_or("names no parameter")?.ty;
                one(TensorType::new(*dtype, if *grouped { vec![groups(of.elements())] } else { of.shape.clone() }))
            }
            Op::Control => one(f32_of(&[fp8c_runtime::plan::Control::LEN as u64])),
            Op::DecayOf(_) => one(f32_of(&[1])),
            Op::Map(expr, dtype) => {
                need(n == expr.operands(), "one input for each operand")?;
                let shape = broadcast(inputs.iter().map(|t| t.shape.as_slice()))?;
                one(TensorType::new(*dtype, shape))
            }
            Op::Reduce { axes, dtype, .. } => {
                need(n == 1, "one input")?;
                let mut shape = inputs[0].shape.clone();
                for &a in axes {
                    *shape.get_mut(a).ok_or("reduces an axis that is not there")? = 1;
                }
                one(TensorType::new(*dtype, shape))
            }
            Op::Matmul { trans_a, trans_b, dtype } => {
                need(n == 2, "two inputs")?;
                one(TensorType::new(*dtype, matmul_shape(inputs[0], inputs[1], *trans_a, *trans_b)?))
            }
            Op::Reshape(shape) => {
                need(n == 1, "one input")?;
                let to = TensorType::new(inputs[0].dtype, shape.clone());
                match to.elements() == inputs[0].elements() {
                    true => one(to),
                    false => Err(format!("cannot reshape {:?} to {:?}", inputs[0].shape, shape)),
                }
            }
            Op::Transpose(perm) => {
                need(n == 1 && is_permutation(perm, inputs[0].rank()), "one input and a permutation of its axes")?;
                one(TensorType::new(inputs[0].dtype, perm.iter().map(|&p| inputs[0].shape[p]).collect::<Vec<_>>()))
            }
            Op::Slice { starts, steps, sizes } => {
                need(n == 1, "one input")?;
                let shape = &inputs[0].shape;
                need(starts.len() == shape.len() && steps.len() == shape.len() && sizes.len() == shape.len(), "one range for each axis")?;
                for d in 0..shape.len() {
                    let last = starts[d] as i128 + (sizes[d] as i128 - 1) * steps[d] as i128;
                    let inside = |i: i128| i >= 0 && i < shape[d] as i128;
                    need(sizes[d] == 0 || (inside(starts[d] as i128) && inside(last)), "ranges inside the input")?;
                }
                one(TensorType::new(inputs[0].dtype, sizes.clone()))
            }
            Op::Pad { low, high } => {
                need(n == 1 && low.len() == inputs[0].rank() && high.len() == low.len(), "one input and a width for each side")?;
                let grown = inputs[0].shape.iter().zip(low.iter().zip(high)).map(|(s, (l, h))| s.saturating_add(*l).saturating_add(*h));
                one(TensorType::new(inputs[0].dtype, grown.collect::<Vec<_>>()))
            }
            Op::Concat { axis } => {
                need(n >= 1 && *axis < inputs[0].rank(), "inputs with the axis")?;
                let mut shape = inputs[0].shape.clone();
                for t in &inputs[1..] {
                    let fits = t.rank() == shape.len()
                        && t.dtype == inputs[0].dtype
                        && (0..shape.len()).all(|d| d == *axis || t.shape[d] == shape[d]);
                    need(fits, "inputs alike but for the axis")?;
                    shape[*axis] = shape[*axis].saturating_add(t.shape[*axis]);
                }
                one(TensorType::new(inputs[0].dtype, shape))
            }
            Op::Broadcast(shape) => {
                need(n == 1, "one input")?;
                match broadcast([inputs[0].shape.as_slice(), shape].into_iter())? == *shape {
                    true => one(TensorType::new(inputs[0].dtype, shape.clone())),
                    false => Err(format!("cannot broadcast {:?} to {:?}", inputs[0].shape, shape)),
                }
            }
            Op::Iota { shape, axis } => {
                need(*axis < shape.len(), "an axis of its shape")?;
                one(TensorType::new(DType::I64, shape.clone()))
            }
            Op::Take => {
                need(n == 2 && inputs[0].rank() == 3 && inputs[1].rank() == 3, "rank-3 data and index")?;
                let (d, i) = (&inputs[0].shape, &inputs[1].shape);
                let fits = (i[0] == 1 || i[0] == d[0]) && (i[2] == 1 || i[2] == d[2]) && is_index(inputs[1]);
                need(fits, "an integer index that fits the data")?;
                one(TensorType::new(inputs[0].dtype, [d[0], i[1], d[2]]))
            }
            Op::MaskGradient => {
                let fits = broadcast([inputs[0].shape.as_slice(), &inputs[1].shape].into_iter())? == inputs[0].shape;
                need(fits && inputs[1].dtype == DType::Bool, "a mask that fits the data")?;
                one(same(0))
            }
            Op::PutAdd { extent, dtype } => {
                need(n == 2 && inputs[0].rank() == 3 && inputs[1].rank() == 3, "rank-3 source and index")?;
                let (s, i) = (&inputs[0].shape, &inputs[1].shape);
                let fits = (i[0] == 1 || i[0] == s[0]) && i[1] == s[1] && (i[2] == 1 || i[2] == s[2]) && is_index(inputs[1]);
                need(fits, "an integer index that fits the source")?;
                one(TensorType::new(*dtype, [s[0], *extent, s[2]]))
            }
            Op::CumSum { axis, .. } => {
                need(n == 1 && *axis < inputs[0].rank(), "one input with the axis")?;
                one(same(0))
            }
            Op::Conv(c) => {
                need(n >= 2 && inputs[0].rank() == 4 && inputs[1].rank() == 4, "rank-4 image and weight")?;
                let fits = c.groups > 0
                    && inputs[0].shape[1] == inputs[1].shape[1].saturating_mul(c.groups)
                    && inputs[1].shape[0].is_multiple_of(c.groups);
                need(
                    fits && inputs[0].shape[2..] == c.window.input && inputs[1].shape[2..] == c.window.kernel,
                    "channels and extents that fit",
                )?;
                let [h, w] = c.window.output;
                one(TensorType::new(c.dtype, [inputs[0].shape[0], inputs[1].shape[0], h, w]))
            }
            Op::ConvDgrad(c) => {
                let (dy, k) = (&inputs[0].shape, &inputs[1].shape);
                let fits = dy.len() == 4 && k.len() == 4 && c.groups > 0 && k[0].is_multiple_of(c.groups) && dy[1] == k[0];
                need(fits && dy[2..] == c.window.output && k[2..] == c.window.kernel, "dy and a weight that fit")?;
                let [h, w] = c.window.input;
                one(TensorType::new(c.dtype, [dy[0], k[1].saturating_mul(c.groups), h, w]))
            }
            Op::ConvWgrad(c) => {
                let (dy, x) = (&inputs[0].shape, &inputs[1].shape);
                let fits = dy.len() == 4 && x.len() == 4 && c.groups > 0 && x[1].is_multiple_of(c.groups) && dy[1].is_multiple_of(c.groups);
                need(fits && dy[0] == x[0] && dy[2..] == c.window.output && x[2..] == c.window.input, "dy and an image that fit")?;
                let [h, w] = c.window.kernel;
                one(f32_of(&[dy[1], x[1] / c.groups, h, w]))
            }
            Op::Pool { window, .. } => {
                need(n == 1 && inputs[0].rank() == 4 && inputs[0].shape[2..] == window.input, "an image of the window's extent")?;
                let s = &inputs[0].shape;
                one(TensorType::new(inputs[0].dtype, [s[0], s[1], window.output[0], window.output[1]]))
            }
            Op::PoolGrad { window, .. } => {
                let (x, dy) = (&inputs[0].shape, &inputs[1].shape);
                let fits = x.len() == 4 && dy.len() == 4 && x[..2] == dy[..2] && x[2..] == window.input && dy[2..] == window.output;
                need(fits, "x and dy of the window's extents")?;
                one(same(0))
            }
            Op::Norm(norm) => {
                need(n == 2 + norm.bias as usize && norm.axes <= inputs[0].rank(), "x, scale and the bias it names")?;
                let normalised = &inputs[0].shape[inputs[0].rank() - norm.axes..];
                need(inputs[1..].iter().all(|t| t.shape == normalised), "a scale and a bias of the normalised shape")?;
                let stat = TensorType::new(DType::F32, stat_shape(&inputs[0].shape, norm.axes));
                let mut out = vec![TensorType::new(norm.dtype, inputs[0].shape.clone())];
                out.extend(norm.center.then(|| stat.clone()));
                out.push(stat);
                Ok(out)
            }
            Op::NormGrad(norm) => {
                let fits = n == 4 + norm.center as usize && inputs[0].shape == inputs[1].shape && norm.axes <= inputs[1].rank();
                need(fits, "dy, x, scale and the statistics")?;
                let (x, stat) = (&inputs[1].shape, stat_shape(&inputs[1].shape, norm.axes));
                need(
                    inputs[2].shape == x[x.len() - norm.axes..] && inputs[3..].iter().all(|t| t.shape == stat),
                    "a scale and statistics that fit",
                )?;
                let mut out = vec![TensorType::new(norm.dtype, inputs[1].shape.clone()), f32_of(&inputs[2].shape)];
                out.extend(norm.bias.then(|| f32_of(&inputs[2].shape)));
                Ok(out)
            }
            Op::Softmax { .. } | Op::SoftmaxGrad { .. } => {
                let grad = matches!(self, Op::SoftmaxGrad { .. });
                need(
                    n == 1 + grad as usize && inputs.iter().all(|t| t.rank() >= 1 && t.shape == inputs[0].shape),
                    "inputs of rank 1 or more",
                )?;
                one(same(n - 1))
            }
            Op::Attention(a) => {
                need(n == 3 + a.bias as usize && inputs[..3].iter().all(|t| t.rank() == 4), "rank-4 q, k, v and the bias it names")?;
                let (q, k, v) = (&inputs[0].shape, &inputs[1].shape, &inputs[2].shape);
                let fits = q[0] == k[0] && k[..3] == v[..3] && q[3] == k[3] && k[1] > 0 && q[1] % k[1] == 0;
                need(fits, "q, k and v that fit")?;
                let scores = [q[0], q[1], q[2], k[2]];
                let bias = inputs.get(3).map(|b| broadcast([b.shape.as_slice(), &scores].into_iter()));
                need(bias.is_none_or(|b| b.is_ok_and(|b| b == scores)), "a bias that broadcasts to the scores")?;
                Ok(vec![TensorType::new(inputs[0].dtype, [q[0], q[1], q[2], v[3]]), f32_of(&[q[0], q[1], q[2], 1])])
            }
            Op::AttentionGrad(a) => {
                need(n == 6 + a.bias as usize, "q, k, v, o, lse, do and the bias it names")?;
                let forward = Op::Attention(a.clone()).infer(&inputs[..n - 3], parameters)?;
                let o = &forward[0].shape;
                let fits = inputs[n - 3].shape == *o && inputs[n - 2].shape == forward[1].shape && inputs[n - 1].shape == *o;
                need(fits, "o, lse and do that fit")?;
                Ok(vec![same(0), same(1), same(2)])
            }
            Op::Rotary { rotated, .. } => {
                let mut turned = inputs[0].shape.clone();
                need(turned.last().is_some_and(|d| rotated <= d) && rotated.is_multiple_of(2), "an even number of elements to rotate")?;
                turned.iter_mut().last().into_iter().for_each(|d| *d = *rotated);
                let fits = |t: &&TensorType| broadcast([t.shape.as_slice(), &turned].into_iter()).is_ok_and(|s| s == turned);
                need(inputs[1..].iter().all(fits), "cos and sin that broadcast to what is rotated")?;
                one(same(0))
            }
            Op::CrossEntropy(_) => {
                need(
                    inputs[0].rank() == 2 && inputs[1].shape == inputs[0].shape[..1] && is_index(inputs[1]),
                    "logits [n, c] and integer labels [n]",
                )?;
                Ok(vec![f32_of(&[]), f32_of(&inputs[1].shape)])
            }
            Op::CrossEntropyGrad(c) => {
                let (logits, rows) = (&inputs[1].shape, &inputs[2].shape);
                let fits = inputs[0].elements() == 1 && logits.len() == 2 && *rows == logits[..1] && inputs[3].shape == *rows;
                need(fits && is_index(inputs[2]), "dloss, logits, labels and lse that fit")?;
                one(TensorType::new(c.dtype, inputs[1].shape.clone()))
            }
            Op::Quantize { layout, .. } => {
                need(n == 1 && inputs[0].rank() >= 2, "a matrix")?;
                Ok(quantized(&inputs[0].shape, *layout))
            }
            Op::ScaledMatmul { shape, dtype, .. } => {
                need(n == 4, "codes and scales of both operands")?;
                let out = TensorType::new(*dtype, shape.clone());
                let (a, b) = (&inputs[0].shape, &inputs[2].shape);
                need(
                    a.len() == 2 && b.len() == 2 && a[1] == b[1] && a[0].saturating_mul(b[0]) == out.elements(),
                    "K-major operands that fit",
                )?;
                one(out)
            }
            Op::SumSquares => one(same(1)),
            Op::FinishNorm { .. } => one(same(0)),
            Op::AccumulateGradient => {
                need(inputs[0].shape == inputs[1].shape, "a buffer of the gradient's shape")?;
                one(same(0))
            }
            Op::Optimize(o) => {
                let (states, stochastic) = (o.states(), inputs[0].dtype == DType::Bf16);
                need(n == 4 + states + stochastic as usize + o.guarded as usize, "a parameter, its gradient, moments and numbers")?;
                let words = [groups(inputs[0].elements())];
                let fits = |(i, t): (usize, &&TensorType)| match o.moments == DType::E4m3 && i % 2 == 1 {
                    true => t.dtype == DType::F32 && t.shape == words,
                    false => t.dtype == o.moments && t.shape == inputs[0].shape,
                };
                need(inputs[1].shape == inputs[0].shape, "a gradient of the parameter's shape")?;
                need(inputs[2..2 + states].iter().enumerate().all(fits), "moments of the parameter's shape")?;
                Ok(std::iter::once(same(0)).chain((2..2 + states).map(same)).collect())
            }
        }
    }
}

impl Op {
    /// Fewest and most inputs.
    fn arity(&self) -> (usize, usize) {
        match self {
            op if op.is_source() => (0, 0),
            Op::Iota { .. } => (0, 0),
            Op::Map(..) | Op::Concat { .. } => (0, usize::MAX),
            Op::Conv(_) | Op::Norm(_) => (2, 3),
            Op::Attention(_) => (3, 4),
            Op::AttentionGrad(_) => (6, 7),
            Op::NormGrad(_) => (4, 5),
            Op::Rotary { .. } => (3, 3),
            Op::CrossEntropyGrad(_) | Op::ScaledMatmul { .. } => (4, 4),
            Op::Optimize(_) => (5, 10),
            Op::Matmul { .. }
            | Op::Take
            | Op::MaskGradient
            | Op::PutAdd { .. }
            | Op::ConvDgrad(_)
            | Op::ConvWgrad(_)
            | Op::PoolGrad { .. } => (2, 2),
            Op::SoftmaxGrad { .. } | Op::CrossEntropy(_) | Op::SumSquares | Op::FinishNorm { .. } | Op::AccumulateGradient => (2, 2),
            _ => (1, 1),
        }
    }
}

fn is_index(t: &TensorType) -> bool {
    matches!(t.dtype, DType::I64 | DType::I32)
}

/// Numpy's broadcast of shapes.
///
/// # Errors
/// When two extents differ and neither is 1.
pub fn broadcast<'a>(shapes: impl Iterator<Item = &'a [u64]>) -> Result<Vec<u64>, String> {
    let mut out: Vec<u64> = vec![];
    for s in shapes {
        if s.len() > out.len() {
            out.splice(0..0, std::iter::repeat_n(1, s.len() - out.len()));
        }
        let lead = out.len() - s.len();
        for (d, &extent) in s.iter().enumerate() {
            let o = &mut out[lead + d];
            match (*o, extent) {
                (a, b) if a == b => {}
                (1, b) => *o = b,
                (_, 1) => {}
                (a, b) => return Err(format!("cannot broadcast extents {a} and {b}")),
            }
        }
    }
    Ok(out)
}

/// Shape of a norm's statistics: extent 1 along the last `axes` axes.
pub fn stat_shape(shape: &[u64], axes: usize) -> Vec<u64> {
    shape.iter().enumerate().map(|(d, &s)| if d + axes >= shape.len() { 1 } else { s }).collect()
}

/// The matrix that a tensor is when its leading axes are flattened: `[rows, cols]`.
pub fn as_matrix(shape: &[u64]) -> [u64; 2] {
    match shape.split_last() {
        Some((&cols, rows)) => [rows.iter().product(), cols],
        None => [1, 1],
    }
}

fn quantized(shape: &[u64], layout: Layout) -> Vec<TensorType> {
    let [r, c] = as_matrix(shape);
    let codes = |r, c| TensorType::new(DType::E4m3, [r, c]);
    let scales = |r, c| TensorType::new(DType::F32, [r, c]);
    let (by_row, by_col) = ([codes(r, c), scales(r, groups(c))], [codes(c, r), scales(c, groups(r))]);
    match layout {
        Layout::Rows => by_row.to_vec(),
        Layout::Columns => by_col.to_vec(),
        Layout::RowsAndColumns => [by_row, by_col].concat(),
        Layout::Blocks => vec![codes(r, c), scales(groups(r), groups(c))],
        Layout::BlocksBoth => vec![codes(r, c), scales(groups(r), groups(c)), codes(c, r), scales(groups(c), groups(r))],
    }
}

fn matmul_shape(a: &TensorType, b: &TensorType, trans_a: bool, trans_b: bool) -> Result<Vec<u64>, String> {
    let rank = a.rank();
    if rank < 2 || b.rank() != rank {
        return Err(format!("needs operands of equal rank >= 2, has {:?} and {:?}", a.shape, b.shape));
    }
    let last =
        |t: &TensorType, swap: bool| if swap { (t.shape[rank - 1], t.shape[rank - 2]) } else { (t.shape[rank - 2], t.shape[rank - 1]) };
    let ((m, k), (k2, n)) = (last(a, trans_a), last(b, trans_b));
    if k != k2 {
        return Err(format!("cannot multiply {:?} and {:?}: {k} columns against {k2} rows", a.shape, b.shape));
    }
    let mut shape = broadcast([&a.shape[..rank - 2], &b.shape[..rank - 2]].into_iter())?;
    shape.extend([m, n]);
    Ok(shape)
}

fn is_permutation(perm: &[usize], rank: usize) -> bool {
    let mut seen = vec![false; rank];
    perm.len() == rank && perm.iter().all(|&p| p < rank && !std::mem::replace(&mut seen[p], true))
}
