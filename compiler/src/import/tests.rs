//! Whole models through import: the exports of `testdata/models`, small ones written out here, and damaged ones.

use super::*;
use crate::graph::Op;
use proptest::prelude::*;
use std::path::PathBuf;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name)
}

fn options(dims: &[(&str, u64)]) -> ImportOptions {
    ImportOptions { dims: dims.iter().map(|(k, v)| (k.to_string(), *v)).collect(), ..ImportOptions::default() }
}

fn json(text: &str, options: &ImportOptions) -> Result<Imported, Error> {
    let model = json::parse(text.as_bytes(), &mut onnx::external::ExternalFiles::none());
    import_model(model.map_err(|reason| Error::Model { path: "model.json".into(), reason })?, Path::new("model.json"), options)
}

/// A linear model with the given nodes after `y`, `[batch, 3]`.
fn linear(nodes: &str, outputs: &str) -> String {
    format!(
        r#"{{"format": "fp8c-graph", "version": 1, "opset": 18,
        "inputs": [{{"name": "x", "dtype": "float32", "shape": ["batch", 4]}}],
        "parameters": [{{"name": "w", "dtype": "float32", "shape": [4, 3], "init": {{"normal": {{"std": 0.02}}}}}},
                       {{"name": "b", "dtype": "float32", "shape": [3], "init": "zeros"}}],
        "nodes": [{{"op": "Gemm", "inputs": ["x", "w", "b"], "outputs": ["y"]}}{nodes}],
        "outputs": [{outputs}]}}"#
    )
}

fn error(text: &str, options: &ImportOptions) -> String {
    json(text, options).map(|i| i.graph.to_string()).unwrap_err().to_string()
}

