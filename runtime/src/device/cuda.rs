//! NVIDIA GPUs through the driver API, loaded at run time.
//!
//! The driver path compiles and reports the lack of a driver or a GPU; it has not run on one in this project's tests, which have
//! none. What it does is what the plan says: one allocation, one module for each kernel, launches in order on one stream.

use super::{DeviceInfo, ptx, reach};
use crate::Error;
use crate::plan::{Plan, PlanFile, Step, TensorId};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ops::Range;

use sys::CUdevice_attribute as Attribute;
use sys::CUfunction_attribute as FunctionAttribute;

/// Dynamic shared memory that needs no permission, bytes.
const PLAIN_SHARED: u32 = 48 * 1024;

/// A GPU with the arena of one plan.
pub(crate) struct CudaDevice {
    ordinal: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    arena: sys::CUdeviceptr,
    bytes: u64,
    steps: Vec<Bound>,
    touched: u64,
}

/// A step's launches with addresses.
struct Bound {
    launches: Vec<Prepared>,
    args: Vec<u64>,
    reach: u64,
    site: String,
}

#[derive(Clone, Copy)]
struct Prepared {
    function: sys::CUfunction,
    grid: (u32, u32, u32),
    block: (u32, u32, u32),
    shared: u32,
}

// SAFETY: driver handles may be used from any thread once the context is current there; every entry point makes it so.
unsafe impl Send for CudaDevice {}
// SAFETY: shared access only copies out of the arena, which the driver permits from several threads.
unsafe impl Sync for CudaDevice {}

fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| Error::Device(format!("{what} failed ({:?})", e.0))
}

/// Loads and initialises the driver.
fn driver() -> Result<(), Error> {
    // SAFETY: only asks whether the library can be opened; every other call would panic without it.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device("there is no NVIDIA driver on this machine".into()));
    }
    result::init().map_err(failed("starting the NVIDIA driver"))
}

fn count() -> Result<usize, Error> {
    driver()?;
    let n = result::device::get_count().map_err(failed("counting the GPUs"))?;
    Ok(usize::try_from(n).unwrap_or(0))
}

/// The chip whose PTX a GPU runs, by compute capability; `None` for GPUs older than sm_89.
fn arch_of(major: i32, minor: i32) -> Option<&'static str> {
    match (major, minor) {
        (9, 0) => Some("sm_90a"),
        (8, 9) => Some("sm_89"),
        // PTX for a plain chip runs on every later one; sm_90a's on Hopper alone.
        _ if major > 8 => Some("sm_89"),
        _ => None,
    }
}

fn handle(ordinal: usize) -> Result<sys::CUdevice, Error> {
    let number = i32::try_from(ordinal).map_err(|_| Error::Device(format!("there is no GPU {ordinal}")))?;
    result::device::get(number).map_err(failed("finding the GPU"))
}

fn attribute(device: sys::CUdevice, which: Attribute) -> Result<i32, Error> {
    // SAFETY: `device` comes from `cuDeviceGet`.
    unsafe { result::device::get_attribute(device, which) }.map_err(failed("asking the GPU"))
}

fn arch(device: sys::CUdevice) -> Result<Option<&'static str>, Error> {
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(arch_of(major, minor))
}

/// The GPUs that the driver sees; none without a driver.
pub(super) fn list() -> Vec<DeviceInfo> {
    let info = |ordinal: usize| {
        let device = handle(ordinal)?;
        // SAFETY: `device` comes from `cuDeviceGet`.
        let memory = unsafe { result::device::total_mem(device) }.map_err(failed("asking the GPU"))?;
        Ok::<_, Error>(DeviceInfo {
            id: format!("cuda:{ordinal}"),
            name: result::device::get_name(device).map_err(failed("asking the GPU"))?,
            memory_bytes: memory as u64,
            free_bytes: None,
            arch: arch(device)?.map(str::to_string),
            threads: None,
        })
    };
    (0..count().unwrap_or(0)).filter_map(|n| info(n).ok()).collect()
}

/// True when a plan has launches of every kernel for a chip.
fn has_code(plan: &Plan, arch: &str) -> bool {
    !plan.kernels.is_empty() && plan.kernels.iter().all(|k| k.launches.contains_key(arch))
}

/// The first GPU that the plan has code for.
pub(super) fn first_for(plan: &Plan) -> Option<usize> {
    let suits = |&n: &usize| handle(n).and_then(arch).ok().flatten().is_some_and(|a| has_code(plan, a));
    (0..count().ok()?).find(suits)
}

