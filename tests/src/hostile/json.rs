//! JSON models.

use super::{Target, mutate};
use fp8c::import::model::{Dim, Model};
use fp8c::import::new::{Family, Request, Sizes, new};
use fp8c::import::onnx::external::ExternalFiles;
use fp8c::import::{ImportOptions, import_model, json, ops};
use std::path::Path;

pub const TARGET: Target = Target { name: "json", run: json, seeds, mutate: mutate::json };

/// Extent that symbolic dimensions get.
const EXTENT: u64 = 3;

/// Reads a JSON model and imports it.
pub fn json(data: &[u8]) {
    if let Ok(model) = json::parse(data, &mut ExternalFiles::none()) {
        import(model);
    }
}

/// Imports a model for inference and for training.
pub(super) fn import(model: Model) {
    let dims = model.inputs.iter().flat_map(|i| &i.shape);
    let dims = dims.filter_map(|d| if let Dim::Symbol(name) = d { Some((name.clone(), EXTENT)) } else { None }).collect();
    let mut options = ImportOptions { dims, infer: true, ..ImportOptions::default() };
    for infer in [true, false] {
        options.infer = infer;
        match import_model(model.clone(), Path::new("model"), &options) {
            Ok(imported) => imported.graph.verify().expect("import gives graphs that hold"),
            Err(e) => assert!(!e.to_string().is_empty()),
        }
    }
}

/// Every accepted operator by itself, and two small language models.
fn seeds() -> Vec<Vec<u8>> {
    models().iter().map(|m| json::write(m).expect("a model that can be written").into_bytes()).collect()
}

/// The models behind [`seeds`].
pub(super) fn models() -> Vec<Model> {
    let request =
        Request { layers: Some(1), dim: Some(4), heads: Some(2), ffn: Some(4), vocab: Some(5), seq: Some(3), ..Request::default() };
    let families = [Family::Gpt2, Family::Llama].into_iter();
    let families = families.map(|f| new(f, &Sizes::of(f, &request).expect("sizes that fit")));
    let read = |text: String| json::parse(text.as_bytes(), &mut ExternalFiles::none()).expect("a model as the form has it");
    let single = ops::accepted().into_iter().flat_map(|op| [1, 2, 3].map(|n| read(alone(op, n))));
    families.chain(single).collect()
}

/// A model of one operator that reads the first `n` of a float input, a parameter and indices, and a loss.
fn alone(op: &str, n: usize) -> String {
    let inputs = &["x", "w", "i"][..n];
    format!(
        r#"{{"format": "fp8c-graph", "version": 1, "opset": 18,
        "inputs": [{{"name": "x", "dtype": "float32", "shape": ["b", 2, 4, 4]}}, {{"name": "i", "dtype": "int64", "shape": [2]}}],
        "parameters": [{{"name": "w", "dtype": "float32", "shape": [2, 2, 4, 4], "init": {{"normal": {{"std": 0.5}}}}}}],
        "constants": [{{"name": "axes", "dtype": "int64", "shape": [1], "data": [1]}}],
        "nodes": [{{"op": "Conv", "inputs": ["x", "w"], "outputs": ["c"]}},
                  {{"op": {op:?}, "inputs": {inputs:?}, "outputs": ["y"], "attributes": {{"axis": 1, "to": 1, "perm": [0, 2, 1, 3]}}}},
                  {{"op": "ReduceMean", "inputs": ["y"], "outputs": ["loss"], "attributes": {{"keepdims": 0}}}}],
        "outputs": ["loss"]}}"#
    )
}