/// PyTorch's names and shapes, from a case's gradients.
fn expected(case: &str) -> BTreeMap<String, Vec<u64>> {
    let bytes = std::fs::read(testdata(case).join("grads.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.tensors().into_iter().map(|(name, t)| (name, t.shape().iter().map(|&d| d as u64).collect())).collect()
}

#[test]
fn parameters_of_pytorch_exports_have_pytorchs_names_and_shapes() {
    for case in ["bert", "cnn", "gpt2", "llama18", "llama23", "vit"] {
        let case = format!("models/{case}");
        let imported = import(&testdata(&case).join("model.onnx"), &ImportOptions::default()).unwrap();
        let outside = |p: &Parameter| match &p.outside_perm {
            Some(perm) => perm.iter().map(|&axis| p.ty.shape[axis]).collect(),
            None => p.ty.shape.clone(),
        };
        let mut found: BTreeMap<String, Vec<u64>> = imported.graph.parameters.iter().map(|p| (p.name.clone(), outside(p))).collect();
        // A table that the exporter folded a constant lookup into keeps only the rows that are read; the file does not hold the rest.
        let folded = "model.bert.embeddings.token_type_embeddings.weight";
        if let Some(shape) = found.get_mut(folded) {
            assert_eq!(*shape, [1, 64]);
            shape[0] = 2;
        }
        assert_eq!(found, expected(&case), "{case}");
        assert!(imported.graph.loss.is_some() && imported.graph.parameters.iter().all(|p| p.trainable));
        assert_eq!(imported.sha256.len(), 64);
    }
}

#[test]
fn biases_that_the_exporter_deleted_start_at_zero_again() {
    let imported = import(&testdata("models/gpt2/model.onnx"), &ImportOptions::default()).unwrap();
    let bias = imported.graph.parameters.iter().find(|p| p.name.ends_with("h.0.attn.c_attn.bias")).unwrap();
    assert!(matches!(bias.init, Init::Zeros));
    assert!(imported.notes.iter().any(|n| n.contains("because they start at zero")), "{:?}", imported.notes);
}

#[test]
fn a_traced_product_without_its_weight_is_a_gap_and_no_panic() {
    let bias = Initializer {
        name: "b".into(),
        elem: Elem::F32,
        shape: vec![3],
        init: Init::Data(Arc::new(crate::graph::ConstData::f32([3], &[1.0, 2.0, 3.0]))),
        declared_parameter: false,
    };
    for inputs in [&["x"][..], &["x", ""], &["x", "", "b"], &["", "", "b"], &[]] {
        for op in ["Gemm", "Conv", "ConvTranspose", "MatMul", "LayerNormalization"] {
            let call = "%y : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%x, %p_w, %p_b), kwargs = {})";
            let node = model::ModelNode {
                op: op.into(),
                inputs: inputs.iter().map(|i| i.to_string()).collect(),
                outputs: vec!["y".into()],
                metadata: BTreeMap::from([("pkg.torch.onnx.fx_node".into(), call.into())]),
                ..Default::default()
            };
            let signature = "# inputs\np_w: PARAMETER target='w'\np_b: PARAMETER target='b'\nx: USER_INPUT\n";
            let traced = Model {
                opset: 18,
                inputs: vec![model::ModelInput { name: "x".into(), elem: Elem::F32, shape: vec![Dim::Known(2), Dim::Known(4)] }],
                initializers: vec![bias.clone()],
                nodes: vec![node],
                outputs: vec![model::ModelOutput { name: "y".into(), elem: None }],
                metadata: BTreeMap::from([("pkg.torch.export.ExportedProgram.graph_signature".into(), signature.into())]),
                ..Model::default()
            };
            let outcome = import_model(traced, Path::new("m.onnx"), &ImportOptions::default()).map(|i| i.graph.to_string());
            assert!(matches!(outcome, Err(Error::Unsupported { .. })), "{op} {inputs:?}: {outcome:?}");
        }
    }
}

#[test]
fn sites_are_module_paths_and_node_names() {
    let imported = import(&testdata("models/gpt2/model.onnx"), &ImportOptions::default()).unwrap();
    assert!(imported.graph.nodes.iter().any(|n| n.site.starts_with("model.transformer.h.0.attn.c_attn/")));
}

#[test]
fn every_part_of_the_onnx_format_is_read() {
    let path = testdata("importing/small.onnx");
    let imported = import(&path, &options(&[("batch", 5)])).unwrap();
    let names: Vec<&str> = imported.graph.parameters.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["w", "b"]);
    assert_eq!(imported.graph.ty(imported.graph.loss.unwrap()).shape, [] as [u64; 0]);
    let model = onnx::read(&path).unwrap();
    assert_eq!(model.nodes.iter().map(|n| n.op.as_str()).filter(|op| *op == "LeakyRelu").count(), 1, "the function is inlined");
    let slope = &model.nodes.iter().find(|n| n.op == "LeakyRelu").unwrap().attributes["alpha"];
    assert_eq!(*slope, model::Attribute::Float(0.2));
    assert!(model.nodes.iter().all(|n| n.op != "Constant"));
}

#[test]
fn external_weights_are_ranges_of_their_file() {
    let spec = ImportOptions { loss: Some("mse:y,target".parse().unwrap()), ..ImportOptions::default() };
    let imported = import(&testdata("importing/external.onnx"), &spec).unwrap();
    assert!(matches!(&imported.graph.parameters[0].init, Init::File { bytes: 32, path, .. } if path.ends_with("external.bin")));
    let inputs = imported.graph.nodes.iter().filter(|n| matches!(&n.op, Op::Input { name } if name == "target")).count();
    assert_eq!(inputs, 1);
}

#[test]
fn unbound_and_unknown_dimensions_are_named() {
    let text = linear("", "\"y\"");
    assert!(error(&text, &options(&[])).contains("--dim NAME=N for each of: batch"));
    assert!(error(&text, &options(&[("batch", 2), ("seq", 3)])).contains("no symbolic dimension \"seq\""));
}

#[test]
fn a_model_without_a_loss_gets_cross_entropy_on_new_labels_and_says_so() {
    let imported = json(&linear("", "\"y\""), &options(&[("batch", 2)])).unwrap();
    let labels = imported.graph.nodes.iter().find(|n| matches!(&n.op, Op::Input { name } if name == "labels")).unwrap();
    assert_eq!(*imported.graph.ty(labels.results[0]), TensorType::new(fp8c_kernels::DType::I64, [2]));
    assert!(imported.notes.iter().any(|n| n.contains("new input labels")));
    assert_eq!(imported.graph.outputs.len(), 1);
}

#[test]
fn a_loss_that_the_outputs_do_not_tell_must_be_named() {
    let two = linear(r#", {"op": "Relu", "inputs": ["y"], "outputs": ["z"]}"#, r#""y", "z""#);
    assert!(error(&two, &options(&[("batch", 2)])).contains("--loss must say what to minimise"));
    let mut named = options(&[("batch", 2)]);
    named.loss = Some("cross-entropy:z".parse().unwrap());
    assert!(json(&two, &named).is_ok());
    named.loss = Some("output:z".parse().unwrap());
    assert!(error(&two, &named).contains("a loss is one float"));
    named.loss = Some("output:q".parse().unwrap());
    assert!(error(&two, &named).contains("the model's outputs are y, z"));
    assert!("entropy:y".parse::<LossSpec>().is_err() && "mse:y".parse::<LossSpec>().is_err());
}

#[test]
fn inference_keeps_all_outputs_and_no_loss() {
    let two = linear(r#", {"op": "Relu", "inputs": ["y"], "outputs": ["z"]}"#, r#""y", "z""#);
    let imported = json(&two, &ImportOptions { infer: true, ..options(&[("batch", 2)]) }).unwrap();
    assert!(imported.graph.loss.is_none() && imported.graph.outputs.len() == 2);
}

#[test]
fn all_gaps_are_reported_at_once_and_only_those() {
    let nodes = r#", {"op": "Foo", "inputs": ["y"], "outputs": ["p"]}, {"op": "Relu", "inputs": ["p"], "outputs": ["q"]},
        {"op": "Bar", "inputs": ["y"], "outputs": ["r"]}, {"op": "Add", "inputs": ["q", "r"], "outputs": ["z"]}"#;
    match json(&linear(nodes, "\"z\""), &options(&[("batch", 2)])) {
        Err(Error::Unsupported { gaps }) => {
            assert_eq!(gaps.len(), 2, "{gaps:?}");
            assert!(gaps[0].contains("Foo") && gaps[1].contains("Bar"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn broken_graphs_are_refused_in_one_sentence() {
    let bound = options(&[("batch", 2)]);
    let cyclic = r#", {"op": "Add", "inputs": ["y", "q"], "outputs": ["p"]}, {"op": "Relu", "inputs": ["p"], "outputs": ["q"]}"#;
    assert!(error(&linear(cyclic, "\"q\""), &bound).contains("is cyclic"));
    let twice = r#", {"op": "Relu", "inputs": ["y"], "outputs": ["y"]}"#;
    assert!(error(&linear(twice, "\"y\""), &bound).contains("defines the value \"y\" twice"));
    let undefined = r#", {"op": "Relu", "inputs": ["nowhere"], "outputs": ["q"]}"#;
    assert!(error(&linear(undefined, "\"q\""), &bound).contains("input \"nowhere\" nothing defines"));
    assert!(error(&linear("", "\"q\""), &bound).contains("output \"q\", which nothing computes"));
    assert!(error("{", &bound).contains("is not a JSON model"));
}

#[test]
fn globs_choose_what_is_trained_and_must_match() {
    let mut chosen = options(&[("batch", 2)]);
    chosen.parameters.freeze = vec!["b".into()];
    let imported = json(&linear("", "\"y\""), &chosen).unwrap();
    let trained: Vec<(&str, bool)> = imported.graph.parameters.iter().map(|p| (p.name.as_str(), p.trainable)).collect();
    assert_eq!(trained, [("w", true), ("b", false)]);
    chosen.parameters.freeze = vec!["bias*".into()];
    assert!(error(&linear("", "\"y\""), &chosen).contains("--freeze \"bias*\" matches no parameter"));
    let near = error(&linear("", "\"y\""), &chosen);
    assert!(near.ends_with("the nearest are b, w"), "{near}");
    chosen.parameters = ParameterOptions { tie: vec!["lm_head*".into()], ..ParameterOptions::default() };
    assert!(error(&linear("", "\"y\""), &chosen).contains("--tie \"lm_head*\" matches no parameter"));
    chosen.parameters = ParameterOptions { untie: vec!["W".into()], ..ParameterOptions::default() };
    assert!(error(&linear("", "\"y\""), &chosen).contains("--untie \"W\" matches no parameter"));
    chosen.parameters = ParameterOptions { untie: vec!["w".into()], ..ParameterOptions::default() };
    assert!(json(&linear("", "\"y\""), &chosen).is_ok());
    chosen.parameters.freeze = vec!["*".into()];
    assert!(error(&linear("", "\"y\""), &chosen).contains("has no parameter to train"));
}

#[test]
fn nodes_in_any_order_are_sorted() {
    let backwards = linear("", "\"z\"").replace(r#""nodes": ["#, r#""nodes": [{"op": "Relu", "inputs": ["y"], "outputs": ["z"]}, "#);
    assert!(json(&backwards, &options(&[("batch", 2)])).is_ok());
}

#[test]
fn json_models_read_back_as_they_were_written() {
    for family in [new::Family::Gpt2, new::Family::Llama] {
        let request = new::Request { layers: Some(2), dim: Some(64), heads: Some(4), vocab: Some(50), seq: Some(16), ..Default::default() };
        let text = json::write(&new::new(family, &new::Sizes::of(family, &request).unwrap())).unwrap();
        let again = json::parse(text.as_bytes(), &mut onnx::external::ExternalFiles::none()).unwrap();
        assert_eq!(json::write(&again).unwrap(), text);
        let imported = json(&text, &ImportOptions::default()).unwrap();
        assert_eq!(imported.graph.ty(imported.graph.loss.unwrap()).rank(), 0);
    }
}

#[test]
fn the_largest_preset_is_a_small_file_of_the_size_it_says() {
    for (family, billions) in [(new::Family::Gpt2, 42.3), (new::Family::Llama, 41.6)] {
        let request = new::Request { preset: Some("42b".into()), ..Default::default() };
        let model = new::new(family, &new::Sizes::of(family, &request).unwrap());
        let parameters = model.initializers.iter().filter(|i| i.declared_parameter);
        let count: u64 = parameters.map(|i| i.shape.iter().product::<u64>()).sum();
        assert!((count as f64 / 1e9 - billions).abs() < 0.3, "{count}");
        let text = json::write(&model).unwrap();
        assert!(text.len() < 600_000, "{} bytes", text.len());
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let refused = |request: new::Request| new::Sizes::of(new::Family::Llama, &request).unwrap_err();
    assert!(refused(new::Request { preset: Some("1t".into()), ..Default::default() }).contains("no preset"));
    assert!(refused(new::Request { heads: Some(7), ..Default::default() }).contains("do not divide"));
    assert!(refused(new::Request { layers: Some(0), ..Default::default() }).contains("from 1 to"));
}

/// Reads and imports damaged bytes; what matters is that it returns.
fn survive(bytes: &[u8]) {
    if let Ok(model) = onnx::read_bytes(bytes) {
        for infer in [false, true] {
            let mut bound = ImportOptions { infer, ..ImportOptions::default() };
            bound.dims = symbols(&model).into_iter().map(|name| (name, 3)).collect();
            let message = import_model(model.clone(), Path::new("damaged.onnx"), &bound).map(|_| ()).map_err(|e| e.to_string());
            assert!(message != Err(String::new()));
        }
    }
}

#[test]
fn truncated_files_are_refused_or_read_but_never_panic() {
    let bytes = std::fs::read(testdata("importing/small.onnx")).unwrap();
    (0..bytes.len()).for_each(|n| survive(&bytes[..n]));
    let larger = std::fs::read(testdata("models/cnn/model.onnx")).unwrap();
    (0..larger.len()).step_by(997).for_each(|n| survive(&larger[..n]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_files_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6), large in any::<bool>()) {
        let file = if large { "models/cnn/model.onnx" } else { "importing/small.onnx" };
        let mut bytes = std::fs::read(testdata(file)).unwrap();
        for (at, byte, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        survive(&bytes);
    }

    #[test]
    fn damaged_json_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = linear("", "\"y\"").into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = json(&text, &options(&[("batch", 2)]));
        }
    }
}
