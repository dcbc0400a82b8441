//! Layer norm and RMS norm.

use super::Writer;
use super::reduce::{along_rows, reduce};
use crate::Error;
use crate::graph::{NormOp, ValueId};
use fp8c_kernels::DType::F32;
use fp8c_kernels::program::{Fold, Unary};

/// Elements of a row.
fn row_len(w: &Writer, x: ValueId, axes: usize) -> f32 {
    let shape = w.shape(x);
    shape[shape.len() - axes..].iter().product::<u64>() as f32
}

/// `x - mean`, or `x` where there is no mean.
fn centred(w: &mut Writer, x: ValueId, mean: Option<ValueId>) -> Result<ValueId, Error> {
    match mean {
        Some(mean) => w.map(F32, &[x, mean], |f, v| f.sub(v[0], v[1])),
        None => Ok(x),
    }
}

/// Inputs x, scale, \[bias\]; results y, \[mean\], rstd.
pub(super) fn norm(w: &mut Writer, n: &NormOp, x: &[ValueId]) -> Result<Vec<ValueId>, Error> {
    let k = row_len(w, x[0], n.axes);
    let divide = |w: &mut Writer, v| {
        w.map(F32, &[v], |f, v| {
            let k = f.float(k);
            f.div(v[0], k)
        })
    };
    let mean = match n.center {
        true => {
            let sum = along_rows(w, Fold::Sum, x[0], n.axes)?;
            Some(divide(w, sum)?)
        }
        false => None,
    };
    let c = centred(w, x[0], mean)?;
    let squares = w.map(F32, &[c], |f, v| f.mul(v[0], v[0]))?;
    let sum = along_rows(w, Fold::Sum, squares, n.axes)?;
    let rstd = w.map(F32, &[sum], |f, v| {
        let (k, eps) = (f.float(k), f.float(f32::from_bits(n.eps.0)));
        let var = f.div(v[0], k);
        let shifted = f.add(var, eps);
        f.un(Unary::Rsqrt, shifted)
    })?;
    let inputs: Vec<ValueId> = [c, rstd, x[1]].into_iter().chain(n.bias.then(|| x[2])).collect();
    let y = w.map(n.dtype, &inputs, |f, v| {
        let hat = f.mul(v[0], v[1]);
        let scaled = f.mul(hat, v[2]);
        if n.bias { f.add(scaled, v[3]) } else { scaled }
    })?;
    Ok([Some(y), mean, Some(rstd)].into_iter().flatten().collect())
}

/// Inputs dy, x, scale, \[mean\], rstd; results dx, dscale, \[dbias\].
pub(super) fn norm_grad(w: &mut Writer, n: &NormOp, v: &[ValueId]) -> Result<Vec<ValueId>, Error> {
    let (dy, x, scale, rstd) = (v[0], v[1], v[2], v[v.len() - 1]);
    let mean = n.center.then(|| v[3]);
    let hat = |w: &mut Writer| {
        let c = centred(w, x, mean)?;
        w.map(F32, &[c, rstd], |f, v| f.mul(v[0], v[1]))
    };
    let dx = dx(w, n, [dy, scale, rstd], hat)?;
    // The columns' sums read dy and x again: another pass along the other axis, so that nothing is kept between the two.
    let xhat = hat(w)?;
    let product = w.map(F32, &[dy, xhat], |f, v| f.mul(v[0], v[1]))?;
    let shape = w.shape(scale).to_vec();
    let rows: Vec<usize> = (0..w.shape(x).len() - n.axes).collect();
    let mut out = vec![dx];
    for x in [Some(product), n.bias.then_some(dy)].into_iter().flatten() {
        let sum = reduce(w, Fold::Sum, x, &rows, F32)?;
        out.push(w.reshape(sum, &shape)?);
    }
    Ok(out)
}

fn dx(
    w: &mut Writer,
    n: &NormOp,
    [dy, scale, rstd]: [ValueId; 3],
    hat: impl Fn(&mut Writer) -> Result<ValueId, Error>,
) -> Result<ValueId, Error> {
    let k = row_len(w, dy, n.axes);
    let xhat = hat(w)?;
    let g = w.map(F32, &[dy, scale], |f, v| f.mul(v[0], v[1]))?;
    let mean_of = |w: &mut Writer, v| -> Result<ValueId, Error> {
        let sum = along_rows(w, Fold::Sum, v, n.axes)?;
        w.map(F32, &[sum], |f, v| {
            let k = f.float(k);
            f.div(v[0], k)
        })
    };
    let product = w.map(F32, &[xhat, g], |f, v| f.mul(v[0], v[1]))?;
    let along = mean_of(w, product)?;
    let mut inputs = vec![g, xhat, along, rstd];
    if n.center {
        inputs.push(mean_of(w, g)?);
    }
    w.map(n.dtype, &inputs, |f, v| {
        let turned = f.mul(v[1], v[2]);
        let shifted = if n.center { f.sub(v[0], v[4]) } else { v[0] };
        let rest = f.sub(shifted, turned);
        f.mul(v[3], rest)
    })
}
