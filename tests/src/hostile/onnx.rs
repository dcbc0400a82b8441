//! ONNX files.

use super::wire::{Field, Value, bytes, int, message, text};
use super::{Rng, Target, json, wire};
use fp8c::graph::Init;
use fp8c::import::model::{Attribute, Dim, Elem, Initializer, Model, ModelNode};
use fp8c::import::{onnx, ops};
use std::path::Path;

pub const TARGET: Target = Target { name: "onnx", run: onnx, seeds, mutate };

/// Reads an ONNX model and imports it.
pub fn onnx(data: &[u8]) {
    if let Ok(model) = onnx::read_bytes(data) {
        json::import(model);
    }
}

fn mutate(data: &[u8], rng: &mut Rng) -> Vec<u8> {
    const WORDS: [&str; 18] = [
        "",
        "x",
        "ai.onnx",
        "axis",
        "axes",
        "perm",
        "to",
        "value",
        "transB",
        "alpha",
        "group",
        "pads",
        "strides",
        "mode",
        "mean",
        "none",
        "%p_w",
        "aten.linear",
    ];
    let mut words = ops::accepted();
    words.extend(WORDS);
    wire::mutate(data, &words, rng)
}

/// The files of `testdata` that are small, and the models of [`json`].
fn seeds() -> Vec<Vec<u8>> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let files = ["importing/small.onnx", "importing/external.onnx", "models/cnn/model.onnx"];
    let files = files.iter().map(|f| std::fs::read(testdata.join(f)).expect("a test model"));
    files.chain(json::models().iter().map(encoded)).collect()
}

/// A model as an ONNX file; recipes become zeros. Field numbers are those of `onnx.proto`.
fn encoded(model: &Model) -> Vec<u8> {
    let mut graph: Vec<Field> = model.nodes.iter().map(|n| message(1, node(n))).collect();
    graph.push(text(2, "graph"));
    graph.extend(model.initializers.iter().map(|i| message(5, tensor(i))));
    graph.extend(model.inputs.iter().map(|i| message(11, value(&i.name, i.elem, &i.shape))));
    graph.extend(model.outputs.iter().map(|o| message(12, value(&o.name, Elem::F32, &[]))));
    bytes(&[int(1, 8), message(7, graph), message(8, vec![text(1, ""), int(2, model.opset)])])
}

fn node(n: &ModelNode) -> Vec<Field> {
    let mut fields: Vec<Field> = n.inputs.iter().map(|i| text(1, i)).collect();
    fields.extend(n.outputs.iter().map(|o| text(2, o)));
    fields.extend([text(3, &n.name), text(4, &n.op)]);
    fields.extend(n.attributes.iter().filter_map(|(name, a)| Some(message(5, attribute(name, a)?))));
    fields
}

fn attribute(name: &str, a: &Attribute) -> Option<Vec<Field>> {
    let (kind, values) = match a {
        Attribute::Float(x) => (1, vec![(2, Value::Fixed32(x.to_le_bytes()))]),
        Attribute::Int(i) => (2, vec![int(3, *i)]),
        Attribute::String(s) => (3, vec![text(4, s)]),
        Attribute::Floats(list) => (6, list.iter().map(|x| (7, Value::Fixed32(x.to_le_bytes()))).collect()),
        Attribute::Ints(list) => (7, list.iter().map(|&i| int(8, i)).collect()),
        Attribute::Strings(list) => (8, list.iter().map(|s| text(9, s)).collect()),
        Attribute::Tensor { .. } | Attribute::Unsupported(_) => return None,
    };
    Some([vec![text(1, name), int(20, kind)], values].concat())
}

fn tensor(i: &Initializer) -> Vec<Field> {
    let raw = match &i.init {
        Init::Data(d) => d.bytes.clone(),
        _ => vec![0; (i.elements() * i.elem.size().unwrap_or(0)) as usize],
    };
    let dims = i.shape.iter().map(|&d| int(1, d as i64));
    dims.chain([int(2, code(i.elem)), text(8, &i.name), (9, Value::Bytes(raw))]).collect()
}

fn value(name: &str, elem: Elem, shape: &[Dim]) -> Vec<Field> {
    let dim = |d: &Dim| match d {
        Dim::Known(n) => message(1, vec![int(1, *n as i64)]),
        Dim::Symbol(s) => message(1, vec![text(2, s)]),
    };
    let tensor = vec![int(1, code(elem)), message(2, shape.iter().map(dim).collect())];
    vec![text(1, name), message(2, vec![message(1, tensor)])]
}

fn code(elem: Elem) -> i64 {
    (1..=16).find(|&c| Elem::from_onnx(c) == elem).map_or(0, i64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_read() {
        for seed in seeds() {
            let external = String::from_utf8_lossy(&seed).contains("external.bin");
            assert!(external || onnx::read_bytes(&seed).is_ok(), "{:?}", onnx::read_bytes(&seed).err());
        }
    }
}
