//! Faults planted in the calls that the runtime makes: each is found.

use crate::machine::{Machine, Trained};

/// How a fault shows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shows {
    /// The stand-in objects.
    Fault,
    /// The losses are others than the CPU's.
    Loss,
    /// The stand-in objects at the end.
    Leak,
}

/// Steps of a training with a fault.
const STEPS: u64 = 2;

/// What is done wrong, and how it shows.
const PLANTED: [(&str, &str, Shows); 25] = [
    ("kernels do not wait for the first copies", "ignore cuStreamWaitEvent 1", Shows::Fault),
    ("the loss is not waited for", "ignore cuStreamWaitEvent 2", Shows::Fault),
    ("the norm is copied before it is there", "ignore cuStreamWaitEvent 3", Shows::Fault),
    ("a batch does not wait for the step before", "ignore cuStreamWaitEvent 4", Shows::Fault),
    ("kernels do not wait for the second batch", "ignore cuStreamWaitEvent 5", Shows::Fault),
    ("the update is left out", "ignore cuGraphLaunch 4", Shows::Loss),
    ("no stream waits for another", "ignore cuStreamWaitEvent", Shows::Fault),
    ("no event is recorded", "ignore cuEventRecord", Shows::Fault),
    ("the loss is read early", "ignore cuEventSynchronize 1", Shows::Fault),
    ("the norm is read early", "ignore cuEventSynchronize 2", Shows::Fault),
    ("the arena is too small", "halve cuMemAlloc_v2", Shows::Fault),
    ("a copy to the GPU is cut", "halve cuMemcpyHtoDAsync_v2 1", Shows::Loss),
    ("optimizer state is not cleared", "ignore cuMemsetD8Async", Shows::Fault),
    ("the copy of the loss is cut", "halve cuMemcpyDtoHAsync_v2 1", Shows::Loss),
    ("a kernel is left out", "ignore cuLaunchKernel 1", Shows::Fault),
    ("the arena is freed early", "free cuGraphLaunch 2", Shows::Fault),
    ("the arena is freed twice", "free cuMemFree_v2", Shows::Fault),
    ("a capture is never ended", "fail cuStreamEndCapture", Shows::Fault),
    ("the arena is not freed", "ignore cuMemFree_v2", Shows::Leak),
    ("pinned memory is not freed", "ignore cuMemFreeHost 1", Shows::Leak),
    ("a module is not unloaded", "ignore cuModuleUnload 1", Shows::Leak),
    ("a stream is not destroyed", "ignore cuStreamDestroy_v2 2", Shows::Leak),
    ("an event is not destroyed", "ignore cuEventDestroy_v2 1", Shows::Leak),
    ("a graph is not destroyed", "ignore cuGraphExecDestroy 1", Shows::Leak),
    ("the context is not released", "ignore cuDevicePrimaryCtxRelease_v2", Shows::Leak),
];

fn train(machine: &Machine) -> Trained {
    machine.train("cnn", "f32", "cuda:0", STEPS, &[])
}

#[test]
fn every_planted_fault_is_found() {
    let machine = Machine::with("9.0");
    machine.compile("cnn", "f32");
    let sound = train(&machine);
    assert!(sound.output.status.success() && sound.listed("faults").is_empty() && sound.listed("leaks").is_empty(), "{}", sound.message());
    let mut missed = vec![];
    let mut machine = machine;
    for (what, plant, shows) in PLANTED {
        machine = machine.set("PLANT", plant);
        let trained = train(&machine);
        let found = match shows {
            Shows::Fault => !trained.listed("faults").is_empty(),
            Shows::Loss => trained.losses != sound.losses,
            Shows::Leak => !trained.listed("leaks").is_empty(),
        };
        if !found || trained.message().contains("panicked") {
            missed.push(format!("{what} ({plant}): losses {:?}, {}", trained.losses, trained.message()));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
