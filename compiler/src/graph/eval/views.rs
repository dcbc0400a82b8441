//! Operators that move elements: views, gathers, prefix sums.

use super::*;

pub(super) fn transpose(x: &Tensor, perm: &[usize], shape: &[u64]) -> Tensor {
    let own = strides(&x.shape);
    strided(x, shape, 0, perm.iter().map(|&p| own[p]).collect())
}

pub(super) fn slice(x: &Tensor, starts: &[i64], steps: &[i64], shape: &[u64]) -> Tensor {
    let own = strides(&x.shape);
    let offset = starts.iter().zip(&own).map(|(a, b)| a * b).sum();
    strided(x, shape, offset, steps.iter().zip(&own).map(|(a, b)| a * b).collect())
}

pub(super) fn broadcast_to(x: &Tensor, shape: &[u64]) -> Tensor {
    strided(x, shape, 0, broadcast_strides(&x.shape, shape))
}

pub(super) fn pad(x: &Tensor, low: &[u64], shape: &[u64]) -> Tensor {
    let mut out = x.data.zeros_like(shape.iter().product::<u64>() as usize);
    place(&mut out, shape, low, x);
    Tensor { shape: shape.to_vec(), data: out }
}

pub(super) fn concat(inputs: &[&Tensor], axis: usize, shape: &[u64]) -> Tensor {
    let mut out = inputs[0].data.zeros_like(shape.iter().product::<u64>() as usize);
    let mut low = vec![0; shape.len()];
    for x in inputs {
        place(&mut out, shape, &low, x);
        low[axis] += x.shape[axis];
    }
    Tensor { shape: shape.to_vec(), data: out }
}

/// Copies `x` into a tensor of `shape` at `low`.
fn place(out: &mut Data, shape: &[u64], low: &[u64], x: &Tensor) {
    let to = strides(shape);
    let offset = low.iter().zip(&to).map(|(a, b)| *a as i64 * b).sum();
    let from = (0, strides(&x.shape));
    match (out, &x.data) {
        (Data::Float(out), Data::Float(v)) => walk(&x.shape, [(offset, to), from], |[o, i]| out[o] = v[i]),
        (Data::Int(out), Data::Int(v)) => walk(&x.shape, [(offset, to), from], |[o, i]| out[o] = v[i]),
        // Inputs of one node have one dtype: `Op::infer`.
        _ => {}
    }
}

pub(super) fn iota(shape: &[u64], axis: usize) -> Tensor {
    let along = (0..shape.len()).map(|d| (d == axis) as i64).collect();
    let mut out = vec![];
    walk(shape, [(0, along)], |[i]| out.push(i as i64));
    Tensor::int(shape, out)
}

/// Offsets into the data and the index of `[o, j, i]`, as `(base without the picked axis, index)`.
fn picks(shape: &[u64], extent: u64, index: &Tensor, mut f: impl FnMut(usize, usize, i64)) -> Result<(), String> {
    let ids = index.ints()?;
    let data = (0, vec![(extent * shape[2]) as i64, 0, 1]);
    let own = broadcast_strides(&index.shape, shape);
    let mut bad = None;
    let mut point = 0;
    walk(shape, [data, (0, own)], |[base, at]| {
        match ids[at] {
            id if id >= 0 && (id as u64) < extent => f(point, base, id),
            id => bad = Some(id),
        }
        point += 1;
    });
    bad.map_or(Ok(()), |id| Err(format!("takes element {id} of {extent}")))
}

pub(super) fn take(x: &Tensor, index: &Tensor, shape: &[u64]) -> Result<Tensor, String> {
    let mut at = vec![];
    picks(shape, x.shape[1], index, |_, base, id| at.push(base + id as usize * shape[2] as usize))?;
    Ok(Tensor { shape: shape.to_vec(), data: x.data.pick(&at) })
}

pub(super) fn put_add(x: &Tensor, index: &Tensor, extent: u64, shape: &[u64]) -> Result<Tensor, String> {
    let v = x.floats()?;
    let mut out = vec![0.0; shape.iter().product::<u64>() as usize];
    picks(&x.shape, extent, index, |from, base, id| out[base + id as usize * shape[2] as usize] += v[from])?;
    Ok(Tensor::float(shape, out))
}

