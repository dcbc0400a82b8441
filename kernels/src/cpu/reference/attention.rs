//! Reference of attention, forward and backward, and its tests.

use crate::DType;
use crate::program::{Attention, Heads};

struct Element<'a>(&'a Heads);

impl Element<'_> {
    fn at(&self, b: u64, h: u64, i: u64, d: u64) -> usize {
        (self.0.offset + b * self.0.batch + h * self.0.head + i * self.0.position + d) as usize
    }
}

/// Raw and finished scores of a query; minus infinity where the mask excludes.
fn scores(k: &Attention, args: &[Vec<f64>], [b, h, i]: [u64; 3]) -> Vec<(f64, f64)> {
    let kv = h / (k.heads / k.kv_heads);
    let (q, key) = (Element(&k.q), Element(&k.k));
    let position = i as i64 + if k.mask.align_end { k.kv_len as i64 - k.q_len as i64 } else { 0 };
    let score = |j: u64| {
        let dot: f64 = (0..k.depth).map(|d| args[0][q.at(b, h, i, d)] * args[1][key.at(b, kv, j, d)]).sum();
        let raw = dot * f64::from(f32::from_bits(k.scale.0));
        let mut z = k.softcap.map_or(raw, |c| f64::from(f32::from_bits(c.0)) * (raw / f64::from(f32::from_bits(c.0))).tanh());
        if let Some(s) = &k.bias {
            let x = args[3][(b * s.batch + h * s.head + i * s.query + j * s.key) as usize];
            z += if s.dtype != DType::Bool {
                x
            } else if x == 0.0 {
                f64::NEG_INFINITY
            } else {
                0.0
            };
        }
        let late = k.mask.causal && j as i64 > position;
        let early = k.mask.window.is_some_and(|w| (j as i64) < position - (w as i64 - 1));
        (raw, if late || early { f64::NEG_INFINITY } else { z })
    };
    (0..k.kv_len).map(score).collect()
}

/// The whole buffers of o and lse.
pub(crate) fn forward(k: &Attention, args: &[Vec<f64>], mut o: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
    let (v, out) = (Element(&k.v), Element(&k.o));
    let mut lse = Vec::new();
    for (b, h, i) in rows(k) {
        let z = scores(k, args, [b, h, i]);
        let max = z.iter().fold(f64::NEG_INFINITY, |m, z| m.max(z.1));
        let p: Vec<f64> = z.iter().map(|z| if z.1 == f64::NEG_INFINITY { 0.0 } else { (z.1 - max).exp() }).collect();
        let sum: f64 = p.iter().sum();
        for d in 0..k.v_depth {
            let x: f64 = (0..k.kv_len).map(|j| p[j as usize] * args[2][v.at(b, h / (k.heads / k.kv_heads), j, d)]).sum();
            o[out.at(b, h, i, d)] = if sum == 0.0 { 0.0 } else { x / sum };
        }
        lse.push(max + sum.ln());
    }
    (o, lse)
}

fn rows(k: &Attention) -> impl Iterator<Item = (u64, u64, u64)> {
    let (heads, queries) = (k.heads, k.q_len);
    (0..k.batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..queries).map(move |i| (b, h, i))))
}

/// The whole buffers of dq, dk, dv, from what they held.
pub(crate) fn backward(k: &Attention, args: &[Vec<f64>], [o, lse, d_o]: [&[f64]; 3], mut grads: [Vec<f64>; 3]) -> [Vec<f64>; 3] {
    let (q, key, v) = (Element(&k.q), Element(&k.k), Element(&k.v));
    let [l_o, l_q, l_k, l_v] = &k.grads;
    let (l_o, l_q, l_k, l_v) = (Element(l_o), Element(l_q), Element(l_k), Element(l_v));
    for b in 0..k.batch {
        let zero = |grad: &mut Vec<f64>, l: &Element, heads: u64, n: u64, depth: u64| {
            (0..heads).for_each(|h| (0..n).for_each(|i| (0..depth).for_each(|d| grad[l.at(b, h, i, d)] = 0.0)));
        };
        zero(&mut grads[0], &l_q, k.heads, k.q_len, k.depth);
        zero(&mut grads[1], &l_k, k.kv_heads, k.kv_len, k.depth);
        zero(&mut grads[2], &l_v, k.kv_heads, k.kv_len, k.v_depth);
    }
    let scale = f64::from(f32::from_bits(k.scale.0));
    for (row, (b, h, i)) in rows(k).enumerate() {
        let kv = h / (k.heads / k.kv_heads);
        let delta: f64 = (0..k.v_depth).map(|d| d_o[l_o.at(b, h, i, d)] * o[Element(&k.o).at(b, h, i, d)]).sum();
        for (j, (raw, z)) in scores(k, args, [b, h, i]).into_iter().enumerate() {
            let j = j as u64;
            if z == f64::NEG_INFINITY {
                continue;
            }
            let p = (z - lse[row]).exp();
            let dp: f64 = (0..k.v_depth).map(|d| d_o[l_o.at(b, h, i, d)] * args[2][v.at(b, kv, j, d)]).sum();
            let slope = k.softcap.map_or(1.0, |c| 1.0 - (raw / f64::from(f32::from_bits(c.0))).tanh().powi(2));
            let dz = p * (dp - delta) * slope * scale;
            (0..k.v_depth).for_each(|d| grads[2][l_v.at(b, kv, j, d)] += p * d_o[l_o.at(b, h, i, d)]);
            for d in 0..k.depth {
                grads[0][l_q.at(b, h, i, d)] += dz * args[1][key.at(b, kv, j, d)];
                grads[1][l_k.at(b, kv, j, d)] += dz * args[0][q.at(b, h, i, d)];
            }
        }
    }
    grads
}

