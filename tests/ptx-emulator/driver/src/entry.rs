//! The driver's entry points, by their C names.
//!
//! Each takes the one [`Driver`] of the process, after `cuInit`; those that need a context also want it current in the calling thread.
//! A symbol that is absent here is missed by its name when a program looks it up.

use crate::codes::Code;
use crate::config::{Act, Config};
use crate::driver::Driver;
use crate::queue::Work;
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::{Mutex, PoisonError};

struct Process {
    driver: Driver,
    /// How often each entry point was called.
    calls: HashMap<&'static str, u64>,
}

static PROCESS: Mutex<Option<Process>> = Mutex::new(None);

thread_local! {
    /// Whether the context is current in this thread.
    static CURRENT: Cell<bool> = const { Cell::new(false) };
}

/// The context's handle: there is one.
const CONTEXT: u64 = 0xc0;

unsafe extern "C" {
    fn atexit(callback: extern "C" fn()) -> c_int;
}

extern "C" fn shut_down() {
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(p) = process.as_mut() {
        p.driver.shut_down();
    }
}

type Done = Result<(), Code>;

fn code(result: Done) -> Code {
    result.err().unwrap_or(Code::SUCCESS)
}

/// Runs a call on the driver. `halve` says that a planted fault wants half of the call's bytes.
fn on_driver(name: &'static str, body: impl FnOnce(&mut Driver, bool) -> Done) -> Code {
    let mut guard = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(p) = guard.as_mut() else { return Code::NOT_INITIALIZED };
    let number = p.calls.entry(name).or_default();
    *number += 1;
    let planted = |plant: &&crate::config::Plant| plant.call == name && plant.number.is_none_or(|n| n == *number);
    let act = p.driver.config.plants.iter().find(planted).map(|plant| plant.act);
    match act {
        Some(Act::Ignore) => return Code::SUCCESS,
        Some(Act::Fail) => return Code(999),
        Some(Act::Free) => {
            if let Some(first) = p.driver.first_allocation() {
                let _ = p.driver.free(first);
            }
        }
        Some(Act::Halve) | None => {}
    }
    code(body(&mut p.driver, act == Some(Act::Halve)))
}

/// A call that needs the context and a device that has not faulted.
fn on_device(name: &'static str, body: impl FnOnce(&mut Driver, bool) -> Done) -> Code {
    on_driver(name, |d, halve| {
        if !CURRENT.get() {
            d.report.fault(format!("{name} without a current context"));
            return Err(Code::INVALID_CONTEXT);
        }
        d.broken().map_or(Ok(()), Err)?;
        body(d, halve)
    })
}

/// Writes a result where the caller wants it.
fn put<T>(to: *mut T, value: T) -> Done {
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller passes the address of a value of this type, as the driver's interface asks.
    unsafe { to.write(value) };
    Ok(())
}

fn text<'a>(from: *const c_char) -> Result<&'a str, Code> {
    if from.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller passes a string that ends with a zero byte.
    unsafe { CStr::from_ptr(from) }.to_str().map_err(|_| Code::INVALID_VALUE)
}

