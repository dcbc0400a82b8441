//! The CPU: one anonymous mapping as arena, one thread pool, kernels run as data.

use super::{FETCH_BYTES, Fetched, MAX_THREADS, memory, reach};
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
    // Kept for their memory; `steps` points into it.
    arena: MmapMut,
    _scratch: MmapMut,
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
    ///
    /// A plan for another device has no scratch memory in its arena, and gets some beside it.
    pub fn open(plan: &Plan, threads: Option<usize>) -> Result<Self, Error> {
        let wanted = threads.unwrap_or_else(|| hardware_threads().min(MAX_THREADS));
        if !(1..=MAX_THREADS).contains(&wanted) {
            return Err(Error::Usage(format!("the number of threads must lie in 1..={MAX_THREADS}; {wanted} does not")));
        }
        let (threads, beside) = match plan.is_for_cpu() {
            true => (threads_that_fit(plan, wanted), 0),
            false => (wanted, scratch_for(plan, wanted)),
        };
        let needed = plan.arena_bytes.saturating_add(beside);
        if let Some(free) = memory::available_bytes().filter(|&free| free < needed) {
            return Err(Error::Device(format!("the plan needs {needed} bytes of memory, {free} are free")));
        }
        let (mut arena, mut scratch) = (reserve(plan.arena_bytes)?, reserve(beside)?);
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("fp8c-{n}")).build();
        let pool = pool.map_err(|e| Error::Device(format!("{threads} threads cannot be started ({e})")))?;
        let base = arena.as_mut_ptr();
        let bind = |id: &TensorId| {
            let t = plan.tensor(*id);
            // SAFETY: the verified plan places the tensor inside the arena, whose size is `arena_bytes`.
            Buffer { ptr: unsafe { base.add(t.offset as usize) }, bytes: t.bytes as usize }
        };
        let outside = Buffer { ptr: scratch.as_mut_ptr(), bytes: beside as usize };
        let bound = |step: &Step| Bound {
            kernel: step.kernel as usize,
            args: step.args.iter().map(bind).collect(),
            scratch: step.scratch.as_ref().filter(|_| plan.is_for_cpu()).map_or(outside, bind),
            reach: reach(plan, step),
            site: step.site.clone(),
        };
        let steps = plan.schedule.micro.iter().chain(&plan.schedule.update).map(bound).collect();
        let kernels = plan.kernels.iter().map(|k| Prepared::new(&k.kernel)).collect::<Result<_, _>>().map_err(Error::Kernel)?;
        Ok(CpuDevice { arena, _scratch: scratch, steps, kernels, pool, touched: 0, fetched: [0; FETCH_BYTES] })
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

fn reserve(bytes: u64) -> Result<MmapMut, Error> {
    let refused = |e: &dyn std::fmt::Display| Error::Device(format!("{bytes} bytes of memory cannot be reserved ({e})"));
    let size = usize::try_from(bytes).map_err(|e| refused(&e))?;
    MmapMut::map_anon(size.max(1)).map_err(|e| refused(&e))
}

/// Scratch bytes that suffice for every kernel of a plan.
fn scratch_for(plan: &Plan, threads: usize) -> u64 {
    plan.kernels.iter().map(|k| k.kernel.scratch_bytes(ScratchFor::Cpu { threads })).max().unwrap_or(0)
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
