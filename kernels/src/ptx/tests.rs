//! Random row programs, emulated, against the CPU.

use super::{Arch, generate};
use crate::cpu::reference::generator::Generator;
use crate::cpu::reference::{Data, Random, run, same};
use crate::program::{Kernel, Mode};
use fp8c_ptx_emulator as emulator;

/// A kernel's arguments after its PTX ran.
fn emulate(kernel: &Kernel, inputs: &[Data]) -> Vec<Data> {
    let module = generate(kernel, "random", Arch::Sm90a).unwrap_or_else(|e| panic!("{e}: {kernel:?}"));
    let program = emulator::Program::parse(&module.text).unwrap_or_else(|e| panic!("{e}\n{}", module.text));
    let contents = |mode| match mode {
        Mode::Read => emulator::Contents::ReadOnly,
        Mode::Write => emulator::Contents::Undefined,
        Mode::Update => emulator::Contents::Initialised,
    };
    let buffer = |(data, arg): (&Data, crate::program::Arg)| emulator::Buffer { bytes: data.bytes.clone(), contents: contents(arg.mode) };
    let mut buffers: Vec<_> = inputs.iter().zip(kernel.args()).map(buffer).collect();
    for l in &module.launches {
        let launch = emulator::Launch { entry: &l.entry, blocks: l.grid[0], threads: l.block[0], shared_bytes: l.shared_bytes };
        emulator::run(&program, &launch, &mut buffers).unwrap_or_else(|e| panic!("{e} of\n{}\nfor {kernel:?}", module.text));
    }
    inputs.iter().zip(buffers).map(|(data, b)| Data { dtype: data.dtype, bytes: b.bytes }).collect()
}

#[test]
fn random_row_programs_agree_with_the_cpu_bit_for_bit() {
    let small = |kernel: &Kernel| matches!(kernel, Kernel::Row(k) if k.space.iter().product::<u64>() <= 2000);
    for (seed, (kernel, inputs)) in (0..400).map(|seed| (seed, Generator::new(Random::new(seed)).finish())).filter(|(_, (k, _))| small(k)) {
        let (have, want) = (emulate(&kernel, &inputs), run(&kernel, &inputs));
        for (i, (have, want)) in have.iter().zip(&want).enumerate() {
            same(have, want).unwrap_or_else(|e| panic!("seed {seed}, argument {i}: {e} in {kernel:?}"));
        }
    }
}
