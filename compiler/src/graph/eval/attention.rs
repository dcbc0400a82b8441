//! Attention, forward and backward, as `fp8c_kernels::program::Attention` states it.

use super::*;

/// Extents of one attention.
struct Extents {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    depth: usize,
    v_depth: usize,
}

impl Extents {
    fn of(q: &Tensor, v: &Tensor) -> Self {
        let (q, v) = (q.shape.iter().map(|&d| d as usize).collect::<Vec<_>>(), v.shape.iter().map(|&d| d as usize).collect::<Vec<_>>());
        Extents { batch: q[0], heads: q[1], kv_heads: v[1], queries: q[2], keys: v[2], depth: q[3], v_depth: v[3] }
    }

    /// Calls `f(query row, first key row)` for each batch, head and query.
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        let group = self.heads / self.kv_heads;
        for b in 0..self.batch {
            for h in 0..self.heads {
                for i in 0..self.queries {
                    f((b * self.heads + h) * self.queries + i, (b * self.kv_heads + h / group) * self.keys);
                }
            }
        }
    }
}

/// The scores of one query row, and each one's derivative by the raw score.
fn scores(a: &AttentionOp, e: &Extents, q: &[f64], k: &[f64], bias: Option<&Tensor>, row: usize, first: usize) -> Vec<(f64, f64)> {
    let f = |bits: fp8c_kernels::program::FloatBits| f32::from_bits(bits.0) as f64;
    let i = row % e.queries;
    let position = i as i64 + if a.mask.align_end { e.keys as i64 - e.queries as i64 } else { 0 };
    let score = |j: usize| {
        let dot: f64 = (0..e.depth).map(|d| q[row * e.depth + d] * k[(first + j) * e.depth + d]).sum();
        let (mut z, mut slope) = (f(a.scale) * dot, 1.0);
        if let Some(cap) = a.softcap.map(f) {
            let t = (z / cap).tanh();
            (z, slope) = (cap * t, 1.0 - t * t);
        }
        match bias.map(|b| &b.data) {
            Some(Data::Float(b)) => z += b[row * e.keys + j],
            Some(Data::Int(b)) if b[row * e.keys + j] == 0 => z = f64::NEG_INFINITY,
            _ => {}
        }
        let late = a.mask.causal && j as i64 > position;
        let early = a.mask.window.is_some_and(|w| position - j as i64 > w as i64 - 1);
        (if late || early { f64::NEG_INFINITY } else { z }, slope)
    };
    (0..e.keys).map(score).collect()
}

fn whole_bias(a: &AttentionOp, inputs: &[&Tensor], e: &Extents) -> Option<Tensor> {
    let shape = [e.batch, e.heads, e.queries, e.keys].map(|d| d as u64);
    a.bias.then(|| views::broadcast_to(inputs[3], &shape))
}

/// Results o, lse.
pub(super) fn forward(a: &AttentionOp, inputs: &[&Tensor], types: &[TensorType]) -> Result<Vec<Tensor>, String> {
    let (q, k, v) = (inputs[0].floats()?, inputs[1].floats()?, inputs[2].floats()?);
    let e = Extents::of(inputs[0], inputs[2]);
    let bias = whole_bias(a, inputs, &e);
    let mut o = vec![0.0; types[0].elements() as usize];
    let mut lse = vec![];
    e.each(|row, first| {
        let z = scores(a, &e, q, k, bias.as_ref(), row, first);
        let max = z.iter().map(|z| z.0).fold(f64::NEG_INFINITY, f64::max);
        let total = if max == f64::NEG_INFINITY { max } else { max + z.iter().map(|z| (z.0 - max).exp()).sum::<f64>().ln() };
        for (j, z) in z.iter().enumerate().filter(|(_, z)| z.0 != f64::NEG_INFINITY) {
            let p = (z.0 - total).exp();
            (0..e.v_depth).for_each(|d| o[row * e.v_depth + d] += p * v[(first + j) * e.v_depth + d]);
        }
        lse.push(total);
    });
    Ok(vec![Tensor::float(types[0].shape.clone(), o), Tensor::float(types[1].shape.clone(), lse)])
}

/// Inputs q, k, v, \[bias\], o, lse, do; results dq, dk, dv.
pub(super) fn backward(a: &AttentionOp, inputs: &[&Tensor], types: &[TensorType]) -> Result<Vec<Tensor>, String> {
    let (q, k, v) = (inputs[0].floats()?, inputs[1].floats()?, inputs[2].floats()?);
    let at = 3 + a.bias as usize;
    let (o, lse, go) = (inputs[at].floats()?, inputs[at + 1].floats()?, inputs[at + 2].floats()?);
    let e = Extents::of(inputs[0], inputs[2]);
    let bias = whole_bias(a, inputs, &e);
    let scale = f32::from_bits(a.scale.0) as f64;
    let [mut dq, mut dk, mut dv] = [0, 1, 2].map(|i| vec![0.0; types[i].elements() as usize]);
    e.each(|row, first| {
        let z = scores(a, &e, q, k, bias.as_ref(), row, first);
        let delta: f64 = (0..e.v_depth).map(|d| go[row * e.v_depth + d] * o[row * e.v_depth + d]).sum();
        for (j, (z, slope)) in z.into_iter().enumerate().filter(|(_, z)| z.0 != f64::NEG_INFINITY) {
            let (p, key) = ((z - lse[row]).exp(), first + j);
            let dp: f64 = (0..e.v_depth).map(|d| go[row * e.v_depth + d] * v[key * e.v_depth + d]).sum();
            let dz = p * (dp - delta) * slope * scale;
            (0..e.v_depth).for_each(|d| dv[key * e.v_depth + d] += p * go[row * e.v_depth + d]);
            for d in 0..e.depth {
                dq[row * e.depth + d] += dz * k[key * e.depth + d];
                dk[key * e.depth + d] += dz * q[row * e.depth + d];
            }
        }
    });
    Ok([dq, dk, dv].into_iter().zip(types).map(|(g, t)| Tensor::float(t.shape.clone(), g)).collect())
}
