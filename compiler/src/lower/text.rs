//! Prints programs of units, as `--emit kernels` shows them.

use crate::graph::Epoch;
use crate::units::{Program, Unit};
use fp8c_kernels::program::{Kernel, Mode};
use std::fmt::Write;

/// The units of a program in order, with their buffers and kernels.
pub fn print(program: &Program) -> String {
    let mut out = String::new();
    for (i, unit) in program.units.iter().enumerate() {
        // Writing to a string does not fail.
        let _ = print_unit(&mut out, program, i, unit);
    }
    for (name, b) in &program.outputs {
        let _ = writeln!(out, "output {name} = {}", program.buffers[b.0 as usize].name);
    }
    if let Some(b) = program.loss {
        let _ = writeln!(out, "loss = {}", program.buffers[b.0 as usize].name);
    }
    out
}

fn print_unit(out: &mut String, program: &Program, i: usize, unit: &Unit) -> std::fmt::Result {
    let epoch = match unit.epoch {
        Epoch::Forward => "forward",
        Epoch::Backward => "backward",
        Epoch::Update => "update",
    };
    write!(out, "unit {i} {epoch} {} \"{}\" traffic {}", unit.kernel.family(), unit.site, unit.traffic)?;
    if unit.flops > 0.0 {
        write!(out, " flops {}", unit.flops)?;
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
    match &unit.kernel {
        Kernel::Row(p) => {
            writeln!(out, "  space {:?} row {}", p.space, p.row_dims)?;
            p.body.iter().enumerate().try_for_each(|(v, s)| writeln!(out, "    %{v} = {s:?}"))
        }
        kernel => writeln!(out, "    {kernel:?}"),
    }
}
