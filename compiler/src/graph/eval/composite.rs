//! Norms, softmax, rotary embedding and cross-entropy, forward and backward.

use super::*;

fn float_of(bits: fp8c_kernels::program::FloatBits) -> f64 {
    f32::from_bits(bits.0) as f64
}

/// Rows and columns of a norm over the last axes.
fn rows(shape: &[u64], axes: usize) -> (usize, usize) {
    let (outer, inner) = shape.split_at(shape.len() - axes);
    (outer.iter().product::<u64>() as usize, inner.iter().product::<u64>() as usize)
}

/// Results y, \[mean\], rstd.
pub(super) fn norm(n: &NormOp, inputs: &[&Tensor], types: &[TensorType]) -> Result<Vec<Tensor>, String> {
    let (x, scale) = (inputs[0].floats()?, inputs[1].floats()?);
    let bias = inputs.get(2).map(|b| b.floats()).transpose()?;
    let (m, k) = rows(&inputs[0].shape, n.axes);
    let (mut y, mut means, mut rstds) = (Vec::with_capacity(x.len()), vec![], vec![]);
    for r in 0..m {
        let row = &x[r * k..(r + 1) * k];
        let mean = if n.center { row.iter().sum::<f64>() / k as f64 } else { 0.0 };
        let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / k as f64;
        let rstd = 1.0 / (var + float_of(n.eps)).sqrt();
        y.extend((0..k).map(|i| (row[i] - mean) * rstd * scale[i] + bias.map_or(0.0, |b| b[i])));
        means.push(mean);
        rstds.push(rstd);
    }
    let stat = |v| Tensor::float(types[types.len() - 1].shape.clone(), v);
    let mut out = vec![Tensor::float(inputs[0].shape.clone(), y)];
    out.extend(n.center.then(|| stat(means)));
    out.push(stat(rstds));
    Ok(out)
}

/// Inputs dy, x, scale, \[mean\], rstd; results dx, dscale, \[dbias\].
pub(super) fn norm_grad(n: &NormOp, inputs: &[&Tensor], types: &[TensorType]) -> Result<Vec<Tensor>, String> {
    let (dy, x, scale) = (inputs[0].floats()?, inputs[1].floats()?, inputs[2].floats()?);
    let means = if n.center { Some(inputs[3].floats()?) } else { None };
    let rstds = inputs[inputs.len() - 1].floats()?;
    let (m, k) = rows(&inputs[1].shape, n.axes);
    let (mut dx, mut dscale, mut dbias) = (Vec::with_capacity(x.len()), vec![0.0; k], vec![0.0; k]);
    for r in 0..m {
        let mean = means.map_or(0.0, |v| v[r]);
        let hat: Vec<f64> = (0..k).map(|i| (x[r * k + i] - mean) * rstds[r]).collect();
        let g: Vec<f64> = (0..k).map(|i| dy[r * k + i] * scale[i]).collect();
        let along = hat.iter().zip(&g).map(|(h, g)| h * g).sum::<f64>() / k as f64;
        let shift = if n.center { g.iter().sum::<f64>() / k as f64 } else { 0.0 };
        dx.extend((0..k).map(|i| rstds[r] * (g[i] - shift - hat[i] * along)));
        for i in 0..k {
            dscale[i] += dy[r * k + i] * hat[i];
            dbias[i] += dy[r * k + i];
        }
    }
    let mut out = vec![Tensor::float(inputs[1].shape.clone(), dx), Tensor::float(types[1].shape.clone(), dscale)];
    out.extend(n.bias.then(|| Tensor::float(types[1].shape.clone(), dbias)));
    Ok(out)
}

/// Maximum and log of the sum of exponentials of a row.
fn log_sum_exp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

pub(super) fn softmax(log: bool, x: &Tensor) -> Result<Tensor, String> {
    let (v, (_, k)) = (x.floats()?, rows(&x.shape, 1));
    let row = |row: &[f64]| {
        let lse = log_sum_exp(row);
        row.iter().map(|x| if log { x - lse } else { (x - lse).exp() }).collect::<Vec<_>>()
    };
    Ok(Tensor::float(x.shape.clone(), v.chunks(k.max(1)).flat_map(row).collect()))
}

