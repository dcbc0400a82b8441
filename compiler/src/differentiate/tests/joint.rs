//! Whole joint graphs, in their printed form.

use super::*;
use crate::graph::parse::parse;

fn joint(forward: &str, options: &TrainOptions) -> String {
    let graph = parse(forward, &[]).unwrap();
    graph.verify().unwrap();
    let joint = differentiate(graph, options).unwrap();
    joint.verify().unwrap();
    joint.to_string()
}

const PLAIN: TrainOptions = TrainOptions { optimizer: Optimizer::AdamW, state_dtype: DType::Bf16, accumulation: 1, clip: Clip::Exact };

#[test]
fn a_classifier_with_a_hidden_layer() {
    let forward = r#"
parameter 0 "fc.weight" f32[8, 16] trainable=true source="fc.weight" perm=[1, 0] init=normal 0.02
parameter 1 "fc.bias" f32[16] trainable=true source="fc.bias" perm=none init=zeros
parameter 2 "head.weight" f32[16, 10] trainable=true source="head.weight" perm=[1, 0] init=normal 0.02
forward
  %0: f32[2, 3, 8] = input "x" () @"x"
  %1: i64[6] = input "labels" () @"labels"
  %2: f32[8, 16] = parameter 0 () @"fc.weight"
  %3: f32[16] = parameter 1 () @"fc.bias"
  %4: f32[16, 10] = parameter 2 () @"head.weight"
  %5: f32[1, 8, 16] = reshape [1, 8, 16] (%2) @"fc"
  %6: f32[2, 3, 16] = matmul trans_a=false trans_b=false dtype=f32 (%0, %5) @"fc"
  %7: f32[2, 3, 16] = map f32 {x0; x1; add 0 1; gelu_tanh 2} (%6, %3) @"act"
  %8: f32[6, 16] = reshape [6, 16] (%7) @"head"
  %9: f32[6, 10] = matmul trans_a=false trans_b=false dtype=f32 (%8, %4) @"head"
  %10: f32[], %11: f32[6] = cross_entropy ignore_index=none sum=false dtype=f32 (%9, %1) @"loss"
output "logits" %9
loss %10
"#;
    insta::assert_snapshot!(joint(forward, &PLAIN));
}

#[test]
fn a_tied_embedding_with_a_norm_in_bf16_and_accumulation() {
    let forward = r#"
parameter 0 "wte" f32[11, 8] trainable=true source="wte" perm=none init=normal 0.02
parameter 1 "ln.weight" f32[8] trainable=true source="ln.weight" perm=none init=ones
forward
  %0: i64[4] = input "ids" () @"ids"
  %1: i64[4] = input "labels" () @"labels"
  %2: f32[11, 8] = parameter 0 () @"wte"
  %3: f32[8] = parameter 1 () @"ln"
  %4: f32[1, 11, 8] = reshape [1, 11, 8] (%2) @"wte"
  %5: i64[1, 4, 1] = reshape [1, 4, 1] (%0) @"wte"
  %6: f32[1, 4, 8] = take (%4, %5) @"wte"
  %7: f32[4, 8] = reshape [4, 8] (%6) @"wte"
  %8: f32[4, 8], %9: f32[4, 1] = norm center=false axes=1 eps=1e-5 bias=false dtype=f32 (%7, %3) @"ln"
  %10: f32[4, 11] = matmul trans_a=false trans_b=true dtype=f32 (%8, %2) @"head"
  %11: f32[], %12: f32[4] = cross_entropy ignore_index=-100 sum=false dtype=f32 (%10, %1) @"loss"
loss %11
"#;
    let graph = crate::precision::storage(parse(forward, &[]).unwrap(), crate::precision::Precision::Bf16).unwrap();
    insta::assert_snapshot!(joint(&graph.to_string(), &TrainOptions { accumulation: 2, ..PLAIN }));
}

#[test]
fn attention_from_one_projection_with_sgd() {
    let forward = r#"
parameter 0 "qkv" f32[1, 4, 12] trainable=true source="qkv" perm=none init=normal 0.02
forward
  %0: f32[1, 6, 4] = input "x" () @"x"
  %1: f32[1, 4, 12] = parameter 0 () @"qkv"
  %2: f32[1, 6, 12] = matmul trans_a=false trans_b=false dtype=f32 (%0, %1) @"qkv"
  %3: f32[1, 6, 3, 4] = reshape [1, 6, 3, 4] (%2) @"split"
  %4: f32[1, 3, 6, 4] = transpose [0, 2, 1, 3] (%3) @"split"
  %5: f32[1, 1, 6, 4] = slice starts=[0, 0, 0, 0] steps=[1, 1, 1, 1] sizes=[1, 1, 6, 4] (%4) @"split"
  %6: f32[1, 1, 6, 4] = slice starts=[0, 1, 0, 0] steps=[1, 1, 1, 1] sizes=[1, 1, 6, 4] (%4) @"split"
  %7: f32[1, 1, 6, 4] = slice starts=[0, 2, 0, 0] steps=[1, 1, 1, 1] sizes=[1, 1, 6, 4] (%4) @"split"
  %8: f32[1, 1, 6, 4], %9: f32[1, 1, 6, 1] = attention scale=0.5 softcap=none causal=true window=none align_end=false bias=false (%5, %6, %7) @"attn"
  %10: f32[1, 1, 6, 4] = map f32 {x0; mul 0 0} (%8) @"loss"
  %11: f32[1, 1, 1, 1] = reduce sum axes=[0, 1, 2, 3] dtype=f32 (%10) @"loss"
  %12: f32[] = reshape [] (%11) @"loss"
loss %12
"#;
    insta::assert_snapshot!(joint(forward, &TrainOptions { optimizer: Optimizer::Sgd, ..PLAIN }));
}
