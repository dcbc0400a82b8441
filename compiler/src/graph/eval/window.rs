//! Convolution and pooling.

use super::*;
use fp8c_kernels::program::{PoolOp, Window};

/// Calls `f(output position, input position, kernel position)` for each tap of one plane that lies inside the image.
fn taps(w: &Window, mut f: impl FnMut(usize, usize, usize)) {
    let inside = |o: u64, r: u64, d: usize| {
        let at = o as i128 * w.stride[d] as i128 + r as i128 * w.dilation[d] as i128 - w.pad[d] as i128;
        (at >= 0 && at < w.input[d] as i128).then_some(at as u64)
    };
    for oy in 0..w.output[0] {
        for ox in 0..w.output[1] {
            for r in 0..w.kernel[0] {
                let Some(y) = inside(oy, r, 0) else { continue };
                for s in 0..w.kernel[1] {
                    let Some(x) = inside(ox, s, 1) else { continue };
                    f((oy * w.output[1] + ox) as usize, (y * w.input[1] + x) as usize, (r * w.kernel[1] + s) as usize);
                }
            }
        }
    }
}

fn area(hw: [u64; 2]) -> usize {
    (hw[0] * hw[1]) as usize
}

/// Calls `f(image plane, output plane, weight plane)` for each connected pair of channels.
fn channels(c: &ConvOp, batch: u64, cin: u64, cout: u64, mut f: impl FnMut(usize, usize, usize)) {
    let (per_in, per_out) = (cin / c.groups, cout / c.groups);
    for b in 0..batch {
        for o in 0..cout {
            for i in 0..per_in {
                let image = b * cin + o / per_out * per_in + i;
                f(image as usize, (b * cout + o) as usize, (o * per_in + i) as usize);
            }
        }
    }
}

pub(super) fn conv(c: &ConvOp, inputs: &[&Tensor], shape: &[u64]) -> Result<Tensor, String> {
    let (x, w) = (inputs[0].floats()?, inputs[1].floats()?);
    let (ia, oa, ka) = (area(c.window.input), area(c.window.output), area(c.window.kernel));
    let mut out = vec![0.0; shape.iter().product::<u64>() as usize];
    if let Some(bias) = inputs.get(2) {
        let bias = bias.floats()?;
        out.iter_mut().enumerate().for_each(|(i, o)| *o = bias[i / oa % bias.len()]);
    }
    channels(c, shape[0], inputs[0].shape[1], shape[1], |image, plane, weight| {
        taps(&c.window, |o, i, k| out[plane * oa + o] += x[image * ia + i] * w[weight * ka + k]);
    });
    Ok(Tensor::float(shape, out))
}

pub(super) fn conv_dgrad(c: &ConvOp, inputs: &[&Tensor], shape: &[u64]) -> Result<Tensor, String> {
    let (dy, w) = (inputs[0].floats()?, inputs[1].floats()?);
    let (ia, oa, ka) = (area(c.window.input), area(c.window.output), area(c.window.kernel));
    let mut out = vec![0.0; shape.iter().product::<u64>() as usize];
    channels(c, shape[0], shape[1], inputs[0].shape[1], |image, plane, weight| {
        taps(&c.window, |o, i, k| out[image * ia + i] += dy[plane * oa + o] * w[weight * ka + k]);
    });
    Ok(Tensor::float(shape, out))
}

pub(super) fn conv_wgrad(c: &ConvOp, inputs: &[&Tensor], shape: &[u64]) -> Result<Tensor, String> {
    let (dy, x) = (inputs[0].floats()?, inputs[1].floats()?);
    let (ia, oa, ka) = (area(c.window.input), area(c.window.output), area(c.window.kernel));
    let mut out = vec![0.0; shape.iter().product::<u64>() as usize];
    channels(c, inputs[0].shape[0], inputs[1].shape[1], shape[0], |image, plane, weight| {
        taps(&c.window, |o, i, k| out[weight * ka + k] += dy[plane * oa + o] * x[image * ia + i]);
    });
    Ok(Tensor::float(shape, out))
}

/// What an average divides by at each output position.
fn divisors(op: PoolOp, w: &Window) -> Vec<f64> {
    let mut counts = vec![0.0; area(w.output)];
    match op {
        PoolOp::AverageWithPadding { pad_end } => {
            let covered = |o: u64, d: usize| {
                let end = w.input[d] as i128 + pad_end[d] as i128;
                let start = o as i128 * w.stride[d] as i128 - w.pad[d] as i128;
                (0..w.kernel[d]).filter(|&r| start + r as i128 * (w.dilation[d] as i128) < end).count()
            };
            for oy in 0..w.output[0] {
                for ox in 0..w.output[1] {
                    counts[(oy * w.output[1] + ox) as usize] = (covered(oy, 0) * covered(ox, 1)) as f64;
                }
            }
        }
        _ => taps(w, |o, _, _| counts[o] += 1.0),
    }
    counts
}

pub(super) fn pool(op: PoolOp, w: &Window, x: &Tensor, shape: &[u64]) -> Result<Tensor, String> {
    let v = x.floats()?;
    let (ia, oa) = (area(w.input), area(w.output));
    let planes = (shape[0] * shape[1]) as usize;
    let max = op == PoolOp::Max;
    let mut out = vec![if max { f64::NEG_INFINITY } else { 0.0 }; planes * oa];
    let counts = divisors(op, w);
    for p in 0..planes {
        taps(w, |o, i, _| {
            let (y, x) = (&mut out[p * oa + o], v[p * ia + i]);
            *y = if max { if x > *y || x.is_nan() { x } else { *y } } else { *y + x };
        });
        if !max {
            (0..oa).for_each(|o| out[p * oa + o] /= counts[o]);
        }
    }
    Ok(Tensor::float(shape, out))
}

pub(super) fn pool_grad(op: PoolOp, w: &Window, inputs: &[&Tensor]) -> Result<Tensor, String> {
    let (v, dy) = (inputs[0].floats()?, inputs[1].floats()?);
    let (ia, oa) = (area(w.input), area(w.output));
    let planes = (inputs[0].shape[0] * inputs[0].shape[1]) as usize;
    let mut out = vec![0.0; planes * ia];
    let counts = divisors(op, w);
    for p in 0..planes {
        let mut best: Vec<Option<usize>> = vec![None; oa];
        taps(w, |o, i, _| match op {
            PoolOp::Max if best[o].is_none_or(|b| v[p * ia + i] > v[p * ia + b]) => best[o] = Some(i),
            PoolOp::Max => {}
            _ => out[p * ia + i] += dy[p * oa + o] / counts[o],
        });
        if op == PoolOp::Max {
            best.iter().enumerate().filter_map(|(o, b)| b.map(|b| (o, b))).for_each(|(o, b)| out[p * ia + b] += dy[p * oa + o]);
        }
    }
    Ok(Tensor::float(inputs[0].shape.clone(), out))
}
