//! Composites, with what usually stands around them.

use super::*;
use fp8c_kernels::program::{FloatBits, Mask};

const F: DType = DType::F32;
const B: DType = DType::Bf16;

fn bits(x: f32) -> FloatBits {
    FloatBits(x.to_bits())
}

#[test]
fn norms_forward_and_backward() {
    for (center, bias, dtype) in [(true, true, F), (false, false, F), (true, false, B), (false, false, B)] {
        let mut c = Case::new();
        let n = NormOp { center, axes: 1, eps: bits(1e-5), bias, dtype };
        let (x, r, scale, shift) = (c.input(dtype, &[4, 16, 32]), c.input(dtype, &[4, 16, 32]), c.input(F, &[32]), c.input(F, &[32]));
        let h = c.binary(Binary::Add, x, r);
        let inputs: Vec<ValueId> = [h, scale].into_iter().chain(bias.then_some(shift)).collect();
        let out = c.all(Op::Norm(n.clone()), &inputs);
        let gelu = c.unary(Unary::GeluTanh, out[0]);
        c.output(gelu);
        out.iter().for_each(|&v| c.output(v));
        let dy = c.input(dtype, &[4, 16, 32]);
        let inputs: Vec<ValueId> = [dy, h, scale].into_iter().chain(out[1..].iter().copied()).collect();
        let back = c.all(Op::NormGrad(n), &inputs);
        let dx = c.binary(Binary::Add, back[0], r);
        c.output(dx);
        back.iter().for_each(|&v| c.output(v));
        c.check();
    }
}

#[test]
fn a_norm_with_its_residual_is_one_unit() {
    let mut c = Case::new();
    let n = NormOp { center: true, axes: 1, eps: bits(1e-5), bias: true, dtype: F };
    let (x, r, scale, shift) = (c.input(F, &[4, 16, 32]), c.input(F, &[4, 16, 32]), c.input(F, &[32]), c.input(F, &[32]));
    let h = c.binary(Binary::Add, x, r);
    let out = c.all(Op::Norm(n), &[h, scale, shift]);
    c.output(h);
    out.iter().for_each(|&v| c.output(v));
    let program = lower(&c.graph, Options::default()).unwrap();
    assert_eq!(program.units.len(), 1, "{}", print(&program));
}

#[test]
fn softmax_forward_and_backward() {
    for log in [false, true] {
        for dtype in [F, B] {
            let mut c = Case::new();
            let (x, dy) = (c.input(dtype, &[3, 5, 24]), c.input(dtype, &[3, 5, 24]));
            let y = c.one(Op::Softmax { log }, &[x]);
            let dx = c.one(Op::SoftmaxGrad { log }, &[dy, y]);
            c.output(y);
            c.output(dx);
            c.check();
        }
    }
}

#[test]
fn attention_reads_heads_out_of_one_projection_and_writes_them_back() {
    for bias in [false, true] {
        let mut c = Case::new();
        let (b, s, h, d) = (2u64, 8u64, 4u64, 8u64);
        let (x, w) = (c.input(F, &[b * s, 16]), c.input(F, &[16, 3 * h * d]));
        let qkv = c.matmul(false, false, x, w);
        let qkv = c.reshape(&[b, s, 3 * h * d], qkv);
        let heads: Vec<ValueId> = (0..3)
            .map(|i| {
                let starts = vec![0, 0, (i * h * d) as i64];
                let part = c.one(Op::Slice { starts, steps: vec![1; 3], sizes: vec![b, s, h * d] }, &[qkv]);
                let split = c.reshape(&[b, s, h, d], part);
                c.transpose(&[0, 2, 1, 3], split)
            })
            .collect();
        let mask = Mask { causal: true, window: Some(5), align_end: false };
        let a = AttentionOp { scale: bits(0.35), softcap: None, mask, bias };
        let mut inputs = heads.clone();
        if bias {
            inputs.push(c.input(F, &[b, 1, s, s]));
        }
        let out = c.all(Op::Attention(a.clone()), &inputs);
        let o = c.transpose(&[0, 2, 1, 3], out[0]);
        let o = c.reshape(&[b * s, h * d], o);
        let w2 = c.input(F, &[h * d, 12]);
        let y = c.matmul(false, false, o, w2);
        c.output(y);
        let go = c.input(F, &[b * s, h * d]);
        let go = c.reshape(&[b, s, h, d], go);
        let go = c.transpose(&[0, 2, 1, 3], go);
        inputs.extend([out[0], out[1], go]);
        let grads = c.all(Op::AttentionGrad(a), &inputs);
        let parts: Vec<ValueId> = grads
            .iter()
            .map(|&g| {
                let t = c.transpose(&[0, 2, 1, 3], g);
                c.reshape(&[b, s, h * d], t)
            })
            .collect();
        let joined = c.one(Op::Concat { axis: 2 }, &parts);
        let flat = c.reshape(&[b * s, 3 * h * d], joined);
        let dw = c.matmul(true, false, x, flat);
        c.output(dw);
        let program = lower(&c.graph, Options::default()).unwrap();
        let forward = program.units.iter().filter(|u| u.kernel.family() == "row").count();
        assert!(forward <= 3, "only the three gradients are copied into their places:\n{}", print(&program));
        c.check();
    }
}

#[test]
fn rotary_embeddings_of_every_form() {
    for (rotated, interleaved, inverse) in [(16u64, false, false), (8, false, true), (16, true, true), (8, true, false)] {
        for dtype in [F, B] {
            let mut c = Case::new();
            let x = c.input(dtype, &[2, 6, 3, 16]);
            let x = c.transpose(&[0, 2, 1, 3], x);
            let (cos, sin) = (c.input(F, &[6, rotated]), c.input(F, &[6, rotated]));
            let y = c.one(Op::Rotary { rotated, interleaved, inverse }, &[x, cos, sin]);
            c.output(y);
            let t = c.transpose(&[0, 2, 1, 3], y);
            let e = c.unary(Unary::Neg, t);
            c.output(e);
            c.check();
        }
    }
}

#[test]
fn a_full_rotary_embedding_is_one_unit() {
    let mut c = Case::new();
    let (x, cos, sin) = (c.input(F, &[2, 3, 6, 16]), c.input(F, &[6, 16]), c.input(F, &[6, 16]));
    let y = c.one(Op::Rotary { rotated: 16, interleaved: false, inverse: false }, &[x, cos, sin]);
    c.output(y);
    let program = lower(&c.graph, Options::default()).unwrap();
    assert_eq!(program.units.len(), 1, "{}", print(&program));
}

#[test]
fn cross_entropy_with_and_without_ignored_labels() {
    for (ignore_index, sum) in [(None, false), (Some(3), false), (Some(3), true)] {
        for capped in [false, true] {
            let mut c = Case::new();
            let (x, w, labels) = (c.input(F, &[12, 8]), c.input(F, &[8, 20]), c.indices(&[12], 20));
            let mut logits = c.matmul(false, false, x, w);
            if capped {
                logits = c.unary(Unary::Tanh, logits);
            }
            let op = CrossEntropyOp { ignore_index, sum, dtype: F };
            let out = c.all(Op::CrossEntropy(op.clone()), &[logits, labels]);
            c.graph.loss = Some(out[0]);
            c.output(out[1]);
            let dloss = c.input(F, &[]);
            let d = c.one(Op::CrossEntropyGrad(op), &[dloss, logits, labels, out[1]]);
            c.output(d);
            c.check();
        }
    }
}
