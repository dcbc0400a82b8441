//! An opened GPU.

use super::handles::{Context, Event, Graph, Memory, Module, Pinned, Shape, Stream, copy_out, launch};
use super::staging::Staging;
use super::{Attribute, attribute, choose, failed, reason};
use crate::Error;
use crate::device::{FETCH_BYTES, Fetched, ptx, reach};
use crate::plan::{Plan, PlanFile, Role, Step, TensorId};
use cudarc::driver::{result, sys};
use fp8c_kernels::launch::Launch;
use std::collections::HashMap;
use std::ffi::CString;
use std::ops::Range;

use sys::CUfunction_attribute as FunctionAttribute;

/// Dynamic shared memory that needs no permission, bytes.
const PLAIN_SHARED: u32 = 48 * 1024;
/// Least size of the ring through which bytes reach the GPU.
const LEAST_STAGING: u64 = 1 << 20;

/// A GPU with the arena of one plan. Fields are dropped in order: what uses the context before it.
pub(crate) struct CudaDevice {
    graphs: HashMap<Range<usize>, Graph>,
    staging: Staging,
    result: Pinned,
    order: Order,
    compute: Stream,
    incoming: Stream,
    outgoing: Stream,
    _modules: Vec<Module>,
    arena: Memory,
    context: Context,
    ordinal: usize,
    bytes: u64,
    steps: Vec<Bound>,
    touched: u64,
}

/// What orders the three streams.
struct Order {
    /// The end of the kernels so far.
    computed: Event,
    /// The end of the copies to the GPU so far.
    arrived: Event,
    /// The end of the copy from the GPU.
    fetched: Event,
    /// Kernels that copies to the GPU do not wait for yet.
    computing: bool,
    /// Copies that kernels do not wait for yet.
    arriving: bool,
    /// Positions that have been launched since the GPU was last known to have done all it was given.
    under_way: Option<Range<usize>>,
}

/// A step's launches with addresses.
struct Bound {
    launches: Vec<Shape>,
    args: Vec<u64>,
    reach: u64,
    kernel: String,
    site: String,
}

// SAFETY: driver handles may be used from any thread once the context is current there; every entry point makes it so.
unsafe impl Send for CudaDevice {}
// SAFETY: shared access only waits and copies out of the arena, which the driver permits from several threads.
unsafe impl Sync for CudaDevice {}

impl CudaDevice {
    /// Allocates the arena on a GPU and loads the PTX of its chip. Of the arena what outlives a step is zero, the rest undefined.
    ///
    /// # Errors
    /// [`Error::Device`] without a driver, GPU, code for the chip, or memory.
    pub fn open(file: &PlanFile, ordinal: usize) -> Result<Self, Error> {
        let plan = file.plan();
        let (device, arch) = choose(plan, ordinal)?;
        let context = Context::retain(device)?;
        context.bind()?;
        let arena = allocate(plan.arena_bytes, ordinal)?;
        let (modules, functions) = load(file, arch, device)?;
        let steps = prepare(plan, &functions, arena.address());
        let batch: u64 = plan.inputs.iter().map(|p| plan.tensor(p.tensor).bytes).sum();
        let ring = batch.saturating_mul(2 * u64::from(plan.accumulation)).max(LEAST_STAGING);
        let mut opened = CudaDevice {
            graphs: HashMap::new(),
            staging: Staging::new(usize::try_from(ring).unwrap_or(usize::MAX))?,
            result: Pinned::allocate(FETCH_BYTES)?,
            order: Order {
                computed: Event::new()?,
                arrived: Event::new()?,
                fetched: Event::new()?,
                computing: false,
                arriving: false,
                under_way: None,
            },
            compute: Stream::new()?,
            incoming: Stream::new()?,
            outgoing: Stream::new()?,
            _modules: modules,
            arena,
            context,
            ordinal,
            bytes: plan.arena_bytes,
            steps,
            touched: 0,
        };
        let lasting = |r: Role| matches!(r, Role::Parameter | Role::State | Role::Constant | Role::Control);
        for t in plan.tensors.iter().filter(|t| lasting(t.role)) {
            opened.zero(t.offset, t.bytes)?;
        }
        opened.touched = 0;
        Ok(opened)
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub fn touched(&self) -> u64 {
        self.touched
    }

    fn address(&self, offset: u64, bytes: u64) -> Result<sys::CUdeviceptr, Error> {
        let inside = offset.checked_add(bytes).is_some_and(|e| e <= self.bytes);
        if inside { Ok(self.arena.address() + offset) } else { Err(Error::Device(format!("bytes {offset}+{bytes} lie outside the arena"))) }
    }

    /// Queues a copy to the arena, after all kernels so far and before all later ones.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let to = self.address(offset, bytes.len() as u64)?;
        self.context.bind()?;
        if std::mem::take(&mut self.order.computing) {
            self.order.computed.record(&self.compute)?;
            self.incoming.wait(&self.order.computed)?;
        }
        self.touched = self.touched.max(offset + bytes.len() as u64);
        self.order.arriving = true;
        self.staging.copy(to, bytes, &self.incoming)
    }

