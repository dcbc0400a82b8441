//! References of scatter-add and prefix sums, and their tests.

use super::Data;
use crate::program::{Scan, ScatterAdd};

pub(crate) fn scatter_reference(k: &ScatterAdd, args: &[Data]) -> Vec<f64> {
    let [src, index, old] = [0, 1, 2].map(|i| args[i].values());
    let mut dst = if k.accumulate { old } else { vec![0.0; old.len()] };
    for (o, j) in (0..k.outer).flat_map(|o| (0..k.picks).map(move |j| (o, j))) {
        for i in 0..k.inner {
            let row = if k.index_outer { o * k.picks + j } else { j };
            let at = if k.index_inner { row * k.inner + i } else { row };
            let target = (o * k.extent + index[at as usize] as u64) * k.inner + i;
            dst[target as usize] += src[((o * k.picks + j) * k.inner + i) as usize];
        }
    }
    dst
}

pub(crate) fn scan_reference(k: &Scan, args: &[Data]) -> Vec<f64> {
    let x = args[0].values();
    let mut y = vec![0.0; x.len()];
    for (o, i) in (0..k.outer).flat_map(|o| (0..k.inner).map(move |i| (o, i))) {
        let mut sum = 0.0;
        for step in 0..k.extent {
            let row = if k.reverse { k.extent - 1 - step } else { step };
            let at = ((o * k.extent + row) * k.inner + i) as usize;
            y[at] = if k.exclusive { sum } else { sum + x[at] };
            sum += x[at];
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::{Random, norm_error, run, tolerance, try_launch};
    use super::*;
    use crate::program::Kernel;
    use crate::{DType, KernelError};
    use proptest::prelude::*;

    fn scatter_inputs(k: &ScatterAdd, seed: u64) -> (Kernel, Vec<Data>) {
        let kernel = Kernel::ScatterAdd(*k);
        let mut random = Random::new(seed);
        let mut inputs = random.inputs(&kernel);
        let indices: Vec<f32> = (0..kernel.args()[1].elements).map(|_| random.below(k.extent) as f32).collect();
        inputs[1] = Data::new(k.index, &indices);
        (kernel, inputs)
    }

    fn check_scatter(k: &ScatterAdd, seed: u64) {
        let (kernel, inputs) = scatter_inputs(k, seed);
        let out = run(&kernel, &inputs);
        let error = norm_error(&out[2].values(), &scatter_reference(k, &inputs));
        assert!(error < tolerance(k.dst), "{error} in {k:?}");
    }

    fn floats() -> impl Strategy<Value = DType> {
        prop_oneof![Just(DType::F32), Just(DType::Bf16)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn scatter_add_sums_what_each_index_picks(
            extents in [1u64..5, 1u64..40, 1u64..90, 1u64..30], index_outer: bool, index_inner: bool,
            src in prop_oneof![3 => floats(), 1 => Just(DType::E4m3)], dst in floats(), wide: bool, accumulate: bool, seed: u64,
        ) {
            let [outer, picks, inner, extent] = extents;
            let index = if wide { DType::I64 } else { DType::I32 };
            check_scatter(&ScatterAdd { outer, picks, inner, extent, index_outer, index_inner, src, index, dst, accumulate }, seed);
        }

        #[test]
        fn prefix_sums_follow_their_definition(
            outer in 1u64..4, extent in 1u64..50, inner in 1u64..100, exclusive: bool, reverse: bool, dtype in 0usize..4, seed: u64,
        ) {
            let dtype = [DType::F32, DType::Bf16, DType::I64, DType::I32][dtype];
            check_scan(&Scan { outer, extent, inner, exclusive, reverse, dtype }, seed);
        }
    }

    fn embedding() -> ScatterAdd {
        let (src, index, dst) = (DType::F32, DType::I64, DType::F32);
        ScatterAdd {
            outer: 1,
            picks: 900,
            inner: 700,
            extent: 3000,
            index_outer: false,
            index_inner: false,
            src,
            index,
            dst,
            accumulate: false,
        }
    }

    #[test]
    fn ranges_of_columns_meet_without_a_seam() {
        check_scatter(&embedding(), 1);
        check_scatter(&ScatterAdd { dst: DType::Bf16, extent: 30_000, picks: 100, ..embedding() }, 2);
    }

    #[test]
    fn an_index_outside_the_axis_is_an_error() {
        for index in [-1.0, 3000.0] {
            let (kernel, mut inputs) = scatter_inputs(&embedding(), 1);
            let mut indices: Vec<f32> = inputs[1].values().iter().map(|x| *x as f32).collect();
            indices[800] = index;
            inputs[1] = Data::new(DType::I64, &indices);
            let error = try_launch(&kernel, &inputs, 2).expect_err("an index out of range");
            assert_eq!(error, KernelError::IndexOutOfRange { index: index as i64, bound: 3000 });
        }
    }

    fn check_scan(k: &Scan, seed: u64) {
        let kernel = Kernel::Scan(*k);
        let inputs = Random::new(seed).inputs(&kernel);
        let y = scan_reference(k, &inputs);
        let error = norm_error(&run(&kernel, &inputs)[1].values(), &y);
        assert!(error < tolerance(k.dtype), "{error} in {k:?}");
    }
}
