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
pub(crate) mod reference;
mod row;
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
        Kernel::Row(k) => row::scratch(k, threads),
        Kernel::Contract(k) => contract::scratch(k, threads),
        Kernel::Attention(k) => attention::scratch(k, threads),
        Kernel::AttentionGrad(k) => attention::scratch_grad(k, threads),
        Kernel::ScaledContract(k) => scaled_contract::scratch(k, threads),
        Kernel::Quantize(k) => quantize::scratch(k, threads),
        Kernel::Conv(k) => conv::scratch(k, threads),
        Kernel::Pool(k) => pool::scratch(k, threads),
        Kernel::ScatterAdd(k) => scatter_add::scratch(k, threads),
        Kernel::Scan(_) => 0,
    }
}

/// Runs a kernel on its arguments, in the order of [`Kernel::args`]. The same kernel on the same bytes with the same number of
/// threads gives the same bytes.
///
/// # Safety
/// Every buffer is valid for its length, aligned to 64 bytes, and overlaps no other, and `kernel` has passed [`Kernel::verify`].
///
/// # Errors
/// [`KernelError::Binding`] when a buffer is missing or too short (scratch counts as the one after the last argument),
/// [`KernelError::IndexOutOfRange`] for data.
pub unsafe fn launch(kernel: &Kernel, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    bind(kernel, args, scratch)?;
    // SAFETY: the caller's promise.
    unsafe {
        match kernel {
            Kernel::Row(k) => row::run(k, args, scratch),
            Kernel::Contract(k) => contract::run(k, args, scratch),
            Kernel::Attention(k) => attention::run(k, args, scratch),
            Kernel::AttentionGrad(k) => attention::run_grad(k, args, scratch),
            Kernel::ScaledContract(k) => scaled_contract::run(k, args, scratch),
            Kernel::Quantize(k) => quantize::run(k, args, scratch),
            Kernel::Conv(k) => conv::run(k, args, scratch),
            Kernel::Pool(k) => pool::run(k, args, scratch),
            Kernel::ScatterAdd(k) => scatter_add::run(k, args, scratch),
            Kernel::Scan(k) => scan::run(k, args, scratch),
        }
    }
}

/// Checks the lengths of buffers.
fn bind(kernel: &Kernel, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let wanted = kernel.args();
    for (arg, want) in wanted.iter().enumerate() {
        let have = args.get(arg).map_or(0, |b| b.bytes);
        if (have as u64) < want.bytes() || arg >= args.len() {
            return Err(KernelError::Binding { arg, have, need: want.bytes() });
        }
    }
    // Row programs are compiled to know their scratch, and check it when they are.
    let need = if matches!(kernel, Kernel::Row(_)) { 0 } else { scratch_bytes(kernel, rayon::current_num_threads()) };
    if (scratch.bytes as u64) < need {
        return Err(KernelError::Binding { arg: wanted.len(), have: scratch.bytes, need });
    }
    Ok(())
}
