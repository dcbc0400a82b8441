//! The CPU: one anonymous mapping as arena, one thread pool, kernels run as data.

use super::{FETCH_BYTES, Fetched, memory, reach};
use crate::Error;
use crate::plan::{Plan, Step, TensorId};
use fp8c_kernels::KernelError;
use fp8c_kernels::cpu::{Buffer, Prepared};
use fp8c_kernels::program::ScratchFor;
use memmap2::MmapMut;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ops::Range;

/// The arena and the steps bound to it.
pub(crate) struct CpuDevice {
    // Kept for its memory; `steps` points into it.
    arena: MmapMut,
    steps: Vec<Bound>,
    kernels: Vec<Prepared>,
    pool: ThreadPool,
    touched: u64,
    fetched: Fetched,
}

/// A step with addresses.
struct Bound {
    kernel: usize,
    args: Vec<Buffer>,
    scratch: Buffer,
    reach: u64,
    site: String,
}

// SAFETY: the buffers point into `arena`, which the device owns and moves with, and are used under `&mut self` alone.
unsafe impl Send for CpuDevice {}
// SAFETY: shared access only reads the arena through `read`; the pointers are not followed without `&mut self`.
unsafe impl Sync for CpuDevice {}

/// A bound step that crosses to the pool's threads.
struct Job<'a>(&'a [Bound], &'a [Prepared]);
// SAFETY: the pointers stay valid and unshared for as long as the borrow, which `install` outlives.
unsafe impl Send for Job<'_> {}

/// Threads that the machine offers this process.
pub(super) fn hardware_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl CpuDevice {
    /// Reserves the arena and the threads. Fewer threads are used than asked for where the plan's scratch memory is laid out for fewer.
    pub fn open(plan: &Plan, threads: Option<usize>) -> Result<Self, Error> {
        let threads = threads_that_fit(plan, threads.unwrap_or_else(hardware_threads).max(1));
        if let Some(free) = memory::available_bytes().filter(|&free| free < plan.arena_bytes) {
            return Err(Error::Device(format!("the plan needs {} bytes of memory, {free} are free", plan.arena_bytes)));
        }
        let bytes = usize::try_from(plan.arena_bytes).unwrap_or(usize::MAX);
        let refused = |e: &dyn std::fmt::Display| Error::Device(format!("the arena of {bytes} bytes cannot be reserved ({e})"));
        let mut arena = MmapMut::map_anon(bytes.max(1)).map_err(|e| refused(&e))?;
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("fp8c-{n}")).build();
        let pool = pool.map_err(|e| Error::Device(format!("{threads} threads cannot be started ({e})")))?;
        let base = arena.as_mut_ptr();
        let bind = |id: &TensorId| {
            let t = plan.tensor(*id);
            // SAFETY: the verified plan places the tensor inside the arena, whose size is `arena_bytes`.
            Buffer { ptr: unsafe { base.add(t.offset as usize) }, bytes: t.bytes as usize }
        };
        let bound = |step: &Step| Bound {
            kernel: step.kernel as usize,
            args: step.args.iter().map(bind).collect(),
            scratch: step.scratch.as_ref().map_or(Buffer { ptr: base, bytes: 0 }, bind),
            reach: reach(plan, step),
            site: step.site.clone(),
        };
        let steps = plan.schedule.micro.iter().chain(&plan.schedule.update).map(bound).collect();
        let kernels = plan.kernels.iter().map(|k| Prepared::new(&k.kernel)).collect::<Result<_, _>>().map_err(Error::Kernel)?;
        Ok(CpuDevice { arena, steps, kernels, pool, touched: 0, fetched: [0; FETCH_BYTES] })
    }

    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    pub fn touched(&self) -> u64 {
        self.touched
    }

    fn range(&self, offset: u64, bytes: u64) -> Result<Range<usize>, Error> {
        let end = offset.checked_add(bytes).filter(|&e| e <= self.arena.len() as u64);
        end.map(|e| offset as usize..e as usize).ok_or_else(|| Error::Device(format!("bytes {offset}+{bytes} lie outside the arena")))
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let range = self.range(offset, bytes.len() as u64)?;
        self.touched = self.touched.max(range.end as u64);
        self.arena[range].copy_from_slice(bytes);
        Ok(())
    }

    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.copy_from_slice(&self.arena[self.range(offset, bytes.len() as u64)?]);
        Ok(())
    }

    pub fn fetch(&mut self, offset: u64, bytes: usize) -> Result<(), Error> {
        let range = self.range(offset, bytes as u64)?;
        self.fetched[..bytes].copy_from_slice(&self.arena[range]);
        Ok(())
    }

    pub fn fetched(&self) -> Fetched {
        self.fetched
    }

    pub fn zero(&mut self, offset: u64, bytes: u64) -> Result<(), Error> {
        let range = self.range(offset, bytes)?;
        self.touched = self.touched.max(range.end as u64);
        self.arena[range].fill(0);
        Ok(())
    }

    pub fn run(&mut self, positions: Range<usize>) -> Result<(), Error> {
        let job = Job(&self.steps[positions.clone()], &self.kernels);
        self.pool.install(move || job.run())?;
        self.touched = self.steps[positions].iter().map(|s| s.reach).fold(self.touched, u64::max);
        Ok(())
    }
}

impl Job<'_> {
    fn run(self) -> Result<(), Error> {
        let Job(steps, kernels) = self;
        for s in steps {
            // SAFETY: the verified plan binds tensors that lie inside the arena, are aligned to 256 bytes and share no byte where one
            // is written; the kernel has been verified; `run` holds the device exclusively.
            unsafe { kernels[s.kernel].launch(&s.args, s.scratch) }.map_err(|e| explain(e, s))?;
        }
        Ok(())
    }
}

/// An index out of range is the data's fault; anything else is the plan's.
fn explain(error: KernelError, step: &Bound) -> Error {
    match error {
        KernelError::IndexOutOfRange { .. } => Error::data(&step.site, error.to_string()),
        other => Error::Kernel(other),
    }
}

/// The largest number of threads, at most `wanted`, that every step's scratch memory suffices for.
fn threads_that_fit(plan: &Plan, wanted: usize) -> usize {
    let mut have = vec![u64::MAX; plan.kernels.len()];
    for step in plan.schedule.micro.iter().chain(&plan.schedule.update) {
        let bytes = step.scratch.map_or(0, |id| plan.tensor(id).bytes);
        let least = &mut have[step.kernel as usize];
        *least = bytes.min(*least);
    }
    let fits = |threads: &usize| {
        let need = |k: &crate::plan::KernelEntry| k.kernel.scratch_bytes(ScratchFor::Cpu { threads: *threads });
        plan.kernels.iter().zip(&have).all(|(k, &have)| have == u64::MAX || need(k) <= have)
    };
    // The verifier has proved that one thread fits.
    (1..=wanted).rev().find(fits).unwrap_or(1)
}
