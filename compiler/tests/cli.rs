//! The command as a script sees it: exit status, one sentence, a hint, and nothing half-written.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fp8c(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fp8c")).current_dir(folder).args(args).output().expect("the binary runs")
}

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(name).join("model.onnx")
}

fn text() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/text.txt").display().to_string()
}

/// Runs what must fail: asserts status, shape of the message, and that the folder holds what it held.
fn refused(folder: &Path, args: &[&str], status: i32, says: &str) {
    let listing = |p: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(p).expect("the folder is there").filter_map(|e| e.ok()).map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    let before = listing(folder);
    let out = fp8c(folder, args);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(status), "{args:?}: {message}");
    assert!(message.starts_with("error: ") && message.contains("\n\nhint: "), "{args:?}: {message}");
    assert!(message.contains(says), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    assert!(out.stdout.is_empty(), "{args:?}");
    assert_eq!(before, listing(folder), "{args:?} left something behind");
}

#[test]
fn bad_models_and_requests_are_refused_in_one_sentence_with_a_hint() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    let gpt2 = model("gpt2").display().to_string();
    let whole = std::fs::read(&gpt2).expect("the test model");
    std::fs::write(at.join("cut.onnx"), &whole[..whole.len() / 2]).expect("a file");
    std::fs::write(at.join("noise.onnx"), [0xA5u8; 5000]).expect("a file");
    std::fs::write(at.join("empty.onnx"), []).expect("a file");
    std::fs::write(at.join("half.json"), "{\"format\": \"fp8c-graph\",").expect("a file");
    refused(at, &["compile", "cut.onnx", "--mem", "1G"], 1, "cut.onnx");
    refused(at, &["compile", "noise.onnx", "--mem", "1G"], 1, "noise.onnx");
    refused(at, &["compile", "empty.onnx", "--mem", "1G"], 1, "empty.onnx");
    refused(at, &["compile", "half.json", "--mem", "1G"], 1, "half.json");
    refused(at, &["compile", "absent.onnx", "--mem", "1G"], 1, "absent.onnx");
    refused(at, &["compile", &gpt2, "--mem", "24X"], 2, "24GiB");
    refused(at, &["compile", &gpt2], 2, "--mem");
    refused(at, &["compile", &gpt2, "--mem", "100K"], 1, "the smallest budget that can be met");
    refused(at, &["compile", &gpt2, "--mem", "1G", "--target", "sm_42"], 2, "sm_42");
    refused(at, &["compile", &gpt2, "--mem", "1G", "--loss", "hinge:x"], 2, "hinge");
    refused(at, &["compile", &gpt2, "--mem", "1G", "--loss", "output:nothing"], 2, "nothing");
    refused(at, &["compile", &gpt2, "--mem", "1G", "--dim", "batch"], 2, "batch");
    refused(at, &["train", &gpt2, "--data", "x", "--steps", "1"], 1, "not a plan");
    refused(at, &["inspect", "absent.plan"], 1, "absent.plan");
    refused(at, &["train"], 2, "--data");
}

