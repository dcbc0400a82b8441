//! Blocks and barriers.

use crate::global::Global;
use crate::memory::{Actor, Contents, Region};
use crate::parse::{Entry, Program, Space};
use crate::warp::{Stop, Warp};
use crate::{Fault, Launch};

/// Memory that the threads of a block reach.
pub(crate) struct Memory<'g> {
    pub global: &'g mut Global,
    pub shared: Region,
    /// Values of the entry's parameters.
    pub parameters: &'g [u64],
}

impl Memory<'_> {
    fn region(&mut self, space: Space, address: u64) -> Result<(&mut Region, u64), String> {
        if space == Space::Shared {
            return Ok((&mut self.shared, address));
        }
        self.global.region(address)
    }

    fn aligned(address: u64, align: usize) -> Result<(), String> {
        if address.is_multiple_of(align as u64) { Ok(()) } else { Err(format!("address {address:#x} is not a multiple of {align}")) }
    }

    pub fn read(&mut self, space: Space, address: u64, size: usize, by: Actor) -> Result<u128, String> {
        Self::aligned(address, size)?;
        let (region, at) = self.region(space, address)?;
        region.read(at, size, by)
    }

    pub fn write(&mut self, space: Space, address: u64, size: usize, value: u128, by: Actor) -> Result<(), String> {
        Self::aligned(address, size)?;
        let (region, at) = self.region(space, address)?;
        region.write(at, size, value, by)
    }
}

/// Runs all blocks of a launch, one after the other.
pub(crate) fn run(program: &Program, launch: &Launch<'_>, parameters: &[u64], global: &mut Global) -> Result<(), Fault> {
    let fault = |reason: String| Fault { line: 0, reason };
    let entry = program.entries.get(launch.entry).ok_or_else(|| fault(format!("no entry {}", launch.entry)))?;
    let want = entry.parameters.len();
    if want != parameters.len() {
        return Err(fault(format!("{} parameters where entry {} has {want}", parameters.len(), launch.entry)));
    }
    if !launch.threads.is_multiple_of(32) {
        return Err(fault(format!("{} threads, which are not whole warps", launch.threads)));
    }
    let shared = vec![0; entry.shared + launch.shared_bytes as usize];
    let mut memory = Memory { global, shared: Region::new(shared, Contents::Undefined), parameters };
    // Any order of blocks is right; an unusual one finds more.
    let result = (0..launch.blocks).rev().try_for_each(|block| {
        memory.shared.reset();
        run_block(entry, launch, block, &mut memory)
    });
    memory.global.settle();
    result
}

fn run_block(entry: &Entry, launch: &Launch<'_>, block: u32, memory: &mut Memory<'_>) -> Result<(), Fault> {
    let mut warps: Vec<Warp<'_>> = (0..launch.threads / 32).map(|w| Warp::new(entry, block, w, launch.threads)).collect();
    loop {
        let mut stops = Vec::with_capacity(warps.len());
        for warp in warps.iter_mut().rev() {
            stops.push(warp.run(memory)?);
        }
        if stops.iter().all(|s| *s == Stop::Returned) {
            return Ok(());
        }
        let waiting = stops.iter().find_map(|s| if let Stop::Barrier(line) = s { Some(*line) } else { None });
        if let Some(line) = waiting.filter(|_| stops.iter().any(|s| *s != stops[0])) {
            return Err(Fault { line, reason: "a barrier that not all threads of the block reach".into() });
        }
        warps.iter_mut().for_each(Warp::release);
    }
}