impl CudaDevice {
    /// Allocates the arena on a GPU and loads the PTX of its chip.
    ///
    /// # Errors
    /// [`Error::Device`] without a driver, GPU, code for the chip, or memory.
    pub fn open(file: &PlanFile, ordinal: usize) -> Result<Self, Error> {
        let plan = file.plan();
        let present = count()?;
        if ordinal >= present {
            return Err(Error::Device(format!("there is no GPU {ordinal}; the driver sees {present}")));
        }
        let device = handle(ordinal)?;
        let arch = arch(device)?.ok_or_else(|| Error::Device(format!("GPU {ordinal} is older than sm_89")))?;
        if let Some(k) = plan.kernels.iter().find(|k| !k.launches.contains_key(arch)) {
            return Err(Error::Device(format!("the plan holds no code of kernel {} for {arch}", k.name)));
        }
        // SAFETY: retained once here and released once in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("opening the GPU"))?;
        let stream = std::ptr::null_mut();
        // From here on `drop` releases what has been acquired.
        let mut opened =
            CudaDevice { ordinal, device, context, stream, modules: vec![], arena: 0, bytes: plan.arena_bytes, steps: vec![], touched: 0 };
        opened.bind()?;
        opened.stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("making a stream"))?;
        opened.allocate()?;
        let functions = opened.load(file, arch)?;
        opened.steps = opened.prepare(plan, &functions);
        Ok(opened)
    }

    fn bind(&self) -> Result<(), Error> {
        // SAFETY: the context is retained until `drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("switching to the GPU"))
    }

    fn allocate(&mut self) -> Result<(), Error> {
        let (free, total) = result::mem_get_info().map_err(failed("asking the GPU"))?;
        let need = usize::try_from(self.bytes.max(1)).unwrap_or(usize::MAX);
        if need > free {
            return Err(Error::Device(format!("the plan needs {need} bytes on GPU {}, {free} of {total} are free", self.ordinal)));
        }
        // SAFETY: the context is current; the memory is freed in `drop`.
        self.arena = unsafe { result::malloc_sync(need) }.map_err(failed("allocating the arena"))?;
        // SAFETY: the allocation has `need` bytes.
        unsafe { result::memset_d8_sync(self.arena, 0, need) }.map_err(failed("clearing the arena"))
    }

    /// Loads each kernel's module; gives the prepared launches of each kernel.
    fn load(&mut self, file: &PlanFile, arch: &str) -> Result<Vec<Vec<Prepared>>, Error> {
        let limit = attribute(self.device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut all = Vec::with_capacity(file.plan().kernels.len());
        for k in &file.plan().kernels {
            let fault = |what: &str| Error::Device(format!("kernel {} {what}", k.name));
            let text = file.ptx(&k.name, arch).ok_or_else(|| fault("has no PTX in the plan file"))?;
            let arguments = k.kernel.args().len();
            k.launches[arch]
                .iter()
                .try_for_each(|l| ptx::check_entry(text, &l.entry, arguments))
                .map_err(|e| fault(&format!("cannot run: {e}")))?;
            let text = CString::new(text).map_err(|_| fault("has PTX with a zero byte"))?;
            // SAFETY: the text is terminated by a zero byte and outlives the call.
            let module = unsafe { result::module::load_data(text.as_ptr().cast()) };
            let module = module.map_err(failed(&format!("loading kernel {}", k.name)))?;
            self.modules.push(module);
            let mut functions = HashMap::new();
            let mut prepared = vec![];
            for l in &k.launches[arch] {
                if i64::from(l.shared_bytes) > i64::from(limit) {
                    return Err(fault(&format!("needs {} bytes of shared memory, the GPU has {limit}", l.shared_bytes)));
                }
                let name = CString::new(l.entry.as_str()).map_err(|_| fault("names an entry with a zero byte"))?;
                // SAFETY: the module stays loaded until `drop`.
                let function = unsafe { result::module::get_function(module, name) };
                let function = function.map_err(failed(&format!("finding entry {} of kernel {}", l.entry, k.name)))?;
                let most = functions.entry(l.entry.as_str()).or_insert(PLAIN_SHARED);
                if l.shared_bytes > *most {
                    *most = l.shared_bytes;
                    let which = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    // SAFETY: the function was just found.
                    unsafe { result::function::set_function_attribute(function, which, l.shared_bytes as i32) }
                        .map_err(failed(&format!("reserving shared memory for kernel {}", k.name)))?;
                }
                let triple = |v: [u32; 3]| (v[0], v[1], v[2]);
                prepared.push(Prepared { function, grid: triple(l.grid), block: triple(l.block), shared: l.shared_bytes });
            }
            all.push(prepared);
        }
        Ok(all)
    }

    fn prepare(&self, plan: &Plan, functions: &[Vec<Prepared>]) -> Vec<Bound> {
        let address = |id: &TensorId| self.arena + plan.tensor(*id).offset;
        let bound = |step: &Step| Bound {
            launches: functions[step.kernel as usize].clone(),
            args: step.args.iter().map(address).collect(),
            reach: reach(plan, step),
            site: step.site.clone(),
        };
        plan.schedule.micro.iter().chain(&plan.schedule.update).map(bound).collect()
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub fn touched(&self) -> u64 {
        self.touched
    }

    fn address(&self, offset: u64, bytes: u64) -> Result<sys::CUdeviceptr, Error> {
        let inside = offset.checked_add(bytes).is_some_and(|e| e <= self.bytes);
        if inside { Ok(self.arena + offset) } else { Err(Error::Device(format!("bytes {offset}+{bytes} lie outside the arena"))) }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let to = self.address(offset, bytes.len() as u64)?;
        self.bind()?;
        self.touched = self.touched.max(offset + bytes.len() as u64);
        // SAFETY: the destination lies inside the arena, and no launch is under way (`run` waits for its own).
        unsafe { result::memcpy_htod_sync(to, bytes) }.map_err(failed("copying to the GPU"))
    }

    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let from = self.address(offset, bytes.len() as u64)?;
        self.bind()?;
        // SAFETY: the source lies inside the arena, and no launch is under way.
        unsafe { result::memcpy_dtoh_sync(bytes, from) }.map_err(failed("copying from the GPU"))
    }

    pub fn zero(&mut self, offset: u64, bytes: u64) -> Result<(), Error> {
        let to = self.address(offset, bytes)?;
        self.bind()?;
        self.touched = self.touched.max(offset + bytes);
        // SAFETY: the range lies inside the arena, and no launch is under way.
        unsafe { result::memset_d8_async(to, 0, bytes as usize, self.stream) }.map_err(failed("clearing memory"))?;
        self.wait("clearing memory")
    }

    fn wait(&self, what: &str) -> Result<(), Error> {
        // SAFETY: the stream lives until `drop`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed(what))
    }

    pub fn run(&mut self, positions: Range<usize>) -> Result<(), Error> {
        self.bind()?;
        for s in &mut self.steps[positions.clone()] {
            let mut params: Vec<*mut c_void> = s.args.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
            for l in &s.launches {
                // SAFETY: the entry takes one 64-bit address for each argument, as `load` has read in its text; the addresses lie inside
                // the arena.
                // The driver copies the parameters before it returns.
                unsafe { result::launch_kernel(l.function, l.grid, l.block, l.shared, self.stream, &mut params) }
                    .map_err(failed(&format!("launching {}", s.site)))?;
            }
        }
        self.touched = self.steps[positions].iter().map(|s| s.reach).fold(self.touched, u64::max);
        self.wait("running the plan on the GPU")
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Errors cannot be handled here; the driver frees what is left when the process ends.
        let _ = self.bind();
        // SAFETY: everything was acquired by `open`, is released once, and nothing uses it afterwards.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
            }
            for &m in &self.modules {
                let _ = result::module::unload(m);
            }
            if self.arena != 0 {
                let _ = result::free_sync(self.arena);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_chips_run_the_portable_ptx_and_earlier_ones_none() {
        assert_eq!(arch_of(8, 9), Some("sm_89"));
        assert_eq!(arch_of(9, 0), Some("sm_90a"));
        assert_eq!(arch_of(12, 0), Some("sm_89"));
        assert_eq!(arch_of(8, 6), None);
    }

    #[test]
    fn a_machine_without_a_driver_says_so() {
        // SAFETY: only asks whether the library can be opened.
        if !unsafe { sys::is_culib_present() } {
            assert!(count().unwrap_err().to_string().contains("no NVIDIA driver"));
            assert!(list().is_empty());
        }
    }
}
