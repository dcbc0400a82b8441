//! Safetensors files: as inputs of a run, and as the weights of a JSON model.

use super::place::{file, path, with_model};
use super::{Rng, Target, mutate};
use fp8c::import::json;
use fp8c::import::onnx::external::ExternalFiles;
use fp8c_runtime::session::{Session, SessionOptions};
use fp8c_runtime::tensors::{HostTensor, TensorFile, write_tensors};

pub const TARGET: Target = Target { name: "safetensors", run: safetensors, seeds, mutate };

/// Reads the tensors of a file, feeds them to a plan, and gives one to a model as a weight.
pub fn safetensors(data: &[u8]) {
    let at = file("in.safetensors", data);
    if let Ok(tensors) = TensorFile::open(&at)
        && let Ok(all) = tensors.read_all()
    {
        assert_eq!(all.len(), tensors.names().len());
        session(|s| drop(s.run(&all, false)));
    }
    drop(json::parse(WITH_WEIGHTS.as_bytes(), &mut ExternalFiles::new(&path())).map(super::json::import));
}

const WITH_WEIGHTS: &str = r#"{"format": "fp8c-graph", "version": 1, "opset": 18,
    "inputs": [{"name": "x", "dtype": "float32", "shape": [2, 4]}],
    "parameters": [{"name": "w", "dtype": "float32", "shape": [4, 3], "init": {"file": {"path": "in.safetensors", "tensor": "w"}}}],
    "nodes": [{"op": "MatMul", "inputs": ["x", "w"], "outputs": ["y"]}],
    "outputs": ["y"]}"#;

fn session(act: impl FnOnce(&mut Session)) {
    thread_local! {
        static SESSION: std::cell::RefCell<Option<Session>> = const { std::cell::RefCell::new(None) };
    }
    let new = || with_model(|m| Session::new(m, SessionOptions { threads: Some(1), ..SessionOptions::default() }).expect("the CPU"));
    SESSION.with(|s| act(s.borrow_mut().get_or_insert_with(new)));
}

fn seeds() -> Vec<Vec<u8>> {
    let tensor = |name: &str, dtype, shape: &[u64], bytes: Vec<u8>| HostTensor { name: name.into(), dtype, shape: shape.into(), bytes };
    let ids: Vec<u8> = (0..16i64).flat_map(i64::to_le_bytes).collect();
    let w: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let short: Vec<u8> = (0..16i32).flat_map(i32::to_le_bytes).collect();
    let fits = [
        tensor("input_ids", ::safetensors::Dtype::I64, &[2, 8], ids.clone()),
        tensor("labels", ::safetensors::Dtype::I64, &[2, 8], ids),
        tensor("w", ::safetensors::Dtype::F32, &[4, 3], w),
    ];
    let converted = [tensor("input_ids", ::safetensors::Dtype::I32, &[2, 8], short), fits[1].clone()];
    let written = |tensors: &[HostTensor]| {
        let at = path().join("seed.safetensors");
        write_tensors(&at, tensors).expect("the temporary folder can be written");
        std::fs::read(at).expect("a file that was just written")
    };
    vec![written(&fits), written(&converted), written(&[])]
}

/// Changes the header, and the length before it with it; or the bytes.
pub(super) fn mutate(data: &[u8], rng: &mut Rng) -> Vec<u8> {
    let length = data.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)) as usize;
    let Some((header, rest)) = data.get(8..).and_then(|d| d.split_at_checked(length)).filter(|_| rng.u8(0..4) > 0) else {
        return mutate::bytes(data, rng);
    };
    let header = mutate::json(header, rng);
    [&(header.len() as u64).to_le_bytes(), &header[..], rest].concat()
}