// ---- initialisation, device, context

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Code {
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    if process.is_none() {
        match Config::from_environment() {
            Ok(config) => *process = Some(Process { driver: Driver::new(config), calls: HashMap::new() }),
            Err(reason) => {
                eprintln!("driver stand-in: {reason}");
                return Code::INVALID_VALUE;
            }
        }
        // SAFETY: the function is there until the process ends: whoever calls `cuInit` keeps the library.
        unsafe { atexit(shut_down) };
    }
    Code::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    code(put(version, 13000))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    on_driver("cuDeviceGetCount", |d, _| put(count, d.config.devices))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    on_driver("cuDeviceGet", |d, _| if (0..d.config.devices).contains(&ordinal) { put(device, ordinal) } else { Err(Code::INVALID_DEVICE) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetName(name: *mut c_char, bytes: c_int, _device: c_int) -> Code {
    on_driver("cuDeviceGetName", |d, _| {
        let text = d.config.name();
        let room = usize::try_from(bytes).ok().and_then(|n| n.checked_sub(1)).ok_or(Code::INVALID_VALUE)?;
        for (i, byte) in text.bytes().take(room).chain([0]).enumerate() {
            put(name.wrapping_add(i).cast::<u8>(), byte)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Code {
    on_driver("cuDeviceTotalMem_v2", |d, _| put(bytes, d.config.memory as usize))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, _device: c_int) -> Code {
    on_driver("cuDeviceGetAttribute", |d, _| {
        let known = match attribute {
            1 => 1024,
            8 => 48 * 1024,
            10 => 32,
            16 => 132,
            75 => d.config.chip.0,
            76 => d.config.chip.1,
            97 => d.config.shared_limit() as c_int,
            _ => {
                d.report.fault(format!("device attribute {attribute} is not known"));
                return Err(Code::INVALID_VALUE);
            }
        };
        put(value, known)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, _device: c_int) -> Code {
    on_driver("cuDevicePrimaryCtxRetain", |d, _| {
        d.retain();
        put(context, CONTEXT)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Code {
    on_driver("cuDevicePrimaryCtxRelease_v2", |d, _| d.release())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: u64) -> Code {
    on_driver("cuCtxSetCurrent", |_, _| {
        CURRENT.set(context == CONTEXT);
        if context == CONTEXT || context == 0 { Ok(()) } else { Err(Code::INVALID_CONTEXT) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    on_device("cuCtxSynchronize", |d, _| d.synchronize_all())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> Code {
    code(Code(error).texts().ok_or(Code::INVALID_VALUE).and_then(|(n, _)| put(name, n.as_ptr())))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(error: u32, string: *mut *const c_char) -> Code {
    code(Code(error).texts().ok_or(Code::INVALID_VALUE).and_then(|(_, t)| put(string, t.as_ptr())))
}

// ---- memory

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    on_device("cuMemGetInfo_v2", |d, _| {
        let (f, t) = d.memory_info();
        put(free, f as usize)?;
        put(total, t as usize)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    on_device("cuMemAlloc_v2", |d, halve| {
        let at = d.allocate(if halve { bytes / 2 } else { bytes } as u64)?;
        put(address, at)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Code {
    on_device("cuMemFree_v2", |d, _| d.free(address))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostAlloc(address: *mut u64, bytes: usize, _flags: c_uint) -> Code {
    on_device("cuMemHostAlloc", |d, halve| {
        let at = d.allocate_host(if halve { bytes / 2 } else { bytes } as u64)?;
        put(address, at)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: u64) -> Code {
    on_device("cuMemFreeHost", |d, _| d.free_host(address))
}

fn bytes_of(bytes: usize, halve: bool) -> u64 {
    if halve { bytes as u64 / 2 } else { bytes as u64 }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) -> Code {
    on_device("cuMemcpyHtoD_v2", |d, halve| d.copy_now(Work::ToDevice { to, from, bytes: bytes_of(bytes, halve) }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) -> Code {
    on_device("cuMemcpyDtoH_v2", |d, halve| d.copy_now(Work::ToHost { to, from, bytes: bytes_of(bytes, halve) }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> Code {
    on_device("cuMemcpyHtoDAsync_v2", |d, halve| d.enqueue(stream, Work::ToDevice { to, from, bytes: bytes_of(bytes, halve) }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> Code {
    on_device("cuMemcpyDtoHAsync_v2", |d, halve| d.enqueue(stream, Work::ToHost { to, from, bytes: bytes_of(bytes, halve) }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: u64) -> Code {
    on_device("cuMemsetD8Async", |d, halve| d.enqueue(stream, Work::Fill { to, bytes: bytes_of(bytes, halve), value }))
}

/// On a GPU this one returns before the bytes are set, in the order of the default stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(to: u64, value: u8, bytes: usize) -> Code {
    on_device("cuMemsetD8_v2", |d, halve| d.enqueue(0, Work::Fill { to, bytes: bytes_of(bytes, halve), value }))
}

// ---- streams and events

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(stream: *mut u64, flags: c_uint) -> Code {
    on_device("cuStreamCreate", |d, _| {
        let handle = d.create_stream(flags & 1 == 0);
        put(stream, handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: u64) -> Code {
    on_device("cuStreamDestroy_v2", |d, _| d.destroy_stream(stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: u64) -> Code {
    on_device("cuStreamSynchronize", |d, _| d.synchronize_stream(stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: u64) -> Code {
    on_device("cuStreamQuery", |d, _| d.query_stream(stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) -> Code {
    on_device("cuStreamWaitEvent", |d, _| d.wait_event(stream, event))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(event: *mut u64, _flags: c_uint) -> Code {
    on_device("cuEventCreate", |d, _| {
        let handle = d.create_event();
        put(event, handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: u64) -> Code {
    on_device("cuEventDestroy_v2", |d, _| d.destroy_event(event))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: u64, stream: u64) -> Code {
    on_device("cuEventRecord", |d, _| d.record(event, stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: u64) -> Code {
    on_device("cuEventSynchronize", |d, _| d.synchronize_event(event))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: u64) -> Code {
    on_device("cuEventQuery", |d, _| d.query_event(event))
}

// ---- graphs

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: u64, _mode: c_uint) -> Code {
    on_device("cuStreamBeginCapture_v2", |d, _| d.begin_capture(stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamEndCapture(stream: u64, graph: *mut u64) -> Code {
    on_device("cuStreamEndCapture", |d, _| {
        let handle = d.end_capture(stream)?;
        put(graph, handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamIsCapturing(stream: u64, status: *mut c_uint) -> Code {
    on_device("cuStreamIsCapturing", |d, _| {
        let capturing = d.is_capturing(stream)?;
        put(status, c_uint::from(capturing))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphInstantiateWithFlags(executable: *mut u64, graph: u64, _flags: c_ulonglong) -> Code {
    on_device("cuGraphInstantiateWithFlags", |d, _| {
        let handle = d.instantiate(graph)?;
        put(executable, handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(executable: u64, stream: u64) -> Code {
    on_device("cuGraphLaunch", |d, _| d.launch_graph(executable, stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: u64) -> Code {
    on_device("cuGraphDestroy", |d, _| d.destroy_graph(graph))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(executable: u64) -> Code {
    on_device("cuGraphExecDestroy", |d, _| d.destroy_executable(executable))
}

// ---- modules and kernels

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadData(module: *mut u64, image: *const c_char) -> Code {
    on_device("cuModuleLoadData", |d, _| {
        let handle = d.load(text(image)?)?;
        put(module, handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadDataEx(
    module: *mut u64,
    image: *const c_char,
    _count: c_uint,
    _options: *mut c_uint,
    _values: *mut *mut c_void,
) -> Code {
    cuModuleLoadData(module, image)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: u64) -> Code {
    on_device("cuModuleUnload", |d, _| d.unload(module))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) -> Code {
    on_device("cuModuleGetFunction", |d, _| {
        let handle = d.function(module, text(name)?)?;
        put(function, handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: u64, attribute: c_uint, value: c_int) -> Code {
    const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_uint = 8;
    on_device("cuFuncSetAttribute", |d, _| {
        if attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES { d.permit_shared(function, value) } else { Err(Code::NOT_SUPPORTED) }
    })
}

/// The values of a launch's parameters, as many bytes of each as the PTX declares.
fn parameters(d: &mut Driver, function: u64, from: *mut *mut c_void) -> Result<Vec<u64>, Code> {
    let mut values = vec![];
    for (i, bytes) in d.parameter_sizes(function)?.into_iter().enumerate() {
        if from.is_null() || bytes > 8 {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller passes an address for each parameter that the entry has; its array ends no earlier.
        let address = unsafe { from.add(i).read() };
        if address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let mut value = [0; 8];
        // SAFETY: the address is that of a value of the parameter's size.
        unsafe { std::ptr::copy_nonoverlapping(address.cast::<u8>(), value.as_mut_ptr(), bytes) };
        values.push(u64::from_le_bytes(value));
    }
    Ok(values)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: u64,
    values: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Code {
    on_device("cuLaunchKernel", |d, _| {
        if !extra.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let values = parameters(d, function, values)?;
        d.launch(stream, function, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared, values)
    })
}
