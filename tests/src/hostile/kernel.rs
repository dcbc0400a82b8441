//! Hostile kernels.

/// Makes a kernel of bytes, bends it, and runs it between forbidden pages if it verifies.
///
/// # Panics
/// Where it disagrees with the reference, or depends on anything but its arguments. A touched page ends the process.
pub fn kernel(data: &[u8]) {
    fp8c_kernels::cpu::reference::hostile::check(data);
}
