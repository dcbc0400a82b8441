//! Runs a plan over an arena between pages that fault, with poison in what no live tensor owns.

use fp8c_kernels::DType;
use fp8c_kernels::cpu::{Buffer, Prepared};
use fp8c_kernels::program::{Kernel, ScratchFor, Stmt};
use fp8c_runtime::plan::{Clip, Control, Plan, Role, Step, Tensor, TensorId};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

/// Largest arena, in bytes, longest schedule, and most operations of a pass that are run.
const MAX_ARENA: u64 = 1 << 20;
const MAX_STEPS: usize = 2000;
const MAX_WORK: u128 = 1 << 24;

/// What fills bytes that hold nothing, in the one run and in the other.
const POISON: [u8; 2] = [0x5a, 0xb5];

/// True for a plan that runs in milliseconds.
pub fn is_small(plan: &Plan) -> bool {
    let steps = plan.schedule.micro.iter().chain(&plan.schedule.update);
    let work: u128 = steps.map(|s| work(&plan.kernels[s.kernel as usize].kernel)).fold(0, u128::saturating_add);
    plan.arena_bytes <= MAX_ARENA && plan.schedule.micro.len() + plan.schedule.update.len() <= MAX_STEPS && work <= MAX_WORK
}

/// Operations of a launch, roughly.
fn work(kernel: &Kernel) -> u128 {
    let product = |extents: &[u64]| extents.iter().fold(1u128, |n, &e| n.saturating_mul(e.max(1).into()));
    let own = match kernel {
        Kernel::Row(k) => {
            let statements = k.body.iter().map(|s| if matches!(s, Stmt::Const { .. }) { 1 } else { 2 }).sum::<u64>();
            product(&k.space).saturating_mul(statements.into())
        }
        Kernel::Contract(k) => product(&k.batch).saturating_mul(product(&[k.m, k.n, k.k])),
        Kernel::ScaledContract(k) => product(&[k.m, k.n, k.k]),
        Kernel::Attention(k) | Kernel::AttentionGrad(k) => product(&[k.batch, k.heads, k.q_len, k.kv_len, k.depth.max(k.v_depth)]),
        Kernel::Conv(k) => {
            let [x, y, w] = [k.window.input, k.window.output, k.window.kernel].map(|e| product(&e));
            product(&[k.batch, k.cin, k.cout]).saturating_mul(x.max(y)).saturating_mul(w)
        }
        Kernel::Pool(k) => product(&[k.planes]).saturating_mul(product(&k.window.output)).saturating_mul(product(&k.window.kernel)),
        Kernel::Quantize(_) | Kernel::ScatterAdd(_) | Kernel::Scan(_) | Kernel::Update(_) => 0,
    };
    own.saturating_add(kernel.args().iter().map(|a| u128::from(a.elements)).sum())
}

/// Runs an accepted plan twice.
///
/// # Panics
/// When it touches what is not its own: a byte that no live tensor owns has changed, or what it computes depends on one.
pub fn execute(plan: &Plan, constants: &HashMap<String, Vec<u8>>) {
    let [a, b] = POISON.map(|poison| Run::new(plan, constants, poison).steps());
    let odd = a.iter().zip(&b).find(|(a, b)| a != b).map(|(a, _)| &a.0);
    assert!(odd.is_none() && a.len() == b.len(), "{odd:?} depends on bytes that nothing has written");
}

