//! Reference of the E4M3 product, and its tests, among them the error against the product of the unquantized operands.

use super::Data;
use crate::program::{ScaleGroup, ScaledContract};

pub(crate) fn reference(k: &ScaledContract, args: &[Data]) -> Vec<f64> {
    let [a, sa, b, sb] = [0, 1, 2, 3].map(|i| args[i].values());
    let bias = k.epilogue.bias.map(|_| args[4].values());
    let old = args[args.len() - 1].values();
    let (n, depth, groups) = (k.n as usize, k.k as usize, k.k.div_ceil(128) as usize);
    let element = |at: usize| {
        let (i, j) = (at / n, at % n);
        let sum: f64 = (0..depth)
            .map(|p| {
                let row = if k.b_scales == ScaleGroup::Row { j } else { j / 128 };
                let scale = (sa[i * groups + p / 128] as f32) * (sb[row * groups + p / 128] as f32);
                f64::from(scale) * a[i * depth + p] * b[j * depth + p]
            })
            .sum();
        sum + bias.as_ref().map_or(0.0, |b| b[j]) + if k.epilogue.accumulate { old[at] } else { 0.0 }
    };
    (0..(k.m * k.n) as usize).map(element).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Random, norm_error, run, tolerance};
    use super::*;
    use crate::DType;
    use crate::program::{Epilogue, Kernel, Layout, Quantize};
    use proptest::prelude::*;

    fn check(k: ScaledContract, seed: u64) {
        let kernel = Kernel::ScaledContract(k.clone());
        let mut inputs = Random::new(seed).inputs(&kernel);
        for scales in [1, 3] {
            let positive: Vec<f32> = inputs[scales].values().iter().map(|x| x.abs() as f32 + 0.1).collect();
            inputs[scales] = Data::new(DType::F32, &positive);
        }
        let out = run(&kernel, &inputs);
        let last = inputs.len() - 1;
        let error = norm_error(&out[last].values(), &reference(&k, &inputs));
        assert!(error < tolerance(k.c), "{error} in {k:?}");
    }

    fn floats() -> impl Strategy<Value = DType> {
        prop_oneof![Just(DType::F32), Just(DType::Bf16)]
    }

    fn scale_groups() -> impl Strategy<Value = ScaleGroup> {
        prop_oneof![Just(ScaleGroup::Row), Just(ScaleGroup::Block)]
    }

    /// Quantizes `[rows, cols]` through the kernel of the product.
    fn quantized(x: &[f32], [rows, cols]: [u64; 2], layout: Layout) -> [Data; 2] {
        let kernel = Kernel::Quantize(Quantize { rows, cols, source: DType::F32, layout, power_of_two: false });
        let mut inputs = Random::new(0).inputs(&kernel);
        inputs[0] = Data::new(DType::F32, x);
        let mut out = run(&kernel, &inputs);
        [out.remove(1), out.remove(1)]
    }

    /// `1 - 2 * sum(xy) / sum(x^2 + y^2)` of the E4M3 product of random normal operands against f64 on the unquantized ones.
    fn difference([m, n, k]: [u64; 3], b_scales: ScaleGroup, seed: u64) -> f64 {
        let mut random = Random::new(seed);
        let (a, b) = (random.normal(m * k), random.normal(n * k));
        let layout = if b_scales == ScaleGroup::Row { Layout::Rows } else { Layout::Blocks };
        let kernel = Kernel::ScaledContract(ScaledContract { m, n, k, b_scales, c: DType::F32, epilogue: Epilogue::default() });
        let mut inputs = Vec::new();
        inputs.extend(quantized(&a, [m, k], Layout::Rows));
        inputs.extend(quantized(&b, [n, k], layout));
        inputs.push(Data::new(DType::F32, &vec![0.0; (m * n) as usize]));
        let x = run(&kernel, &inputs)[4].values();
        let (mut xy, mut squares) = (0.0, 0.0);
        for (at, x) in x.into_iter().enumerate() {
            let (i, j, k) = (at / n as usize, at % n as usize, k as usize);
            let y: f64 = a[i * k..][..k].iter().zip(&b[j * k..][..k]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            xy += x * y;
            squares += x * x + y * y;
        }
        1.0 - 2.0 * xy / squares
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_scaled_product_is_the_sum_of_its_definition(
            m in 1u64..200, n in 1u64..200, k in 1u64..500, b_scales in scale_groups(), c in floats(),
            bias in prop::option::of(floats()), accumulate: bool, seed: u64,
        ) {
            let accumulate = accumulate && c == DType::F32;
            check(ScaledContract { m, n, k, b_scales, c, epilogue: Epilogue { bias, accumulate } }, seed);
        }
    }

    #[test]
    fn the_product_of_quantized_operands_is_within_a_thousandth_of_the_unquantized() {
        let shapes = [[128, 128, 128], [256, 384, 512], [100, 130, 200], [1, 77, 129], [33, 1, 1000], [65, 63, 127], [200, 150, 1]];
        for b_scales in [ScaleGroup::Row, ScaleGroup::Block] {
            for (seed, shape) in shapes.into_iter().enumerate() {
                let difference = difference(shape, b_scales, seed as u64 + 1);
                assert!(difference < 1e-3, "{difference} for {shape:?}");
            }
        }
    }

    #[test]
    fn tiles_of_a_scaled_product_meet_without_a_seam() {
        let epilogue = Epilogue { bias: Some(DType::Bf16), accumulate: false };
        for b_scales in [ScaleGroup::Row, ScaleGroup::Block] {
            check(ScaledContract { m: 520, n: 600, k: 390, b_scales, c: DType::Bf16, epilogue }, 1);
        }
    }
}