/// Inputs dy, y.
pub(super) fn softmax_grad(log: bool, inputs: &[&Tensor]) -> Result<Tensor, String> {
    let (dy, y) = (inputs[0].floats()?, inputs[1].floats()?);
    let (_, k) = rows(&inputs[1].shape, 1);
    let row = |(dy, y): (&[f64], &[f64])| -> Vec<f64> {
        let sum: f64 = dy.iter().zip(y).map(|(d, y)| if log { *d } else { d * y }).sum();
        dy.iter().zip(y).map(|(d, y)| if log { d - y.exp() * sum } else { y * (d - sum) }).collect()
    };
    let k = k.max(1);
    Ok(Tensor::float(inputs[1].shape.clone(), dy.chunks(k).zip(y.chunks(k)).flat_map(row).collect()))
}

pub(super) fn rotary(rotated: u64, interleaved: bool, inverse: bool, inputs: &[&Tensor]) -> Result<Tensor, String> {
    let x = inputs[0];
    let (v, rank) = (x.floats()?, x.shape.len());
    let mut turned = x.shape.clone();
    turned[rank - 1] = rotated;
    let (cos, sin) = (views::broadcast_to(inputs[1], &turned), views::broadcast_to(inputs[2], &turned));
    let (cos, sin) = (cos.floats()?, sin.floats()?);
    let (depth, r) = (x.shape[rank - 1] as usize, rotated as usize);
    let mut out = v.to_vec();
    for row in 0..v.len().checked_div(depth).unwrap_or(0) {
        for pair in 0..r / 2 {
            let (i, j) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + r / 2) };
            let (a, b) = (v[row * depth + i], v[row * depth + j]);
            let (ci, cj, si, sj) = (cos[row * r + i], cos[row * r + j], sin[row * r + i], sin[row * r + j]);
            let (y, z) = if inverse { (a * ci + b * sj, b * cj - a * si) } else { (a * ci - b * si, b * cj + a * sj) };
            out[row * depth + i] = y;
            out[row * depth + j] = z;
        }
    }
    Ok(Tensor::float(x.shape.clone(), out))
}

/// The labels that count, and what the sum is divided by.
fn counted(c: &CrossEntropyOp, labels: &[i64], classes: u64) -> Result<(Vec<Option<usize>>, f64), String> {
    let of = |&l: &i64| match l {
        l if Some(l) == c.ignore_index => Ok(None),
        l if l >= 0 && (l as u64) < classes => Ok(Some(l as usize)),
        l => Err(format!("has label {l} of {classes} classes")),
    };
    let labels = labels.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    let n = labels.iter().flatten().count() as f64;
    Ok((labels, if c.sum { 1.0 } else { n }))
}

/// Results loss, lse. The mean over no label at all is not a number, as in PyTorch.
pub(super) fn cross_entropy(c: &CrossEntropyOp, inputs: &[&Tensor], types: &[TensorType]) -> Result<Vec<Tensor>, String> {
    let (x, k) = (inputs[0].floats()?, inputs[0].shape[1]);
    let (labels, n) = counted(c, inputs[1].ints()?, k)?;
    let lse: Vec<f64> = x.chunks((k as usize).max(1)).map(log_sum_exp).collect();
    let loss = |(i, l): (usize, &Option<usize>)| l.map_or(0.0, |l| lse[i] - x[i * k as usize + l]);
    let sum: f64 = labels.iter().enumerate().map(loss).sum();
    Ok(vec![Tensor::float(vec![], vec![sum / n]), Tensor::float(types[1].shape.clone(), lse)])
}

/// Inputs dloss, logits, labels, lse.
pub(super) fn cross_entropy_grad(c: &CrossEntropyOp, inputs: &[&Tensor]) -> Result<Tensor, String> {
    let (g, x, lse) = (inputs[0].floats()?[0], inputs[1].floats()?, inputs[3].floats()?);
    let k = inputs[1].shape[1] as usize;
    let (labels, n) = counted(c, inputs[2].ints()?, k as u64)?;
    let at = |i: usize| match labels[i / k] {
        Some(l) => g / n * ((x[i] - lse[i / k]).exp() - (l == i % k) as u8 as f64),
        None => 0.0,
    };
    Ok(Tensor::float(inputs[1].shape.clone(), (0..x.len()).map(at).collect()))
}