    /// Lets kernels wait for the copies so far.
    fn admit(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.order.arriving) {
            self.order.arrived.record(&self.incoming)?;
            self.compute.wait(&self.order.arrived)?;
        }
        self.order.computing = true;
        Ok(())
    }

    /// Waits for everything and copies out of the arena.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let from = self.address(offset, bytes.len() as u64)?;
        self.context.bind()?;
        self.incoming.synchronize().map_err(failed("copying to the GPU"))?;
        self.compute.synchronize().map_err(|e| self.fault(&e))?;
        // SAFETY: the source lies inside the arena, and nothing that writes it is under way.
        unsafe { result::memcpy_dtoh_sync(bytes, from) }.map_err(failed("copying from the GPU"))
    }

    /// Begins to copy at most [`FETCH_BYTES`] out of the arena, as they are after all launches so far. Until [`CudaDevice::fetched`]
    /// no launch may change them and nothing may be written there.
    pub fn fetch(&mut self, offset: u64, bytes: usize) -> Result<(), Error> {
        let from = self.address(offset, bytes as u64)?;
        self.context.bind()?;
        self.order.computed.record(&self.compute)?;
        self.outgoing.wait(&self.order.computed)?;
        copy_out(&mut self.result, from, bytes, &self.outgoing)?;
        self.order.fetched.record(&self.outgoing)
    }

    /// Waits for what [`CudaDevice::fetch`] began. Launches since go on.
    pub fn fetched(&mut self) -> Result<Fetched, Error> {
        self.context.bind()?;
        self.order.fetched.synchronize().map_err(|e| self.fault(&e))?;
        let mut all = [0; FETCH_BYTES];
        all.copy_from_slice(self.result.bytes());
        Ok(all)
    }

    /// Sets a range of the arena to zero, in the order of the launches.
    pub fn zero(&mut self, offset: u64, bytes: u64) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let to = self.address(offset, bytes)?;
        self.context.bind()?;
        self.admit()?;
        self.touched = self.touched.max(offset + bytes);
        // SAFETY: the range lies inside the arena.
        unsafe { result::memset_d8_async(to, 0, bytes as usize, self.compute.raw()) }.map_err(failed("clearing memory"))
    }

    /// Queues steps; the first time they are captured as a graph.
    pub fn run(&mut self, positions: Range<usize>) -> Result<(), Error> {
        if positions.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        self.admit()?;
        if !self.graphs.contains_key(&positions) {
            let (steps, stream) = (&mut self.steps[positions.clone()], &self.compute);
            let graph = Graph::capture(stream, || steps.iter_mut().try_for_each(|s| s.launch(stream)))?;
            self.graphs.insert(positions.clone(), graph);
        }
        self.graphs[&positions].launch(&self.compute)?;
        self.touched = self.steps[positions.clone()].iter().map(|s| s.reach).fold(self.touched, u64::max);
        let before = self.order.under_way.take();
        self.order.under_way = Some(before.map_or(positions.clone(), |b| b.start.min(positions.start)..b.end.max(positions.end)));
        Ok(())
    }

    /// Waits for all launches.
    pub fn wait(&mut self) -> Result<(), Error> {
        self.context.bind()?;
        self.compute.synchronize().map_err(|e| self.fault(&e))?;
        self.order.under_way = None;
        Ok(())
    }

    /// The error of a launch: a GPU says that one failed, not which.
    fn fault(&self, e: &result::DriverError) -> Error {
        let place = |at: usize| format!("{} ({})", self.steps[at].site, self.steps[at].kernel);
        let where_ = match &self.order.under_way {
            Some(r) if r.len() == 1 => format!(" at {}", place(r.start)),
            Some(r) => format!(" between {} and {}", place(r.start), place(r.end - 1)),
            None => String::new(),
        };
        Error::Device(format!("a kernel failed{where_}: {}", reason(e)))
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Errors cannot be handled here; the driver frees what is left when the process ends.
        let _ = self.context.bind();
        for stream in [&self.incoming, &self.compute, &self.outgoing] {
            let _ = stream.synchronize();
        }
    }
}

