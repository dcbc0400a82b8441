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
#[cfg(test)]
mod reference;
mod scaled_contract;
mod scan;
mod scatter_add;
mod tasks;
mod transpose;

use crate::KernelError;
use crate::program::Kernel;

/// A buffer bound to an argument.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub ptr: *mut u8,
    pub bytes: usize,
}

/// Scratch memory that [`launch`] needs, in bytes, for a pool of `threads`.
pub fn scratch_bytes(kernel: &Kernel, threads: usize) -> u64 {
    match kernel {
        Kernel::Contract(k) => contract::scratch(k, threads),
        Kernel::Attention(k) => attention::scratch(k, threads),
        Kernel::AttentionGrad(k) => attention::scratch_grad(k, threads),
        Kernel::ScaledContract(k) => scaled_contract::scratch(k, threads),
        Kernel::Quantize(k) => quantize::scratch(k, threads),
        Kernel::Conv(k) => conv::scratch(k, threads),
        Kernel::Pool(k) => pool::scratch(k, threads),
        Kernel::ScatterAdd(k) => scatter_add::scratch(k, threads),
        _ => 0,
    }
}

/// Runs a kernel on its arguments, in the order of [`Kernel::args`]. The same kernel on the same bytes with the same number of
/// threads gives the same bytes.
///
/// # Safety
/// Every buffer is valid for its length, aligned to 64 bytes, and overlaps no other, and `kernel` has passed [`Kernel::verify`].
///
/// # Errors
/// [`KernelError::Binding`] when a buffer is too short, [`KernelError::IndexOutOfRange`] for data.
pub unsafe fn launch(kernel: &Kernel, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    // SAFETY: the caller's promise.
    unsafe {
        match kernel {
            Kernel::Contract(k) => contract::run(k, args, scratch),
            Kernel::Attention(k) => attention::run(k, args, scratch),
            Kernel::AttentionGrad(k) => attention::run_grad(k, args, scratch),
            Kernel::ScaledContract(k) => scaled_contract::run(k, args, scratch),
            Kernel::Quantize(k) => quantize::run(k, args, scratch),
            Kernel::Conv(k) => conv::run(k, args, scratch),
            Kernel::Pool(k) => pool::run(k, args, scratch),
            Kernel::ScatterAdd(k) => scatter_add::run(k, args, scratch),
            Kernel::Scan(k) => scan::run(k, args, scratch),
            _ => Err(KernelError::Unsupported(format!("{} kernels on the CPU", kernel.family()))),
        }
    }
}
