//! `libcuda.so` for a machine without a GPU: the driver's entry points over the PTX interpreter.
//!
//! A program that loads the driver at run time finds this library under the driver's name through `LD_LIBRARY_PATH` and notices no
//! difference but speed. Where a GPU is lenient, the stand-in is strict:
//!
//! * Operations of streams and graphs run when the host waits for something that needs them, and not before; which of several may run
//!   next is drawn by lot, from a seed. Host memory of a copy is read when the copy runs, and poisoned until it has been filled.
//! * Accesses of the same bytes by operations that nothing orders are a race, in whatever order they ran.
//! * Each access of a kernel is checked against its allocation; what nobody wrote may not be read; kernels are held to all that the
//!   interpreter checks.
//! * Memory that is freed early or twice, handles that no longer exist, calls that a capture does not permit, waits for events that
//!   were never recorded, and whatever is left behind at the end are reported.
//!
//! `config` lists the environment variables that choose the device and plant faults; `report` is what tests read.

mod codes;
mod config;
mod driver;
mod entry;
mod kernels;
mod order;
mod queue;
mod report;

pub use codes::Code;
pub use config::{Act, Config, Plant};
pub use driver::Driver;
pub use queue::Work;
pub use report::Report;
