//! The update epoch: gradient norm and optimizers.

use super::*;
use fp8c_kernels::program::Rule;
use fp8c_runtime::plan::Control;

pub(super) fn eval(op: &Op, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let v = inputs.iter().map(|t| t.floats()).collect::<Result<Vec<_>, _>>()?;
    let like = |i: usize, data: Vec<f64>| Tensor::float(inputs[i].shape.clone(), data);
    Ok(match op {
        Op::SumSquares => vec![like(1, vec![v[1][0] + v[0].iter().map(|g| g * g).sum::<f64>()])],
        Op::AccumulateGradient => vec![like(0, v[0].iter().zip(v[1]).map(|(a, b)| a + b).collect())],
        Op::FinishNorm { accumulation } => vec![like(0, finish_norm(v[0], v[1][0], *accumulation))],
        Op::Optimize(o) if o.moments == DType::E4m3 => return Err("has moments that are no tensor of numbers".into()),
        Op::Optimize(o) => {
            let finite = v[2 + o.states()][Control::FINITE] != 0.0 && v.last().is_none_or(|sum| !o.guarded || sum[0].is_finite());
            match o.rule {
                _ if !finite => std::iter::once(0).chain(2..2 + o.states()).map(|i| inputs[i].clone()).collect(),
                Rule::AdamW => {
                    let [p, m, s] = adam_w(&v);
                    vec![like(0, p), like(2, m), like(3, s)]
                }
                Rule::Sgd | Rule::Lion => {
                    let [p, m] = one_moment(&v, o.rule == Rule::Lion);
                    vec![like(0, p), like(2, m)]
                }
            }
        }
        _ => return Err("is no update".into()),
    })
}

/// Norm of the unscaled gradient, whether it is finite, and what each stored gradient is multiplied by.
fn finish_norm(control: &[f64], sum: f64, accumulation: u32) -> Vec<f64> {
    let unscale = 1.0 / (control[Control::LOSS_SCALE] * accumulation as f64);
    let norm = sum.sqrt() * unscale;
    // PyTorch's clip_grad_norm_.
    let clip = (control[Control::CLIP] / (norm + 1e-6)).min(1.0);
    let mut out = control.to_vec();
    out[Control::GRAD_NORM] = norm;
    out[Control::FINITE] = norm.is_finite() as u8 as f64;
    out[Control::GRAD_MULTIPLIER] = clip * unscale;
    out
}

/// Inputs p, g, m, v, control, decay.
fn adam_w(v: &[&[f64]]) -> [Vec<f64>; 3] {
    let (p, g, m, s, c, decay) = (v[0], v[1], v[2], v[3], v[4], v[5][0]);
    let (rate, b1, b2) = (c[Control::LEARNING_RATE], c[Control::BETA1], c[Control::BETA2]);
    let g: Vec<f64> = g.iter().map(|g| g * c[Control::GRAD_MULTIPLIER]).collect();
    let m: Vec<f64> = m.iter().zip(&g).map(|(m, g)| b1 * m + (1.0 - b1) * g).collect();
    let s: Vec<f64> = s.iter().zip(&g).map(|(s, g)| b2 * s + (1.0 - b2) * g * g).collect();
    let step = |i: usize| m[i] / c[Control::CORRECTION1] / (s[i].sqrt() / c[Control::CORRECTION2] + c[Control::EPS]);
    let kept = 1.0 - rate * c[Control::WEIGHT_DECAY] * decay;
    let p = (0..p.len()).map(|i| p[i] * kept - rate * step(i)).collect();
    [p, m, s]
}

/// Inputs p, g, m, control, decay. SGD decays through the gradient, Lion through the parameter, each as published.
fn one_moment(v: &[&[f64]], lion: bool) -> [Vec<f64>; 2] {
    let (p, g, m, c, decay) = (v[0], v[1], v[2], v[3], v[4][0]);
    let (rate, b1, b2) = (c[Control::LEARNING_RATE], c[Control::BETA1], c[Control::BETA2]);
    let weight_decay = c[Control::WEIGHT_DECAY] * decay;
    let step = |i: usize| {
        let g = g[i] * c[Control::GRAD_MULTIPLIER];
        if lion {
            let toward = b1 * m[i] + (1.0 - b1) * g;
            let sign = if toward == 0.0 { 0.0 } else { toward.signum() };
            (p[i] * (1.0 - rate * weight_decay) - rate * sign, b2 * m[i] + (1.0 - b2) * g)
        } else {
            let m = b1 * m[i] + g + weight_decay * p[i];
            (p[i] - rate * m, m)
        }
    };
    let (p, m) = (0..p.len()).map(step).unzip();
    [p, m]
}
