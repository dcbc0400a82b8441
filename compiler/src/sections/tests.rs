use super::*;
use crate::graph::{Op, ValueId};
use crate::import::new::{Family, Request, Sizes, new};
use crate::import::{ImportOptions, import_model};
use crate::recognise::recognise;
use std::collections::HashSet;
use std::path::Path;

fn model(family: Family, layers: u64) -> Graph {
    let [layers, dim, heads, vocab, seq, batch] = [layers, 32, 2, 64, 16, 2].map(Some);
    let request = Request { layers, dim, heads, vocab, seq, batch, ..Request::default() };
    let sizes = Sizes::of(family, &request).unwrap();
    import_model(new(family, &sizes), Path::new("model.json"), &ImportOptions::default()).unwrap().graph
}

#[test]
fn a_deeper_model_has_no_more_kinds_of_sections() {
    for family in [Family::Gpt2, Family::Llama] {
        let count = |layers| {
            let s = sections(&model(family, layers)).unwrap();
            (s.len(), s.kinds.iter().collect::<HashSet<_>>().len())
        };
        let ((few, kinds), (many, same)) = (count(3), count(9));
        assert_eq!(many - few, 12, "attention and MLP of each layer");
        assert_eq!(kinds, same);
    }
}

#[test]
fn every_layer_is_rewritten_and_keeps_its_own_parameters_and_names() {
    let graph = recognise(model(Family::Llama, 5)).unwrap();
    graph.verify().unwrap();
    let attention: Vec<&str> = graph.nodes.iter().filter(|n| matches!(n.op, Op::Attention(_))).map(|n| n.site.as_ref()).collect();
    assert_eq!(attention.len(), 5);
    assert_eq!(attention.iter().collect::<HashSet<_>>().len(), 5, "{attention:?}");
    let read: HashSet<ValueId> = graph.nodes.iter().flat_map(|n| n.inputs.iter().copied()).collect();
    let unread = graph.nodes.iter().filter(|n| matches!(n.op, Op::Parameter(_)) && !read.contains(&n.results[0]));
    assert_eq!(unread.count(), 0);
}

#[test]
fn attention_and_mlp_of_a_layer_are_one_block_and_the_first_begins_behind_the_embedding() {
    for family in [Family::Gpt2, Family::Llama] {
        let s = sections(&recognise(model(family, 4)).unwrap()).unwrap();
        let blocks: Vec<usize> = (0..s.len()).map(|i| s.block(i)).collect();
        assert_eq!(blocks, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5], "{family:?}");
        assert_eq!(s.first_repetition, 1..3);
    }
}

#[test]
fn repetition_is_the_shortest_period_that_holds_longest() {
    assert_eq!(repetition(&[0, 1, 2, 1, 2, 1, 2, 3]), 1..3);
    assert_eq!(repetition(&[0, 0, 0, 1]), 0..1);
    assert_eq!(repetition(&[0, 1, 2]), 0..0, "nothing repeats");
    assert_eq!(repetition(&[0, 1, 2, 1, 3]), 0..0, "half a period is none");
    assert_eq!(repetition(&[0, 1, 2, 3, 2, 4]), 1..3, "the first section reads the stream unrounded");
    assert_eq!(repetition(&[0, 1, 2, 3, 4]), 0..0);
}

#[test]
fn names_are_no_part_of_a_kind() {
    let graph = recognise(model(Family::Llama, 3)).unwrap();
    let mut renamed = graph.clone();
    renamed.nodes.iter_mut().zip(0..).for_each(|(n, i)| n.site = format!("n{}", i * 7919 % 10007).as_str().into());
    assert_eq!(sections(&graph).unwrap(), sections(&renamed).unwrap());
}

/// One block with a norm, a layer and a residual addition twice, and what comes before and after.
const BLOCKS: &str = r#"
parameter 0 "t" f32[5, 4] trainable=true source="t" perm=none init=ones
parameter 1 "a" f32[4, 4] trainable=true source="a" perm=none init=ones
parameter 2 "b" f32[4, 4] trainable=true source="b" perm=none init=ones
forward
  %0: i64[1, 3, 1] = input "ids" () @"ids"
  %1: f32[5, 4] = parameter 0 () @"t"
  %2: f32[4, 4] = parameter 1 () @"a"
  %3: f32[4, 4] = parameter 2 () @"b"
  %4: f32[1, 5, 4] = reshape [1, 5, 4] (%1) @"t"
  %5: f32[1, 3, 4] = take (%4, %0) @"t"
  %6: f32[3, 4] = reshape [3, 4] (%5) @"t"
  %7: f32[3, 4] = matmul trans_a=false trans_b=false dtype=f32 (%6, %2) @"one"
  %8: f32[3, 4] = map f32 {x0; x1; add 0 1} (%6, %7) @"one"
  %9: f32[3, 4] = matmul trans_a=false trans_b=false dtype=f32 (%8, %3) @"two"
  %10: f32[3, 4] = map f32 {x0; x1; add 0 1} (%8, %9) @"two"
  %11: f32[1, 1] = reduce sum axes=[0, 1] dtype=f32 (%10) @"sum"
  %12: f32[] = reshape [] (%11) @"sum"
loss %12
"#;

#[test]
fn the_joint_graph_s_sections_hold_what_is_differentiated_from_them() {
    let forward = crate::graph::parse::parse(BLOCKS, &[]).unwrap();
    let train = crate::differentiate::TrainOptions {
        optimizer: crate::differentiate::Optimizer::Sgd,
        state_dtype: fp8c_kernels::DType::F32,
        accumulation: 1,
        clip: fp8c_runtime::plan::Clip::Exact,
    };
    let joint = crate::differentiate::differentiate(forward, &train).unwrap();
    joint.verify().unwrap();
    insta::assert_snapshot!(sections(&joint).unwrap().print(&joint), @r"
    section 0 kind 0 block 0: 3 fprop, 1 dgrad, 2 wgrad, 2 update (t .. t)
    section 1 kind 1 block 1: 2 fprop, 2 dgrad, 1 wgrad, 2 update (one .. one)
    section 2 kind 1 block 2: 2 fprop, 2 dgrad, 1 wgrad, 2 update (two .. two)
    section 3 kind 2 block 3: 2 fprop, 3 dgrad, 0 wgrad, 3 update (sum .. sum)
    ");
}
