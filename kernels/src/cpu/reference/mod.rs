//! Plain references, in f64 and one loop an index, and what the kernels' tests and fuzzers share.

mod attention;
mod contract;
mod fence;
pub(crate) mod generator;
pub mod hostile;
mod index;
mod quantize;
pub(crate) mod row;
#[cfg(test)]
mod row_tests;
mod scaled_contract;
mod update;
mod window;

use super::{Buffer, launch, scratch_bytes};
use crate::program::{Arg, Kernel, Mode};
use crate::{DType, KernelError};
use fence::{Access, Fenced, Side};
use half::bf16;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

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

/// A repeatable source of numbers: those that given bytes say, then those of a generator.
pub(crate) struct Random<'a> {
    bytes: &'a [u8],
    state: u64,
}

impl<'a> Random<'a> {
    pub(crate) fn new(seed: u64) -> Random<'static> {
        Random { bytes: &[], state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub(crate) fn of_bytes(bytes: &'a [u8]) -> Random<'a> {
        Random { bytes, ..Random::new(0) }
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        if let [first, rest @ ..] = self.bytes
            && n <= 256
        {
            self.bytes = rest;
            return u64::from(*first) % n;
        }
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.state) * u128::from(n)) >> 64) as u64
    }

    fn uniform(&mut self) -> f64 {
        (self.below(1 << 40) as f64 + 0.5) / (1u64 << 40) as f64
    }

    /// Standard normal numbers.
    pub(crate) fn normal(&mut self, n: u64) -> Vec<f32> {
        (0..n).map(|_| ((-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()) as f32).collect()
    }

    /// A source that takes over what bytes are left.
    pub(crate) fn fork(&mut self) -> Random<'a> {
        Random { bytes: std::mem::take(&mut self.bytes), state: self.state.rotate_left(31) | 1 }
    }

    /// One of some.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// True once in `n`.
    pub(crate) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Standard normal elements of a format.
    fn data(&mut self, arg: &Arg) -> Data {
        Data::new(arg.dtype, &self.normal(arg.elements))
    }

    /// Random contents for what the kernel reads, poison for what it only writes.
    pub(crate) fn inputs(&mut self, kernel: &Kernel) -> Vec<Data> {
        kernel.args().iter().map(|arg| if arg.mode == Mode::Write { Data::poison(arg) } else { self.data(arg) }).collect()
    }
}

/// Threads of a pool that launches share.
fn pool(threads: usize) -> Arc<ThreadPool> {
    static POOLS: Mutex<BTreeMap<usize, Arc<ThreadPool>>> = Mutex::new(BTreeMap::new());
    let build = || Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));
    POOLS.lock().expect("nobody panics with the lock").entry(threads).or_insert_with(build).clone()
}

/// Launches a kernel on a pool of `threads`, every argument and the scratch memory between pages that nobody may touch, and returns
/// all arguments. Bytes of scratch are `scratch` before.
pub(crate) fn fenced(kernel: &Kernel, inputs: &[Data], threads: usize, side: Side, scratch: u8) -> Result<Vec<Data>, KernelError> {
    kernel.verify()?;
    let args = kernel.args();
    assert_eq!(args.len(), inputs.len());
    for (arg, data) in args.iter().zip(inputs) {
        assert_eq!((arg.dtype, arg.bytes()), (data.dtype, data.bytes.len() as u64));
    }
    let access = |arg: &Arg| if arg.mode == Mode::Read { Access::Read } else { Access::Write };
    let memory: Vec<Fenced> = args.iter().zip(inputs).map(|(arg, d)| Fenced::new(&d.bytes, side, access(arg))).collect();
    let spare = Fenced::new(&vec![scratch; scratch_bytes(kernel, threads) as usize], side, Access::Write);
    let (buffers, spare) = (Shared(memory.iter().map(Fenced::buffer).collect::<Vec<_>>()), Shared(spare));
    // What is written first holds nothing yet.
    let blank = args.iter().zip(buffers.get()).filter(|(arg, _)| arg.mode == Mode::Write).map(|(_, buffer)| *buffer);
    let blank: Vec<Buffer> = blank.chain([spare.get().buffer()]).collect();
    blank.iter().for_each(|buffer| fence::mark(*buffer, false));
    // SAFETY: the buffers are as long as they say and the kernel has verified.
    let result = pool(threads).install(|| unsafe { launch(kernel, buffers.get(), spare.get().buffer()) });
    blank.iter().for_each(|buffer| fence::mark(*buffer, true));
    spare.get().bytes();
    let out = memory.iter().zip(inputs).map(|(m, d)| Data { dtype: d.dtype, bytes: m.bytes() }).collect();
    result.map(|()| out)
}

/// Launches a kernel on a pool of `threads` and returns all its arguments.
#[cfg(test)]
pub(crate) fn try_launch(kernel: &Kernel, inputs: &[Data], threads: usize) -> Result<Vec<Data>, KernelError> {
    fenced(kernel, inputs, threads, Side::End, 0xff)
}

/// Launches on one thread and on three, and checks that the bytes are the same and that what is read is not written.
#[cfg(test)]
pub(crate) fn run(kernel: &Kernel, inputs: &[Data]) -> Vec<Data> {
    let one = fenced(kernel, inputs, 1, Side::Start, 0xff).expect("launches");
    let three = fenced(kernel, inputs, 3, Side::End, 0x55).expect("launches");
    for (i, arg) in kernel.args().iter().enumerate() {
        assert!(one[i] == three[i], "argument {i} depends on the number of threads, or on what scratch memory held");
        assert!(arg.mode != Mode::Read || one[i] == inputs[i], "argument {i} was written");
    }
    one
}

/// True if values are equal, NaN to NaN.
pub(crate) fn same(x: &Data, y: &Data) -> Result<(), String> {
    let differs = |(_, (a, b)): &(usize, (f64, f64))| !(a == b || (a.is_nan() && b.is_nan()));
    match x.values().into_iter().zip(y.values()).enumerate().find(differs) {
        Some((at, (a, b))) => Err(format!("element {at} is {a}, expected {b}")),
        None => Ok(()),
    }
}

/// `|x - y| / |y|` in the Euclidean norm; 0 where both are zero.
#[cfg(test)]
pub(crate) fn norm_error(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    let square = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut x.iter().zip(y).map(|(a, b)| a - b));
    if difference == 0.0 { 0.0 } else { difference / square(&mut y.iter().copied()).max(1e-30) }
}

/// Norm error that a result stored in a format may have, where sums run in f32.
#[cfg(test)]
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