#[cfg(test)]
mod tests {
    use super::super::{Data, Random, run};
    use super::*;
    use crate::program::{Bias, FloatBits, Kernel, Mask};
    use proptest::prelude::*;

    /// `[batch, heads, positions, depth]`, or positions before heads, with a gap between rows.
    fn heads(positions_first: bool, [batch, heads, positions, depth]: [u64; 4]) -> Heads {
        let (offset, row) = (3, depth + 2);
        let (head, position) = if positions_first { (row, row * heads) } else { (row * positions, row) };
        Heads { elements: offset + batch * heads * positions * row, offset, batch: heads * positions * row, head, position }
    }

    #[derive(Clone, Debug)]
    struct Case {
        /// batch, key heads, query heads of each, queries, keys, depth, depth of v.
        shape: [u64; 7],
        positions_first: [bool; 4],
        mask: Mask,
        cap: bool,
        bias: Option<(DType, [bool; 4])>,
        dtype: DType,
    }

    fn attention(c: &Case) -> Attention {
        let [batch, kv_heads, group, q_len, kv_len, depth, v_depth] = c.shape;
        let n_heads = kv_heads * group;
        let q = heads(c.positions_first[0], [batch, n_heads, q_len, depth]);
        let k = heads(c.positions_first[1], [batch, kv_heads, kv_len, depth]);
        let v = heads(c.positions_first[2], [batch, kv_heads, kv_len, v_depth]);
        let o = heads(c.positions_first[3], [batch, n_heads, q_len, v_depth]);
        let bias = c.bias.map(|(dtype, kept)| {
            let extents = [batch, n_heads, q_len, kv_len];
            let mut strides = [0; 4];
            let mut elements = 1;
            for d in (0..4).rev().filter(|d| kept[*d]) {
                strides[d] = elements;
                elements *= extents[d];
            }
            Bias { dtype, elements, batch: strides[0], head: strides[1], query: strides[2], key: strides[3] }
        });
        let bits = |x: f32| FloatBits(x.to_bits());
        Attention {
            batch,
            heads: n_heads,
            kv_heads,
            q_len,
            kv_len,
            depth,
            v_depth,
            scale: bits((depth as f32).sqrt().recip()),
            softcap: c.cap.then(|| bits(1.5)),
            mask: c.mask,
            bias,
            dtype: c.dtype,
            q,
            k,
            v,
            o,
            grads: [o, q, k, v],
        }
    }

    fn check(c: &Case, seed: u64) {
        let k = attention(c);
        let tolerance = if c.dtype == DType::Bf16 { 6e-3 } else { 6e-6 };
        let mut random = Random::new(seed);
        let kernel = Kernel::Attention(k.clone());
        let inputs = random.inputs(&kernel);
        let first = inputs.len() - 2;
        let values = |data: &[Data]| data.iter().map(Data::values).collect::<Vec<_>>();
        let out = run(&kernel, &inputs);
        let (o, lse) = forward(&k, &values(&inputs[..first]), inputs[first].values());
        close(&out[first], &o, tolerance, "o", c);
        close(&out[first + 1], &lse, tolerance, "lse", c);

        let kernel = Kernel::AttentionGrad(k.clone());
        let mut grad_inputs = random.inputs(&kernel);
        grad_inputs[..first + 2].clone_from_slice(&out);
        let given = values(&grad_inputs);
        let grads = run(&kernel, &grad_inputs);
        let known = [&given[first][..], &given[first + 1], &given[first + 2]];
        let expected = backward(&k, &given[..first], known, [3, 4, 5].map(|i| given[first + i].clone()));
        let [_, _, group, queries, keys, ..] = c.shape;
        let terms = [keys, queries * group, queries * group];
        for (i, (name, expected)) in ["dq", "dk", "dv"].into_iter().zip(expected).enumerate() {
            close_sum(&grads[first + 3 + i], &expected, tolerance, terms[i], name, c);
        }
    }

