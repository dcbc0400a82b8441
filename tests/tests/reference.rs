//! Training in f32 follows PyTorch, for every test model.

use fp8c::precision::Precision;
use fp8c_runtime::data::Order;
use fp8c_runtime::tensors::{HostTensor, TensorFile};
use fp8c_tests::{CASES, options, plan_file, reference, samples, session, train};
use std::collections::BTreeSet;

#[test]
fn losses_follow_pytorch_step_by_step() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for case in CASES {
        let file = plan_file(case, &options(Precision::F32, Some(1 << 30)), dir.path()).expect("the model compiles");
        let (hyper, want) = reference(case);
        let got = train(&file, &samples(case), Order::Sequential, &hyper, want.len() as u64);
        let error: Vec<f64> = got.iter().zip(&want).map(|(a, b)| (a - b).abs() / b.abs()).collect();
        assert!(error[0] < 1e-5, "{case}: first loss {} against {}", got[0], want[0]);
        let worst = error.iter().copied().fold(0.0, f64::max);
        assert!(worst < 1e-3, "{case}: a loss is off by {worst:e}");
    }
}

#[test]
fn gradients_are_pytorchs_by_name_and_orientation() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for case in CASES {
        let file = plan_file(case, &options(Precision::F32, Some(1 << 30)), dir.path()).expect("the model compiles");
        let got = session(&file).run(&first_batch(case, &file), true).expect("a pass runs").gradients;
        let want = TensorFile::open(&fp8c_tests::folder(case).join("grads.safetensors"))
            .and_then(|f| f.read_all())
            .expect("the reference gradients");
        let names = |all: &[HostTensor]| all.iter().map(|t| t.name.clone()).collect::<BTreeSet<_>>();
        assert_eq!(names(&got), names(&want), "{case}");
        for w in &want {
            let g = got.iter().find(|g| g.name == w.name).expect("the names agree");
            let (rows, mut w_data) = (g.as_f32().expect("f32").len(), w.as_f32().expect("f32"));
            if g.shape != w.shape {
                // The exporter folds a lookup of constant rows: the model file has only those rows of the table, the first ones.
                assert!(g.shape[1..] == w.shape[1..] && w_data[rows..].iter().all(|x| *x == 0.0), "{case} {}: {:?}", w.name, g.shape);
                w_data.truncate(rows);
            }
            let g = g.as_f32().expect("f32");
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
            let size = norm(&mut w_data.iter().map(|x| f64::from(*x)));
            let off = norm(&mut g.iter().zip(&w_data).map(|(a, b)| f64::from(a - b)));
            // The gradient of an attention's key bias is zero in exact arithmetic: PyTorch's is rounding noise.
            assert!(off < 1e-4 * size || size < 1e-6, "{case} {}: {off:e} of {size:e}", w.name);
        }
    }
}

/// The first rows of the recorded samples, by input name.
fn first_batch(case: &str, file: &fp8c_runtime::plan::PlanFile) -> Vec<HostTensor> {
    use fp8c_runtime::data::Loader;
    use fp8c_runtime::session::Batch;
    let plan = file.plan();
    let loader = Loader::open(plan, &samples(case), Order::Sequential).expect("the data fits");
    let mut batch = Batch::new(plan);
    loader.fill(0, &mut batch).expect("the data is in range");
    let tensor = |(i, p): (usize, &fp8c_runtime::plan::Port)| HostTensor {
        name: p.name.clone(),
        dtype: fp8c_runtime::convert::file_dtype(p.dtype),
        shape: p.shape.clone(),
        bytes: batch.input(i).to_vec(),
    };
    plan.inputs.iter().enumerate().map(tensor).collect()
}
