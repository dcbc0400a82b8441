//! Reductions and matrix products.

use super::*;
use fp8c_kernels::program::Fold;

/// Folds `x` to `shape`, which has extent 1 along the folded axes.
pub(super) fn reduce(op: Fold, x: &Tensor, shape: &[u64]) -> Result<Tensor, String> {
    let n = shape.iter().product::<u64>() as usize;
    let operands = [(0, broadcast_strides(shape, &x.shape)), (0, strides(&x.shape))];
    let data = match &x.data {
        Data::Float(v) => {
            let (start, fold) = float_fold(op);
            let mut out = vec![start; n];
            walk(&x.shape, operands, |[o, i]| out[o] = fold(out[o], v[i]));
            Data::Float(out)
        }
        Data::Int(v) => {
            let (start, fold) = int_fold(op);
            let mut out = vec![start; n];
            walk(&x.shape, operands, |[o, i]| out[o] = fold(out[o], v[i]));
            Data::Int(out)
        }
    };
    Ok(Tensor { shape: shape.to_vec(), data })
}

fn float_fold(op: Fold) -> (f64, fn(f64, f64) -> f64) {
    match op {
        Fold::Sum => (0.0, |a, b| a + b),
        Fold::Prod => (1.0, |a, b| a * b),
        Fold::Max => (f64::NEG_INFINITY, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }),
        Fold::Min => (f64::INFINITY, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }),
    }
}

fn int_fold(op: Fold) -> (i64, fn(i64, i64) -> i64) {
    match op {
        Fold::Sum => (0, i64::wrapping_add),
        Fold::Prod => (1, i64::wrapping_mul),
        Fold::Max => (i64::MIN, i64::max),
        Fold::Min => (i64::MAX, i64::min),
    }
}

pub(super) fn matmul(a: &Tensor, b: &Tensor, trans_a: bool, trans_b: bool, shape: &[u64]) -> Result<Tensor, String> {
    let rank = shape.len();
    let (batch, [m, n]) = (&shape[..rank - 2], [shape[rank - 2], shape[rank - 1]]);
    let k = a.shape[if trans_a { rank - 2 } else { rank - 1 }];
    let (sa, ra, ca) = matrix(a, trans_a, batch);
    let (sb, rb, cb) = matrix(b, trans_b, batch);
    match (&a.data, &b.data) {
        (Data::Float(a), Data::Float(b)) => {
            let mut out = vec![0.0; shape.iter().product::<u64>() as usize];
            let mut base = 0;
            walk(batch, [(0, sa), (0, sb)], |[za, zb]| {
                for i in 0..m as usize {
                    let row = &mut out[base..base + n as usize];
                    for l in 0..k as usize {
                        let x = a[za + i * ra + l * ca];
                        row.iter_mut().enumerate().for_each(|(j, o)| *o += x * b[zb + l * rb + j * cb]);
                    }
                    base += n as usize;
                }
            });
            Ok(Tensor::float(shape, out))
        }
        _ => Err("multiplies matrices of integers".into()),
    }
}

/// Batch strides, and the strides of a row and a column.
fn matrix(t: &Tensor, swap: bool, batch: &[u64]) -> (Vec<i64>, usize, usize) {
    let rank = t.shape.len();
    let own = strides(&t.shape);
    let along = (0..rank - 2).map(|d| if t.shape[d] == 1 && batch[d] != 1 { 0 } else { own[d] }).collect();
    let (r, c) = (own[rank - 2] as usize, own[rank - 1] as usize);
    if swap { (along, c, r) } else { (along, r, c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matmul_broadcasts_batches_and_transposes_operands() {
        let a = Tensor::float([1, 2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = Tensor::float([2, 1, 3], vec![1.0, 0.0, 1.0, 0.0, 2.0, 0.0]);
        let op = Op::Matmul { trans_a: false, trans_b: true, dtype: DType::F32 };
        let y = eval(&op, &[&a, &b], &[TensorType::new(DType::F32, [2, 2, 1])], Rounding::Exact).unwrap();
        assert_eq!(y[0].data, Data::Float(vec![4.0, 10.0, 4.0, 10.0]));
    }

    #[test]
    fn the_maximum_of_nothing_is_minus_infinity() {
        let x = Tensor::float([2, 0], vec![]);
        let op = Op::Reduce { op: Fold::Max, axes: vec![1], dtype: DType::F32 };
        let y = eval(&op, &[&x], &[TensorType::new(DType::F32, [2, 1])], Rounding::Stored).unwrap();
        assert_eq!(y[0].data, Data::Float(vec![f64::NEG_INFINITY; 2]));
    }
}
