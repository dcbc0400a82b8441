//! Interprets PTX text, instruction by instruction and lane by lane, on a machine without a GPU.
//!
//! It knows the subset that fp8c's generators emit and says so when it meets anything else. It is also a sanitizer: an access out of
//! bounds or misaligned, a read of what nobody wrote, two threads that touch a byte with nothing in between to order them, a read of an
//! asynchronous copy before its wait, a barrier or a warp-wide instruction that not all threads reach: each is a [`Fault`] that names the
//! line. So are an accumulator or an operand touched while a `wgmma` uses it, generic writes that no proxy fence separates from the
//! asynchronous proxy, and waits that never end. Whatever is asynchronous lands as late as the program permits: a bulk copy when somebody
//! waits for its `mbarrier` and nothing else is missing, a `wgmma` at the wait for its group.
//!
//! Arithmetic is IEEE's, as PTX has it for the rounded forms; `mma` and `wgmma` sum the products of one instruction exactly (in f64) and
//! round once, which real tensor cores do not promise.

mod barriers;
mod clock;
mod counts;
mod exec;
mod float;
mod global;
mod lanes;
mod memory;
mod ops;
mod parse;
mod products;
mod readers;
mod warp;
mod wide;

pub use counts::{Banks, Counts, Traffic};
pub use global::{Access, Global};
pub use memory::{Buffer, Contents};
pub use parse::Program;

/// Why a run ended early: the program's fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line of the PTX text, from 1; 0 where it is the launch's or a block's as a whole.
    pub line: usize,
    pub reason: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for Fault {}

/// The shape of a launch; grids and blocks are one-dimensional, clusters as the entry requires them (`.reqnctapercluster`).
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    pub entry: &'a str,
    pub blocks: u32,
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared_bytes: u32,
}

/// Bits of an address below the number of its buffer: far apart, so that an access beyond a buffer is in none.
const BUFFER_SHIFT: u32 = 40;

/// Runs an entry on global memory, given the values of its parameters.
///
/// # Errors
/// A [`Fault`], after which the memory holds whatever was written until then.
pub fn launch(program: &Program, launch: &Launch<'_>, parameters: &[u64], global: &mut Global) -> Result<Counts, Fault> {
    exec::run(program, launch, parameters, global)
}

/// [`launch`] with the addresses of `buffers` as parameters, each an allocation of its own.
///
/// # Errors
/// A [`Fault`], after which the buffers hold whatever was written until then.
pub fn run(program: &Program, launch: &Launch<'_>, buffers: &mut [Buffer]) -> Result<Counts, Fault> {
    let (mut global, mut parameters) = (Global::default(), vec![]);
    for (n, b) in buffers.iter_mut().enumerate() {
        let address = (n as u64 + 1) << BUFFER_SHIFT;
        let inserted = global.insert(address, std::mem::take(&mut b.bytes), b.contents);
        inserted.map_err(|reason| Fault { line: 0, reason })?;
        parameters.push(address);
    }
    let result = exec::run(program, launch, &parameters, &mut global);
    for (b, address) in buffers.iter_mut().zip(parameters) {
        b.bytes = global.remove(address).unwrap_or_default();
    }
    result
}