    fn close(x: &Data, y: &[f64], tolerance: f64, name: &str, c: &Case) {
        close_sum(x, y, tolerance, 1, name, c);
    }

    /// Compares what both wrote; what neither wrote stays poison, and infinities must agree. `terms` went into each element.
    fn close_sum(x: &Data, y: &[f64], tolerance: f64, terms: u64, name: &str, c: &Case) {
        let x = x.values();
        assert!(x.iter().zip(y).all(|(x, y)| x.is_finite() == y.is_finite()), "{name} in {c:?}");
        let finite = |v: &[f64]| v.iter().copied().filter(|v| v.is_finite()).collect::<Vec<_>>();
        let (x, y) = (finite(&x), finite(y));
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        // The floor is for gradients that are zero in exact arithmetic (one key only), and here the noise of their terms.
        let size = norm(&mut y.iter().copied()).max(0.2 * (y.len() as f64 * (terms as f64 / 8.0).max(1.0)).sqrt());
        let error = norm(&mut x.iter().zip(&y).map(|(x, y)| x - y)) / size.max(1e-30);
        assert!(error < tolerance, "{name}: {error} in {c:?}");
    }

    fn cases() -> impl Strategy<Value = Case> {
        let shape = [1u64..3, 1u64..3, 1u64..4, 1u64..90, 1u64..90, 1u64..20, 1u64..20];
        let mask = (any::<bool>(), prop::option::of(1u64..40), any::<bool>()).prop_map(|(causal, window, align_end)| Mask {
            causal,
            window,
            align_end,
        });
        let format = prop_oneof![Just(DType::F32), Just(DType::Bf16), Just(DType::Bool)];
        let dtype = prop_oneof![2 => Just(DType::F32), 1 => Just(DType::Bf16)];
        (shape, any::<[bool; 4]>(), mask, any::<bool>(), prop::option::of((format, any::<[bool; 4]>())), dtype)
            .prop_map(|(shape, positions_first, mask, cap, bias, dtype)| Case { shape, positions_first, mask, cap, bias, dtype })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]
        #[test]
        fn attention_and_its_gradients_follow_their_formulas(c in cases(), seed: u64) {
            check(&c, seed);
        }
    }

    fn case(shape: [u64; 7]) -> Case {
        Case { shape, positions_first: [true; 4], mask: Mask::default(), cap: false, bias: None, dtype: DType::F32 }
    }

    #[test]
    fn many_blocks_of_queries_and_keys_meet_without_a_seam() {
        let causal = Mask { causal: true, window: None, align_end: false };
        check(&Case { mask: causal, ..case([1, 1, 2, 300, 300, 16, 24]) }, 1);
        check(&Case { mask: Mask { window: Some(100), ..causal }, dtype: DType::Bf16, ..case([1, 1, 1, 600, 600, 16, 16]) }, 2);
        check(&Case { mask: Mask { align_end: true, ..causal }, cap: true, ..case([1, 2, 1, 70, 530, 8, 8]) }, 3);
        check(&Case { bias: Some((DType::F32, [false, true, true, true])), ..case([1, 1, 2, 70, 530, 8, 8]) }, 4);
    }

    #[test]
    fn a_row_that_sees_nothing_is_zero_and_so_are_its_gradients() {
        // Queries before the first key.
        let mask = Mask { causal: true, window: None, align_end: true };
        check(&Case { mask, ..case([2, 1, 1, 90, 20, 4, 4]) }, 1);
        let c = Case { bias: Some((DType::Bool, [false; 4])), ..case([1, 1, 1, 3, 5, 4, 4]) };
        let k = attention(&c);
        let kernel = Kernel::Attention(k);
        let mut inputs = Random::new(1).inputs(&kernel);
        inputs[3] = Data::new(DType::Bool, &[0.0]);
        let out = run(&kernel, &inputs);
        assert!(out[5].values().iter().all(|lse| *lse == f64::NEG_INFINITY));
        assert!(out[4].values().iter().all(|o| o.is_nan() || *o == 0.0));
    }
}
