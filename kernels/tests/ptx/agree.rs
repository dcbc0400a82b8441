//! Emulated PTX against the CPU, on random data.

use fp8c_kernels::cpu::{self, Buffer};
use fp8c_kernels::numerics::e4m3_to_f32;
use fp8c_kernels::program::{Arg, Attention, Kernel, Mode};
use fp8c_kernels::ptx::{Arch, Module, Tile, generate, generate_tiled};
use fp8c_kernels::{DType, KernelError};
use fp8c_ptx_emulator as emulator;

/// How far results may lie apart.
#[derive(Clone, Copy)]
pub struct Tolerance {
    /// Relative to the larger of both values, for f32 results.
    pub relative: f32,
    /// Absolute, for results near zero.
    pub absolute: f32,
}

pub const EXACT: Tolerance = Tolerance { relative: 0.0, absolute: 0.0 };
pub const CLOSE: Tolerance = Tolerance { relative: 2e-6, absolute: 2e-6 };

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

/// Bytes aligned as the arena aligns them.
struct Aligned {
    lines: Vec<Line>,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        let line = |part: &[u8]| {
            let mut line = Line([0; 64]);
            line.0[..part.len()].copy_from_slice(part);
            line
        };
        Aligned { lines: bytes.chunks(64).map(line).collect(), bytes: bytes.len() }
    }

    fn buffer(&mut self) -> Buffer {
        Buffer { ptr: self.lines.as_mut_ptr().cast(), bytes: self.bytes }
    }

    fn to_vec(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|l| l.0).take(self.bytes).collect()
    }
}

/// A small counter-based generator.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = self.0 ^ (self.0 >> 33);
        x.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (x >> 29)
    }

    /// Between -2 and 2.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0
    }
}

/// Random elements of an argument; integers are below `indices`.
fn random(arg: &Arg, noise: &mut Noise, indices: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(arg.bytes() as usize);
    for _ in 0..arg.elements {
        match arg.dtype {
            DType::F32 => bytes.extend(noise.float().to_le_bytes()),
            DType::Bf16 => bytes.extend(((noise.float().to_bits() >> 16) as u16).to_le_bytes()),
            // Up to 2, either sign.
            DType::E4m3 => bytes.push((noise.next() % 0x41) as u8 | (noise.next() as u8 & 0x80)),
            DType::I64 => bytes.extend((noise.next() % indices).to_le_bytes()),
            DType::I32 => bytes.extend(((noise.next() % indices) as u32).to_le_bytes()),
            DType::Bool => bytes.push(!noise.next().is_multiple_of(4) as u8),
        }
    }
    bytes
}

/// Which code of a kernel.
#[derive(Clone, Copy, Debug)]
enum Code {
    For(Arch),
    /// For sm_90a, with this tile.
    Tiled(Tile),
}

impl Code {
    fn generate(self, kernel: &Kernel, name: &str) -> Result<Module, KernelError> {
        match self {
            Code::For(arch) => generate(kernel, name, arch),
            Code::Tiled(tile) => generate_tiled(kernel, name, tile),
        }
    }
}

/// Arguments as a launch finds them: outputs hold garbage.
pub fn arguments(kernel: &Kernel, indices: u64) -> Vec<Vec<u8>> {
    let mut noise = Noise(12345);
    let args = kernel.args();
    args.iter().map(|a| if a.mode == Mode::Write { vec![0xab; a.bytes() as usize] } else { random(a, &mut noise, indices) }).collect()
}

pub fn on_cpu(kernel: &Kernel, args: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut buffers: Vec<Aligned> = args.iter().map(|a| Aligned::new(a)).collect();
    let scratch = cpu::scratch_bytes(kernel, rayon::current_num_threads());
    let mut scratch = Aligned::new(&vec![0; scratch as usize]);
    let bound: Vec<Buffer> = buffers.iter_mut().map(Aligned::buffer).collect();
    // SAFETY: the buffers have the lengths of the kernel's arguments, are aligned and apart; a kernel that does not verify is refused
    // by the caller.
    unsafe { cpu::launch(kernel, &bound, scratch.buffer()) }.unwrap();
    buffers.iter().map(Aligned::to_vec).collect()
}

fn on_emulator(name: &str, kernel: &Kernel, code: Code, args: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let module = code.generate(kernel, name).unwrap_or_else(|e| panic!("{name}: {e}"));
    match emulate(kernel, &module, args) {
        Ok((results, _)) => results,
        Err(fault) => {
            let lines: Vec<&str> = module.text.lines().collect();
            let around = fault.line.saturating_sub(4)..(fault.line + 2).min(lines.len());
            panic!("{name}, {code:?}: {fault}\n{}", lines[around].join("\n"));
        }
    }
}

