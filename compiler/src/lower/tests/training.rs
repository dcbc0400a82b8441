//! Whole training steps.

use super::*;
use crate::differentiate::{Optimizer, TrainOptions, differentiate};
use crate::{head, sums};
use fp8c_kernels::program::{FloatBits, Mask};
use fp8c_runtime::plan::{Clip, Purpose};

const F: DType = DType::F32;

fn bits(x: f32) -> FloatBits {
    FloatBits(x.to_bits())
}

/// A decoder block on embedded tokens, with a cross-entropy over its vocabulary.
fn transformer(c: &mut Case) {
    let (b, s, h, d, vocabulary) = (2u64, 8u64, 2u64, 8u64, 24u64);
    let e = h * d;
    let ids = c.indices(&[b, s], vocabulary);
    let (table, positions) = (c.parameter(&[vocabulary, e]), c.parameter(&[s, e]));
    let flat = c.reshape(&[1, b * s, 1], ids);
    let table3 = c.reshape(&[1, vocabulary, e], table);
    let x = c.one(Op::Take, &[table3, flat]);
    let x = c.reshape(&[b, s, e], x);
    let x = c.binary(Binary::Add, x, positions);
    let a = normed(c, x, e);
    let (w, bias) = (c.parameter(&[1, e, 3 * e]), c.parameter(&[3 * e]));
    let qkv = c.matmul(false, false, a, w);
    let qkv = c.binary(Binary::Add, qkv, bias);
    let heads: Vec<ValueId> = (0..3)
        .map(|i| {
            let starts = vec![0, 0, (i * e) as i64];
            let part = c.one(Op::Slice { starts, steps: vec![1; 3], sizes: vec![b, s, e] }, &[qkv]);
            let split = c.reshape(&[b, s, h, d], part);
            c.transpose(&[0, 2, 1, 3], split)
        })
        .collect();
    let mask = Mask { causal: true, window: None, align_end: false };
    let o = c.all(Op::Attention(AttentionOp { scale: bits(0.35), softcap: None, mask, bias: false }), &heads)[0];
    let o = c.transpose(&[0, 2, 1, 3], o);
    let o = c.reshape(&[b, s, e], o);
    let w = c.parameter(&[1, e, e]);
    let o = c.matmul(false, false, o, w);
    let x = c.binary(Binary::Add, x, o);
    let a = normed(c, x, e);
    let (w, bias) = (c.parameter(&[1, e, 4 * e]), c.parameter(&[4 * e]));
    let m = c.matmul(false, false, a, w);
    let m = c.binary(Binary::Add, m, bias);
    let m = c.unary(Unary::GeluTanh, m);
    let w = c.parameter(&[1, 4 * e, e]);
    let m = c.matmul(false, false, m, w);
    let x = c.binary(Binary::Add, x, m);
    let a = normed(c, x, e);
    let a = c.reshape(&[b * s, e], a);
    let logits = c.matmul(false, true, a, table);
    let labels = c.indices(&[b * s], vocabulary);
    let loss = CrossEntropyOp { ignore_index: Some(3), sum: false, dtype: F };
    let loss = c.all(Op::CrossEntropy(loss), &[logits, labels])[0];
    c.graph.loss = Some(loss);
    c.graph = c.graph.clone();
}

fn normed(c: &mut Case, x: ValueId, e: u64) -> ValueId {
    let (scale, shift) = (c.parameter(&[e]), c.parameter(&[e]));
    c.all(Op::Norm(NormOp { center: true, axes: 1, eps: bits(1e-5), bias: true, dtype: F }), &[x, scale, shift])[0]
}

/// The joint graph of a case.
fn joint(c: &Case, optimizer: Optimizer, accumulation: u32) -> Graph {
    let (graph, _) = c.graph.sources_first().unwrap();
    differentiate(graph, &TrainOptions { optimizer, state_dtype: F, accumulation, clip: Clip::Exact }).unwrap()
}

#[test]
fn a_transformer_trains_a_step_as_the_interpreter_does() {
    for (optimizer, accumulation) in [(Optimizer::AdamW, 1), (Optimizer::Sgd, 1), (Optimizer::AdamW, 2)] {
        let mut c = Case::new();
        transformer(&mut c);
        c.check_graph(&joint(&c, optimizer, accumulation), true);
    }
}

/// The joint graph of a case with loss heads of slices of so many rows.
fn sliced(c: &Case, accumulation: u32, rows: u64) -> Graph {
    let (graph, _) = c.graph.sources_first().unwrap();
    let graph = head::slice(graph, Purpose::Train, |_| rows).unwrap();
    let joint =
        differentiate(graph, &TrainOptions { optimizer: Optimizer::AdamW, state_dtype: F, accumulation, clip: Clip::Exact }).unwrap();
    sums::in_place(head::turn(joint).unwrap()).unwrap()
}