/// An arena between two pages that fault.
struct Guarded {
    base: *mut u8,
    total: usize,
    arena: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    /// An arena that ends at the upper page, or begins at the lower one.
    fn new(bytes: usize, at_end: bool) -> Self {
        let inner = bytes.max(1).next_multiple_of(PAGE);
        let total = inner + 2 * PAGE;
        // SAFETY: a fresh anonymous mapping, and a part of it.
        let base = unsafe {
            let base = libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            assert!(base != libc::MAP_FAILED, "there is memory for the arena");
            let open = libc::mprotect(base.cast::<u8>().add(PAGE).cast(), inner, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(open, 0, "the arena can be opened");
            base.cast::<u8>()
        };
        Guarded { base, total, arena: if at_end { PAGE + inner - bytes } else { PAGE } }
    }

    /// Everything between the pages.
    fn all(&mut self) -> &mut [u8] {
        // SAFETY: that part of the mapping is open, and borrowed with the whole.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(PAGE), self.total - 2 * PAGE) }
    }

    fn at(&mut self, offset: u64, bytes: u64) -> &mut [u8] {
        let start = self.arena - PAGE + offset as usize;
        &mut self.all()[start..start + bytes as usize]
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's.
        unsafe { libc::munmap(self.base.cast(), self.total) };
    }
}

struct Run<'a> {
    plan: &'a Plan,
    poison: u8,
    arena: Guarded,
    kernels: Vec<Prepared>,
    /// Scratch memory of a plan whose arena has none.
    beside: Vec<u64>,
    alive: Vec<bool>,
    zeroed: HashSet<TensorId>,
    constants: &'a HashMap<String, Vec<u8>>,
    /// What the trainer has read, with a name.
    results: Vec<(String, Vec<u8>)>,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, constants: &'a HashMap<String, Vec<u8>>, poison: u8) -> Self {
        let kernels = plan.kernels.iter().map(|k| Prepared::new(&k.kernel).expect("a verified kernel can be prepared")).collect();
        let scratch = plan.kernels.iter().map(|k| k.kernel.scratch_bytes(ScratchFor::Cpu { threads: 1 })).max().unwrap_or(0);
        let beside = if plan.is_for_cpu() { vec![] } else { vec![0; scratch.div_ceil(8) as usize + 8] };
        let mut arena = Guarded::new(plan.arena_bytes as usize, poison == POISON[0]);
        arena.all().fill(poison);
        let zeroed = plan.zeroed_gradients().into_iter().collect();
        Run { plan, poison, arena, kernels, beside, alive: vec![false; plan.tensors.len()], zeroed, constants, results: vec![] }
    }

    fn tensor(&mut self, id: TensorId) -> &mut [u8] {
        let t = self.plan.tensor(id);
        self.arena.at(t.offset, t.bytes)
    }

    /// Two training steps, or as many passes.
    fn steps(mut self) -> Vec<(String, Vec<u8>)> {
        self.load();
        for step in 0..2u8 {
            self.control();
            for id in self.zeroed.clone() {
                self.give(id, |bytes| bytes.fill(0));
            }
            let passes = self.plan.accumulation.min(2) as u8;
            for m in 0..passes {
                self.inputs(2 * step + m);
                if !self.phase(0..self.plan.schedule.micro.len()) {
                    return self.results;
                }
                self.read();
                self.wrap(m + 1 < passes);
            }
            let micro = self.plan.schedule.micro.len();
            if !self.phase(micro..micro + self.plan.schedule.update.len()) {
                return self.results;
            }
            self.lasting();
        }
        self.untouched();
        self.results
    }

    /// Gives a tensor a value; its bytes must have been nobody's or its own.
    fn give(&mut self, id: TensorId, fill: impl FnOnce(&mut [u8])) {
        self.birth(id);
        fill(self.tensor(id));
    }

    fn birth(&mut self, id: TensorId) {
        if !std::mem::replace(&mut self.alive[id.0 as usize], true) {
            let poison = self.poison;
            let clean = self.tensor(id).iter().all(|&b| b == poison);
            assert!(clean, "{} finds bytes that somebody has written", self.plan.tensor(id).name);
        }
    }

    fn death(&mut self, id: TensorId) {
        if std::mem::replace(&mut self.alive[id.0 as usize], false) {
            let poison = self.poison;
            self.tensor(id).fill(poison);
        }
    }

    fn ids(&self) -> Vec<(TensorId, &'a Tensor)> {
        (0u32..).map(TensorId).zip(&self.plan.tensors).collect()
    }

    fn load(&mut self) {
        let decays: HashSet<TensorId> = self.plan.parameters.iter().filter_map(|p| p.decay).collect();
        for (id, t) in self.ids() {
            match t.role {
                _ if decays.contains(&id) => self.give(id, |bytes| bytes.copy_from_slice(&1f32.to_le_bytes())),
                Role::Parameter => self.give(id, |bytes| values(bytes, t.dtype, u64::from(id.0))),
                Role::State => self.give(id, |bytes| bytes.fill(0)),
                Role::Constant => {
                    let value = self.constants.get(&t.name).filter(|v| v.len() as u64 == t.bytes).cloned();
                    self.give(id, |bytes| match value {
                        Some(v) => bytes.copy_from_slice(&v),
                        None => bytes.fill(0),
                    });
                }
                _ => {}
            }
        }
    }

    fn control(&mut self) {
        let Some(id) = self.plan.control else { return };
        let mut block = [0.5f32; Control::LEN];
        (block[Control::FINITE], block[Control::LOSS_SCALE], block[Control::CLIP]) = (1.0, 1.0, 1.0);
        let bytes: Vec<u8> = block.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.give(id, |to| to.copy_from_slice(&bytes));
    }

    fn inputs(&mut self, seed: u8) {
        for p in &self.plan.inputs {
            self.give(p.tensor, |bytes| values(bytes, p.dtype, u64::from(seed) + 100));
        }
    }

    /// Runs steps in order. False when one refuses its data.
    fn phase(&mut self, positions: std::ops::Range<usize>) -> bool {
        for at in positions {
            let micro = &self.plan.schedule.micro;
            let step = if at < micro.len() { &micro[at] } else { &self.plan.schedule.update[at - micro.len()] };
            for (id, _) in self.ids().into_iter().filter(|(_, t)| t.first as usize == at) {
                self.birth(id);
            }
            if self.launch(step).is_err() {
                self.results.push((format!("the refusal of step {at}"), vec![]));
                return false;
            }
            // What dies with the micro-batch is read before.
            let last = at + 1 == self.plan.schedule.micro.len();
            for (id, _) in self.ids().into_iter().filter(|(_, t)| t.last as usize == at && !lasts(t) && !last) {
                self.death(id);
            }
        }
        true
    }

    fn launch(&mut self, step: &Step) -> Result<(), fp8c_kernels::KernelError> {
        let on_cpu = self.plan.is_for_cpu();
        let mut bind = |id: TensorId| {
            let bytes = self.tensor(id);
            Buffer { ptr: bytes.as_mut_ptr(), bytes: bytes.len() }
        };
        let args: Vec<Buffer> = step.args.iter().map(|&id| bind(id)).collect();
        let scratch = step.scratch.filter(|_| on_cpu).map(&mut bind);
        let scratch = scratch.unwrap_or_else(|| {
            let start = self.beside.as_ptr().align_offset(64);
            let free = self.beside.get_mut(start..).unwrap_or_default();
            Buffer { ptr: free.as_mut_ptr().cast(), bytes: free.len() * 8 }
        });
        let kernel = &self.kernels[step.kernel as usize];
        let job = Job(kernel, &args, scratch);
        pool().install(move || job.run())
    }

    fn note(&mut self, id: TensorId) {
        let (name, bytes) = (self.plan.tensor(id).name.clone(), self.tensor(id).to_vec());
        self.results.push((name, bytes));
    }

    /// What the trainer reads when a micro-batch is over.
    fn read(&mut self) {
        let outputs = self.plan.outputs.iter().map(|p| p.tensor).chain(self.plan.loss);
        let gradients = self.plan.parameters.iter().filter_map(|p| p.gradient.filter(|_| self.plan.clip == Clip::Exact));
        for id in outputs.chain(gradients) {
            self.note(id);
        }
    }

    /// Between two micro-batches only what lasts is alive, and the sums; before the update, what lives on into it is.
    fn wrap(&mut self, more: bool) {
        let micro = self.plan.schedule.micro.len();
        for (id, t) in self.ids() {
            let kept = if more { self.zeroed.contains(&id) } else { t.last as usize >= micro };
            if !kept && !lasts(t) {
                self.death(id);
            }
        }
    }

    /// What lasts until the next step.
    fn lasting(&mut self) {
        for (id, t) in self.ids() {
            match t.role {
                Role::Parameter | Role::State | Role::Control => self.note(id),
                _ if !lasts(t) => self.death(id),
                _ => {}
            }
        }
    }

    /// Everything that no live tensor owns is as it was.
    fn untouched(&mut self) {
        for (id, _) in self.ids() {
            let (poison, alive) = (self.poison, self.alive[id.0 as usize]);
            if alive {
                self.tensor(id).fill(poison);
            }
        }
        let poison = self.poison;
        assert!(self.arena.all().iter().all(|&b| b == poison), "a byte that no tensor owns was written");
    }
}

