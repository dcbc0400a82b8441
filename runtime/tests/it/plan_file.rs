use crate::fixtures::*;
use fp8c_kernels::DType;
use fp8c_kernels::launch::Launch;
use fp8c_runtime::Error;
use fp8c_runtime::plan::*;
use std::collections::BTreeMap;

fn reason(e: Error) -> String {
    match e {
        Error::Plan { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn failure(path: &std::path::Path) -> String {
    reason(PlanFile::open(path).err().expect("the plan should be refused"))
}

#[test]
fn a_plan_written_is_read_back_with_its_tensors_and_its_ptx() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = regression(1);
    let launch = Launch { entry: "row_0_main".into(), grid: [1; 3], block: [32, 1, 1], shared_bytes: 0 };
    plan.kernels[0].launches.insert("sm_89".into(), vec![launch]);
    let ptx = BTreeMap::from([(("row_0".to_string(), "sm_89".to_string()), ".version 8.0".to_string())]);
    let weight = StoredTensor { name: "w", dtype: DType::F32, shape: &[2], bytes: &f32_bytes([1.0, 2.0]) };
    let constant = StoredTensor { name: "c", dtype: DType::I64, shape: &[1], bytes: &7i64.to_le_bytes() };
    let contents = Contents { plan: &plan, ptx: &ptx, weights: &[weight], constants: &[constant] };
    let (a, b) = (folder.path().join("a.plan"), folder.path().join("b.plan"));
    PlanFile::write(&a, &contents).unwrap();
    PlanFile::write(&b, &contents).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap(), "same contents, same bytes");
    let file = PlanFile::open(&a).unwrap();
    assert_eq!(*file.plan(), plan);
    assert_eq!(file.ptx("row_0", "sm_89"), Some(".version 8.0"));
    assert_eq!(file.ptx("row_0", "sm_90a"), None);
    let entries: Vec<&str> = file.entries().map(|(name, _)| name).collect();
    assert_eq!(entries, ["constants.safetensors", "kernels/row_0.sm_89.ptx", "plan.json", "weights.safetensors"]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing is left aside: {left:?}");
}

#[test]
fn a_plan_that_does_not_verify_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.plan");
    let mut plan = regression(1);
    plan.arena_bytes += 1;
    let contents = Contents { plan: &plan, ptx: &BTreeMap::new(), weights: &[], constants: &[] };
    assert!(reason(PlanFile::write(&path, &contents).unwrap_err()).contains("invalid"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_plan_whose_ptx_is_missing_is_neither_written_nor_opened() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = regression(1);
    plan.kernels[1].launches.insert("sm_90a".into(), vec![]);
    let contents = Contents { plan: &plan, ptx: &BTreeMap::new(), weights: &[], constants: &[] };
    let error = PlanFile::write(folder.path().join("x.plan"), &contents).unwrap_err();
    assert!(reason(error).contains("no PTX of kernel row_1 for sm_90a"));
}

#[test]
fn truncated_garbage_and_foreign_files_are_refused_with_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.plan");
    write(&regression(1), &path);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 1, 10, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(PlanFile::open(&path).is_err(), "cut at {cut}");
    }
    std::fs::write(&path, b"\x08\x07onnx it is not a plan").unwrap();
    assert!(failure(&path).contains("not a plan file"));
    assert!(matches!(PlanFile::open(folder.path().join("none.plan")), Err(Error::Io { .. })));
    assert!(matches!(PlanFile::open(folder.path()), Err(Error::Misplaced { .. })));
}

#[test]
fn a_flipped_bit_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.plan");
    write(&regression(1), &path);
    let whole = std::fs::read(&path).unwrap();
    let at = whole.windows(9).position(|w| w == b"hand-made").unwrap();
    let mut bytes = whole.clone();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(failure(&path).contains("damaged"));
}

#[test]
fn another_schema_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.plan");
    let json = r#"{"schema": 99, "something": "else"}"#;
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("plan.json", stored).unwrap();
    std::io::Write::write_all(&mut zip, json.as_bytes()).unwrap();
    zip.finish().unwrap();
    assert!(failure(&path).contains("schema 99"));
}

#[test]
fn a_plan_replaces_a_plan_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, b"\x08\x08\x12\x07pytorch").unwrap();
    let plan = regression(1);
    let contents = Contents { plan: &plan, ptx: &BTreeMap::new(), weights: &[], constants: &[] };
    let said = PlanFile::write(&path, &contents).unwrap_err().to_string();
    assert!(said.ends_with("model.onnx exists and is not a plan; it was left as it is"), "{said}");
    assert!(std::fs::read(&path).unwrap().ends_with(b"pytorch"));
    let path = folder.path().join("x.plan");
    write(&plan, &path);
    write(&regression(2), &path);
    assert_eq!(PlanFile::open(&path).unwrap().plan().accumulation, 2);
}

#[test]
fn a_fifo_as_a_plan_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.plan");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let said = PlanFile::open(&path).err().unwrap().to_string();
    assert!(said.ends_with("x.plan is a FIFO, not a file"), "{said}");
}
