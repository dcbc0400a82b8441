//! How far the elementary functions are from the exact values, on every kind of processor.

use super::loops::Isa;
use super::ops::of_unary;
use crate::cpu::reference::row::unary_f64;
use crate::program::{Kind, Unary};

/// Applies the loop of an operator.
fn apply(op: Unary, isa: Isa, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    let map = of_unary(op, Kind::Float, isa).expect("a float function");
    let from = x.as_ptr().cast();
    // SAFETY: both slices have the length given.
    unsafe { map(y.as_mut_ptr().cast(), from, from, from, x.len()) };
    y
}

fn kinds_of_processor() -> Vec<Isa> {
    let here = Isa::detect();
    let all = [Isa::Base, Isa::Avx2, Isa::Avx512];
    all.into_iter().take(1 + all.iter().position(|&i| i == here).expect("one of them")).collect()
}

/// Floats of every size and sign.
fn everywhere() -> Vec<f32> {
    (0..u32::MAX / 65_521).map(|i| f32::from_bits(i * 65_521)).chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]).collect()
}

/// Largest distance from the exact value, in units of 2^-24 of it, or of `floor` where it is smaller.
fn worst(op: Unary, isa: Isa, values: &[f32], exact: &[f64], floor: f64) -> (f64, f32) {
    let mut worst = (0.0, 0.0);
    for ((&x, &exact), y) in values.iter().zip(exact).zip(apply(op, isa, values)) {
        let rounded = exact as f32;
        if rounded.is_nan() || rounded.is_infinite() || y.is_infinite() {
            // The largest float and infinity are neighbours.
            let neighbours = (f64::from(y) - exact).abs() < 1e32;
            assert!(y.to_bits() == rounded.to_bits() || (y.is_nan() && rounded.is_nan()) || neighbours, "{op:?}({x:e}) = {y}, not {exact}");
            continue;
        }
        assert!(!y.is_nan(), "{op:?}({x:e}) is NaN, not {exact}");
        let unit = (exact.abs().max(floor) * f64::from(f32::EPSILON) / 2.0).max(f64::from(f32::from_bits(1)));
        let error = (f64::from(y) - exact).abs() / unit;
        if error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

#[test]
fn functions_are_accurate_everywhere() {
    // Bounds in units of 2^-24 of the value, of which a unit in the last place is one or two; 1e-6 is 16 of them.
    let cases: [(Unary, f64, f64); 24] = [
        (Unary::Exp, 6.0, 0.0),
        (Unary::Log, 6.0, 0.0),
        (Unary::Log1p, 8.0, 0.0),
        (Unary::Tanh, 8.0, 0.0),
        (Unary::Erf, 6.0, 0.0),
        (Unary::Sigmoid, 8.0, f64::from(f32::MIN_POSITIVE)),
        (Unary::Softplus, 12.0, 0.0),
        (Unary::Sin, 8.0, 1e-3),
        (Unary::Cos, 8.0, 1e-3),
        (Unary::Sqrt, 1.1, 0.0),
        (Unary::Rsqrt, 4.0, 0.0),
        (Unary::Recip, 1.1, 0.0),
        (Unary::Tan, 4.0, 0.0),
        (Unary::Atan, 4.0, 0.0),
        (Unary::Sinh, 6.0, 0.0),
        (Unary::Cosh, 6.0, 0.0),
        (Unary::Asinh, 1.1, 0.0),
        (Unary::Acosh, 1.1, 0.0),
        (Unary::Atanh, 1.1, 0.0),
        // Where the result is next to nothing beside x, an absolute error counts.
        (Unary::GeluErf, 16.0, 1e-1),
        (Unary::GeluErfGrad, 16.0, 1e-1),
        (Unary::GeluTanh, 16.0, 1e-2),
        (Unary::GeluTanhGrad, 16.0, 1e-1),
        (Unary::Floor, 0.0, 0.0),
    ];
    let values = everywhere();
    let mut failures = Vec::new();
    for (op, bound, floor) in cases {
        let exact: Vec<f64> = values.iter().map(|&x| unary_f64(op, f64::from(x))).collect();
        for isa in kinds_of_processor() {
            let (error, x) = worst(op, isa, &values, &exact, floor);
            if error > bound {
                failures.push(format!("{op:?} on {isa:?}: {error:.2} at {x:e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn nan_gives_nan() {
    for op in [Unary::Exp, Unary::Log, Unary::Log1p, Unary::Tanh, Unary::Erf, Unary::Sigmoid, Unary::Softplus, Unary::Sin, Unary::Cos] {
        for isa in kinds_of_processor() {
            assert!(apply(op, isa, &[f32::NAN; 33]).iter().all(|y| y.is_nan()), "{op:?}");
        }
    }
    for op in [Unary::GeluErf, Unary::GeluErfGrad, Unary::GeluTanh, Unary::GeluTanhGrad] {
        assert!(apply(op, Isa::detect(), &[f32::NAN; 33]).iter().all(|y| y.is_nan()), "{op:?}");
    }
}

#[test]
fn a_result_does_not_depend_on_its_place_in_a_slice() {
    let values: Vec<f32> = (0..67).map(|i| (i as f32 - 30.0) * 0.37).collect();
    for op in [Unary::Exp, Unary::Tanh, Unary::GeluErf, Unary::Sin] {
        let all = apply(op, Isa::detect(), &values);
        for (x, y) in values.iter().zip(all) {
            assert_eq!(apply(op, Isa::detect(), &[*x])[0].to_bits(), y.to_bits());
        }
    }
}
