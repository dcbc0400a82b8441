//! Memory between pages that nobody may touch: one byte too far ends the process.

use crate::cpu::Buffer;
use std::ptr::null_mut;

/// Which end of the memory lies against a forbidden page, to the byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Start,
    End,
}

/// What a kernel may do with the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// What lies between the memory and the forbidden page that is farther away.
const POISON: u8 = 0xa5;
const PAGE: usize = 4096;

/// Memory with a forbidden page on both sides.
pub(crate) struct Fenced {
    /// The whole mapping: a forbidden page, `inner` bytes, a forbidden page.
    map: *mut u8,
    inner: usize,
    start: usize,
    len: usize,
}

impl Fenced {
    /// Memory with this content. It is aligned to a page at the start, or to its own length's largest power of two at the end.
    pub(crate) fn new(content: &[u8], side: Side, access: Access) -> Fenced {
        let inner = content.len().next_multiple_of(PAGE);
        // SAFETY: a new mapping, whose inner pages are then made accessible and filled.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(null_mut(), inner + 2 * PAGE, libc::PROT_NONE, flags, -1, 0);
            assert!(map != libc::MAP_FAILED, "{} bytes cannot be mapped", inner + 2 * PAGE);
            let map = map.cast::<u8>();
            let start = if side == Side::Start { 0 } else { inner - content.len() };
            let fenced = Fenced { map, inner, start, len: content.len() };
            fenced.protect(libc::PROT_READ | libc::PROT_WRITE);
            map.add(PAGE).write_bytes(POISON, inner);
            map.add(PAGE + start).copy_from_nonoverlapping(content.as_ptr(), content.len());
            if access == Access::Read {
                fenced.protect(libc::PROT_READ);
            }
            fenced
        }
    }

    fn protect(&self, access: i32) {
        if self.inner > 0 {
            // SAFETY: the pages belong to the mapping.
            let refused = unsafe { libc::mprotect(self.map.add(PAGE).cast(), self.inner, access) };
            assert_eq!(refused, 0, "pages cannot be protected");
        }
    }

    pub(crate) fn buffer(&self) -> Buffer {
        // SAFETY: inside the mapping, or at the end of its accessible pages.
        Buffer { ptr: unsafe { self.map.add(PAGE + self.start) }, bytes: self.len }
    }

    /// The content; what lies beside it on its pages must be untouched.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        // SAFETY: the inner pages, which nobody writes any more.
        let all = unsafe { std::slice::from_raw_parts(self.map.add(PAGE), self.inner) };
        let (before, rest) = all.split_at(self.start);
        let (content, after) = rest.split_at(self.len);
        assert!(before.iter().chain(after).all(|b| *b == POISON), "written outside a buffer");
        content.to_vec()
    }
}

/// Tells valgrind, where it runs the process, that memory holds nothing yet, or that it does.
pub(crate) fn mark(buffer: Buffer, defined: bool) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: valgrind's client request (`valgrind/memcheck.h`): rotations by 128 bits in all, and an exchange of a register with
    // itself, which change nothing.
    unsafe {
        let request = 0x4d43_0001 + u64::from(defined);
        let arguments = [request, buffer.ptr as u64, buffer.bytes as u64, 0, 0, 0];
        std::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") arguments.as_ptr(), inout("rdx") 0u64 => _,
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (buffer, defined);
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.map.cast(), self.inner + 2 * PAGE) };
    }
}
