//! Trained weights back in the file that their model came from.

use fp8c::export::onnx;
use fp8c::import::ImportOptions;
use fp8c_tests::folder;

#[test]
fn an_export_replaces_an_earlier_one_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = folder("cnn").join("model.onnx");
    let out = dir.path().join("out.onnx");
    let write = || onnx(&model, &ImportOptions::default(), &Default::default(), &out).map_err(|e| e.to_string());
    write().expect("the place is free");
    let first = std::fs::read(&out).expect("a file");
    write().expect("an earlier export");
    assert!(first == std::fs::read(&out).expect("a file"), "same weights, same bytes");
    std::fs::copy(&model, &out).expect("a copy");
    assert!(write().expect_err("a model of somebody else's").contains("is not a model that fp8c exported"));
    assert_eq!(std::fs::read(&out).expect("a file"), std::fs::read(&model).expect("a file"));
}
