//! The command and the files it is given: nothing foreign is replaced, nothing hangs, nothing is lost with status 0.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A folder with a model, its plan and data.
struct Place(tempfile::TempDir);

struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

const MODEL: &[&str] =
    &["new", "gpt2", "--layers", "1", "--dim", "16", "--heads", "2", "--vocab", "256", "--seq", "8", "--batch", "2", "-o", "model.json"];
const COMPILE: &[&str] = &["compile", "model.json", "--mem", "64M", "--target", "cpu", "--precision", "f32"];
const TRAIN: &[&str] = &["train", "model.plan", "--data", "data.txt", "--device", "cpu", "--threads", "1"];

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        let text: String = (0..2000).map(|i| format!("{} ", i * 7919 % 1000)).collect();
        fs::write(place.path("data.txt"), text).unwrap();
        for args in [MODEL, COMPILE] {
            let ended = place.run(args);
            assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fp8c"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Ended {
        ended(self.command(args).spawn().unwrap())
    }

    fn train(&self, more: &[&str]) -> Ended {
        self.run(&[TRAIN, more].concat())
    }

    fn fifo(&self, name: &str) -> PathBuf {
        assert!(Command::new("mkfifo").arg(self.path(name)).status().unwrap().success());
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        names(self.0.path())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

/// Waits for the end, but not for ever.
fn ended(mut child: Child) -> Ended {
    let patience = Instant::now() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > patience {
            child.kill().unwrap();
            panic!("it hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = |from: Option<&mut dyn Read>| {
        let mut text = String::new();
        if let Some(from) = from {
            from.read_to_string(&mut text).unwrap();
        }
        text
    };
    let stdout = text(child.stdout.as_mut().map(|o| o as &mut dyn Read));
    let stderr = text(child.stderr.as_mut().map(|o| o as &mut dyn Read));
    Ended { status: child.wait().unwrap().code(), stdout, stderr }
}

/// One sentence, a blank line, a hint.
fn refused(ended: &Ended, status: i32, says: &str) {
    assert_eq!(ended.status, Some(status), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let error = lines.iter().position(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{}", ended.stderr));
    assert!(lines[error].contains(says), "{}", ended.stderr);
    assert!(lines[error + 1].is_empty() && lines[error + 2].starts_with("hint: "), "{}", ended.stderr);
}

fn steps(log: &Path) -> Vec<u64> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap()).collect()
}

#[test]
fn outputs_replace_neither_links_nor_fifos_nor_what_they_did_not_write() {
    let place = Place::new();
    let model = fs::read(place.path("model.json")).unwrap();
    fs::write(place.path("target"), b"mine").unwrap();
    symlink(place.path("target"), place.path("link")).unwrap();
    let fifo = place.fifo("fifo");
    let inputs = ["run", "model.plan", "--inputs", "in.safetensors", "--outputs"];
    for writes in [&[COMPILE, &["-o"]].concat(), &MODEL[..MODEL.len() - 1].to_vec(), &inputs.to_vec()] {
        let to = |name: &str| place.run(&[writes.as_slice(), &[name]].concat());
        refused(&to("link"), 1, "link is a symbolic link, not a file that can be replaced");
        refused(&to("fifo"), 1, "fifo is a FIFO, not a file that can be replaced");
        refused(&to("data.txt"), 1, "data.txt exists and is not");
        refused(&to("."), 1, ". is a folder");
        refused(&to("nowhere/x"), 1, "nowhere/x: there is no such file or folder");
    }
    refused(&place.run(&[COMPILE, &["-o", "model.json"]].concat()), 1, "model.json exists and is not a plan; it was left as it is");
    refused(&place.run(&[inputs.as_slice(), &["model.plan"]].concat()), 1, "model.plan exists and is not tensors that fp8c wrote");
    assert_eq!(fs::read(place.path("model.json")).unwrap(), model);
    assert_eq!(fs::read(place.path("target")).unwrap(), b"mine");
    assert!(place.path("link").is_symlink() && fs::symlink_metadata(fifo).unwrap().file_type().is_fifo());
    // What it wrote itself, it replaces.
    for again in [MODEL, COMPILE] {
        assert_eq!(place.run(again).status, Some(0));
    }
    assert_eq!(place.names(), ["data.txt", "fifo", "link", "model.json", "model.plan", "target"], "nothing is left aside");
}

#[test]
fn data_that_cannot_be_printed_ends_with_status_1() {
    let place = Place::new();
    let commands: [&[&str]; 6] = [
        &MODEL[..MODEL.len() - 2],
        &["inspect", "model.plan"],
        &["inspect", "model.plan", "--json"],
        &[COMPILE, &["--emit", "graph"]].concat(),
        &["devices"],
        &["--help"],
    ];
    for args in commands {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = ended(place.command(args).stdout(full).spawn().unwrap());
        refused(&full, 1, "the standard output: the disk is full");
        // A reader that has gone is told nothing.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let closed = ended(place.command(args).stdout(writer).spawn().unwrap());
        assert_eq!((closed.status, closed.stderr.as_str()), (Some(1), ""), "{args:?}");
    }
    // Messages are another matter: the work is done though nobody reads them.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unheard = ended(place.command(COMPILE).stderr(writer).spawn().unwrap());
    assert_eq!(unheard.status, Some(0));
}

#[test]
fn a_fifo_in_place_of_any_file_is_refused_at_once() {
    let place = Place::new();
    place.fifo("fifo.plan");
    place.fifo("fifo.txt");
    let with = |args: &[&str]| place.run(&[args, &["--steps", "1", "--device", "cpu"]].concat());
    refused(&with(&["train", "fifo.plan", "--data", "data.txt"]), 1, "fifo.plan is a FIFO, not a file");
    refused(&with(&["train", "model.plan", "--data", "fifo.txt"]), 1, "fifo.txt is a FIFO, not a file");
    refused(&with(&["train", "model.plan", "--data", "data.txt", "--log", "fifo.txt"]), 1, "fifo.txt is a FIFO");
    refused(&with(&["train", "model.plan", "--data", "data.txt", "--checkpoint", "fifo.txt"]), 1, "fifo.txt is a FIFO, not a folder");
    refused(&place.run(&["inspect", "fifo.plan"]), 1, "fifo.plan is a FIFO, not a file");
    let run = ["run", "model.plan", "--inputs", "fifo.txt", "--outputs", "out.safetensors", "--device", "cpu"];
    refused(&place.run(&run), 1, "fifo.txt is a FIFO, not a file");
    let text = fs::read_to_string(place.path("model.json")).unwrap();
    let mut model: serde_json::Value = serde_json::from_str(&text).unwrap();
    model["parameters"][0]["init"] = serde_json::json!({ "file": { "path": "fifo.txt", "tensor": "x" } });
    fs::write(place.path("weights.json"), model.to_string()).unwrap();
    let compile = ["compile", "weights.json", "--mem", "64M", "--target", "cpu"];
    assert_eq!(place.run(&compile).status, Some(1));
}

#[test]
fn a_log_that_is_something_else_is_refused_and_left_as_it_is() {
    let place = Place::new();
    assert_eq!(place.train(&["--steps", "1", "--checkpoint", "c"]).status, Some(0));
    for file in ["data.txt", "model.plan", "model.json", "c/step-000001/state.json", "c/step-000001/model.safetensors"] {
        let before = fs::read(place.path(file)).unwrap();
        refused(&place.train(&["--steps", "2", "--checkpoint", "d", "--log", file]), 1, "exists and is not the log of a training");
        assert_eq!(fs::read(place.path(file)).unwrap(), before, "{file}");
    }
    refused(&place.train(&["--steps", "2", "--checkpoint", "d", "--log", "c"]), 1, "c is a folder");
    refused(&place.train(&["--steps", "2", "--checkpoint", "d", "--log", "/dev/null"]), 1, "/dev/null is a device");
    assert!(!place.path("d").exists());
}

#[test]
fn a_training_keeps_its_result_and_that_of_the_one_before() {
    let place = Place::new();
    let first = place.train(&["--steps", "3"]);
    assert_eq!(first.status, Some(0), "{}", first.stderr);
    assert!(first.stderr.contains("checkpoint  model.checkpoints/step-000003"), "{}", first.stderr);
    let second = place.train(&["--steps", "5"]);
    assert_eq!(second.status, Some(0), "{}", second.stderr);
    assert!(second.stderr.contains("note: model.checkpoints was of an earlier training; it was renamed to model.1.checkpoints"));
    assert!(second.stderr.contains("note: model.jsonl was of another training; it was renamed to model.1.jsonl"), "{}", second.stderr);
    assert_eq!((steps(&place.path("model.1.jsonl")), steps(&place.path("model.jsonl"))), (vec![1, 2, 3], vec![1, 2, 3, 4, 5]));
    let third = place.train(&["--steps", "6", "--resume"]);
    assert!(third.stderr.contains("note: resumed from step 5 (model.checkpoints/step-000005)"), "{}", third.stderr);
    assert_eq!(steps(&place.path("model.jsonl")), [1, 2, 3, 4, 5, 6]);
    assert_eq!(names(&place.path("model.1.checkpoints")), ["step-000003"]);
    assert_eq!(names(&place.path("model.checkpoints")), ["step-000005", "step-000006"]);
    let anew = place.train(&["--steps", "6", "--checkpoint", "model.checkpoints"]);
    refused(&anew, 2, "model.checkpoints already holds checkpoints of a training that is not being resumed");
}

#[test]
fn a_training_that_is_interrupted_keeps_its_result_and_a_second_one_in_its_folder_is_refused() {
    let place = Place::new();
    let long = [TRAIN, &["--steps", "100000000", "--log", "first.jsonl"]].concat();
    let first = place.command(&long).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while !fs::read(place.path("first.jsonl")).is_ok_and(|log| !log.is_empty()) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    let second = place.train(&["--steps", "2", "--log", "second.jsonl"]);
    refused(&second, 1, "model.checkpoints is in use by another training (process ");
    let second = place.train(&["--steps", "2", "--checkpoint", "other", "--log", "first.jsonl"]);
    refused(&second, 1, "first.jsonl is in use by another training");
    assert!(Command::new("kill").args(["-INT", &first.id().to_string()]).status().unwrap().success());
    let first = ended(first);
    assert_eq!(first.status, Some(0), "{}", first.stderr);
    let kept = names(&place.path("model.checkpoints"));
    let last = *steps(&place.path("first.jsonl")).last().unwrap();
    assert_eq!(kept, [format!("step-{last:06}")]);
}

#[test]
fn a_folder_with_damaged_checkpoints_alone_is_not_trained_in_from_the_beginning() {
    let place = Place::new();
    assert_eq!(place.train(&["--steps", "4", "--checkpoint", "c", "--every", "2"]).status, Some(0));
    for step in ["step-000002", "step-000004"] {
        fs::write(place.path("c").join(step).join("model.safetensors"), b"damaged").unwrap();
    }
    let resumed = place.train(&["--steps", "8", "--checkpoint", "c", "--resume"]);
    refused(&resumed, 1, "c: none of its 2 checkpoints is sound (the newest, step-000004: ");
    assert_eq!(names(&place.path("c")), ["step-000002", "step-000004"]);
}

#[test]
fn threads_beyond_reason_are_refused_with_the_bound() {
    let place = Place::new();
    let train = ["train", "model.plan", "--data", "data.txt", "--steps", "1", "--device", "cpu", "--threads", "10000000"];
    refused(&place.run(&train), 2, "from 1 to 1024");
    refused(&place.run(&[COMPILE, &["--threads", "10000000"]].concat()), 2, "from 1 to 1024");
    assert!(place.run(&["devices"]).stdout.contains("cpu"));
}
