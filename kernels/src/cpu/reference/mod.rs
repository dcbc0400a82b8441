//! Plain references, in f64 and one loop an index, and what the kernels' tests share.

mod attention;
mod contract;
mod hostile;
mod index;
mod quantize;
pub(crate) mod row;
pub(crate) mod row_tests;
mod scaled_contract;
mod window;

use super::{Buffer, launch, scratch_bytes};
use crate::program::{Arg, Kernel, Mode};
use crate::{DType, KernelError};
use half::bf16;

/// Elements of an argument.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Data {
    pub dtype: DType,
    pub bytes: Vec<u8>,
}

impl Data {
    /// Rounds to a format (floats saturate in E4M3, integers truncate).
    pub(crate) fn new(dtype: DType, values: &[f32]) -> Data {
        let bytes = match dtype {
            DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            DType::E4m3 => values.iter().map(|x| crate::numerics::f32_to_e4m3(*x)).collect(),
            DType::I64 => values.iter().flat_map(|x| (*x as i64).to_le_bytes()).collect(),
            DType::I32 => values.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect(),
            DType::Bool => values.iter().map(|x| u8::from(*x != 0.0)).collect(),
        };
        Data { dtype, bytes }
    }

    /// What an argument that is only written may hold before.
    pub(crate) fn poison(arg: &Arg) -> Data {
        Data { dtype: arg.dtype, bytes: vec![0xff; arg.bytes() as usize] }
    }

    /// The elements' values.
    pub(crate) fn values(&self) -> Vec<f64> {
        let wide = |n: usize| self.bytes.chunks_exact(n);
        match self.dtype {
            DType::F32 => wide(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
            DType::Bf16 => wide(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
            DType::E4m3 => self.bytes.iter().map(|b| f64::from(crate::numerics::e4m3_to_f32(*b))).collect(),
            DType::I64 => wide(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f64).collect(),
            DType::I32 => wide(4).map(|b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
            DType::Bool => self.bytes.iter().map(|b| f64::from(*b)).collect(),
        }
    }
}

/// A repeatable source of numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0) * u128::from(n)) >> 64) as u64
    }

    fn uniform(&mut self) -> f64 {
        (self.below(1 << 40) as f64 + 0.5) / (1u64 << 40) as f64
    }

    /// Standard normal numbers.
    pub(crate) fn normal(&mut self, n: u64) -> Vec<f32> {
        (0..n).map(|_| ((-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()) as f32).collect()
    }

    /// Standard normal elements of a format.
    pub(crate) fn data(&mut self, arg: &Arg) -> Data {
        Data::new(arg.dtype, &self.normal(arg.elements))
    }

    /// Random contents for what the kernel reads, poison for what it only writes.
    pub(crate) fn inputs(&mut self, kernel: &Kernel) -> Vec<Data> {
        kernel.args().iter().map(|arg| if arg.mode == Mode::Write { Data::poison(arg) } else { self.data(arg) }).collect()
    }
}

/// Memory aligned to 64 bytes with canaries on both sides.
struct Guarded {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    fn new(content: &[u8]) -> Guarded {
        let mut bytes = vec![0xa5; content.len() + 256];
        let start = 64 + bytes[64..].as_ptr().align_offset(64);
        bytes[start..start + content.len()].copy_from_slice(content);
        Guarded { bytes, start, len: content.len() }
    }

    fn buffer(&mut self) -> Buffer {
        Buffer { ptr: self.bytes[self.start..].as_mut_ptr(), bytes: self.len }
    }

    fn finish(self) -> Vec<u8> {
        let end = self.start + self.len;
        assert!(self.bytes[..self.start].iter().chain(&self.bytes[end..]).all(|b| *b == 0xa5), "written outside a buffer");
        self.bytes[self.start..end].to_vec()
    }
}

/// Launches a kernel on a pool of `threads` and returns all its arguments.
pub(crate) fn try_launch(kernel: &Kernel, inputs: &[Data], threads: usize) -> Result<Vec<Data>, KernelError> {
    kernel.verify()?;
    for (arg, data) in kernel.args().iter().zip(inputs) {
        assert_eq!((arg.dtype, arg.bytes()), (data.dtype, data.bytes.len() as u64));
    }
    assert_eq!(kernel.args().len(), inputs.len());
    let mut memory: Vec<Guarded> = inputs.iter().map(|d| Guarded::new(&d.bytes)).collect();
    let mut scratch = Guarded::new(&vec![0xff; scratch_bytes(kernel, threads) as usize]);
    let buffers: Vec<Buffer> = memory.iter_mut().map(Guarded::buffer).collect();
    let (args, spare) = (Shared(buffers), Shared(scratch.buffer()));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    // SAFETY: the buffers are as long as they say and the kernel has verified.
    let result = pool.install(|| unsafe { launch(kernel, args.get(), *spare.get()) });
    scratch.finish();
    let out = memory.into_iter().zip(inputs).map(|(m, d)| Data { dtype: d.dtype, bytes: m.finish() }).collect();
    result.map(|()| out)
}

/// Launches on one thread and on three, and checks that the bytes are the same and that what is read is not written.
pub(crate) fn run(kernel: &Kernel, inputs: &[Data]) -> Vec<Data> {
    let one = try_launch(kernel, inputs, 1).expect("launches");
    let three = try_launch(kernel, inputs, 3).expect("launches");
    for (i, arg) in kernel.args().iter().enumerate() {
        assert!(one[i] == three[i], "argument {i} depends on the number of threads");
        assert!(arg.mode != Mode::Read || one[i] == inputs[i], "argument {i} was written");
    }
    one
}

/// `|x - y| / |y|` in the Euclidean norm; 0 where both are zero.
pub(crate) fn norm_error(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    let square = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut x.iter().zip(y).map(|(a, b)| a - b));
    if difference == 0.0 { 0.0 } else { difference / square(&mut y.iter().copied()).max(1e-30) }
}

/// Norm error that a result stored in a format may have, where sums run in f32.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    // A result of one element may be half a unit in the last place off: 2^-8.
    if dtype == DType::Bf16 { 4e-3 } else { 3e-6 }
}

struct Shared<T>(T);

impl<T> Shared<T> {
    fn get(&self) -> &T {
        &self.0
    }
}

// SAFETY: the test thread waits while the pool uses the buffers.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
