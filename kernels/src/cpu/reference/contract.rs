//! Reference of the dense product, and its tests.

use super::Data;
use crate::program::{Contract, Matrix};

/// Batch offsets of every batch, in row-major order.
fn offsets(batch: &[u64], strides: &[u64]) -> Vec<u64> {
    batch
        .iter()
        .zip(strides)
        .fold(vec![0], |all, (extent, stride)| all.iter().flat_map(|base| (0..*extent).map(move |i| base + i * stride)).collect())
}

/// C's whole buffer after the product.
pub(crate) fn reference(k: &Contract, args: &[Data]) -> Vec<f64> {
    let (a, b) = (args[0].values(), args[1].values());
    let bias = k.epilogue.bias.map(|_| args[2].values());
    let last = args.last().expect("C");
    let mut c = last.values();
    let at = |x: &Matrix, base: u64, i: u64, j: u64| (x.offset + base + i * x.row_stride + j * x.col_stride) as usize;
    let bases = |x: &Matrix| offsets(&k.batch, &x.batch_strides);
    for ((za, zb), zc) in bases(&k.a).into_iter().zip(bases(&k.b)).zip(bases(&k.c)) {
        for i in 0..k.m {
            for j in 0..k.n {
                let mut sum: f64 = (0..k.k).map(|p| a[at(&k.a, za, i, p)] * b[at(&k.b, zb, p, j)]).sum();
                sum += bias.as_ref().map_or(0.0, |b| b[j as usize]);
                let element = &mut c[at(&k.c, zc, i, j)];
                *element = sum + if k.epilogue.accumulate { *element } else { 0.0 };
            }
        }
    }
    c
}

#[cfg(test)]
mod tests {
    use super::super::{Random, norm_error, run, tolerance};
    use super::*;
    use crate::DType;
    use crate::program::{Epilogue, Kernel};
    use proptest::prelude::*;

    /// How a test lays a matrix out.
    #[derive(Clone, Copy, Debug)]
    enum Order {
        Rows,
        Columns,
        /// Rows with a gap, columns two apart.
        Sparse,
    }

    fn matrix(dtype: DType, batch: &[u64], broadcast: bool, [rows, cols]: [u64; 2], order: Order) -> Matrix {
        let (row_stride, col_stride, size) = match order {
            Order::Rows => (cols, 1, rows * cols),
            Order::Columns => (1, rows, rows * cols),
            Order::Sparse => (2 * cols + 3, 2, rows * (2 * cols + 3)),
        };
        let mut batch_strides = vec![0; batch.len()];
        let mut elements = size;
        for (stride, extent) in batch_strides.iter_mut().zip(batch).rev() {
            if !broadcast {
                *stride = elements;
                elements *= extent;
            }
        }
        Matrix { dtype, elements: elements + 5, offset: 5, batch_strides, row_stride, col_stride }
    }

    fn check(k: Contract, seed: u64) {
        let dtype = k.c.dtype;
        let kernel = Kernel::Contract(k.clone());
        let mut inputs = Random::new(seed).inputs(&kernel);
        let last = inputs.len() - 1;
        if !k.epilogue.accumulate {
            inputs[last] = Data::new(dtype, &vec![7.0; k.c.elements as usize]);
        }
        let out = run(&kernel, &inputs);
        let error = norm_error(&out[last].values(), &reference(&k, &inputs));
        assert!(error < tolerance(dtype), "{error} in {k:?}");
    }

    fn orders() -> impl Strategy<Value = Order> {
        prop_oneof![3 => Just(Order::Rows), 3 => Just(Order::Columns), 1 => Just(Order::Sparse)]
    }

    fn floats() -> impl Strategy<Value = DType> {
        prop_oneof![Just(DType::F32), Just(DType::Bf16)]
    }

    fn operands() -> impl Strategy<Value = DType> {
        prop_oneof![3 => floats(), 1 => Just(DType::E4m3)]
    }

    fn extents() -> impl Strategy<Value = u64> {
        prop_oneof![3 => 1u64..5, 4 => 5u64..70, 1 => 70u64..300]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn a_dense_product_is_the_sum_of_its_definition(
            mnk in [extents(), extents(), extents()], layout in [orders(), orders(), orders()],
            dtypes in (operands(), operands(), floats()),
            batch in prop::collection::vec(1u64..4, 0..3), broadcast in any::<[bool; 2]>(), bias in prop::option::of(floats()),
            accumulate: bool, seed: u64,
        ) {
            let [m, n, k] = mnk;
            let accumulate = accumulate && dtypes.2 == DType::F32;
            check(Contract {
                m, n, k,
                a: matrix(dtypes.0, &batch, broadcast[0], [m, k], layout[0]),
                b: matrix(dtypes.1, &batch, broadcast[1], [k, n], layout[1]),
                c: matrix(dtypes.2, &batch, false, [m, n], layout[2]),
                batch, epilogue: Epilogue { bias, accumulate },
            }, seed);
        }
    }

    fn plain(dtype: DType, [m, n, k]: [u64; 3]) -> Contract {
        let [a, b, c] = [[m, k], [k, n], [m, n]].map(|e| Matrix { offset: 0, ..matrix(dtype, &[], false, e, Order::Rows) });
        Contract { batch: vec![], m, n, k, a, b, c, epilogue: Epilogue::default() }
    }

    #[test]
    fn tiles_and_panels_meet_without_a_seam() {
        for dtype in [DType::F32, DType::Bf16] {
            check(plain(dtype, [513, 700, 1037]), 1);
            check(plain(dtype, [1, 1500, 64]), 2);
            check(plain(dtype, [1500, 1, 64]), 3);
        }
    }

    #[test]
    fn a_product_over_nothing_is_zero() {
        check(plain(DType::F32, [5, 7, 0]), 1);
        check(plain(DType::Bf16, [5, 7, 0]), 1);
    }

    #[test]
    fn the_same_product_has_the_same_bytes_at_every_launch() {
        let kernel = Kernel::Contract(plain(DType::F32, [300, 310, 900]));
        let inputs = Random::new(4).inputs(&kernel);
        let first = run(&kernel, &inputs);
        for _ in 0..3 {
            assert!(run(&kernel, &inputs) == first);
        }
    }
}
