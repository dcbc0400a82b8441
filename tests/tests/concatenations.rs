//! Concatenations that are read, part by part, before they are finished.

use fp8c::compile::CompileOptions;
use fp8c::graph::Op;
use fp8c::graph::eval::{Data, Rounding, Tensor, run};
use fp8c::import::ImportOptions;
use fp8c::precision::Precision;
use fp8c_runtime::plan::PlanFile;
use fp8c_runtime::tensors::HostTensor;
use fp8c_tests::{options, session};
use safetensors::Dtype;
use std::path::Path;

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
}

#[test]
fn a_concatenation_read_by_a_concatenation_computes_what_the_graph_says() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/importing/concatenations.json");
    let infer = ImportOptions { infer: true, ..ImportOptions::default() };
    let options = CompileOptions { import: infer, ..options(Precision::F32, Some(1 << 30)) };
    let mut compiled = fp8c::compile::compile(&model, &options).expect("the model compiles");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("concatenations.plan");
    fp8c::emit::write(&mut compiled, &path).expect("the plan is written");
    let mut session = session(&PlanFile::open(&path).expect("the plan opens"));
    let x: Vec<f32> = (0..2 * 3 * 8 * 8).map(|i| ((i * 37 + 11) % 29) as f32 / 14.0 - 1.0).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let input = HostTensor { name: "x".into(), dtype: Dtype::F32, shape: vec![2, 3, 8, 8], bytes };
    let got = session.run(&[input], false).expect("the plan runs").outputs;
    let graph = &compiled.joint;
    let sources = |node: &fp8c::graph::Node, ty: &fp8c::graph::TensorType| {
        let data = match &node.op {
            Op::Input { .. } => x.iter().map(|&x| f64::from(x)).collect(),
            Op::Parameter(p) => floats(&session.parameter(&graph.parameters[*p].name).expect("the plan has it").bytes),
            _ => return None,
        };
        Some(Tensor { shape: ty.shape.clone(), data: Data::Float(data) })
    };
    let want = run(graph, &sources, Rounding::Stored).expect("the graph evaluates");
    let Data::Float(want) = &want[graph.outputs[0].value.index()].data else { panic!("logits are floats") };
    let got = floats(&got[0].bytes);
    assert_eq!(got.len(), want.len());
    for (a, b) in got.iter().zip(want) {
        assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} where the graph says {b}");
    }
}