/// Arguments after a module ran, and what it did.
pub fn emulate(kernel: &Kernel, module: &Module, args: &[Vec<u8>]) -> Result<(Vec<Vec<u8>>, emulator::Counts), emulator::Fault> {
    let program = emulator::Program::parse(&module.text)?;
    let contents = |a: &Arg| match a.mode {
        Mode::Read => emulator::Contents::ReadOnly,
        Mode::Write => emulator::Contents::Undefined,
        Mode::Update => emulator::Contents::Initialised,
    };
    let buffer = |(bytes, a): (&Vec<u8>, &Arg)| emulator::Buffer { bytes: bytes.clone(), contents: contents(a) };
    let mut buffers: Vec<_> = args.iter().zip(&kernel.args()).map(buffer).collect();
    let mut counts = emulator::Counts::default();
    for l in &module.launches {
        let launch = emulator::Launch { entry: &l.entry, blocks: l.grid[0], threads: l.block[0], shared_bytes: l.shared_bytes };
        counts.add(&emulator::run(&program, &launch, &mut buffers)?);
    }
    Ok((buffers.into_iter().map(|b| b.bytes).collect(), counts))
}

fn value(dtype: DType, element: &[u8]) -> f64 {
    let raw = element.iter().rev().fold(0u64, |v, &b| v << 8 | b as u64);
    match dtype {
        DType::F32 => f32::from_bits(raw as u32) as f64,
        DType::Bf16 => f32::from_bits((raw as u32) << 16) as f64,
        DType::E4m3 => e4m3_to_f32(raw as u8) as f64,
        DType::I32 => raw as i32 as f64,
        DType::I64 | DType::Bool => raw as i64 as f64,
    }
}

/// Asserts that every argument is the same, within the tolerance and one unit of its format, after both have run on random data
/// whose integers are below `indices`.
pub fn agree(name: &str, kernel: &Kernel, tolerance: Tolerance, indices: u64) {
    // Other families have the same code for both chips.
    let own_code = matches!(kernel, Kernel::Contract(_) | Kernel::ScaledContract(_));
    let archs = if own_code { &[Arch::Sm89, Arch::Sm90a][..] } else { &[Arch::Sm89] };
    archs.iter().for_each(|&arch| agree_on(name, kernel, Code::For(arch), tolerance, arguments(kernel, indices)));
}

/// [`agree`] for sm_90a with a given tile.
pub fn agree_tiled(name: &str, kernel: &Kernel, tile: Tile, tolerance: Tolerance) {
    agree_on(name, kernel, Code::Tiled(tile), tolerance, arguments(kernel, 1));
}

/// [`agree`] for a backward pass of attention, whose o and lse come from the forward pass.
pub fn agree_backward(name: &str, k: &Attention, tolerance: Tolerance) {
    let forward = Kernel::Attention(k.clone());
    let results = on_cpu(&forward, &arguments(&forward, 1));
    let backward = Kernel::AttentionGrad(k.clone());
    let mut args = arguments(&backward, 1);
    args[..results.len()].clone_from_slice(&results);
    agree_on(name, &backward, Code::For(Arch::Sm89), tolerance, args);
}

/// [`agree`] on given arguments.
pub fn agree_with(name: &str, kernel: &Kernel, tolerance: Tolerance, args: Vec<Vec<u8>>) {
    agree_on(name, kernel, Code::For(Arch::Sm89), tolerance, args);
}

fn agree_on(name: &str, kernel: &Kernel, code: Code, tolerance: Tolerance, args: Vec<Vec<u8>>) {
    kernel.verify().unwrap_or_else(|e| panic!("{name}: {e}"));
    let (want, have) = (on_cpu(kernel, &args), on_emulator(name, kernel, code, &args));
    let exact = tolerance.relative == 0.0;
    for (n, arg) in kernel.args().iter().enumerate() {
        let size = arg.dtype.size() as usize;
        let unit = match arg.dtype {
            _ if exact => 0.0,
            DType::Bf16 => 1.0 / 128.0,
            DType::E4m3 => 1.0 / 8.0,
            _ => 0.0,
        };
        for (i, (w, h)) in want[n].chunks(size).zip(have[n].chunks(size)).enumerate() {
            let (a, b) = (value(arg.dtype, w), value(arg.dtype, h));
            let allowed = (tolerance.relative as f64 + unit) * a.abs().max(b.abs()) + tolerance.absolute as f64;
            let same = w == h || (a.is_nan() && b.is_nan()) || (a - b).abs() <= allowed;
            assert!(same, "{name}: argument {n}, element {i}: CPU {a}, PTX ({code:?}) {b}");
        }
    }
}
