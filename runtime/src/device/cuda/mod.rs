//! NVIDIA GPUs through the driver API, loaded at run time.
//!
//! One allocation of the planned bytes, one module for each kernel. Three streams that events order: batches in, kernels, results
//! out. Each range of steps is captured once as a graph and launched as one from then on. Nothing here waits for the GPU but
//! [`CudaDevice::fetched`], [`CudaDevice::read`] and a full staging ring.

mod device;
mod handles;
mod staging;

pub(crate) use device::CudaDevice;

use super::DeviceInfo;
use crate::Error;
use crate::plan::Plan;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use sys::CUdevice_attribute as Attribute;

/// Says what failed and what the driver calls it.
fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| Error::Device(format!("{what} failed: {}", reason(&e)))
}

/// The driver's words for an error.
fn reason(e: &DriverError) -> String {
    match e.error_string() {
        Ok(text) => format!("{} ({:?})", text.to_string_lossy(), e.0),
        Err(_) => format!("{:?}", e.0),
    }
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

/// The chips whose PTX a GPU runs, best first, by compute capability.
fn archs_of(capability: (i32, i32)) -> &'static [&'static str] {
    match capability {
        // PTX for a plain chip runs on every later one; sm_90a's on Hopper alone.
        (9, 0) => &["sm_90a", "sm_89"],
        (major, minor) if (major, minor) >= (8, 9) => &["sm_89"],
        _ => &[],
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

/// Compute capability.
fn capability(device: sys::CUdevice) -> Result<(i32, i32), Error> {
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
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
            arch: archs_of(capability(device)?).first().map(|a| a.to_string()),
            threads: None,
        })
    };
    (0..count().unwrap_or(0)).filter_map(|n| info(n).ok()).collect()
}

/// The best chip that a plan has launches of every kernel for, of those whose code a GPU runs.
fn code_for(plan: &Plan, capability: (i32, i32)) -> Option<&'static str> {
    let has = |arch: &&&str| !plan.kernels.is_empty() && plan.kernels.iter().all(|k| k.launches.contains_key(**arch));
    archs_of(capability).iter().find(has).copied()
}

/// The first GPU that the plan has code for.
pub(super) fn first_for(plan: &Plan) -> Option<usize> {
    let suits = |&n: &usize| handle(n).and_then(capability).is_ok_and(|c| code_for(plan, c).is_some());
    (0..count().ok()?).find(suits)
}

/// A GPU and the chip whose code of the plan it runs.
fn choose(plan: &Plan, ordinal: usize) -> Result<(sys::CUdevice, &'static str), Error> {
    let present = count()?;
    if ordinal >= present {
        return Err(Error::Device(format!("there is no GPU {ordinal}; the driver sees {present}")));
    }
    let device = handle(ordinal)?;
    let (major, minor) = capability(device)?;
    if let Some(arch) = code_for(plan, (major, minor)) {
        return Ok((device, arch));
    }
    let name = result::device::get_name(device).map_err(failed("asking the GPU"))?;
    let archs = archs_of((major, minor));
    Err(Error::Device(match archs {
        [] => format!("GPU {ordinal} ({name}) has compute capability {major}.{minor}; plans run on 8.9 and later"),
        _ => format!("the plan holds no code for GPU {ordinal} ({name}), which runs {}", archs.join(" or ")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_chips_run_the_portable_ptx_and_earlier_ones_none() {
        assert_eq!(archs_of((8, 9)), ["sm_89"]);
        assert_eq!(archs_of((9, 0)), ["sm_90a", "sm_89"]);
        assert_eq!(archs_of((12, 0)), ["sm_89"]);
        assert!(archs_of((8, 6)).is_empty() && archs_of((8, 0)).is_empty());
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
