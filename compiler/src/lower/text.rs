//! Prints programs of units, as `--emit kernels` shows them.

use crate::graph::Epoch;
use crate::units::{Program, Unit};
use fp8c_kernels::program::Mode;
use std::fmt::Write;

/// The units of a program in order: what each reads and writes, then its kernel, then the buffers of the program's results.
pub fn print(program: &Program) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_program(&mut out, program);
    out
}

fn write_program(out: &mut String, program: &Program) -> std::fmt::Result {
    for (i, unit) in program.units.iter().enumerate() {
        write_unit(out, program, &format!("unit {i}"), unit)?;
    }
    for (i, unit) in program.again.iter().enumerate() {
        write_unit(out, program, &format!("again {i}"), unit)?;
    }
    let name = |b: crate::units::BufferId| &program.buffers[b.0 as usize].name;
    for (output, b) in &program.outputs {
        writeln!(out, "output {output} = {}", name(*b))?;
    }
    program.loss.iter().try_for_each(|b| writeln!(out, "loss = {}", name(*b)))?;
    program.gradients.iter().try_for_each(|(p, b)| writeln!(out, "gradient {p} = {}", name(*b)))
}

fn write_unit(out: &mut String, program: &Program, what: &str, unit: &Unit) -> std::fmt::Result {
    let epoch = match unit.epoch {
        Epoch::Forward => "forward",
        Epoch::Backward => "backward",
        Epoch::Update => "update",
    };
    write!(out, "{what} {epoch} {} \"{}\" traffic {}", unit.kernel.family(), unit.site, unit.traffic.0)?;
    if unit.flops.0 > 0 {
        write!(out, " flops {}", unit.flops.0)?;
    }
    writeln!(out)?;
    for (arg, b) in unit.kernel.args().iter().zip(&unit.args) {
        let buffer = &program.buffers[b.0 as usize];
        let mode = match arg.mode {
            Mode::Read => "read",
            Mode::Write => "write",
            Mode::Update => "update",
        };
        writeln!(out, "  {mode} {}{:?} {}", buffer.ty.dtype, buffer.ty.shape, buffer.name)?;
    }
    unit.kernel.to_string().lines().try_for_each(|line| writeln!(out, "    {line}"))
}