#[test]
fn bad_data_is_refused_before_anything_is_trained() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    let gpt2 = model("gpt2").display().to_string();
    let made = fp8c(at, &["compile", &gpt2, "--mem", "64M", "--target", "cpu", "-o", "p.plan", "-q"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(at.join("short.txt"), "too short").expect("a file");
    std::fs::write(at.join("x.npy"), "no array").expect("a file");
    refused(at, &["train", "p.plan", "--data", "absent.txt", "--steps", "2"], 1, "absent.txt");
    refused(at, &["train", "p.plan", "--data", "short.txt", "--steps", "2"], 1, "short.txt");
    refused(at, &["train", "p.plan", "--data", "input_ids=x.npy", "--data", "labels=x.npy", "--steps", "2"], 1, "x.npy");
    refused(at, &["train", "p.plan", "--data", "pixels=x.npy", "--steps", "2"], 2, "pixels");
    refused(at, &["train", "p.plan", "--data", &text(), "--steps", "2", "--betas", "2,3"], 2, "beta");
    refused(at, &["train", "p.plan", "--data", &text(), "--steps", "2", "--device", "tpu"], 2, "tpu");
    let mut damaged = std::fs::read(at.join("p.plan")).expect("the plan");
    let middle = damaged.len() / 3;
    damaged[middle] ^= 0x40;
    std::fs::write(at.join("damaged.plan"), &damaged[..damaged.len() - 7]).expect("a file");
    refused(at, &["train", "damaged.plan", "--data", &text(), "--steps", "2"], 1, "damaged.plan");
}

#[test]
fn a_model_goes_from_new_to_trained_checkpoint() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    let ok = |args: &[&str]| {
        let out = fp8c(at, args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let small = ["--layers", "1", "--dim", "64", "--heads", "2", "--vocab", "256", "--seq", "32", "--batch", "2"];
    ok(&[&["new", "llama", "-o", "m.json"][..], &small].concat());
    ok(&["check", "m.json"]);
    ok(&["compile", "m.json", "--mem", "64M", "--target", "cpu"]);
    ok(&["train", "m.plan", "--data", &text(), "--steps", "3", "--checkpoint", "c", "-q"]);
    ok(&["train", "m.plan", "--data", &text(), "--steps", "5", "--checkpoint", "c", "--resume", "-q"]);
    let log = std::fs::read_to_string(at.join("m.jsonl")).expect("the log");
    assert_eq!(log.lines().count(), 5, "each step once");
    let shown: serde_json::Value = serde_json::from_str(&ok(&["inspect", "m.plan", "--json"])).expect("one JSON document");
    for key in
        ["schema", "target", "budget_bytes", "peak_bytes", "baseline_peak_bytes", "saved_bytes", "baseline_saved_bytes", "parameters"]
    {
        assert!(!shown[key].is_null(), "{key}");
    }
    for key in ["decisions", "by_layer", "matmuls", "predicted", "certificate", "kernels"] {
        assert!(!shown[key].is_null(), "{key}");
    }
}

#[test]
fn inputs_and_outputs_without_elements_are_planned_and_run() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    let graph = r#"{"format": "fp8c-graph", "version": 1, "opset": 18,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [2, 0]}, {"name": "y", "dtype": "float32", "shape": [2, 3]}],
        "nodes": [{"op": "Exp", "inputs": ["x"], "outputs": ["empty"]},
                  {"op": "Neg", "inputs": ["y"], "outputs": ["full"]}],
        "outputs": ["empty", "full"]}"#;
    std::fs::write(at.join("m.json"), graph).expect("a file");
    let fed: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = |shape: Vec<usize>, bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).expect("a tensor");
    let tensors = [("x", view(vec![2, 0], &[])), ("y", view(vec![2, 3], &fed))];
    std::fs::write(at.join("in.safetensors"), safetensors::serialize(tensors, None).expect("a file")).expect("a file");
    for args in [
        &["compile", "m.json", "--infer", "--mem", "1M", "--precision", "f32", "--target", "cpu", "-o", "m.plan", "-q"][..],
        &["run", "m.plan", "--inputs", "in.safetensors", "--outputs", "out.safetensors", "-q"],
    ] {
        let out = fp8c(at, args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let bytes = std::fs::read(at.join("out.safetensors")).expect("the outputs");
    let out = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(out.tensor("empty").expect("empty").shape(), [2, 0]);
    let negated: Vec<u8> = (0..6).flat_map(|i| (-(i as f32)).to_le_bytes()).collect();
    assert_eq!(out.tensor("full").expect("full").data(), negated);
}

#[test]
fn a_plan_depends_on_neither_the_machines_cores_nor_its_load() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    let gpt2 = model("gpt2").display().to_string();
    let compile = |threads: &str, rayon: &str, cores: Option<&str>, target: &str| {
        let mut command = match cores {
            Some(_) => Command::new("taskset"),
            None => Command::new(env!("CARGO_BIN_EXE_fp8c")),
        };
        if let Some(cores) = cores {
            command.args(["-c", cores, env!("CARGO_BIN_EXE_fp8c")]);
        }
        command.args(["compile", &gpt2, "--mem", "1G", "--target", target, "-o", "m.plan", "-q"]);
        if !threads.is_empty() {
            command.args(["--threads", threads]);
        }
        let done = command.current_dir(at).env("RAYON_NUM_THREADS", rayon).output().expect("the binary runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::read(at.join("m.plan")).expect("the plan")
    };
    let busy = std::sync::atomic::AtomicBool::new(true);
    let plain = compile("", "2", None, "cpu");
    assert!(plain == compile("", "1", Some("0"), "cpu"), "another plan on one core");
    let loaded = std::thread::scope(|s| {
        for _ in 0..6 {
            s.spawn(|| {
                while busy.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let plan = compile("", "5", None, "cpu");
        busy.store(false, std::sync::atomic::Ordering::Relaxed);
        plan
    });
    assert!(plain == loaded, "another plan under load");
    assert!(compile("1", "2", None, "sm_90a") == compile("64", "2", None, "sm_90a"), "a GPU's plan depends on CPU threads");
}

#[test]
fn buffers_are_packed_into_a_capacity_or_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    std::fs::write(at.join("b.csv"), "id,lower,upper,size\na,0,2,4\nb,1,3,4\nc,2,4,4\n").expect("a file");
    let packed = fp8c(at, &["bench", "pack", "b.csv", "--capacity", "8", "-o", "o.csv"]);
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let offsets = std::fs::read_to_string(at.join("o.csv")).expect("the offsets");
    assert!(["id,offset\na,0\nb,4\nc,0\n", "id,offset\na,4\nb,0\nc,4\n"].contains(&offsets.as_str()), "{offsets}");
    assert_eq!(fp8c(at, &["bench", "pack", "b.csv"]).stdout, b"id,offset\na,0\nb,4\nc,0\n");
    refused(at, &["bench", "pack", "b.csv", "--capacity", "7"], 1, "since 8 are alive at once");
    refused(at, &["bench", "pack", "b.csv", "-o", "b.csv"], 1, "b.csv exists and is not a table of offsets");
    refused(at, &["bench", "pack", "absent.csv"], 1, "absent.csv");
    refused(at, &["bench", "pack", "b.csv", "--capacity", "x"], 2, "--capacity must be a size");
    refused(at, &["bench", "remat", "b.csv", "--budget", "0.8"], 1, "b.csv: ");
}

#[test]
fn a_bare_graph_is_scheduled_within_a_share_of_its_peak() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    let nodes = "[{\"id\":0,\"cost\":1,\"bytes\":8},{\"id\":1,\"cost\":5,\"bytes\":9},{\"id\":2,\"cost\":5,\"bytes\":1},{\"id\":3,\"cost\":5,\"bytes\":1}]";
    std::fs::write(at.join("g.json"), format!("{{\"nodes\":{nodes},\"edges\":[[1,2],[0,3],[2,3]]}}")).expect("a file");
    let done = fp8c(at, &["bench", "remat", "g.json", "--budget", "0.6", "--json", "-o", "s.json"]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("\"cost\":17.0,\"cost_once\":16.0"), "{said}");
    let schedule = std::fs::read_to_string(at.join("s.json")).expect("the schedule");
    assert!(schedule.contains("\"schedule\":[0,1,2,0,3]"), "{schedule}");
    refused(at, &["bench", "remat", "g.json", "--budget", "5"], 1, "within 5 bytes");
    refused(at, &["bench", "remat", "g.json", "--budget", "-1"], 2, "--budget must be a share above 0 up to 1");
}

#[test]
fn a_plan_becomes_one_page_that_replaces_nothing_but_pages() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    let made = fp8c(at, &["compile", &model("gpt2").display().to_string(), "--mem", "64M", "--target", "cpu", "-o", "p.plan", "-q"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(at.join("log.jsonl"), "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":1.5}\n").expect("a file");
    std::fs::write(at.join("notes.html"), "<p>of value</p>").expect("a file");
    for _ in 0..2 {
        let done = fp8c(at, &["report", "p.plan", "--log", "log.jsonl", "-o", "p.html"]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let page = std::fs::read_to_string(at.join("p.html")).expect("the page");
    let data = page.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next()).expect("the data");
    let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["losses"], serde_json::json!([[1, 2.5], [2, 1.5]]));
    assert_eq!(data["tensors"]["name"].as_array().map(Vec::len), data["tensors"]["kind"].as_array().map(Vec::len));
    refused(at, &["report", "p.plan", "-o", "notes.html"], 1, "notes.html exists and is not a page that fp8c wrote");
    refused(at, &["report", "p.plan", "--log", "p.html", "-o", "q.html"], 1, "p.html: line 1 is no line of a training's log");
    refused(at, &["report", "p.plan"], 2, "--output");
}

#[test]
fn less_memory_is_never_predicted_to_be_faster_along_a_curve() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    let gpt2 = model("gpt2").display().to_string();
    let done = fp8c(at, &["curve", &gpt2, "--target", "cpu,sm_90a", "--json", "-o", "c.svg"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let curves: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(curves.as_array().map(Vec::len), Some(2));
    for curve in curves.as_array().expect("curves") {
        let points = curve["points"].as_array().expect("points");
        let of = |key: &str| points.iter().map(|p| p[key].as_f64().expect("a number")).collect::<Vec<f64>>();
        let (budget, planned, step, bound) = (of("budget_bytes"), of("planned_bytes"), of("step_seconds"), of("lower_bound_seconds"));
        assert!(points.len() > 2 && step.is_sorted_by(|a, b| a >= b) && budget.is_sorted(), "{curve}");
        assert!(planned.iter().zip(&budget).all(|(p, b)| p <= b) && bound.iter().zip(&step).all(|(b, s)| b <= s), "{curve}");
        assert_eq!(of("recompute_seconds").last(), Some(&0.0));
    }
    let drawing = std::fs::read_to_string(at.join("c.svg")).expect("the drawing");
    assert!(drawing.starts_with("<svg ") && drawing.contains("sm_90a: ") && !drawing.contains("NaN"));
    refused(at, &["curve", &gpt2, "--target", "sm_42"], 2, "sm_42");
}
