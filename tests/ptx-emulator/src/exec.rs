//! Clusters of blocks: their memory and the order in which their warps run.

use crate::barriers::{BulkCopy, ClusterBarrier, MBarrier, Named, Place, SHARED_WINDOW};
use crate::clock::{Agent, Clocks, Order};
use crate::counts::Counts;
use crate::global::Global;
use crate::memory::{Actor, Contents, Path, Region};
use crate::parse::{Entry, Program, Space};
use crate::warp::{LANES, Stop, Warp};
use crate::{Fault, Launch};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Registers of a multiprocessor.
const REGISTERS: u64 = 65536;
/// Registers that a thread can name.
const REGISTERS_MAX: u64 = 255;

/// What the threads of a cluster share.
pub(crate) struct Cluster<'g> {
    pub global: &'g mut Global,
    /// One for each block.
    pub shared: Vec<Region>,
    pub clocks: Clocks,
    pub counts: &'g mut Counts,
    pub mbarriers: BTreeMap<Place, MBarrier>,
    pub barriers_made: usize,
    pub copies: Vec<BulkCopy>,
    /// By block and number.
    pub named: HashMap<(usize, u64), Named>,
    /// Warps that may leave their `bar`.
    pub released: HashSet<usize>,
    pub cluster: ClusterBarrier,
    /// Registers that no warp of a block holds.
    pub registers: Vec<u64>,
    /// What the warps of each warpgroup have to execute alike: line and operands.
    pub alike: Vec<Vec<(usize, u64, u64)>>,
}

impl Cluster<'_> {
    fn aligned(address: u64, align: usize) -> Result<(), String> {
        if address.is_multiple_of(align as u64) { Ok(()) } else { Err(format!("address {address:#x} is not a multiple of {align}")) }
    }

    pub fn read(&mut self, space: Space, block: usize, address: u64, size: usize, slot: usize) -> Result<u128, String> {
        Self::aligned(address, size)?;
        self.with(space, block, address, slot, |region, at, by| region.read(at, size, by))
    }

    pub fn write(&mut self, space: Space, block: usize, address: u64, size: usize, value: u128, slot: usize) -> Result<(), String> {
        Self::aligned(address, size)?;
        self.with(space, block, address, slot, |region, at, by| region.write(at, size, value, by))
    }

    fn with<T>(
        &mut self,
        space: Space,
        block: usize,
        address: u64,
        slot: usize,
        access: impl FnOnce(&mut Region, u64, &Actor<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let (agent, order) = (self.clocks.thread(slot), self.clocks.of(slot));
        let by = Actor { agent, order, clocks: &self.clocks, path: Path::Generic };
        if space == Space::Global {
            let (region, at) = self.global.region(address)?;
            return access(region, at, &by);
        }
        let (block, at) = self.place(block, address)?;
        access(&mut self.shared[block], at, &by)
    }

    /// Accesses a block's shared memory on behalf of a thread.
    pub fn with_shared<T>(
        &mut self,
        block: usize,
        slot: usize,
        path: Path,
        access: impl FnOnce(&mut Region, &Actor<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let (agent, order) = (self.clocks.thread(slot), self.clocks.of(slot));
        access(&mut self.shared[block], &Actor { agent, order, clocks: &self.clocks, path })
    }

    /// Reads what a bulk copy brings, on behalf of the thread that issued it.
    pub fn global_bulk(&mut self, from: u64, size: usize, issuer: Agent, order: &Order) -> Result<Vec<u8>, String> {
        self.counts.global_reads.request(&[(from, size as u64)]);
        let by = Actor { agent: issuer, order, clocks: &self.clocks, path: Path::Bulk };
        let (region, at) = self.global.region(from)?;
        region.read_bulk(at, size, &by)
    }
}

/// Runs all blocks of a launch, cluster after cluster.
pub(crate) fn run(program: &Program, launch: &Launch<'_>, parameters: &[u64], global: &mut Global) -> Result<Counts, Fault> {
    let fault = |reason: String| Fault { line: 0, reason };
    let entry = program.entries.get(launch.entry).ok_or_else(|| fault(format!("no entry {}", launch.entry)))?;
    let (want, have) = (entry.parameters.len(), parameters.len());
    if want != have || !launch.threads.is_multiple_of(32) {
        return Err(fault(format!("{want} parameters and {have} values, {} threads", launch.threads)));
    }
    let size = entry.cluster;
    if !launch.blocks.is_multiple_of(size) {
        return Err(fault(format!("{} blocks in clusters of {size}", launch.blocks)));
    }
    let mut counts = Counts::default();
    // Any order of blocks is right; an unusual one finds more.
    let result = (0..launch.blocks / size).rev().try_for_each(|cluster| {
        let first = cluster * size;
        run_cluster(entry, launch, parameters, [cluster, first, size], global, &mut counts)
    });
    global.settle();
    result.map(|()| counts)
}

fn run_cluster(
    entry: &Entry,
    launch: &Launch<'_>,
    parameters: &[u64],
    [number, first, size]: [u32; 3],
    global: &mut Global,
    counts: &mut Counts,
) -> Result<(), Fault> {
    let bytes = entry.shared + launch.shared_bytes as usize;
    if bytes >= 1 << SHARED_WINDOW {
        return Err(Fault { line: 0, reason: format!("{bytes} bytes of shared memory") });
    }
    let warps = (launch.threads / 32) as usize;
    // What the assembler may give a thread, in steps of 8.
    let held = (REGISTERS / launch.threads.max(1) as u64).min(REGISTERS_MAX) / 8 * 8;
    let mut cluster = Cluster {
        global,
        shared: (0..size).map(|_| Region::new(vec![0; bytes], Contents::Undefined)).collect(),
        clocks: Clocks::new(number, warps * LANES * size as usize),
        counts,
        mbarriers: BTreeMap::new(),
        barriers_made: 0,
        copies: vec![],
        named: HashMap::new(),
        released: HashSet::new(),
        cluster: ClusterBarrier::default(),
        registers: vec![REGISTERS - held * u64::from(launch.threads); size as usize],
        alike: vec![vec![]; warps.div_ceil(4) * size as usize],
    };
    let warp = |w: usize| Warp::new(entry, parameters, first, [w / warps, w % warps, warps], held);
    let mut all: Vec<Warp<'_>> = (0..warps * size as usize).map(warp).collect();
    loop {
        let before = cluster.counts.instructions;
        let mut stops = Vec::with_capacity(all.len());
        for warp in all.iter_mut().rev() {
            stops.push(warp.run(&mut cluster)?);
        }
        if stops.iter().all(|s| matches!(s, Stop::Returned)) {
            return finish(&cluster, &all);
        }
        if cluster.counts.instructions == before
            && let Some((line, reason)) = stops.into_iter().find_map(|s| if let Stop::Waits(l, r) = s { Some((l, r)) } else { None })
        {
            return Err(Fault { line, reason });
        }
    }
}

/// What must not be left when all threads have returned.
fn finish(cluster: &Cluster<'_>, warps: &[Warp<'_>]) -> Result<(), Fault> {
    let fault = |line: usize, reason: &str| Err(Fault { line, reason: reason.into() });
    if !cluster.copies.is_empty() {
        return fault(0, "a bulk copy that nobody waited for");
    }
    for warp in warps {
        if let Some(&(line, _, _)) = cluster.alike[warp.group()].get(warp.alike) {
            return fault(line, "not all warps of the warpgroup execute this");
        }
    }
    Ok(())
}
