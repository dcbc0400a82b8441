//! A machine with a GPU: the stand-in under the driver's name.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with the driver in it, in which commands run.
pub struct Machine {
    dir: tempfile::TempDir,
    /// Variables of the stand-in: its `config` lists them.
    variables: Vec<(String, String)>,
}

/// What a training came to.
pub struct Trained {
    pub output: Output,
    /// One for each step that was done.
    pub losses: Vec<f64>,
    /// The stand-in's report; null on the CPU.
    pub report: Value,
}

impl Trained {
    pub fn message(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Strings of a list in the report.
    pub fn listed(&self, key: &str) -> Vec<String> {
        self.report[key].as_array().into_iter().flatten().map(|v| v.as_str().unwrap_or_default().to_string()).collect()
    }
}

/// A folder of `testdata/models`.
pub fn model(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(case)
}

/// The driver that cargo built beside the binary.
fn driver() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_fp8c")).with_file_name("deps").join("libfp8c_driver_standin.so");
    assert!(built.exists(), "{} is missing", built.display());
    built
}

impl Machine {
    /// A machine whose GPU has a compute capability, as `9.0`.
    pub fn with(chip: &str) -> Machine {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::os::unix::fs::symlink(driver(), dir.path().join(name)).expect("a link");
        }
        Machine { dir, variables: vec![] }.set("CHIP", chip)
    }

    /// Sets a variable of the stand-in.
    pub fn set(mut self, name: &str, value: &str) -> Machine {
        self.variables.push((format!("FP8C_STANDIN_{name}"), value.to_string()));
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary, in the machine's folder and with its driver.
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fp8c"));
        command.current_dir(self.dir.path()).env("LD_LIBRARY_PATH", self.dir.path());
        command.envs(self.variables.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Runs the binary, which has to succeed, and gives what it prints.
    pub fn must(&self, args: &[&str]) -> String {
        let out = self.command().args(args).output().expect("the binary runs");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Compiles a test model to `NAME.plan`, for both chips; gives the planned bytes.
    pub fn compile(&self, case: &str, precision: &str) -> u64 {
        let (onnx, plan) = (model(case).join("model.onnx").display().to_string(), format!("{case}.{precision}.plan"));
        let target = ["--target", "sm_89,sm_90a"];
        self.must(&[&["compile", &onnx, "--mem", "1G", "--precision", precision, "-o", &plan, "-q"][..], &target].concat());
        let shown: Value = serde_json::from_str(&self.must(&["inspect", &plan, "--json"])).expect("one JSON document");
        shown["peak_bytes"]["device"].as_u64().expect("the planned bytes")
    }

    /// Trains `NAME.plan` on the model's own data for some steps.
    pub fn train(&self, case: &str, precision: &str, device: &str, steps: u64, more: &[&str]) -> Trained {
        let (log, report) = (self.path("log.jsonl"), self.path("report.json"));
        for old in [&log, &report] {
            // There is none before the first training.
            let _ = std::fs::remove_file(old);
        }
        let mut command = self.command();
        command.env("FP8C_STANDIN_LOG", &report);
        command.args(["train", &format!("{case}.{precision}.plan"), "--no-shuffle", "--lr", "1e-3", "-q", "--log", "log.jsonl"]);
        command.args(["--device", device, "--steps", &steps.to_string()]).args(more);
        for spec in samples(case) {
            command.args(["--data", &spec]);
        }
        let output = command.output().expect("the binary runs");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let loss = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON")["loss"].as_f64().unwrap_or(f64::NAN);
        let report = std::fs::read_to_string(&report).ok().and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
        Trained { output, losses: text.lines().map(loss).collect(), report }
    }
}

/// The `--data` specifications of a model's recorded samples.
fn samples(case: &str) -> Vec<String> {
    let files = std::fs::read_dir(model(case).join("data")).expect("every case has data");
    let mut specs: Vec<String> = files
        .filter_map(|e| e.ok())
        .map(|e| format!("{}={}", e.path().file_stem().unwrap_or_default().to_string_lossy(), e.path().display()))
        .collect();
    specs.sort();
    specs
}
