//! Work for the current rayon pool: numbered tasks, and a slot of scratch memory for each worker.
//!
//! Which worker runs a task is a race; what a task computes does not depend on it, so results do not either.

use super::Buffer;
use crate::KernelError;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below this much arithmetic a launch stays on the calling thread: waking another costs about as much.
const SERIAL_FLOPS: u64 = 1_500_000;

/// Floats of a slot, rounded up so that every slot starts on a cache line.
pub(crate) const fn slot_floats(floats: u64) -> u64 {
    floats.div_ceil(16).saturating_mul(16)
}

/// Scratch bytes for `threads` slots of `floats` each, where there are at most `tasks` to run at once.
pub(crate) fn slots_bytes(floats: u64, tasks: u64, threads: usize) -> u64 {
    slot_floats(floats).saturating_mul(4).saturating_mul(tasks.min(threads.max(1) as u64).max(1))
}

/// A product of counts, saturating: verified extents may multiply to more than 64 bits hold.
pub(crate) fn flops(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product, &factor| product.saturating_mul(factor))
}

/// Numbered tasks and what each worker needs to run them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tasks {
    pub count: usize,
    /// Floats of scratch that a worker needs.
    pub floats: u64,
    /// Estimated arithmetic (or as many moved elements) of all tasks together; decides only whether other threads are woken.
    pub flops: u64,
}

impl Tasks {
    /// Scratch bytes for a pool of `threads`.
    pub(crate) fn scratch(&self, threads: usize) -> u64 {
        if self.floats == 0 || self.count == 0 { 0 } else { slots_bytes(self.floats, self.count as u64, threads) }
    }

    /// Calls `task(i, slot)` for every `i` below the count, on as many workers as there are threads and slots.
    ///
    /// # Safety
    /// `scratch` is valid for its length and aligned to 64 bytes; tasks write to disjoint places.
    ///
    /// # Errors
    /// [`KernelError::Binding`] where `scratch` has not room for one slot.
    pub(crate) unsafe fn run(self, scratch: Buffer, task: impl Fn(usize, &mut [f32]) + Sync) -> Result<(), KernelError> {
        if self.count == 0 {
            return Ok(());
        }
        let floats = slot_floats(self.floats) as usize;
        let slots = if floats == 0 { usize::MAX } else { scratch.bytes / floats.saturating_mul(4) };
        if slots == 0 {
            return Err(KernelError::Binding { arg: usize::MAX, have: scratch.bytes, need: floats as u64 * 4 });
        }
        let threads = if self.flops < SERIAL_FLOPS { 1 } else { rayon::current_num_threads() };
        let workers = threads.min(slots).min(self.count);
        let base = Shared(scratch.ptr.cast::<f32>());
        let next = AtomicUsize::new(0);
        let work = |worker: usize| {
            let slot: &mut [f32] = match floats {
                0 => &mut [],
                // SAFETY: `worker < slots`, and each worker has a slot of its own. Any bytes are floats.
                _ => unsafe { std::slice::from_raw_parts_mut(base.get().add(worker * floats), floats) },
            };
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= self.count {
                    return;
                }
                task(i, slot);
            }
        };
        match workers {
            1 => work(0),
            _ => (0..workers).into_par_iter().with_max_len(1).for_each(work),
        }
        Ok(())
    }
}

/// A pointer that tasks share; each writes to places of its own.
#[derive(Debug)]
pub(crate) struct Shared<T>(pub *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

// SAFETY: whoever dereferences the pointer answers for the disjointness of the places.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_task_runs_once_whatever_the_slots() {
        for (slots, flops) in [(1usize, 0u64), (1, u64::MAX), (5, u64::MAX)] {
            let mut memory = vec![0f32; slots * 16 + 16];
            let seen = Mutex::new(vec![0; 100]);
            let tasks = Tasks { count: 100, floats: 3, flops };
            let shift = memory.as_ptr().align_offset(64);
            let scratch = Buffer { ptr: memory[shift..].as_mut_ptr().cast(), bytes: slots * 64 };
            // SAFETY: the buffer is as long as it says.
            unsafe { tasks.run(scratch, |i, slot| seen.lock().expect("no panic above")[i] += slot.len()) }.expect("enough scratch");
            assert!(seen.into_inner().expect("no panic above").iter().all(|n| *n == 16));
        }
    }

    #[test]
    fn missing_scratch_is_an_error() {
        let tasks = Tasks { count: 1, floats: 3, flops: 0 };
        let scratch = Buffer { ptr: std::ptr::NonNull::<f32>::dangling().as_ptr().cast(), bytes: 60 };
        // SAFETY: nothing is touched.
        assert!(unsafe { tasks.run(scratch, |_, _| ()) }.is_err());
    }
}