impl Bound {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let Bound { launches, args, kernel, site, .. } = self;
        launches.iter().try_for_each(|shape| launch(shape, args, stream).map_err(failed(&format!("launching {site} ({kernel})"))))
    }
}

/// Allocates the arena, in one piece.
fn allocate(bytes: u64, ordinal: usize) -> Result<Memory, Error> {
    let (free, total) = result::mem_get_info().map_err(failed("asking the GPU"))?;
    let need = usize::try_from(bytes.max(1)).unwrap_or(usize::MAX);
    if need > free {
        return Err(Error::Device(format!("the plan needs {need} bytes on GPU {ordinal}, {free} of {total} are free")));
    }
    Memory::allocate(need)
}

/// Loads each kernel's module; gives the shapes of each kernel's launches.
fn load(file: &PlanFile, arch: &str, device: sys::CUdevice) -> Result<(Vec<Module>, Vec<Vec<Shape>>), Error> {
    let limit = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let (mut modules, mut all) = (vec![], vec![]);
    for k in &file.plan().kernels {
        let fault = |what: &str| Error::Device(format!("kernel {} {what}", k.name));
        let text = file.ptx(&k.name, arch).ok_or_else(|| fault("has no PTX in the plan file"))?;
        let arguments = k.kernel.args().len();
        let fits = |l: &Launch| ptx::check_entry(text, &l.entry, arguments);
        k.launches[arch].iter().try_for_each(fits).map_err(|e| fault(&format!("cannot run: {e}")))?;
        let text = CString::new(text).map_err(|_| fault("has PTX with a zero byte"))?;
        let module = Module::load(&text).map_err(failed(&format!("loading kernel {}", k.name)))?;
        let mut shapes = vec![];
        for l in &k.launches[arch] {
            if i64::from(l.shared_bytes) > i64::from(limit) {
                return Err(fault(&format!("needs {} bytes of shared memory, the GPU has {limit}", l.shared_bytes)));
            }
            let name = CString::new(l.entry.as_str()).map_err(|_| fault("names an entry with a zero byte"))?;
            let function = module.function(&name).map_err(failed(&format!("finding entry {} of kernel {}", l.entry, k.name)))?;
            if l.shared_bytes > PLAIN_SHARED {
                let which = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // Launches of one entry share the permission: it is for the one that needs most.
                let same = k.launches[arch].iter().filter(|o| o.entry == l.entry);
                let most = same.map(|o| o.shared_bytes).max().unwrap_or(l.shared_bytes);
                // SAFETY: the function belongs to a loaded module; a value beyond the device's limit is refused.
                unsafe { result::function::set_function_attribute(function, which, most.min(i32::MAX as u32) as i32) }
                    .map_err(failed(&format!("reserving shared memory for kernel {}", k.name)))?;
            }
            let triple = |v: [u32; 3]| (v[0], v[1], v[2]);
            shapes.push(Shape { function, grid: triple(l.grid), block: triple(l.block), shared_bytes: l.shared_bytes });
        }
        modules.push(module);
        all.push(shapes);
    }
    Ok((modules, all))
}

/// Binds each step to addresses.
fn prepare(plan: &Plan, shapes: &[Vec<Shape>], arena: sys::CUdeviceptr) -> Vec<Bound> {
    let address = |id: &TensorId| arena + plan.tensor(*id).offset;
    let bound = |step: &Step| Bound {
        launches: shapes[step.kernel as usize].clone(),
        args: step.args.iter().map(address).collect(),
        reach: reach(plan, step),
        kernel: plan.kernels[step.kernel as usize].name.clone(),
        site: step.site.clone(),
    };
    plan.schedule.micro.iter().chain(&plan.schedule.update).map(bound).collect()
}