pub(super) fn cum_sum(x: &Tensor, axis: usize, exclusive: bool, reverse: bool) -> Tensor {
    let n = x.shape[axis] as usize;
    let own = strides(&x.shape);
    let step = own[axis] as usize;
    let mut lines = x.shape.clone();
    lines[axis] = lines[axis].min(1);
    let mut out = x.data.clone();
    let at = |i: usize| if reverse { n - 1 - i } else { i } * step;
    walk(&lines, [(0, own)], |[base]| match &mut out {
        Data::Float(v) => {
            let mut sum = 0.0;
            for i in 0..n {
                let x = std::mem::replace(&mut v[base + at(i)], sum);
                sum += x;
                if !exclusive {
                    v[base + at(i)] = sum;
                }
            }
        }
        Data::Int(v) => {
            let mut sum = 0i64;
            for i in 0..n {
                let x = std::mem::replace(&mut v[base + at(i)], sum);
                sum = sum.wrapping_add(x);
                if !exclusive {
                    v[base + at(i)] = sum;
                }
            }
        }
    });
    Tensor { shape: x.shape.clone(), data: out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluated(op: Op, inputs: &[&Tensor], ty: TensorType) -> Tensor {
        eval(&op, inputs, &[ty], Rounding::Exact).unwrap().remove(0)
    }

    #[test]
    fn views_place_each_element_where_its_index_says() {
        let x = Tensor::int([2, 3], vec![0, 1, 2, 3, 4, 5]);
        let ty = |s: &[u64]| TensorType::new(DType::I64, s);
        assert_eq!(evaluated(Op::Transpose(vec![1, 0]), &[&x], ty(&[3, 2])).data, Data::Int(vec![0, 3, 1, 4, 2, 5]));
        let back = Op::Slice { starts: vec![1, 2], steps: vec![-1, -2], sizes: vec![2, 2] };
        assert_eq!(evaluated(back, &[&x], ty(&[2, 2])).data, Data::Int(vec![5, 3, 2, 0]));
        let pad = Op::Pad { low: vec![0, 1], high: vec![1, 0] };
        assert_eq!(evaluated(pad, &[&x], ty(&[3, 4])).data, Data::Int(vec![0, 0, 1, 2, 0, 3, 4, 5, 0, 0, 0, 0]));
        assert_eq!(evaluated(Op::Concat { axis: 1 }, &[&x, &x], ty(&[2, 6])).data, Data::Int(vec![0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]));
        let sums = Op::CumSum { axis: 1, exclusive: true, reverse: true };
        assert_eq!(evaluated(sums, &[&x], ty(&[2, 3])).data, Data::Int(vec![3, 2, 0, 9, 5, 0]));
        let plain = Op::CumSum { axis: 0, exclusive: false, reverse: false };
        assert_eq!(evaluated(plain, &[&x], ty(&[2, 3])).data, Data::Int(vec![0, 1, 2, 3, 5, 7]));
    }

    #[test]
    fn take_refuses_an_index_outside_the_axis() {
        let x = Tensor::float([1, 2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let ty = TensorType::new(DType::F32, [1, 2, 2]);
        let good = Tensor::int([1, 2, 1], vec![1, 0]);
        assert_eq!(evaluated(Op::Take, &[&x, &good], ty.clone()).data, Data::Float(vec![3.0, 4.0, 1.0, 2.0]));
        let bad = Tensor::int([1, 2, 1], vec![1, 2]);
        assert!(eval(&Op::Take, &[&x, &bad], &[ty], Rounding::Exact).unwrap_err().contains("element 2 of 2"));
    }

    #[test]
    fn folding_keeps_integers_exact_and_rounds_floats_to_their_dtype() {
        let big = ConstData::i64([1], &[(1 << 53) + 1]);
        let ty = TensorType::new(DType::I64, [1]);
        assert_eq!(eval_node(&Op::Map(Expr::identity(), DType::I64), &[&big], &[ty]).unwrap()[0].to_i64(), [(1 << 53) + 1]);
        let x = ConstData::f32([1], &[1.004]);
        let ty = TensorType::new(DType::Bf16, [1]);
        assert_eq!(eval_node(&Op::Map(Expr::identity(), DType::Bf16), &[&x], &[ty]).unwrap()[0].to_f32(), [1.007_812_5]);
    }
}
