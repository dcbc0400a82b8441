//! Where a plan's arena lies and its steps run.
//!
//! A device allocates its arena once, when it is opened, and nothing afterwards.

mod cpu;
mod cuda;
mod memory;
mod ptx;

use crate::Error;
use crate::plan::{ALIGN, PlanFile, TensorId};
use std::ops::Range;
use std::str::FromStr;

pub use memory::peak_rss_bytes;

/// Most threads of a CPU device.
pub const MAX_THREADS: usize = 1024;

/// Which device to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU that the plan has PTX for, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// A GPU by the driver's number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match (s, s.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(DeviceChoice::Auto),
            ("cpu", _) => Ok(DeviceChoice::Cpu),
            ("cuda", _) => Ok(DeviceChoice::Cuda(0)),
            (_, Some(Ok(n))) => Ok(DeviceChoice::Cuda(n)),
            _ => Err(Error::Usage(format!("{s:?} is no device: auto, cpu or cuda:N"))),
        }
    }
}

/// A device as `fp8c devices` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What `--device` takes.
    pub id: String,
    pub name: String,
    pub memory_bytes: u64,
    /// Memory that is free now, where it is known without disturbing the device.
    pub free_bytes: Option<u64>,
    /// The chip whose PTX runs there: `sm_89`, `sm_90a`.
    pub arch: Option<String>,
    /// Hardware threads of a CPU.
    pub threads: Option<usize>,
}

/// Lists the CPU and the GPUs that the driver sees. Without a driver the list has one entry.
pub fn devices() -> Vec<DeviceInfo> {
    let mut all = vec![DeviceInfo {
        id: "cpu".into(),
        name: memory::cpu_name(),
        memory_bytes: memory::total_bytes().unwrap_or(0),
        free_bytes: memory::available_bytes(),
        arch: None,
        threads: Some(cpu::hardware_threads()),
    }];
    all.extend(cuda::list());
    all
}

/// Bytes that [`Device::fetch`] copies at most.
pub(crate) const FETCH_BYTES: usize = 64;

/// What [`Device::fetch`] copied, from the start.
pub(crate) type Fetched = [u8; FETCH_BYTES];

/// An opened device with the arena of one plan.
pub(crate) enum Device {
    Cpu(cpu::CpuDevice),
    Cuda(cuda::CudaDevice),
}

impl Device {
    /// Allocates the arena, in which whatever outlives a step is zero, and prepares every step.
    pub fn open(choice: DeviceChoice, file: &PlanFile, threads: Option<usize>) -> Result<Self, Error> {
        match choice {
            DeviceChoice::Cpu => Ok(Device::Cpu(cpu::CpuDevice::open(file.plan(), threads)?)),
            DeviceChoice::Cuda(n) => Ok(Device::Cuda(cuda::CudaDevice::open(file, n)?)),
            DeviceChoice::Auto => match cuda::first_for(file.plan()) {
                Some(n) => Ok(Device::Cuda(cuda::CudaDevice::open(file, n)?)),
                None => Ok(Device::Cpu(cpu::CpuDevice::open(file.plan(), threads)?)),
            },
        }
    }

    /// The name that `--device` takes.
    pub fn id(&self) -> String {
        match self {
            Device::Cpu(_) => "cpu".into(),
            Device::Cuda(d) => format!("cuda:{}", d.ordinal()),
        }
    }

    /// Threads of the CPU's pool; 1 for a GPU.
    pub fn threads(&self) -> usize {
        match self {
            Device::Cpu(d) => d.threads(),
            Device::Cuda(_) => 1,
        }
    }

    /// Copies bytes into the arena, in order with the steps that run.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Device::Cpu(d) => d.write(offset, bytes),
            Device::Cuda(d) => d.write(offset, bytes),
        }
    }

    /// Copies bytes out of the arena, after every step so far.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        match self {
            Device::Cpu(d) => d.read(offset, bytes),
            Device::Cuda(d) => d.read(offset, bytes),
        }
    }

    /// Sets a range of the arena to zero.
    pub fn zero(&mut self, offset: u64, bytes: u64) -> Result<(), Error> {
        match self {
            Device::Cpu(d) => d.zero(offset, bytes),
            Device::Cuda(d) => d.zero(offset, bytes),
        }
    }

    /// Begins to copy at most [`FETCH_BYTES`] bytes, as they are after the steps so far: a GPU goes on meanwhile. Until
    /// [`Device::fetched`] no step may change the bytes.
    pub fn fetch(&mut self, offset: u64, bytes: usize) -> Result<(), Error> {
        match self {
            Device::Cpu(d) => d.fetch(offset, bytes),
            Device::Cuda(d) => d.fetch(offset, bytes),
        }
    }

    /// Waits for what [`Device::fetch`] began.
    pub fn fetched(&mut self) -> Result<Fetched, Error> {
        match self {
            Device::Cpu(d) => Ok(d.fetched()),
            Device::Cuda(d) => d.fetched(),
        }
    }

    /// Runs the steps at these positions of the flattened schedule, in order. A GPU may still be at it when this returns.
    pub fn run(&mut self, positions: Range<usize>) -> Result<(), Error> {
        match self {
            Device::Cpu(d) => d.run(positions),
            Device::Cuda(d) => d.run(positions),
        }
    }

    /// Waits for the steps so far.
    pub fn wait(&mut self) -> Result<(), Error> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(d) => d.wait(),
        }
    }

    /// One past the highest byte of the arena that a launch or a copy has touched so far, in whole units of [`ALIGN`].
    pub fn peak_bytes(&self) -> u64 {
        let touched = match self {
            Device::Cpu(d) => d.touched(),
            Device::Cuda(d) => d.touched(),
        };
        touched.next_multiple_of(ALIGN)
    }
}

/// One past the last byte that a step's tensors reach.
fn reach(plan: &crate::plan::Plan, step: &crate::plan::Step) -> u64 {
    let end = |id: &TensorId| plan.tensor(*id).offset + plan.tensor(*id).bytes;
    step.args.iter().chain(&step.scratch).map(end).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_parse_as_the_command_line_writes_them() {
        assert_eq!("cuda:3".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(3));
        assert_eq!("auto".parse::<DeviceChoice>().unwrap(), DeviceChoice::Auto);
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn the_cpu_is_always_listed() {
        let all = devices();
        assert_eq!(all[0].id, "cpu");
        assert!(all[0].threads.is_some_and(|n| n > 0));
    }
}
