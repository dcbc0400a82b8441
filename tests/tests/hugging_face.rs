//! Folders of transformers: in, trained, and back.

use fp8c::compile::{CompileOptions, compile};
use fp8c::hf::{self, Shape};
use fp8c::import::{ImportOptions, read};
use fp8c::precision::Precision;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::plan::{Labels, PlanFile};
use fp8c_runtime::session::{Batch, Session};
use fp8c_runtime::tensors::{HostTensor, TensorFile};
use fp8c_tests::{options, session};
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 11] = ["llama", "llama3", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "opt"];

fn original(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/hf").join(family)
}

/// The folder copied to where its JSON model can lie beside it, and that model.
fn model_of(folder: &Path) -> PathBuf {
    let made = hf::model(folder, folder, Shape { batch: Some(2), seq: Some(24) }).expect("the folder is read");
    let path = folder.join("model.json");
    std::fs::write(&path, made.text).expect("a file");
    path
}

fn copied(family: &str, into: &Path) -> PathBuf {
    let folder = into.join(family);
    std::fs::create_dir(&folder).expect("a folder");
    for entry in std::fs::read_dir(original(family)).expect("the folder of a family") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), folder.join(entry.file_name())).expect("a copy");
    }
    folder
}

fn plan(model: &Path, infer: bool) -> PlanFile {
    let import = ImportOptions { infer, ..ImportOptions::default() };
    let options = CompileOptions { import, ..options(Precision::F32, None) };
    let path = model.with_extension(if infer { "infer.plan" } else { "plan" });
    fp8c::emit::write(&mut compile(model, &options).expect("the model compiles"), &path).expect("the plan is written");
    PlanFile::open(&path).expect("the plan is sound")
}

fn logits(session: &mut Session, ids: &HostTensor) -> Vec<f32> {
    let out = session.run(std::slice::from_ref(ids), false).expect("it runs").outputs;
    out.iter().find(|t| t.name == "logits").and_then(HostTensor::as_f32).expect("logits")
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_of_every_family_are_those_of_transformers() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for family in FAMILIES {
        let folder = copied(family, dir.path());
        let expected = TensorFile::open(&folder.join("expected.safetensors")).expect("transformers' logits");
        let (ids, want) = (expected.read("input_ids").expect("tokens"), expected.read("logits").expect("logits"));
        let own = logits(&mut session(&plan(&model_of(&folder), true)), &ids);
        let difference = apart(&own, &want.as_f32().expect("floats"));
        assert!(difference < 1e-5, "{family}: {difference}");
    }
}

#[test]
fn a_trained_folder_is_the_trained_model() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tokens: Vec<u8> = (0..2000u32).flat_map(|i| ((i * i + i / 7) as u16 % 48).to_le_bytes()).collect();
    std::fs::write(dir.path().join("data.bin"), tokens).expect("a file");
    for family in FAMILIES {
        let folder = copied(family, dir.path());
        let json = model_of(&folder);
        let file = plan(&json, false);
        assert_eq!(file.plan().inputs[1].labels, Some(Labels::Next), "{family}");
        let data = [dir.path().join("data.bin").display().to_string()];
        let loader = Loader::open(file.plan(), &data, Order::Sequential).expect("the data fits");
        let mut trained = session(&file);
        let mut batch = Batch::new(trained.plan());
        let losses: Vec<f64> = (0..20)
            .map(|_| {
                loader.fill(0, &mut batch).expect("the data is in range");
                trained.step(&batch, &Hyper { learning_rate: 1e-2, ..Hyper::default() }).expect("a step runs").loss
            })
            .collect();
        assert!(losses[19] < losses[0] - 0.3, "{family} learns: {losses:?}");
        let weights = file.plan().parameters.iter().map(|p| (p.name.clone(), trained.parameter(&p.name).expect("a parameter"))).collect();
        let model = read(&json).expect("the model is read");
        let source = hf::source_of(&model).expect("it came from a folder");
        let out = dir.path().join(format!("{family}.trained"));
        hf::write(&source, &model, &weights, &out).expect("the folder is written");
        assert!(hf::write(&source, &model, &weights, &out).is_err(), "a folder with something in it is left alone");
        let again = plan(&model_of(&out), false);
        let other = session(&again).evaluate(&batch, 0).expect("it runs");
        let own = trained.evaluate(&batch, 0).expect("it runs");
        assert!((own - other).abs() < 1e-6, "{family}: {own} trained, {other} from its folder");
    }
}

#[test]
fn folders_that_cannot_be_read_are_refused_in_a_sentence() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = copied("llama", dir.path());
    let edited = |from: &str, to: &str| {
        let text = std::fs::read_to_string(original("llama").join("config.json")).expect("a configuration");
        assert!(text.contains(from), "{from}");
        std::fs::write(folder.join("config.json"), text.replace(from, to)).expect("a file");
        hf::model(&folder, &folder, Shape::default()).expect_err("refused").to_string()
    };
    let cases = [
        ("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"", "is of the family \"mamba\""),
        ("LlamaForCausalLM", "LlamaForSequenceClassification", "no causal language model"),
        ("\"hidden_size\": 16", "\"hidden_size\": 32", "has the weight model.embed_tokens.weight that has the shape [48, 32]"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "has no weight model.layers.2."),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": -2", "num_hidden_layers -2, which is no size"),
        ("\"hidden_act\": \"silu\"", "\"hidden_act\": \"mish\"", "activation \"mish\""),
        ("\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"", "\"yarn\""),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 3", "heads"),
        ("{", "", "is not a configuration"),
    ];
    for (from, to, says) in cases {
        let said = edited(from, to);
        assert!(said.contains(says), "{said}");
    }
    assert!(hf::model(dir.path(), dir.path(), Shape::default()).is_err(), "no configuration at all");
    let long = hf::model(&original("gpt2"), &original("gpt2"), Shape { batch: None, seq: Some(33) });
    assert!(long.expect_err("too long").to_string().contains("longer than the 32 positions"));
    let elsewhere = hf::model(&original("gpt2"), dir.path(), Shape::default());
    assert!(elsewhere.expect_err("out of reach").to_string().contains("in its own folder or in one below it"));
}
