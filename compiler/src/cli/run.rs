//! `fp8c run` and `fp8c devices`.

use super::args::Run;
use super::failure::Failure;
use super::{Done, Output, print};
use crate::quantity::Bytes;
use fp8c_runtime::checkpoint;
use fp8c_runtime::device::{DeviceChoice, devices as list};
use fp8c_runtime::files::{Replaces, is_same_file};
use fp8c_runtime::plan::PlanFile;
use fp8c_runtime::session::{Session, SessionOptions};
use fp8c_runtime::tensors::{TensorFile, write_tensors};

/// One pass over tensors from a file.
pub fn run(a: &Run, output: Output) -> Done {
    let file = PlanFile::open(&a.plan)?;
    let device: DeviceChoice = a.on.device.parse()?;
    check_outputs(a)?;
    let inputs = TensorFile::open(&a.inputs)?.read_all()?;
    let mut session = Session::new(&file, SessionOptions { device, threads: a.on.threads, seed: a.seed })?;
    if let Some(folder) = &a.checkpoint {
        checkpoint::load_parameters(&mut session, folder, &mut |note| output.say(format!("note: {note}")))?;
    }
    let mut result = session.run(&inputs, a.grads)?;
    for name in &result.ignored {
        output.say(format!("note: the plan has no input {name}; it was not used"));
    }
    let gradients = result.gradients.into_iter().map(|mut g| {
        g.name = format!("grad.{}", g.name);
        g
    });
    result.outputs.extend(gradients);
    write_tensors(&a.outputs, &result.outputs)?;
    output.say(format!("{} tensors -> {}", result.outputs.len(), a.outputs.display()));
    Ok(())
}

/// Refuses a place for the outputs where something else is, before the work is done for it.
fn check_outputs(a: &Run) -> Done {
    if is_same_file(&a.outputs, &a.inputs) {
        let message = format!("{} is both the inputs and the outputs", a.outputs.display());
        return Err(Failure::usage(message, "choose another name for --outputs"));
    }
    Ok(Replaces::Tensors.check(&a.outputs)?)
}

/// The devices that a plan can run on here.
pub fn devices(output: Output) -> Done {
    let all = list();
    if output.json {
        let entry = |d: &fp8c_runtime::device::DeviceInfo| {
            serde_json::json!({
                "id": d.id, "name": d.name, "memory_bytes": d.memory_bytes, "free_bytes": d.free_bytes, "arch": d.arch, "threads": d.threads
            })
        };
        return print(serde_json::json!({ "devices": all.iter().map(entry).collect::<Vec<_>>() }));
    }
    let line = |d: &fp8c_runtime::device::DeviceInfo| {
        format!("{:<8} {:<32} {:>10}  {}", d.id, d.name, Bytes(d.memory_bytes), d.arch.as_deref().unwrap_or("-"))
    };
    print(all.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    if all.len() == 1 {
        output.say("note: no NVIDIA GPU with a driver is here; plans run on the CPU");
    } else if !all.iter().any(|d| d.arch.is_some()) {
        output.say("note: no GPU here is of compute capability 8.9 or later; plans run on the CPU");
    }
    Ok(())
}
