use super::*;
use crate::differentiate::{Optimizer, TrainOptions, differentiate};
use crate::graph::eval::{Rounding, Tensor, run};
use crate::graph::parse::parse;
use crate::graph::*;
use crate::sums;
use fp8c_kernels::DType;
use fp8c_runtime::plan::{Clip, Control, Purpose};

/// Ten rows of four numbers, seven classes.
const SOURCES: &str = r#"
parameter 0 "scale" f32[4] trainable=true source="scale" perm=none init=ones
parameter 1 "w" f32[7, 4] trainable=true source="w" perm=none init=ones
parameter 2 "b" f32[7] trainable=true source="b" perm=none init=ones
forward
  %0: f32[2, 5, 4] = input "x" () @"x"
  %1: i64[2, 5] = input "labels" () @"labels"
  %2: f32[4] = parameter 0 () @"scale"
  %3: f32[7, 4] = parameter 1 () @"w"
  %4: f32[7] = parameter 2 () @"b"
  %5: f32[2, 5, 4] = map f32 {x0; x1; mul 0 1} (%0, %2) @"scaled"
  %6: f32[10, 4] = reshape [10, 4] (%5) @"rows"
  %7: i64[10] = reshape [10] (%1) @"labels"
"#;

const FLAT: &str = r#"
  %8: f32[10, 7] = matmul trans_a=false trans_b=true dtype=f32 (%6, %3) @"head"
  %9: f32[], %10: f32[10] = cross_entropy ignore_index=3 sum=false dtype=f32 (%8, %7) @"loss"
loss %9
"#;

const CAPPED_WITH_BIAS: &str = r#"
  %8: f32[10, 7] = matmul trans_a=false trans_b=true dtype=f32 (%6, %3) @"head"
  %9: f32[2, 5, 7] = reshape [2, 5, 7] (%8) @"head"
  %10: f32[2, 5, 7] = map f32 {x0; x1; add 0 1} (%4, %9) @"head"
  %11: f32[2, 5, 7] = map f32 {x0; 0.5; mul 0 1; tanh 2; 2.0; mul 3 4} (%10) @"cap"
  %12: f32[10, 7] = reshape [10, 7] (%11) @"loss"
  %13: f32[], %14: f32[10] = cross_entropy ignore_index=none sum=true dtype=f32 (%12, %7) @"loss"
  %15: f32[] = map f32 {x0; 0.25; mul 0 1} (%13) @"loss"
loss %15
"#;

const SHIFTED: &str = r#"
  %8: f32[4, 7] = transpose [1, 0] (%3) @"head"
  %9: f32[1, 4, 7] = reshape [1, 4, 7] (%8) @"head"
  %10: f32[2, 5, 7] = matmul trans_a=false trans_b=false dtype=f32 (%5, %9) @"head"
  %11: f32[2, 4, 7] = slice starts=[0, 0, 0] steps=[1, 1, 1] sizes=[2, 4, 7] (%10) @"loss"
  %12: f32[8, 7] = reshape [8, 7] (%11) @"loss"
  %13: i64[2, 4] = slice starts=[0, 1] steps=[1, 1] sizes=[2, 4] (%1) @"loss"
  %14: i64[8] = reshape [8] (%13) @"loss"
  %15: f32[], %16: f32[8] = cross_entropy ignore_index=none sum=false dtype=f32 (%12, %14) @"loss"
loss %15
"#;

const TIED: &str = r#"
  %8: f32[1, 7, 4] = reshape [1, 7, 4] (%3) @"embedding"
  %9: i64[1, 10, 1] = reshape [1, 10, 1] (%1) @"embedding"
  %10: f32[1, 10, 4] = take (%8, %9) @"embedding"
  %11: f32[1, 10, 4] = map f32 {x0; x1; mul 0 1; sin 2} (%10, %2) @"body"
  %12: f32[10, 4] = reshape [10, 4] (%11) @"head"
  %13: f32[10, 7] = matmul trans_a=false trans_b=true dtype=f32 (%12, %3) @"head"
  %14: f32[], %15: f32[10] = cross_entropy ignore_index=3 sum=false dtype=f32 (%13, %7) @"loss"
