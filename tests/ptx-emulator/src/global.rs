//! Global memory: allocations at addresses, whose contents outlive a launch.

use crate::memory::{Contents, Region};

struct Allocation {
    address: u64,
    region: Region,
}

impl Allocation {
    fn end(&self) -> u64 {
        self.address + self.region.bytes.len() as u64
    }
}

/// Neighbouring bytes that a launch touched in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub address: u64,
    pub bytes: u64,
    /// Written, and perhaps read; else only read.
    pub writes: bool,
}

/// Allocations that do not overlap.
#[derive(Default)]
pub struct Global {
    /// Ascending.
    allocations: Vec<Allocation>,
    accesses: Vec<Access>,
}

impl Global {
    /// Adds an allocation.
    ///
    /// # Errors
    /// A sentence when it overlaps another one or the end of the address space.
    pub fn insert(&mut self, address: u64, bytes: Vec<u8>, contents: Contents) -> Result<(), String> {
        let end = address.checked_add(bytes.len() as u64).ok_or("an allocation beyond the last address")?;
        let at = self.allocations.partition_point(|a| a.address < address);
        let overlaps = at > 0 && self.allocations[at - 1].end() > address || self.allocations.get(at).is_some_and(|a| a.address < end);
        if overlaps {
            return Err(format!("an allocation at {address:#x} overlaps another one"));
        }
        self.allocations.insert(at, Allocation { address, region: Region::new(bytes, contents) });
        Ok(())
    }

    /// Removes the allocation that starts at an address and gives its bytes.
    pub fn remove(&mut self, address: u64) -> Option<Vec<u8>> {
        let at = self.allocations.iter().position(|a| a.address == address)?;
        Some(self.allocations.remove(at).region.bytes)
    }

    /// Address and size of each allocation, ascending.
    pub fn allocations(&self) -> impl Iterator<Item = (u64, u64)> {
        self.allocations.iter().map(|a| (a.address, a.region.bytes.len() as u64))
    }

    /// The allocation that an address belongs to, and the offset within.
    pub(crate) fn region(&mut self, address: u64) -> Result<(&mut Region, u64), String> {
        let after = self.allocations.partition_point(|a| a.address <= address);
        let found = self.allocations[..after].last_mut().filter(|a| address <= a.end());
        let found = found.ok_or_else(|| format!("address {address:#x} belongs to no allocation"))?;
        Ok((&mut found.region, address - found.address))
    }

    /// Copies bytes out, all of them from one allocation and defined.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn read(&mut self, address: u64, to: &mut [u8]) -> Result<(), String> {
        let (region, at) = self.region(address)?;
        region.copy_out(at, to)
    }

    /// Copies bytes in, all of them to one allocation.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let (region, at) = self.region(address)?;
        region.copy_in(at, bytes)
    }

    /// Sets bytes of one allocation.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn fill(&mut self, address: u64, bytes: u64, value: u8) -> Result<(), String> {
        let (region, at) = self.region(address)?;
        region.fill(at, bytes, value)
    }

    /// Forgets which thread touched what: a launch is over. What it touched is kept for [`Global::take_accesses`].
    pub(crate) fn settle(&mut self) {
        self.accesses.clear();
        for a in &mut self.allocations {
            let runs = a.region.settle().into_iter();
            self.accesses.extend(runs.map(|(at, n, writes)| Access { address: a.address + at as u64, bytes: n as u64, writes }));
        }
    }

    /// What the last launch touched.
    pub fn take_accesses(&mut self) -> Vec<Access> {
        std::mem::take(&mut self.accesses)
    }
}