#[test]
fn a_sliced_loss_head_trains_a_step_as_the_interpreter_does() {
    for (accumulation, rows) in [(1, 4), (1, 6), (2, 8)] {
        let mut c = Case::new();
        transformer(&mut c);
        c.check_graph(&sliced(&c, accumulation, rows), true);
    }
}

/// Logits with a bias and a softcap, which are a result as well, and of which each sequence's last is cut off before the loss.
fn shifted(c: &mut Case, logits_are_a_result: bool) {
    let (b, s, d, classes) = (3u64, 5u64, 8u64, 12u64);
    let (x, scale) = (c.input(F, &[b, s, d]), c.parameter(&[d]));
    let x = c.binary(Binary::Mul, x, scale);
    let (w, bias) = (c.parameter(&[1, d, classes]), c.parameter(&[classes]));
    let y = c.matmul(false, false, x, w);
    let y = c.binary(Binary::Add, y, bias);
    let y = c.unary(Unary::Tanh, y);
    if logits_are_a_result {
        c.output(y);
    }
    let starts = vec![0; 3];
    let y = c.one(Op::Slice { starts, steps: vec![1; 3], sizes: vec![b, s - 1, classes] }, &[y]);
    let y = c.reshape(&[b * (s - 1), classes], y);
    let labels = c.indices(&[b * (s - 1)], classes);
    let loss = CrossEntropyOp { ignore_index: None, sum: false, dtype: F };
    let loss = c.all(Op::CrossEntropy(loss), &[y, labels])[0];
    c.graph.loss = Some(loss);
}

#[test]
fn a_shifted_and_capped_head_whose_logits_are_a_result_trains_as_the_interpreter_does() {
    for (result, rows) in [(false, 4), (true, 4), (true, 8)] {
        let mut c = Case::new();
        shifted(&mut c, result);
        let joint = sliced(&c, 1, rows);
        assert_eq!(joint.nodes.iter().filter(|n| matches!(n.op, Op::CrossEntropy(_))).count() as u64, 15u64.div_ceil(rows));
        c.check_graph(&joint, true);
    }
}

#[test]
fn a_slice_of_a_loss_head_is_four_launches() {
    let mut c = Case::new();
    transformer(&mut c);
    let count = |rows| lower(&sliced(&c, 1, rows), Options::default()).unwrap().units.len();
    // Three products, and one pass over the logits that gives their loss and their gradient.
    assert_eq!(count(2) - count(4), 4 * 4);
}

#[test]
fn a_step_whose_gradient_is_not_finite_leaves_parameters_and_moments_alone() {
    let mut c = Case::new();
    let (x, w) = (c.input(F, &[4, 8]), c.parameter(&[8, 3]));
    let y = c.matmul(false, false, x, w);
    c.mean_square(y);
    c.sources[0].1 = Tensor::float([4, 8], (0..32).map(|i| if i == 7 { f64::INFINITY } else { i as f64 }).collect());
    let joint = joint(&c, Optimizer::AdamW, 1);
    let program = lower(&joint, Options::default()).unwrap();
    let mut machine = Machine::new(&c, &joint, &program);
    let kept: Vec<usize> = (0..program.buffers.len())
        .filter(|&i| matches!(program.buffers[i].role, fp8c_runtime::plan::Role::Parameter | fp8c_runtime::plan::Role::State))
        .collect();
    let before: Vec<Vec<u8>> = kept.iter().map(|&i| machine.bytes(i).to_vec()).collect();
    machine.run(&program);
    let after: Vec<Vec<u8>> = kept.iter().map(|&i| machine.bytes(i).to_vec()).collect();
    assert!(kept.len() == 4 && before == after);
}

#[test]
fn fusion_saves_most_of_the_launches_and_half_of_the_traffic() {
    let mut c = Case::new();
    transformer(&mut c);
    let joint = joint(&c, Optimizer::AdamW, 1);
    let [fused, plain] = [true, false].map(|fuse| lower(&joint, Options { fuse, ..Options::default() }).unwrap());
    let rows = |p: &Program| -> Vec<u64> {
        let row = |u: &&crate::units::Unit| u.kernel.family() == "row" && u.epoch != Epoch::Update;
        p.units.iter().filter(row).map(|u| u.traffic.0).collect()
    };
    let (f, p) = (rows(&fused), rows(&plain));
    assert!(3 * f.len() < p.len(), "{} of {} launches", f.len(), p.len());
    assert!(2 * f.iter().sum::<u64>() < p.iter().sum(), "{} of {} bytes", f.iter().sum::<u64>(), p.iter().sum::<u64>());
}
