//! Reference of the quantizers, and their tests.

use super::Data;
use crate::DType;
use crate::numerics::f32_to_e4m3;
use crate::program::{Layout, Quantize};

/// Codes and scales of `[rows, cols]` in groups of `group[0] x group[1]`, both row-major.
fn reference(x: &[f32], [rows, cols]: [usize; 2], group: [usize; 2], power_of_two: bool) -> (Vec<u8>, Vec<f32>) {
    let across = cols.div_ceil(group[1]);
    let mut amax = vec![0f32; rows.div_ceil(group[0]) * across];
    let of = |i: usize| (i / cols / group[0]) * across + i % cols / group[1];
    x.iter().enumerate().for_each(|(i, x)| amax[of(i)] = amax[of(i)].max(x.abs()));
    let scale = |amax: f32| match (amax, power_of_two) {
        (0.0, _) => 1.0,
        (_, false) => amax.max(1e-12) / 448.0,
        (_, true) => f64::from(amax.max(1e-12) / 448.0).log2().ceil().exp2() as f32,
    };
    let scales: Vec<f32> = amax.into_iter().map(scale).collect();
    (x.iter().enumerate().map(|(i, x)| f32_to_e4m3(x * (1.0 / scales[of(i)]))).collect(), scales)
}

fn transpose<T: Copy>(x: &[T], [rows, cols]: [usize; 2]) -> Vec<T> {
    (0..cols).flat_map(|j| (0..rows).map(move |i| x[i * cols + j])).collect()
}

pub(crate) fn expected(k: &Quantize, x: &[f32]) -> Vec<Data> {
    let shape = [k.rows as usize, k.cols as usize];
    let groups = shape.map(|e| e.div_ceil(128));
    let by = |group| reference(x, shape, group, k.power_of_two);
    let (rows, columns, blocks) = (by([1, 128]), by([128, 1]), by([128, 128]));
    let columns = (transpose(&columns.0, shape), transpose(&columns.1, [groups[0], shape[1]]));
    let turned = (transpose(&blocks.0, shape), transpose(&blocks.1, groups));
    let outputs = match k.layout {
        Layout::Rows => vec![rows],
        Layout::Columns => vec![columns],
        Layout::RowsAndColumns => vec![rows, columns],
        Layout::Blocks => vec![blocks],
        Layout::BlocksBoth => vec![blocks, turned],
    };
    let data = |(codes, scales): (Vec<u8>, Vec<f32>)| [Data { dtype: DType::E4m3, bytes: codes }, Data::new(DType::F32, &scales)];
    outputs.into_iter().flat_map(data).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Random, run};
    use super::*;
    use crate::program::Kernel;
    use proptest::prelude::*;

    fn check(k: Quantize, seed: u64) {
        let kernel = Kernel::Quantize(k);
        let mut random = Random::new(seed);
        let mut inputs = random.inputs(&kernel);
        // Magnitudes over many octaves, and groups of zeros.
        let mut x = random.normal(k.rows * k.cols);
        for (i, x) in x.iter_mut().enumerate() {
            let octave = random.below(40) as i32 - 20;
            *x *= if (i as u64 / k.cols).is_multiple_of(5) { 0.0 } else { 2f32.powi(octave) };
        }
        inputs[0] = Data::new(k.source, &x);
        let x: Vec<f32> = inputs[0].values().into_iter().map(|x| x as f32).collect();
        let out = run(&kernel, &inputs);
        for (i, expected) in expected(&k, &x).iter().enumerate() {
            assert!(out[i + 1] == *expected, "output {i} of {k:?}");
        }
    }

    const LAYOUTS: [Layout; 5] = [Layout::Rows, Layout::Columns, Layout::RowsAndColumns, Layout::Blocks, Layout::BlocksBoth];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn codes_and_scales_are_bit_exact_in_every_layout(
            rows in 1u64..300, cols in 1u64..300, layout in 0usize..5, bf16: bool, power_of_two: bool, seed: u64,
        ) {
            let source = if bf16 { DType::Bf16 } else { DType::F32 };
            check(Quantize { rows, cols, source, layout: LAYOUTS[layout], power_of_two }, seed);
        }
    }

    #[test]
    fn wide_and_tall_sources_split_into_tasks_without_a_seam() {
        for layout in LAYOUTS {
            check(Quantize { rows: 3, cols: 2500, source: DType::F32, layout, power_of_two: false }, 1);
            check(Quantize { rows: 700, cols: 1100, source: DType::Bf16, layout, power_of_two: true }, 2);
            check(Quantize { rows: 1, cols: 1, source: DType::Bf16, layout, power_of_two: true }, 3);
        }
    }

    #[test]
    fn values_that_are_not_finite_come_back_not_finite() {
        let kernel = Kernel::Quantize(Quantize { rows: 2, cols: 130, source: DType::F32, layout: Layout::Rows, power_of_two: false });
        let mut inputs = Random::new(1).inputs(&kernel);
        let mut x = vec![1.0f32; 260];
        x[0] = 448.0;
        x[3] = f32::NAN;
        x[140] = f32::INFINITY;
        inputs[0] = Data::new(DType::F32, &x);
        let out = run(&kernel, &inputs);
        let (codes, scales) = (out[1].values(), out[2].values());
        assert!(codes[3].is_nan() && codes[4] * scales[0] == 1.0);
        assert!(!(codes[140] * scales[2]).is_finite());
    }
}