loss %14
"#;

/// The loss counts beside another that depends on the head's input.
const WITH_ANOTHER_LOSS: &str = r#"
  %8: f32[10, 7] = matmul trans_a=false trans_b=true dtype=f32 (%6, %3) @"head"
  %9: f32[], %10: f32[10] = cross_entropy ignore_index=3 sum=false dtype=f32 (%8, %7) @"loss"
  %11: f32[10, 4] = map f32 {x0; mul 0 0} (%6) @"other"
  %12: f32[1, 1] = reduce sum axes=[0, 1] dtype=f32 (%11) @"other"
  %13: f32[] = reshape [] (%12) @"other"
  %14: f32[] = map f32 {x0; x1; 0.01; mul 1 2; add 0 3} (%9, %13) @"sum"
loss %14
"#;

const SQUARED: &str = r#"
  %8: f32[10, 7] = matmul trans_a=false trans_b=true dtype=f32 (%6, %3) @"head"
  %9: f32[], %10: f32[10] = cross_entropy ignore_index=3 sum=false dtype=f32 (%8, %7) @"loss"
  %11: f32[] = map f32 {x0; mul 0 0} (%9) @"squared"
loss %11
"#;

const HEADS: [(&str, &str); 6] = [
    ("flat", FLAT),
    ("capped", CAPPED_WITH_BIAS),
    ("shifted", SHIFTED),
    ("tied", TIED),
    ("another", WITH_ANOTHER_LOSS),
    ("squared", SQUARED),
];

fn forward(nodes: &str) -> Graph {
    let graph = parse(&format!("{SOURCES}{nodes}"), &[]).unwrap();
    graph.verify().unwrap();
    graph
}

/// The joint graph with slices of so many rows.
fn joint(forward: Graph, rows: u64, accumulation: u32) -> Graph {
    let sliced = slice(forward, Purpose::Train, |_| rows).unwrap();
    sliced.verify().unwrap();
    let options = TrainOptions { optimizer: Optimizer::Sgd, state_dtype: DType::F32, accumulation, clip: Clip::Exact };
    let joint = differentiate(sliced, &options).unwrap();
    joint.verify().unwrap();
    let joint = sums::in_place(turn(joint).unwrap()).unwrap();
    joint.verify().unwrap();
    joint
}

fn values(graph: &Graph, rounding: Rounding) -> Vec<Tensor> {
    let wave = |n: u64, phase: f64| (0..n).map(|i| ((i as f64 + phase) * 0.73).sin() as f32 as f64).collect();
    let sources = |node: &Node, ty: &TensorType| match &node.op {
        Op::Input { name } if name == "labels" => Some(Tensor::int(ty.shape.clone(), (0..10).map(|i| (i * 5 + 1) % 7).collect())),
        Op::Input { .. } => Some(Tensor::float(ty.shape.clone(), wave(ty.elements(), 0.3))),
        Op::Parameter(p) => Some(Tensor::float(ty.shape.clone(), wave(ty.elements(), 1.0 + *p as f64))),
        Op::Control => {
            let mut control = vec![0.0; Control::LEN];
            control[Control::LOSS_SCALE] = 8.0;
            Some(Tensor::float([Control::LEN as u64], control))
        }
        Op::DecayOf(_) => Some(Tensor::float([1], vec![1.0])),
        _ => Some(Tensor::zeros(ty)),
    };
    run(graph, &sources, rounding).unwrap()
}

/// The loss, and each parameter's gradient.
fn results(graph: &Graph, rounding: Rounding) -> Vec<(usize, Vec<f64>)> {
    let all = values(graph, rounding);
    let floats = |v: ValueId| all[v.index()].floats().unwrap().to_vec();
    let loss = (usize::MAX, floats(graph.loss.unwrap()));
    [loss].into_iter().chain(graph.gradients.iter().map(|g| (g.parameter, floats(g.value)))).collect()
}

