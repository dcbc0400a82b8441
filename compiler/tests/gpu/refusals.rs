//! What a user of a GPU is told.

use crate::machine::Machine;

/// Trains the smallest model on a machine and gives what is printed; it must fail with status 1 and a hint.
fn refused(machine: &Machine, says: &str) {
    machine.compile("cnn", "f32");
    let trained = machine.train("cnn", "f32", "cuda:0", 3, &[]);
    let message = trained.message();
    assert_eq!(trained.output.status.code(), Some(1), "{message}");
    assert!(message.contains("error: ") && message.contains("\n\nhint: ") && !message.contains("panicked"), "{message}");
    assert!(message.contains(says), "{message}");
    assert!(trained.listed("leaks").is_empty(), "{}", trained.report);
}

#[test]
fn a_chip_that_is_too_old_is_named_with_what_it_lacks() {
    refused(&Machine::with("8.0"), "has compute capability 8.0; plans run on 8.9 and later");
}

#[test]
fn too_little_memory_is_refused_with_both_sizes() {
    refused(&Machine::with("9.0").set("MEMORY", "20000"), "of 20000 are free");
}

#[test]
fn an_allocation_that_fails_is_told_as_the_driver_tells_it() {
    refused(&Machine::with("9.0").set("PLANT", "fail cuMemAlloc_v2"), "allocating the arena failed");
}

#[test]
fn a_launch_that_fails_names_the_kernel_and_where_it_comes_from() {
    let machine = Machine::with("9.0").set("PLANT", "fail cuLaunchKernel 3");
    refused(&machine, "step 1: launching ");
}

#[test]
fn a_kernel_that_fails_names_the_step_and_the_part_of_it() {
    // The first allocation is freed before the graphs of the second step are launched.
    let machine = Machine::with("9.0").set("PLANT", "free cuGraphLaunch 6");
    refused(&machine, "a kernel failed between ");
}

#[test]
fn a_gpu_is_listed_with_the_chip_whose_code_it_runs() {
    let list = |chip: &str| Machine::with(chip).must(&["devices", "--json"]);
    assert!(list("9.0").contains("sm_90a") && list("12.0").contains("sm_89"));
}
