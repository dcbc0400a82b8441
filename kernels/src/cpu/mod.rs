//! Runs kernel programs on the CPU, on the threads of the current rayon pool.
//!
//! Nothing here allocates memory that grows with a tensor: what a kernel needs beside its arguments is [`scratch_bytes`].

mod attention;
mod contract;
mod conv;
mod loops;
pub(crate) mod math;
mod matrix;
mod pool;
mod quantize;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
mod row;
mod scaled_contract;
mod scan;
mod scatter_add;
mod tasks;
mod transpose;
mod update;

use crate::KernelError;
use crate::program::{Arg, Kernel};

/// A buffer bound to an argument.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub ptr: *mut u8,
    pub bytes: usize,
}

/// A verified kernel, ready to be launched many times.
#[derive(Clone, Debug)]
pub struct Prepared {
    args: Vec<Arg>,
    work: Work,
}

/// What a launch runs: row programs are compiled, the other families run as they are.
#[derive(Clone, Debug)]
enum Work {
    Row(Box<row::Program>),
    Other(Box<Kernel>),
}

impl Prepared {
    /// Prepares a kernel that has passed [`Kernel::verify`].
    ///
    /// # Errors
    /// [`KernelError::Invalid`] for one that has not.
    pub fn new(kernel: &Kernel) -> Result<Self, KernelError> {
        let work = match kernel {
            Kernel::Row(k) => Work::Row(Box::new(row::Program::new(k)?)),
            other => Work::Other(Box::new(other.clone())),
        };
        Ok(Prepared { args: kernel.args(), work })
    }

    /// Scratch memory that a launch needs, in bytes, for a pool of `threads`.
    pub fn scratch_bytes(&self, threads: usize) -> u64 {
        match &self.work {
            Work::Row(program) => program.scratch(threads),
            Work::Other(kernel) => family_scratch(kernel, threads),
        }
    }

    /// Runs the kernel on its arguments, in the order of [`Kernel::args`], on the threads of the current pool. The same kernel on the
    /// same bytes gives the same bytes, whatever the number of threads.
    ///
    /// # Safety
    /// Every buffer is valid for its length, aligned to 64 bytes, and overlaps no other, and the kernel has passed [`Kernel::verify`].
    ///
    /// # Errors
    /// [`KernelError::Binding`] when a buffer is missing or too short (scratch counts as the one after the last argument),
    /// [`KernelError::IndexOutOfRange`] for data.
    pub unsafe fn launch(&self, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
        for (arg, want) in self.args.iter().enumerate() {
            let have = args.get(arg).map_or(0, |b| b.bytes);
            if (have as u64) < want.bytes() || arg >= args.len() {
                return Err(KernelError::Binding { arg, have, need: want.bytes() });
            }
        }
        let need = self.scratch_bytes(rayon::current_num_threads());
        if (scratch.bytes as u64) < need {
            return Err(KernelError::Binding { arg: self.args.len(), have: scratch.bytes, need });
        }
        // SAFETY: the caller's promise; lengths have been checked.
        unsafe {
            match &self.work {
                Work::Row(program) => program.run(args, scratch),
                Work::Other(kernel) => family_run(kernel, args, scratch),
            }
        }
    }
}

/// Scratch memory that [`launch`] needs, in bytes, for a pool of `threads`.
pub fn scratch_bytes(kernel: &Kernel, threads: usize) -> u64 {
    // A kernel that cannot be prepared does not run either.
    Prepared::new(kernel).map_or(0, |prepared| prepared.scratch_bytes(threads))
}

/// Prepares a kernel and runs it once.
///
/// # Safety
/// As for [`Prepared::launch`].
///
/// # Errors
/// As for [`Prepared::launch`].
pub unsafe fn launch(kernel: &Kernel, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    // SAFETY: the caller's promise.
    unsafe { Prepared::new(kernel)?.launch(args, scratch) }
}

fn family_scratch(kernel: &Kernel, threads: usize) -> u64 {
    match kernel {
        Kernel::Row(_) | Kernel::Scan(_) | Kernel::Update(_) => 0,
        Kernel::Contract(k) => contract::scratch(k, threads),
        Kernel::Attention(k) => attention::scratch(k, threads),
        Kernel::AttentionGrad(k) => attention::scratch_grad(k, threads),
        Kernel::ScaledContract(k) => scaled_contract::scratch(k, threads),
        Kernel::Quantize(k) => quantize::scratch(k, threads),
        Kernel::Conv(k) => conv::scratch(k, threads),
        Kernel::Pool(k) => pool::scratch(k, threads),
        Kernel::ScatterAdd(k) => scatter_add::scratch(k, threads),
    }
}

/// # Safety
/// As for [`Prepared::launch`], with buffers that are long enough.
unsafe fn family_run(kernel: &Kernel, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    // SAFETY: the caller's promise.
    unsafe {
        match kernel {
            Kernel::Row(k) => row::Program::new(k)?.run(args, scratch),
            Kernel::Contract(k) => contract::run(k, args, scratch),
            Kernel::Attention(k) => attention::run(k, args, scratch),
            Kernel::AttentionGrad(k) => attention::run_grad(k, args, scratch),
            Kernel::ScaledContract(k) => scaled_contract::run(k, args, scratch),
            Kernel::Quantize(k) => quantize::run(k, args, scratch),
            Kernel::Conv(k) => conv::run(k, args, scratch),
            Kernel::Pool(k) => pool::run(k, args, scratch),
            Kernel::ScatterAdd(k) => scatter_add::run(k, args, scratch),
            Kernel::Scan(k) => scan::run(k, args, scratch),
            Kernel::Update(k) => update::run(k, args, scratch),
        }
    }
}