/// True for tensors that are there from the first step to the last.
fn lasts(t: &Tensor) -> bool {
    matches!(t.role, Role::Parameter | Role::State | Role::Constant | Role::Control)
}

/// Small numbers of a format.
fn values(bytes: &mut [u8], dtype: DType, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for chunk in bytes.chunks_exact_mut(dtype.size() as usize) {
        let x = (next() % 17) as f32 / 16.0 - 0.5;
        match dtype {
            DType::F32 => chunk.copy_from_slice(&x.to_le_bytes()),
            DType::Bf16 => chunk.copy_from_slice(&x.to_le_bytes()[2..]),
            DType::E4m3 => chunk[0] = (next() % 0x60) as u8,
            DType::I64 => chunk.copy_from_slice(&(next() % 2).to_le_bytes()),
            DType::I32 => chunk.copy_from_slice(&((next() % 2) as i32).to_le_bytes()),
            DType::Bool => chunk[0] = (next() % 2) as u8,
        }
    }
}

/// A launch that crosses to the pool's thread.
struct Job<'a>(&'a Prepared, &'a [Buffer], Buffer);
// SAFETY: the buffers are not used elsewhere while `install` waits for the job.
unsafe impl Send for Job<'_> {}

impl Job<'_> {
    fn run(self) -> Result<(), fp8c_kernels::KernelError> {
        // SAFETY: the plan has been verified, which is what is being tested: its tensors lie in the arena and share no byte where one is
        // written, and its kernels stay inside them.
        unsafe { self.0.launch(self.1, self.2) }
    }
}

/// One thread: scratch memory is verified for one.
fn pool() -> &'static ThreadPool {
    static POOL: OnceLock<ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started"))
}
