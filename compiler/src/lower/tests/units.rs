//! Programs of small graphs, printed; and quantized products.

use super::*;
use crate::graph::parse::parse;
use fp8c_kernels::program::Layout;

fn printed(graph: &str) -> String {
    print(&lower(&parse(graph, &[]).unwrap(), Options::default()).unwrap())
}

#[test]
fn a_residual_a_norm_and_a_linear_layer_in_bf16() {
    let graph = r#"
parameter 0 "scale" f32[64] trainable=true source="scale" perm=none init=ones
forward
  %0: bf16[2, 16, 64] = input "x" () @"x"
  %1: bf16[2, 16, 64] = input "r" () @"r"
  %2: f32[64] = parameter 0 () @"ln"
  %3: bf16[1, 64, 128] = input "w" () @"w"
  %4: f32[128] = input "b" () @"b"
  %5: bf16[2, 16, 64] = map bf16 {x0; x1; add 0 1} (%0, %1) @"add"
  %6: bf16[2, 16, 64], %7: f32[2, 16, 1] = norm center=false axes=1 eps=1e-5 bias=false dtype=bf16 (%5, %2) @"ln"
  %8: f32[2, 16, 128] = matmul trans_a=false trans_b=false dtype=f32 (%6, %3) @"fc"
  %9: bf16[2, 16, 128] = map bf16 {x0; x1; add 0 1} (%8, %4) @"fc"
  %10: bf16[2, 16, 128] = map bf16 {x0; gelu_tanh 0} (%9) @"act"
output "sum" %5
output "y" %10
"#;
    insta::assert_snapshot!(printed(graph));
}

#[test]
fn attention_over_rotary_embeddings_of_one_projection() {
    let graph = r#"
forward
  %0: f32[2, 16, 96] = input "qkv" () @"qkv"
  %1: f32[16, 8] = input "cos" () @"cos"
  %2: f32[16, 8] = input "sin" () @"sin"
  %3: f32[2, 16, 3, 4, 8] = reshape [2, 16, 3, 4, 8] (%0) @"split"
  %4: f32[3, 2, 4, 16, 8] = transpose [2, 0, 3, 1, 4] (%3) @"split"
  %5: f32[1, 2, 4, 16, 8] = slice starts=[0, 0, 0, 0, 0] steps=[1, 1, 1, 1, 1] sizes=[1, 2, 4, 16, 8] (%4) @"q"
  %6: f32[2, 4, 16, 8] = reshape [2, 4, 16, 8] (%5) @"q"
  %7: f32[1, 2, 4, 16, 8] = slice starts=[1, 0, 0, 0, 0] steps=[1, 1, 1, 1, 1] sizes=[1, 2, 4, 16, 8] (%4) @"k"
  %8: f32[2, 4, 16, 8] = reshape [2, 4, 16, 8] (%7) @"k"
  %9: f32[1, 2, 4, 16, 8] = slice starts=[2, 0, 0, 0, 0] steps=[1, 1, 1, 1, 1] sizes=[1, 2, 4, 16, 8] (%4) @"v"
  %10: f32[2, 4, 16, 8] = reshape [2, 4, 16, 8] (%9) @"v"
  %11: f32[2, 4, 16, 8] = rotary rotated=8 interleaved=false inverse=false (%6, %1, %2) @"q"
  %12: f32[2, 4, 16, 8] = rotary rotated=8 interleaved=true inverse=false (%8, %1, %2) @"k"
  %13: f32[2, 4, 16, 8], %14: f32[2, 4, 16, 1] = attention scale=0.35 softcap=none causal=true window=none align_end=false bias=false (%11, %12, %10) @"attn"
  %15: f32[2, 16, 4, 8] = transpose [0, 2, 1, 3] (%13) @"out"
  %16: f32[2, 16, 32] = reshape [2, 16, 32] (%15) @"out"
output "o" %16
"#;
    insta::assert_snapshot!(printed(graph));
}

#[test]
fn a_loss_and_its_gradient() {
    let graph = r#"
forward
  %0: f32[32, 100] = input "logits" () @"logits"
  %1: i64[32] = input "labels" () @"labels"
  %2: f32[16] = control () @"control"
  %3: f32[], %4: f32[32] = cross_entropy ignore_index=-100 sum=false dtype=f32 (%0, %1) @"loss"
backward
  %5: f32[1] = slice starts=[7] steps=[1] sizes=[1] (%2) dgrad of %3 @"loss"
  %6: f32[] = reshape [] (%5) dgrad of %3 @"loss"
  %7: f32[32, 100] = cross_entropy_grad ignore_index=-100 sum=false dtype=f32 (%6, %0, %1, %4) dgrad of %3 @"loss"
output "gradient" %7
loss %3
"#;
    insta::assert_snapshot!(printed(graph));
}

#[test]
fn a_quantized_product_is_near_the_exact_one_and_takes_its_bias() {
    let mut c = Case::new();
    let (x, w, b) = (c.input(DType::Bf16, &[2, 65, 200]), c.input(DType::F32, &[40, 200]), c.input(DType::F32, &[40]));
    let quantize = |layout| Op::Quantize { layout, power_of_two: false };
    let qx = c.all(quantize(Layout::RowsAndColumns), &[x]);
    let qw = c.all(quantize(Layout::Blocks), &[w]);
    let product = Op::ScaledMatmul { block_b: true, shape: vec![2, 65, 40], dtype: DType::F32 };
    let y = c.one(product, &[qx[0], qx[1], qw[0], qw[1]]);
    let y = c.binary(Binary::Add, y, b);
    c.output(y);
    let program = lower(&c.graph, Options::default()).unwrap();
    assert_eq!(program.units.iter().map(|u| u.kernel.family()).collect::<Vec<_>>(), ["quantize", "quantize", "scaled_contract"]);
    let mut machine = Machine::new(&c, &c.graph, &program);
    machine.run(&program);
    let have = Tensor::from_const(&machine.read(&program, program.outputs[0].1));
    let [x, w, b] = [0, 1, 2].map(|i| c.sources[i].1.floats().unwrap());
    let (mut error, mut total) = (0.0, 0.0);
    for (i, h) in have.floats().unwrap().iter().enumerate() {
        let (row, column) = (i / 40, i % 40);
        let want = b[column] + (0..200).map(|k| x[row * 200 + k] * w[column * 200 + k]).sum::<f64>();
        (error, total) = (error + (h - want).powi(2), total + want.powi(2));
    }
    assert!(error < 0.05f64.powi(2) * total, "relative error {}", (error / total).sqrt());
}
