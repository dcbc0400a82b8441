//! Counts as a profiler makes them.

use std::collections::BTreeMap;

/// Bytes of a sector of global memory.
const SECTOR: u64 = 32;
/// Bytes that shared memory serves at a time.
const WAVE: u64 = 128;
const BANKS: usize = 32;

/// Accesses of one kind to global memory; one request is one instruction of one warp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: u64,
    /// Distinct bytes of each request.
    pub bytes: u64,
    /// 32-byte sectors touched.
    pub sectors: u64,
    /// Sectors that as many contiguous, aligned bytes would touch.
    pub least_sectors: u64,
}

/// Accesses to shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Banks {
    pub requests: u64,
    pub bytes: u64,
    /// Passes over the banks that the requests took.
    pub waves: u64,
    /// Passes without conflicts.
    pub least_waves: u64,
}

impl Banks {
    /// Passes that conflicts added.
    pub fn conflicts(&self) -> u64 {
        self.waves - self.least_waves
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions, one for each warp that executes them.
    pub instructions: u64,
    pub global_reads: Traffic,
    pub global_writes: Traffic,
    pub shared: Banks,
    pub bulk_copies: u64,
    /// Multiplications with their additions on tensor cores, by instruction.
    pub products: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Adds another launch's.
    pub fn add(&mut self, other: &Counts) {
        self.instructions += other.instructions;
        self.global_reads.add(&other.global_reads);
        self.global_writes.add(&other.global_writes);
        let (a, b) = (&mut self.shared, &other.shared);
        (a.requests, a.bytes, a.waves, a.least_waves) =
            (a.requests + b.requests, a.bytes + b.bytes, a.waves + b.waves, a.least_waves + b.least_waves);
        self.bulk_copies += other.bulk_copies;
        other.products.iter().for_each(|(name, n)| *self.products.entry(name).or_default() += n);
    }

    pub(crate) fn product(&mut self, name: &'static str, operations: u64) {
        *self.products.entry(name).or_default() += operations;
    }
}

impl Traffic {
    fn add(&mut self, other: &Traffic) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
        self.least_sectors += other.least_sectors;
    }

    /// A request of one warp: address and bytes of each lane that takes part.
    pub(crate) fn request(&mut self, lanes: &[(u64, u64)]) {
        if lanes.is_empty() {
            return;
        }
        let mut sorted = lanes.to_vec();
        sorted.sort_unstable();
        let (mut bytes, mut sectors, mut end, mut last) = (0, 0, 0, None);
        for (at, size) in sorted {
            bytes += (at + size).saturating_sub(end.max(at));
            end = end.max(at + size);
            for sector in at / SECTOR..=(at + size - 1) / SECTOR {
                if last.is_none_or(|l| sector > l) {
                    sectors += 1;
                    last = Some(sector);
                }
            }
        }
        let least = bytes.div_ceil(SECTOR);
        self.add(&Traffic { requests: 1, bytes, sectors, least_sectors: least });
    }
}

impl Banks {
    /// A request of one warp. Accesses of 8 and 16 bytes go by half and quarter warps.
    pub(crate) fn request(&mut self, lanes: &[(u64, u64)]) {
        let Some(size) = lanes.iter().map(|l| l.1).max() else { return };
        self.requests += 1;
        for group in lanes.chunks((WAVE / size.max(4)) as usize) {
            let mut words: Vec<u64> = group.iter().flat_map(|&(at, size)| at / 4..=(at + size - 1) / 4).collect();
            words.sort_unstable();
            words.dedup();
            let mut of_bank = [0u64; BANKS];
            words.iter().for_each(|w| of_bank[*w as usize % BANKS] += 1);
            self.waves += of_bank.iter().max().copied().unwrap_or(0);
            self.least_waves += (words.len() as u64).div_ceil(BANKS as u64);
            self.bytes += words.len() as u64 * 4;
        }
    }
}
