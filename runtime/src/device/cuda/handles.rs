//! The driver's objects, each released when it is dropped.
//!
//! Every function expects the context to be current in the calling thread, which [`Context::bind`] makes it.

use super::failed;
use crate::Error;
use cudarc::driver::{result, sys};
use std::ffi::{CStr, c_void};

/// A device's primary context.
pub struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

impl Context {
    pub fn retain(device: sys::CUdevice) -> Result<Self, Error> {
        // SAFETY: retained once here and released once in `drop`.
        let handle = unsafe { result::primary_ctx::retain(device) }.map_err(failed("opening the GPU"))?;
        Ok(Context { device, handle })
    }

    /// Makes it current in the calling thread.
    pub fn bind(&self) -> Result<(), Error> {
        // SAFETY: the context is retained until `drop`.
        unsafe { result::ctx::set_current(self.handle) }.map_err(failed("switching to the GPU"))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, and nothing uses it afterwards: whatever lives in it is dropped before.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A stream that nothing orders but events.
pub struct Stream(sys::CUstream);

impl Stream {
    pub fn new() -> Result<Self, Error> {
        result::stream::create(result::stream::StreamKind::NonBlocking).map(Stream).map_err(failed("making a stream"))
    }

    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Makes what comes next wait for an event.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        unsafe { result::stream::wait_event(self.0, event.0, flags) }.map_err(failed("ordering two streams"))
    }

    /// Waits on the host for everything in it.
    pub fn synchronize(&self) -> Result<(), result::DriverError> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. Errors cannot be handled here.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// A point in a stream.
pub struct Event(sys::CUevent);

impl Event {
    pub fn new() -> Result<Self, Error> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map(Event).map_err(failed("making an event"))
    }

    pub fn record(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: both live.
        unsafe { result::event::record(self.0, stream.0) }.map_err(failed("recording an event"))
    }

    /// Waits on the host.
    pub fn synchronize(&self) -> Result<(), result::DriverError> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Device memory, not initialised.
pub struct Memory(sys::CUdeviceptr);

impl Memory {
    pub fn allocate(bytes: usize) -> Result<Self, Error> {
        // SAFETY: freed in `drop`.
        unsafe { result::malloc_sync(bytes) }.map(Memory).map_err(failed("allocating the arena"))
    }

    pub fn address(&self) -> sys::CUdeviceptr {
        self.0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

/// Host memory that the GPU copies to and from by itself.
pub struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    /// Reserves memory and zeroes it.
    pub fn allocate(bytes: usize) -> Result<Self, Error> {
        // SAFETY: freed in `drop`.
        let at = unsafe { result::malloc_host(bytes, 0) }.map_err(failed("reserving host memory for copies"))?.cast::<u8>();
        // SAFETY: the driver gave as many bytes.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Pinned { at, bytes })
    }

    /// The bytes; no copy of them may be under way.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised by `allocate`, and the caller has waited for copies to them.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    /// The bytes; no copy of those that are touched may be under way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// A loaded module.
pub struct Module(sys::CUmodule);

impl Module {
    pub fn load(text: &CStr) -> Result<Self, result::DriverError> {
        // SAFETY: the text ends with a zero byte and outlives the call.
        unsafe { result::module::load_data(text.as_ptr().cast()) }.map(Module)
    }

    /// An entry; valid as long as the module.
    pub fn function(&self, name: &CStr) -> Result<sys::CUfunction, result::DriverError> {
        // SAFETY: the module lives.
        unsafe { result::module::get_function(self.0, name.to_owned()) }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once.
        let _ = unsafe { result::module::unload(self.0) };
    }
}

/// Launches that were captured from a stream, ready to be launched again as one.
pub struct Graph(sys::CUgraphExec);

impl Graph {
    /// Captures what `enqueue` puts into the stream.
    pub fn capture(stream: &Stream, enqueue: impl FnOnce() -> Result<(), Error>) -> Result<Self, Error> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives, and the capture ends below.
        unsafe { result::stream::begin_capture(stream.0, mode) }.map_err(failed("capturing a graph"))?;
        let enqueued = enqueue();
        // SAFETY: the capture was begun above.
        let graph = unsafe { result::stream::end_capture(stream.0) }.map_err(failed("capturing a graph"));
        // What could not be queued is the cause of a capture that cannot be ended.
        let graph = match (enqueued, graph) {
            (Ok(()), graph) => graph?,
            (Err(e), graph) => {
                // SAFETY: captured once, destroyed once.
                graph.map(|g| unsafe { result::graph::destroy(g) }).ok();
                return Err(e);
            }
        };
        // SAFETY: the graph lives until it is destroyed below.
        let executable = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: captured once, destroyed once; an executable graph does not need it.
        let _ = unsafe { result::graph::destroy(graph) };
        executable.map(Graph).map_err(failed("preparing a graph"))
    }

    pub fn launch(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: both live.
        unsafe { result::graph::launch(self.0, stream.0) }.map_err(failed("launching a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated once, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// Queues a copy from pinned memory.
pub fn copy_in(to: sys::CUdeviceptr, from: &[u8], stream: &Stream) -> Result<(), Error> {
    // SAFETY: the caller keeps the range inside the arena and the source unchanged until the copy is over.
    unsafe { result::memcpy_htod_async(to, from, stream.0) }.map_err(failed("copying to the GPU"))
}

/// Queues a copy to the start of pinned memory, of `bytes` bytes.
pub fn copy_out(to: &mut Pinned, from: sys::CUdeviceptr, bytes: usize, stream: &Stream) -> Result<(), Error> {
    // SAFETY: the caller keeps the range inside the arena and waits before it reads the destination.
    unsafe { result::memcpy_dtoh_async(&mut to.bytes_mut()[..bytes], from, stream.0) }.map_err(failed("copying from the GPU"))
}

/// A kernel launch's shape.
#[derive(Clone, Copy)]
pub struct Shape {
    pub function: sys::CUfunction,
    pub grid: (u32, u32, u32),
    pub block: (u32, u32, u32),
    pub shared_bytes: u32,
}

/// Queues a kernel whose parameters are addresses.
pub fn launch(shape: &Shape, addresses: &mut [u64], stream: &Stream) -> Result<(), result::DriverError> {
    let mut parameters: Vec<*mut c_void> = addresses.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
    // SAFETY: the entry takes one 64-bit address for each argument, as `load` has read in its text; the addresses lie inside the arena. The driver
    // copies the parameters before it returns.
    unsafe { result::launch_kernel(shape.function, shape.grid, shape.block, shape.shared_bytes, stream.0, &mut parameters) }
}
