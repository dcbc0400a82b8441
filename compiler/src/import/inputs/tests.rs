//! Exports of PyTorch whose loss takes its labels in different ways, and small graphs written out.

use super::*;
use crate::import::onnx::external::ExternalFiles;
use crate::import::{ImportOptions, Imported, import, import_model, json};
use std::path::Path;

fn exported(name: &str) -> Imported {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    import(&path, &ImportOptions::default()).expect("a test model")
}

fn fact<'a>(imported: &'a Imported, name: &str) -> &'a InputFacts {
    imported.inputs.iter().find(|f| f.name == name).expect("the input is there")
}

fn range(imported: &Imported, name: &str) -> Option<(i64, i64, Option<i64>)> {
    fact(imported, name).range.map(|r| (r.least, r.bound, r.ignore))
}

/// A model of `ids` `[2, 4]` int64 (of a vocabulary of 10, when it is looked up in `table`), `labels` alike and `weights`.
fn model(nodes: &str, output: &str, options: &ImportOptions) -> Imported {
    let text = format!(
        r#"{{"format": "fp8c-graph", "version": 1, "opset": 18,
        "inputs": [{{"name": "input_ids", "dtype": "int64", "shape": [2, 4]}}, {{"name": "labels", "dtype": "int64", "shape": [2, 4]}}],
        "parameters": [{{"name": "table", "dtype": "float32", "shape": [10, 8], "init": "ones"}},
                       {{"name": "head", "dtype": "float32", "shape": [8, 10], "init": "ones"}}],
        "constants": [{{"name": "one", "dtype": "int64", "shape": [1], "data": [1]}},
                      {{"name": "zero", "dtype": "int64", "shape": [1], "data": [0]}},
                      {{"name": "three", "dtype": "int64", "shape": [1], "data": [3]}},
                      {{"name": "far", "dtype": "int64", "shape": [1], "data": [1000]}},
                      {{"name": "masked", "dtype": "int64", "shape": [], "data": -100}},
                      {{"name": "rows", "dtype": "int64", "shape": [2], "data": [-1, 10]}},
                      {{"name": "flat", "dtype": "int64", "shape": [1], "data": [-1]}},
                      {{"name": "pads", "dtype": "int64", "shape": [4], "data": [0, 0, 0, 1]}}],
        "nodes": [{nodes}], "outputs": ["{output}"]}}"#
    );
    let parsed = json::parse(text.as_bytes(), &mut ExternalFiles::none()).expect("a model");
    import_model(parsed, Path::new("model.json"), options).expect("a model that compiles")
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: &str) -> String {
    format!(r#"{{"op": {op:?}, "inputs": {inputs:?}, "outputs": [{output:?}], "attributes": {{{attributes}}}}}"#)
}

/// Nodes of a language model up to the scores `[2, 4, 10]`.
fn scores() -> Vec<String> {
    vec![node("Gather", &["table", "input_ids"], "x", ""), node("Tanh", &["x"], "h", ""), node("MatMul", &["h", "head"], "scores", "")]
}

fn cross_entropy(scores: &str, labels: &str) -> Vec<String> {
    vec![
        node("Reshape", &[scores, "rows"], "s", ""),
        node("Reshape", &[labels, "flat"], "l", ""),
        node("SoftmaxCrossEntropyLoss", &["s", "l"], "loss", r#""ignore_index": -100"#),
    ]
}

fn language_model(between: &[String], scored: &str, labelled: &str) -> Imported {
    let nodes = [scores(), between.to_vec(), cross_entropy(scored, labelled)].concat().join(",");
    model(&nodes, "loss", &ImportOptions::default())
}

fn slice(x: &str, from: &str, to: &str, out: &str) -> String {
    node("Slice", &[x, from, to, "one"], out, "")
}

#[test]
fn exports_that_shift_their_labels_want_the_same_tokens_and_others_the_next() {
    for (name, wanted) in [("inside", Labels::Same), ("sliced", Labels::Same), ("hidden", Labels::Same), ("outside", Labels::Next)] {
        let imported = exported(&format!("labels/{name}.onnx"));
        assert_eq!(fact(&imported, "labels").labels, Some(wanted), "{name}");
        let says = if wanted == Labels::Same { "are the tokens themselves" } else { "are the next tokens" };
        assert!(imported.notes.iter().any(|n| n.contains(says)), "{name}: {:?}", imported.notes);
        assert_eq!(range(&imported, "labels"), Some((0, 256, Some(-100))), "{name}");
        assert_eq!(range(&imported, "input_ids"), Some((0, 256, None)), "{name}");
    }
}

#[test]
fn the_models_of_the_other_tests_want_the_next_tokens_or_have_none() {
    for name in ["gpt2", "llama18", "llama23", "bert"] {
        let imported = exported(&format!("models/{name}/model.onnx"));
        assert_eq!(fact(&imported, "labels").labels, Some(Labels::Next), "{name}");
        assert_eq!(range(&imported, "labels"), Some((0, 256, Some(-100))), "{name}");
    }
    for name in ["vit", "cnn"] {
        let imported = exported(&format!("models/{name}/model.onnx"));
        assert_eq!(fact(&imported, "labels").labels, None, "{name}");
        assert_eq!(range(&imported, "labels").map(|(least, bound, _)| (least, bound)), Some((0, 10)), "{name}");
        assert!(!imported.notes.iter().any(|n| n.contains("--labels")), "{name}: {:?}", imported.notes);
    }
}

#[test]
fn shifts_are_seen_wherever_they_are_made() {
    let plain = language_model(&[], "scores", "labels");
    assert_eq!(fact(&plain, "labels").labels, Some(Labels::Next));
    let padded = [node("Pad", &["labels", "pads", "masked"], "p", ""), slice("p", "one", "far", "next")];
    assert_eq!(fact(&language_model(&padded, "scores", "next"), "labels").labels, Some(Labels::Same));
    let both = [slice("scores", "zero", "three", "early"), slice("labels", "one", "far", "next")];
    assert_eq!(fact(&language_model(&both, "early", "next"), "labels").labels, Some(Labels::Same));
    let backwards = [slice("scores", "one", "far", "late"), slice("labels", "zero", "three", "early")];
    assert_eq!(fact(&language_model(&backwards, "late", "early"), "labels").labels, None, "the label before is neither");
    let cut = [slice("scores", "zero", "three", "early"), slice("labels", "zero", "three", "same")];
    assert_eq!(fact(&language_model(&cut, "early", "same"), "labels").labels, Some(Labels::Next), "the last position left out");
}

#[test]
fn labels_that_cannot_be_followed_are_left_open_and_said() {
    let one_hot = [
        scores(),
        vec![
            node("LogSoftmax", &["scores"], "log", r#""axis": -1"#),
            node("OneHot", &["labels", "depth", "values"], "hot", r#""axis": -1"#),
            node("Mul", &["log", "hot"], "picked", ""),
            node("ReduceMean", &["picked"], "mean", r#""keepdims": 0"#),
            node("Neg", &["mean"], "loss", ""),
        ],
    ];
    let nodes = one_hot.concat().join(",");
    let constants = r#"{"op": "Constant", "inputs": [], "outputs": ["depth"], "attributes": {"value_int": 10}},
        {"op": "Constant", "inputs": [], "outputs": ["values"], "attributes": {"value_floats": [0.0, 1.0]}},"#;
    let imported = model(&format!("{constants}{nodes}"), "loss", &ImportOptions::default());
    assert_eq!(fact(&imported, "labels").labels, None);
    assert_eq!(range(&imported, "labels"), None, "beyond the axis a one-hot is zero");
    assert!(imported.notes.iter().any(|n| n.contains("--labels next or --labels same")), "{:?}", imported.notes);
}

#[test]
fn ranges_follow_casts_views_sums_and_masks() {
    let nodes = |more: &[String], index: &str| {
        let tail = [
            node("Gather", &["table", index], "x", ""),
            node("ReduceMean", &["x"], "a", r#""keepdims": 0"#),
            node("Cast", &["labels"], "unused", r#""to": 1"#),
            node("ReduceMean", &["unused"], "b", r#""keepdims": 0"#),
            node("Add", &["a", "b"], "loss", ""),
        ];
        model(&[more, &tail[..]].concat().join(","), "loss", &ImportOptions::default())
    };
    let found = |more: &[String], index: &str| range(&nodes(more, index), "input_ids");
    assert_eq!(found(&[], "input_ids"), Some((0, 10, None)));
    assert_eq!(found(&[node("Cast", &["input_ids"], "i", r#""to": 6"#)], "i"), Some((0, 10, None)));
    assert_eq!(found(&[node("Add", &["input_ids", "three"], "i", "")], "i"), Some((0, 7, None)), "-3 and more would be in the table too");
    assert_eq!(found(&[node("Sub", &["input_ids", "one"], "i", "")], "i"), Some((0, 11, None)));
    let masked = [node("Equal", &["input_ids", "masked"], "m", ""), node("Where", &["m", "zero", "input_ids"], "i", "")];
    assert_eq!(found(&masked, "i"), Some((0, 10, Some(-100))), "what the mask takes out is looked up nowhere");
    let padded = [node("Pad", &["input_ids", "pads", "masked"], "p", ""), slice("p", "one", "far", "i")];
    assert_eq!(found(&padded, "i"), Some((0, 10, None)), "the filling is not the input's");
    let unmasked = [node("Equal", &["labels", "masked"], "m", ""), node("Where", &["m", "zero", "input_ids"], "i", "")];
    assert_eq!(found(&unmasked, "i"), None, "another input's mask says nothing");
    assert_eq!(found(&[node("Mul", &["input_ids", "three"], "i", "")], "i"), None);
    assert_eq!(found(&[slice("input_ids", "zero", "three", "i")], "i"), Some((0, 10, None)), "nothing else reads the rest");
    assert_eq!(range(&nodes(&[], "input_ids"), "labels"), None, "what is only computed with may be anything");
}

#[test]
fn a_column_that_is_an_index_says_nothing_of_the_others() {
    let nodes = [
        slice("input_ids", "zero", "three", "i"),
        node("Gather", &["table", "i"], "x", ""),
        node("ReduceMean", &["x"], "a", r#""keepdims": 0"#),
        node("Cast", &["input_ids"], "numbers", r#""to": 1"#),
        node("ReduceMean", &["numbers"], "b", r#""keepdims": 0"#),
        node("Add", &["a", "b"], "loss", ""),
    ];
    assert_eq!(range(&model(&nodes.join(","), "loss", &ImportOptions::default()), "input_ids"), None);
}

#[test]
fn an_index_may_count_from_the_end_in_inference_but_not_in_a_training() {
    let nodes = [node("Gather", &["table", "input_ids"], "x", ""), node("ReduceMean", &["x"], "loss", r#""keepdims": 0"#)].join(",");
    let infer = ImportOptions { infer: true, ..ImportOptions::default() };
    assert_eq!(range(&model(&nodes, "loss", &infer), "input_ids"), Some((-10, 10, None)));
    assert_eq!(range(&model(&nodes, "loss", &ImportOptions::default()), "input_ids"), Some((0, 10, None)));
}
