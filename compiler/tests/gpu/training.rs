//! Losses are the CPU's, in one allocation of exactly the planned bytes, and nothing is left behind.

use crate::machine::Machine;

/// Steps that are compared.
const STEPS: u64 = 5;

/// Trains a model in each precision on each chip, in two threads.
fn agrees(case: &str, chips: &[&str]) {
    let compare = |precision: &str| {
        let mut machine = Machine::with(chips[0]);
        let planned = machine.compile(case, precision);
        let cpu = machine.train(case, precision, "cpu", STEPS, &["--threads", "1"]);
        assert_eq!(cpu.losses.len() as u64, STEPS, "{case} {precision}: {}", cpu.message());
        let tolerance = if precision == "f32" { 1e-5 } else { 1e-3 };
        for chip in chips {
            machine = machine.set("CHIP", chip);
            let gpu = machine.train(case, precision, "cuda:0", STEPS, &[]);
            let name = format!("{case} {precision} on {chip}");
            assert!(gpu.output.status.success(), "{name}: {}", gpu.message());
            assert_eq!(gpu.losses.len(), cpu.losses.len(), "{name}");
            for (step, (have, want)) in gpu.losses.iter().zip(&cpu.losses).enumerate() {
                assert!((have - want).abs() <= tolerance * want.abs(), "{name}, step {}: {have}, the CPU has {want}", step + 1);
            }
            assert_eq!(gpu.report["allocations"], serde_json::json!([planned]), "{name}: one allocation of the planned bytes");
            assert!(gpu.listed("faults").is_empty() && gpu.listed("leaks").is_empty(), "{name}: {}", gpu.report);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| compare("fp8"));
        ["f32", "bf16"].iter().for_each(|precision| compare(precision));
    });
}

#[test]
fn a_language_model_trains_as_on_the_cpu() {
    agrees("bert", &["8.9", "9.0"]);
}

#[test]
fn a_convolutional_net_trains_as_on_the_cpu_and_later_chips_take_the_portable_code() {
    agrees("cnn", &["9.0", "12.0"]);
}

#[test]
#[ignore = "minutes: every test model; run with --ignored"]
fn every_model_trains_as_on_the_cpu() {
    ["gpt2", "llama18", "llama23", "bert", "vit", "cnn"].iter().for_each(|case| agrees(case, &["8.9", "9.0"]));
}

#[test]
fn a_resumed_training_is_the_uninterrupted_one_bit_for_bit() {
    let machine = Machine::with("8.9");
    machine.compile("cnn", "fp8");
    let whole = machine.train("cnn", "fp8", "cuda:0", 4, &["--checkpoint", "once"]);
    assert!(whole.output.status.success(), "{}", whole.message());
    machine.train("cnn", "fp8", "cuda:0", 2, &["--checkpoint", "twice"]);
    let resumed = machine.train("cnn", "fp8", "cuda:0", 4, &["--checkpoint", "twice", "--resume"]);
    assert_eq!(resumed.losses, whole.losses[2..], "{}", resumed.message());
    let saved = |folder: &str| std::fs::read(machine.path(folder).join("step-000004/model.safetensors")).expect("a checkpoint");
    assert!(saved("once") == saved("twice"), "the checkpoints differ");
}

#[test]
fn a_step_is_captured_once_and_the_host_waits_only_for_the_loss_and_the_norm() {
    let machine = Machine::with("9.0");
    machine.compile("cnn", "bf16");
    let count = |steps: u64, key: &str| {
        let trained = machine.train("cnn", "bf16", "cuda:0", steps, &[]);
        trained.report[key].as_u64().unwrap_or_else(|| panic!("{key}: {}", trained.message()))
    };
    assert_eq!(count(2, "graphs"), count(5, "graphs"), "no graph is captured after the first step");
    assert_eq!(count(5, "waits") - count(2, "waits"), 3 * 2, "two waits a step");
    assert_eq!(count(5, "copies_out") - count(2, "copies_out"), 3 * 2, "two results a step");
}
