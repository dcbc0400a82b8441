use super::*;
use fp8c_kernels::program::{FloatBits, Mask};

fn bits(x: f32) -> FloatBits {
    FloatBits(x.to_bits())
}

#[test]
fn norms_are_what_differences_show() {
    for center in [true, false] {
        for (axes, bias) in [(1, true), (1, false), (2, true)] {
            let mut case = Case::new();
            let shape: [u64; 3] = [2, 3, 4];
            let (x, scale) = (case.any(&shape), case.any(&shape[3 - axes..]));
            let mut inputs = vec![x, scale];
            if bias {
                inputs.push(case.any(&shape[3 - axes..]));
            }
            let y = case.add(Op::Norm(NormOp { center, axes, eps: bits(1e-3), bias, dtype: DType::F32 }), &inputs);
            case.check(y);
        }
    }
}

#[test]
fn softmax_is_what_differences_show() {
    for log in [false, true] {
        let mut case = Case::new();
        let x = case.any(&[2, 3, 5]);
        let y = case.add(Op::Softmax { log }, &[x]);
        case.check(y);
    }
}

/// Checks attention with `heads` of q against `kv_heads`, four queries and six keys.
fn check_attention(mask: Mask, softcap: Option<f32>, heads: u64, kv_heads: u64, bias: Option<ConstData>) {
    let mut case = Case::new();
    let (q, k, v) = (case.any(&[2, heads, 4, 3]), case.any(&[2, kv_heads, 6, 3]), case.any(&[2, kv_heads, 6, 2]));
    let mut inputs = vec![q, k, v];
    let attention = AttentionOp { scale: bits(0.7), softcap: softcap.map(bits), mask, bias: bias.is_some() };
    inputs.extend(bias.map(|b| case.constant(b)));
    let y = case.add(Op::Attention(attention), &inputs);
    case.check(y);
}

#[test]
fn attention_with_every_mask_is_what_differences_show() {
    let causal = Mask { causal: true, window: None, align_end: false };
    check_attention(Mask::default(), None, 2, 2, None);
    check_attention(causal, None, 2, 1, None);
    check_attention(Mask { align_end: true, ..causal }, Some(0.8), 4, 2, None);
    check_attention(Mask { window: Some(2), align_end: true, ..causal }, None, 1, 1, None);
    let bias: Vec<f32> = (0..24).map(|i| (i % 7) as f32 * 0.2).collect();
    check_attention(Mask::default(), None, 2, 1, Some(ConstData::f32([1, 1, 4, 6], &bias)));
    // One query sees nothing at all.
    let seen = (0..24).map(|i| (i / 6 != 1 && i % 5 != 0) as u8).collect();
    check_attention(causal, None, 2, 2, Some(ConstData { ty: TensorType::new(DType::Bool, [1, 1, 4, 6]), bytes: seen }));
}

#[test]
fn a_trained_attention_bias_gets_its_gradient() {
    let mut case = Case::new();
    let (q, k, v) = (case.any(&[2, 3, 4, 3]), case.any(&[2, 3, 5, 3]), case.any(&[2, 3, 5, 2]));
    let bias = case.any(&[1, 3, 4, 5]);
    let attention = AttentionOp { scale: bits(0.7), softcap: None, mask: Mask::default(), bias: true };
    let y = case.add(Op::Attention(attention), &[q, k, v, bias]);
    case.check(y);
}

#[test]
fn rotary_embeddings_are_what_differences_show() {
    for interleaved in [false, true] {
        for rotated in [4, 6] {
            let mut case = Case::new();
            let x = case.any(&[2, 2, 3, 6]);
            let table = |case: &mut Case| {
                let values: Vec<f32> = case.random(3 * rotated, -1.0, 1.0).iter().map(|x| *x as f32).collect();
                case.constant(ConstData::f32([3, rotated], &values))
            };
            let (cos, sin) = (table(&mut case), table(&mut case));
            let y = case.add(Op::Rotary { rotated, interleaved, inverse: false }, &[x, cos, sin]);
            case.check(y);
        }
    }
}

#[test]
fn cross_entropy_is_what_differences_show() {
    for sum in [false, true] {
        for ignore_index in [None, Some(-100)] {
            let mut case = Case::new();
            let logits = case.any(&[4, 5]);
            let labels = case.ints(&[4], &[3, 0, ignore_index.unwrap_or(1), 4]);
            let y = case.add(Op::CrossEntropy(CrossEntropyOp { ignore_index, sum, dtype: DType::F32 }), &[logits, labels]);
            case.check(y);
        }
    }
}
