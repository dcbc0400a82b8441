//! `docs/errors.md` is what the command prints: every `console` block of it is run and compared.

use std::path::Path;
use std::process::{Command, Output};

const DOCUMENT: &str = include_str!("../../docs/errors.md");

/// A command of the document, what is printed, and the exit status of its chapter.
#[derive(Debug)]
struct Case {
    command: String,
    printed: Vec<String>,
    status: i32,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = vec![];
    let (mut status, mut inside) = (0, false);
    for line in DOCUMENT.lines() {
        if let Some(number) = line.strip_prefix("## ").and_then(|title| title.split("exit status ").nth(1)) {
            status = number.trim_end_matches(')').parse().expect("a chapter's exit status");
        }
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ => match (line.strip_prefix("$ "), cases.last_mut()) {
                (Some(command), _) => cases.push(Case { command: command.into(), printed: vec![], status }),
                (None, Some(case)) => case.printed.push(line.into()),
                (None, None) => panic!("a block begins with a command: {line}"),
            },
        }
    }
    cases
}

/// The words of a command, single quotes around those with signs that a shell would take.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("never empty").push(c),
        }
    }
    words
}

fn run(folder: &Path, command: &str) -> Output {
    let words = words(command);
    assert_eq!(words[0], "fp8c");
    Command::new(env!("CARGO_BIN_EXE_fp8c")).current_dir(folder).args(&words[1..]).output().expect("the binary runs")
}

/// True if a line is as written, `[..]` standing for anything.
fn matches(line: &str, written: &str) -> bool {
    let parts: Vec<&str> = written.split("[..]").collect();
    let [first, middle @ .., last] = &parts[..] else { return line == written };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// True if the lines are those written, a line `[..]` standing for any number of them.
fn same(lines: &[&str], written: &[String]) -> bool {
    match written.iter().position(|w| w == "[..]") {
        Some(at) => {
            let after = &written[at + 1..];
            lines.len() >= written.len() - 1 && same(&lines[..at], &written[..at]) && same(&lines[lines.len() - after.len()..], after)
        }
        None => lines.len() == written.len() && lines.iter().zip(written).all(|(l, w)| matches(l, w)),
    }
}

fn numbers<T, const N: usize>(values: impl IntoIterator<Item = T>, bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.into_iter().flat_map(bytes).collect()
}

fn npy(descr: &str, shape: &str, data: Vec<u8>) -> Vec<u8> {
    let header = format!("{:<117}\n", format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"));
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// The files that the document's first paragraph speaks of.
fn prepare(folder: &Path) {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let gpt2 = std::fs::read(testdata.join("models/gpt2/model.onnx")).expect("the test model");
    let small = std::fs::read(testdata.join("importing/small.onnx")).expect("the test model");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("the folder can be written");
    write("gpt2.onnx", &gpt2);
    write("cut.onnx", &gpt2[..gpt2.len() / 2]);
    write("dynamic.onnx", &small);
    write("text.txt", &std::fs::read(testdata.join("text.txt")).expect("the test text"));
    write("short.txt", b"In the beginning");
    write("fft.json", FFT.as_bytes());
    write("policy.json", br#"[{"layer": "transformer.h.0.attm*", "format": "bf16"}]"#);
    write("wide.bin", &numbers((0..1000u32).map(|i| i % 300), u32::to_le_bytes));
    write("foreign.bin", &numbers((0..1000u16).map(|i| i % 300), u16::to_le_bytes));
    write("ids.npy", &npy("<i8", "(8, 32)", numbers(0..256i64, i64::to_le_bytes)));
    write("labels.npy", &npy("<i8", "(8, 32)", numbers((0..256).map(|i| if i == 100 { -1 } else { i }), i64::to_le_bytes)));
    write("floats.npy", &npy("<f4", "(8, 32)", vec![0; 8 * 32 * 4]));
    write("long.npy", &npy("<i8", "(8, 64)", vec![0; 8 * 64 * 8]));
    write("empty.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    for command in [
        "fp8c compile gpt2.onnx --mem 1G --precision f32 --target cpu -o gpt2.plan",
        "fp8c new llama --layers 1 --dim 64 --heads 2 --vocab 512 --seq 32 --batch 2 -o llama.json",
        "fp8c compile llama.json --mem 1G --precision f32 --target cpu -o llama.plan",
    ] {
        let made = run(folder, command);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let plan = std::fs::read(folder.join("gpt2.plan")).expect("a plan that was just made");
    write("cut.plan", &plan[..plan.len() / 2]);
}

const FFT: &str = r#"{"format": "fp8c-graph", "version": 1, "opset": 18,
    "inputs": [{"name": "x", "dtype": "float32", "shape": [2, 8]}],
    "parameters": [{"name": "w", "dtype": "float32", "shape": [8, 8], "init": "ones"}],
    "nodes": [{"op": "MatMul", "inputs": ["x", "w"], "outputs": ["y"]},
              {"op": "STFT", "name": "spectrum", "inputs": ["y"], "outputs": ["z"]},
              {"op": "Det", "name": "volume", "inputs": ["w"], "outputs": ["d"]}],
    "outputs": ["z", "d"]}"#;

#[test]
fn every_mistake_of_the_document_is_answered_as_it_says() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    prepare(dir.path());
    let listing = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).expect("the folder").flatten().map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    let (before, cases) = (listing(), cases());
    assert!(cases.len() >= 40, "{} mistakes", cases.len());
    for case in &cases {
        let out = run(dir.path(), &case.command);
        let printed = String::from_utf8_lossy(&out.stderr).into_owned();
        let lines: Vec<&str> = printed.lines().collect();
        assert!(same(&lines, &case.printed), "{}\nprints\n{printed}\nand not\n{}", case.command, case.printed.join("\n"));
        assert_eq!(out.status.code(), Some(case.status), "{}", case.command);
        assert!(out.stdout.is_empty() && printed.contains("\n\nhint: "), "{}", case.command);
        assert_eq!(before, listing(), "{} leaves something behind", case.command);
    }
}
