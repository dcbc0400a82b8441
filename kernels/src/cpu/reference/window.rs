//! References of convolution and pooling, and their tests.

use super::Data;
use crate::program::{Conv, ConvPass, Pool, PoolOp, Window};

/// Input position of an output position and a kernel position, where inside the image.
fn input(w: &Window, [y, x]: [u64; 2], [r, s]: [u64; 2]) -> Option<[u64; 2]> {
    let one = |d: usize, o: u64, t: u64| {
        let at = (o * w.stride[d] + t * w.dilation[d]) as i64 - w.pad[d] as i64;
        (0..w.input[d] as i64).contains(&at).then_some(at as u64)
    };
    Some([one(0, y, r)?, one(1, x, s)?])
}

fn grid([h, w]: [u64; 2]) -> impl Iterator<Item = [u64; 2]> + Clone {
    (0..h).flat_map(move |y| (0..w).map(move |x| [y, x]))
}

/// Visits every product of a convolution: elements of x, w, y.
fn products(k: &Conv, mut visit: impl FnMut([usize; 3])) {
    let (w, cig, cog) = (&k.window, k.cin / k.groups, k.cout / k.groups);
    let flat = |plane: u64, hw: [u64; 2], [y, x]: [u64; 2]| ((plane * hw[0] + y) * hw[1] + x) as usize;
    for (b, co) in (0..k.batch).flat_map(|b| (0..k.cout).map(move |c| (b, c))) {
        for (out, ci) in grid(w.output).flat_map(|o| (0..cig).map(move |c| (o, c))) {
            for tap in grid(w.kernel) {
                if let Some(at) = input(w, out, tap) {
                    let x = flat(b * k.cin + co / cog * cig + ci, w.input, at);
                    visit([x, flat(co * cig + ci, w.kernel, tap), flat(b * k.cout + co, w.output, out)]);
                }
            }
        }
    }
}

pub(crate) fn conv_reference(k: &Conv, args: &[Data]) -> Vec<f64> {
    let given: Vec<Vec<f64>> = args.iter().map(Data::values).collect();
    let mut out = vec![0.0; given[given.len() - 1].len()];
    // The places of (x, w, y) in the arguments: the one that is written last.
    let (a, b, c) = match k.pass {
        ConvPass::Fprop => (0, 1, 2),
        ConvPass::Dgrad => (2, 1, 0),
        ConvPass::Wgrad => (2, 0, 1),
    };
    products(k, |p| out[p[c]] += given[0][p[a]] * given[1][p[b]]);
    if k.bias && k.pass == ConvPass::Fprop {
        let plane = (k.window.output[0] * k.window.output[1]) as usize;
        out.iter_mut().enumerate().for_each(|(i, y)| *y += given[2][i / plane % k.cout as usize]);
    }
    out
}

/// Positions inside the image that an output position pools, in row-major order.
fn pooled(w: &Window, out: [u64; 2]) -> Vec<usize> {
    grid(w.kernel).filter_map(|tap| input(w, out, tap)).map(|[y, x]| (y * w.input[1] + x) as usize).collect()
}

fn divisor(k: &Pool, out: [u64; 2]) -> f64 {
    let w = &k.window;
    let counted = |tap: [u64; 2]| match k.op {
        PoolOp::AverageWithPadding { pad_end } => {
            (0..2).all(|d| ((out[d] * w.stride[d] + tap[d] * w.dilation[d]) as i64 - w.pad[d] as i64) < (w.input[d] + pad_end[d]) as i64)
        }
        _ => input(w, out, tap).is_some(),
    };
    grid(w.kernel).filter(|tap| counted(*tap)).count().max(1) as f64
}