fn assert_close(name: &str, have: &Graph, want: &Graph) {
    for (rounding, bound) in [(Rounding::Exact, 1e-12), (Rounding::Stored, 1e-6)] {
        let (have, want) = (results(have, rounding), results(want, rounding));
        assert_eq!(have.len(), want.len(), "{name}");
        for ((p, a), (q, b)) in have.iter().zip(&want) {
            let norm = b.iter().map(|x| x * x).sum::<f64>().sqrt();
            let apart = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
            assert!(p == q && norm > 0.0 && apart <= bound * norm, "{name}: parameter {p} is {apart} of {norm} away");
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_the_whole_head() {
    for (name, nodes) in HEADS {
        for accumulation in [1, 2] {
            let whole = joint(forward(nodes), 10, accumulation);
            assert!(whole.nodes.iter().all(|n| n.pass != Pass::Loss));
            for rows in [1, 3, 4, 5] {
                assert_close(name, &joint(forward(nodes), rows, accumulation), &whole);
            }
        }
    }
}

#[test]
fn no_slice_s_logits_are_there_when_the_next_ones_are_computed() {
    for (name, nodes) in HEADS.into_iter().filter(|h| h.0 != "squared") {
        let joint = joint(forward(nodes), 5, 1);
        let users = joint.users();
        assert!(joint.values.iter().all(|v| v.ty.elements() < 70 || v.ty.shape.last() != Some(&7)), "{name}: logits are whole");
        let products: Vec<usize> = (0..joint.nodes.len())
            .filter(|&n| joint.nodes[n].pass == Pass::Loss && matches!(joint.nodes[n].op, Op::Matmul { .. }))
            .collect();
        assert_eq!(products.len(), 2, "{name}");
        // All that a slice's logits lead to, but sums of one number and of weights.
        for pair in products.windows(2) {
            let mut open = vec![NodeId(pair[0] as u32)];
            while let Some(n) = open.pop() {
                for v in joint.node(n).results.iter().filter(|v| joint.ty(**v).shape.last() == Some(&7) && joint.ty(**v).rank() == 2) {
                    let wide = joint.ty(*v).shape[0] == 5;
                    let readers = users[v.index()].iter().filter(|_| wide);
                    readers.for_each(|&u| {
                        assert!(u.index() < pair[1], "{name}: node {} reads logits late", u.0);
                        open.push(u);
                    });
                }
            }
        }
    }
}

#[test]
fn the_loss_is_there_before_the_last_slice_s_gradients_are() {
    let joint = joint(forward(FLAT), 4, 1);
    let loss = joint.values[joint.loss.unwrap().index()].node;
    let last_product = joint.nodes.iter().rposition(|n| n.pass == Pass::Dgrad && matches!(n.op, Op::Matmul { .. })).unwrap();
    assert!(loss.index() < last_product);
    assert_eq!(joint.node(loss).pass, Pass::Loss);
}

#[test]
fn the_weight_s_gradient_grows_in_place() {
    for (accumulation, steps) in [(1, 2), (2, 3)] {
        let joint = joint(forward(FLAT), 4, accumulation);
        let mut v = joint.gradients.iter().find(|g| g.parameter == 1).unwrap().value;
        let mut grown = 0;
        while joint.def(v).op == Op::AccumulateGradient {
            grown += 1;
            v = joint.def(v).inputs[0];
        }
        assert_eq!(grown, steps);
        assert_eq!(matches!(joint.def(v).op, Op::State { .. }), accumulation > 1);
    }
}

#[test]
fn a_loss_whose_gradient_takes_its_value_stays_in_the_forward_pass() {
    let joint = joint(forward(SQUARED), 4, 1);
    assert!(joint.nodes.iter().all(|n| n.pass != Pass::Loss));
    let products = joint.nodes.iter().filter(|n| n.pass == Pass::Fprop && matches!(n.op, Op::Matmul { .. }));
    assert_eq!(products.count(), 3, "its slices may be kept or computed again, each by itself");
}

#[test]
fn logits_that_are_a_result_are_joined_and_their_gradient_is_never_whole() {
    let named = format!("{FLAT}output \"logits\" %8\n");
    let whole = joint(forward(&named), 10, 1);
    let sliced = joint(forward(&named), 4, 1);
    assert_close("named", &sliced, &whole);
    let logits = |g: &Graph| values(g, Rounding::Exact)[g.outputs[0].value.index()].clone();
    assert_eq!(logits(&sliced), logits(&whole));
    let large = sliced.nodes.iter().filter(|n| n.results.iter().any(|&v| sliced.ty(v).shape == [10, 7]));
    assert!(large.into_iter().all(|n| n.op == Op::Concat { axis: 0 }));
}

#[test]
fn inference_computes_the_loss_in_slices_unless_it_gives_the_logits_anyway() {
    let without = turn(slice(forward(FLAT), Purpose::Infer, |_| 4).unwrap()).unwrap();
    without.verify().unwrap();
    assert!(without.nodes.iter().all(|n| n.pass == Pass::Fprop));
    assert!(without.values.iter().all(|v| v.ty.shape != [10, 7]));
    let loss = |g: &Graph| values(g, Rounding::Exact)[g.loss.unwrap().index()].floats().unwrap()[0];
    assert!((loss(&without) - loss(&forward(FLAT))).abs() < 1e-12);
    let named = forward(&format!("{FLAT}output \"logits\" %8\n"));
    assert_eq!(slice(named.clone(), Purpose::Infer, |_| 4).unwrap().to_string(), named.to_string());
}

#[test]
fn what_is_no_head_is_left_as_it_is() {
    let read_twice = r#"
  %8: f32[10, 7] = matmul trans_a=false trans_b=true dtype=f32 (%6, %3) @"head"
  %9: f32[], %10: f32[10] = cross_entropy ignore_index=3 sum=false dtype=f32 (%8, %7) @"loss"
  %11: f32[1, 1] = reduce sum axes=[0, 1] dtype=f32 (%8) @"z"
  %12: f32[] = reshape [] (%11) @"z"
  %13: f32[] = map f32 {x0; x1; add 0 1} (%9, %12) @"z"
loss %13
"#;
    let by_row = r#"
  %8: f32[10, 7] = matmul trans_a=false trans_b=true dtype=f32 (%6, %3) @"head"
  %9: f32[10, 1] = reduce sum axes=[1] dtype=f32 (%6) @"temperature"
  %10: f32[10, 7] = map f32 {x0; x1; mul 0 1} (%8, %9) @"temperature"
  %11: f32[], %12: f32[10] = cross_entropy ignore_index=3 sum=false dtype=f32 (%10, %7) @"loss"
loss %11
"#;
    for nodes in [read_twice, by_row] {
        let graph = forward(nodes);
        assert_eq!(slice(graph.clone(), Purpose::Train, |_| 4).unwrap().to_string(), graph.to_string());
    }
}

#[test]
fn slices_are_small_beside_the_weight_and_not_many() {
    let rows = |rows, classes, depth, bytes| Extents { rows, classes, depth, bytes }.slice_rows();
    // Llama 8B and GPT-2 small in bf16, and a small model with GPT-2's vocabulary in f32.
    assert_eq!(rows(4096, 128_256, 4096, 2), 1024);
    assert_eq!(rows(8192, 50_304, 768, 2), 512);
    assert_eq!(rows(1024, 50_304, 64, 4), 128);
    // Small logits are one slice, and many rows of few classes are not a slice each.
    assert!(rows(512, 512, 64, 4) >= 512);
    assert_eq!(rows(1 << 16, 512, 64, 2), 8192);
}