pub(crate) fn pool_reference(k: &Pool, x: &[f64], dy: &[f64]) -> Vec<f64> {
    let w = &k.window;
    let (x_len, y_len) = ((w.input[0] * w.input[1]) as usize, (w.output[0] * w.output[1]) as usize);
    let mut out = vec![0.0; k.planes as usize * if k.backward { x_len } else { y_len }];
    for plane in 0..k.planes as usize {
        let x = &x[plane * x_len..][..x_len];
        for (i, at) in grid(w.output).enumerate() {
            let positions = pooled(w, at);
            let first_max = positions.iter().copied().reduce(|best, p| if x[p] > x[best] { p } else { best });
            let position = plane * y_len + i;
            match (k.backward, k.op) {
                (false, PoolOp::Max) => out[position] = first_max.map_or(f64::NEG_INFINITY, |p| x[p]),
                (false, _) => out[position] = positions.iter().map(|p| x[*p]).sum::<f64>() / divisor(k, at),
                (true, PoolOp::Max) => first_max.into_iter().for_each(|p| out[plane * x_len + p] += dy[position]),
                (true, _) => positions.iter().for_each(|p| out[plane * x_len + p] += dy[position] / divisor(k, at)),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Random, norm_error, run, tolerance};
    use super::*;
    use crate::DType;
    use crate::program::Kernel;
    use proptest::prelude::*;

    fn check_conv(k: Conv, seed: u64) {
        let kernel = Kernel::Conv(k);
        let inputs = Random::new(seed).inputs(&kernel);
        let out = run(&kernel, &inputs);
        let last = inputs.len() - 1;
        let error = norm_error(&out[last].values(), &conv_reference(&k, &inputs));
        assert!(error < tolerance(inputs[last].dtype), "{error} in {k:?}");
    }

    /// A window over an image, or none where the kernel does not fit.
    fn window(input: [u64; 2], kernel: [u64; 2], stride: [u64; 2], dilation: [u64; 2], pad: [u64; 2], pad_end: [u64; 2]) -> Option<Window> {
        let mut output = [0; 2];
        for d in 0..2 {
            let room = input[d] + pad[d] + pad_end[d];
            output[d] = room.checked_sub(dilation[d] * (kernel[d] - 1) + 1)? / stride[d] + 1;
        }
        Some(Window { input, output, kernel, stride, dilation, pad })
    }

    fn windows(padding: u64) -> impl Strategy<Value = (Window, [u64; 2])> {
        let two = |r: std::ops::Range<u64>| [r.clone(), r];
        (two(1..14), two(1..4), two(1..4), two(1..3), two(0..padding), two(0..padding)).prop_filter_map("fits", |(i, k, s, d, p, e)| {
            // Padding less than the kernel reaches, as ONNX has it for pooling.
            let (p, e) = ([0, 1].map(|a| p[a].min(k[a] - 1)), [0, 1].map(|a| e[a].min(k[a] - 1)));
            window(i, k, s, d, p, e).map(|w| (w, e))
        })
    }

    fn floats() -> impl Strategy<Value = DType> {
        prop_oneof![Just(DType::F32), Just(DType::Bf16)]
    }

    const PASSES: [ConvPass; 3] = [ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]
        #[test]
        fn a_convolution_is_the_sum_of_its_definition_in_every_pass(
            window in windows(3), batch in 1u64..4, groups in 1u64..4, cig in 1u64..4, cog in 1u64..7, bias: bool,
            dtype in floats(), weight in floats(), seed: u64,
        ) {
            for pass in PASSES {
                let bias = bias && pass == ConvPass::Fprop;
                check_conv(Conv { pass, batch, cin: groups * cig, cout: groups * cog, groups, window: window.0, bias, dtype, weight }, seed);
            }
        }

        #[test]
        fn pooling_and_its_gradient_follow_their_definition(
            window in windows(3), planes in 1u64..5, op in 0usize..3, dtype in floats(), seed: u64,
        ) {
            let op = [PoolOp::Max, PoolOp::Average, PoolOp::AverageWithPadding { pad_end: window.1 }][op];
            for backward in [false, true] {
                check_pool(Pool { op, backward, planes, window: window.0, dtype }, seed);
            }
        }
    }

    #[test]
    fn blocks_of_positions_and_channels_meet_without_a_seam() {
        let window = window([30, 30], [3, 3], [1, 1], [1, 1], [1, 1], [1, 1]).expect("fits");
        let large = window_of(700);
        for (pass, dtype) in PASSES.into_iter().flat_map(|p| [(p, DType::F32), (p, DType::Bf16)]) {
            let conv = Conv { pass, batch: 2, cin: 50, cout: 34, groups: 1, window, bias: false, dtype, weight: dtype };
            check_conv(conv, 1);
            check_conv(Conv { cin: 5, cout: 6, window: large, ..conv }, 2);
            check_conv(Conv { cin: 6, cout: 12, groups: 6, window: large, ..conv }, 3);
        }
    }

    /// One-dimensional, longer than a block.
    fn window_of(length: u64) -> Window {
        window([1, length], [1, 5], [1, 2], [1, 1], [0, 2], [0, 2]).expect("fits")
    }

    #[test]
    fn pointwise_convolutions_need_no_columns_and_are_right() {
        let window = window([30, 31], [1, 1], [1, 1], [1, 1], [0, 0], [0, 0]).expect("fits");
        for pass in PASSES {
            let (dtype, weight) = (DType::F32, DType::F32);
            check_conv(Conv { pass, batch: 2, cin: 20, cout: 24, groups: 2, window, bias: pass == ConvPass::Fprop, dtype, weight }, 1);
        }
    }

    fn check_pool(k: Pool, seed: u64) {
        let kernel = Kernel::Pool(k);
        let mut random = Random::new(seed);
        let mut inputs = random.inputs(&kernel);
        // Few values, so that maxima tie.
        let ties: Vec<f32> = inputs[0].values().iter().map(|x| (2.0 * x).round() as f32).collect();
        inputs[0] = Data::new(k.dtype, &ties);
        let out = run(&kernel, &inputs);
        let last = inputs.len() - 1;
        let expected = pool_reference(&k, &inputs[0].values(), &inputs[1].values());
        let got = out[last].values();
        assert!(got.iter().zip(&expected).all(|(x, y)| x.is_finite() == y.is_finite()), "{k:?}");
        let finite = |v: Vec<f64>| v.into_iter().filter(|v| v.is_finite()).collect::<Vec<_>>();
        let error = norm_error(&finite(got), &finite(expected));
        assert!(error < tolerance(k.dtype), "{error} in {k:?}");
    }

    #[test]
    fn convolutions_over_nothing_are_their_bias_or_zero() {
        let window = window([4, 5], [3, 2], [1, 1], [1, 1], [1, 0], [1, 0]).expect("fits");
        for (pass, dtype) in PASSES.into_iter().flat_map(|p| [(p, DType::F32), (p, DType::Bf16)]) {
            let conv =
                Conv { pass, batch: 2, cin: 4, cout: 6, groups: 2, window, bias: pass == ConvPass::Fprop, dtype, weight: DType::F32 };
            for conv in [Conv { cin: 0, ..conv }, Conv { cout: 0, ..conv }, Conv { batch: 0, ..conv }] {
                check_conv(conv, 1);
            }
            check_conv(Conv { window: Window { output: [0, 4], ..window }, ..conv }, 1);
            check_conv(Conv { window: Window { input: [4, 0], ..window }, ..conv }, 1);
        }
    }

    #[test]
    fn taps_far_outside_the_image_read_zeros() {
        let far = Window { input: [5, 6], output: [3, 3], kernel: [3, 2], stride: [1, 1], dilation: [1 << 29, 1 << 30], pad: [1, 0] };
        for pass in PASSES {
            let conv = Conv { pass, batch: 2, cin: 4, cout: 4, groups: 4, window: far, bias: false, dtype: DType::F32, weight: DType::F32 };
            check_conv(conv, 1);
            check_conv(Conv { groups: 1, ..conv }, 1);
        }
    }
}
