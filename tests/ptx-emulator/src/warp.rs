//! Thirty-two lanes: divergence, waiting, what they do together.
//!
//! Of lanes at different instructions, those furthest behind in the text go first, which brings them together again after
//! structured divergence. Lanes at a warp-wide instruction wait until all stand at it; lanes at an `mbarrier` whose phase is not over
//! stay there and let the others pass.

use crate::Fault;
use crate::exec::Cluster;
use crate::lanes::Pending;
use crate::parse::{Address, Async, Entry, Instruction, Kind, Source};
use crate::products::Flights;
use std::collections::VecDeque;

pub(crate) const LANES: usize = 32;
/// Program counter of a lane that has returned.
const RETURNED: usize = usize::MAX;

/// Why a warp stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Returned,
    /// For another warp, at a line; and what to say if none ever comes.
    Waits(usize, String),
}

/// How far a warp-wide instruction got.
pub(crate) enum Turn {
    Done,
    /// Not yet: tried again when others have run.
    Waits(String),
}

pub(crate) struct Warp<'e> {
    pub entry: &'e Entry,
    pub parameters: &'e [u64],
    /// Register r of lane l at `r * 32 + l`.
    pub registers: Vec<u64>,
    at: [usize; LANES],
    /// Number of the cluster's first block in the grid, and of this warp's block in the cluster.
    pub first_block: u32,
    pub block: usize,
    /// Number in the cluster.
    pub index: usize,
    pub warps_of_block: usize,
    pub open: Vec<Vec<Pending>>,
    pub groups: Vec<VecDeque<Vec<Pending>>>,
    pub flights: Flights,
    /// Instructions executed that the warpgroup has to execute alike.
    pub alike: usize,
    /// Registers that each lane holds.
    pub held: u64,
    /// The `try_wait` that told each lane last that the phase is not over.
    pub tried: [usize; LANES],
    /// Whether it has arrived at the `bar` at which it stands.
    parked: bool,
    /// Waits at the cluster's barrier.
    cluster_waits: u32,
}

/// True for instructions that all lanes execute together.
fn is_wide(kind: &Kind) -> bool {
    match kind {
        Kind::Barrier { .. } | Kind::WarpBarrier | Kind::Shuffle { .. } | Kind::Ballot { .. } => true,
        Kind::Matrices { .. } | Kind::Mma { .. } => true,
        Kind::Async(a) => !matches!(
            a,
            Async::Init { .. }
                | Async::Invalidate { .. }
                | Async::Arrive { .. }
                | Async::Expect { .. }
                | Async::TryWait { .. }
                | Async::BulkCopy { .. }
                | Async::ProxyFence
                | Async::InitFence
                | Async::MapShared { .. }
        ),
        _ => false,
    }
}

pub(crate) type Step = Result<(), String>;

impl<'e> Warp<'e> {
    /// A warp at the start: number of its block in the cluster, of itself in the block, and of warps in a block.
    pub fn new(entry: &'e Entry, parameters: &'e [u64], first_block: u32, [block, number, warps_of_block]: [usize; 3], held: u64) -> Self {
        Warp {
            entry,
            parameters,
            registers: vec![0; entry.registers * LANES],
            at: [0; LANES],
            first_block,
            block,
            index: block * warps_of_block + number,
            warps_of_block,
            open: vec![vec![]; LANES],
            groups: vec![VecDeque::new(); LANES],
            flights: Flights::new(entry.registers),
            alike: 0,
            held,
            tried: [RETURNED; LANES],
            parked: false,
            cluster_waits: 0,
        }
    }

    /// Number among the warps of its block.
    pub fn number(&self) -> usize {
        self.index % self.warps_of_block
    }

    /// Number of its warpgroup in the cluster.
    pub fn group(&self) -> usize {
        self.block * self.warps_of_block.div_ceil(4) + self.number() / 4
    }

    /// Number of a lane among the threads of the cluster.
    pub fn slot(&self, lane: usize) -> usize {
        LANES * self.index + lane
    }

    /// Runs until it has to wait for another warp, or to the end.
    pub fn run(&mut self, cluster: &mut Cluster<'_>) -> Result<Stop, Fault> {
        // Lanes that wait for the others at a warp-wide instruction, and lanes at an mbarrier.
        let (mut waiting, mut blocked) = (0u32, 0u32);
        let mut stop = Stop::Returned;
        loop {
            let aside = waiting | blocked;
            if aside == 0
                && let Some((instruction, pc)) = self.converged()
            {
                let fault = |reason: String| Fault { line: instruction.line, reason };
                let stays = self.step(instruction, pc, u32::MAX, cluster).map_err(fault)?;
                if stays != 0 {
                    blocked |= stays;
                    stop = Stop::Waits(instruction.line, self.lacks(instruction, stays, cluster));
                }
                continue;
            }
            let free = (0..LANES).filter(|l| aside >> l & 1 == 0).map(|l| self.at[l]).min().unwrap_or(RETURNED);
            if free == RETURNED && (waiting == 0 || blocked != 0) {
                return Ok(stop);
            }
            let pc = if free == RETURNED { self.at.iter().copied().min().unwrap_or(RETURNED) } else { free };
            let Some(instruction) = self.entry.code.get(pc) else {
                return Err(Fault { line: 0, reason: "the code ends without a return".into() });
            };
            let fault = |reason: String| Fault { line: instruction.line, reason };
            let here = self.lanes_at(pc) & !blocked;
            if !is_wide(&instruction.kind) {
                let stays = self.step(instruction, pc, here, cluster).map_err(fault)?;
                if stays != 0 {
                    blocked |= stays;
                    stop = Stop::Waits(instruction.line, self.lacks(instruction, stays, cluster));
                }
                continue;
            }
            if here != u32::MAX && free != RETURNED {
                waiting |= here;
                continue;
            }
            if here != u32::MAX || instruction.guard.is_some() {
                return Err(fault(format!("a warp-wide instruction that only lanes {here:#010x} reach")));
            }
            waiting = 0;
            match self.wide(instruction, cluster).map_err(fault)? {
                Turn::Done => {
                    self.at = [pc + 1; LANES];
                    cluster.counts.instructions += 1;
                }
                Turn::Waits(reason) => return Ok(Stop::Waits(instruction.line, reason)),
            }
        }
    }

    /// The instruction at which all lanes stand, if it is not warp-wide.
    fn converged(&self) -> Option<(&'e Instruction, usize)> {
        let pc = self.at[0];
        let together = self.at.iter().all(|&p| p == pc);
        self.entry.code.get(pc).filter(|i| together && !is_wide(&i.kind)).map(|i| (i, pc))
    }

    fn lanes_at(&self, pc: usize) -> u32 {
        (0..LANES).filter(|&l| self.at[l] == pc).fold(0, |m, l| m | 1 << l)
    }

    fn lacks(&self, i: &Instruction, lanes: u32, cluster: &Cluster<'_>) -> String {
        let Kind::Async(Async::TryWait { at, .. }) = &i.kind else { return "a wait that never ends".into() };
        let place = cluster.place(self.block, self.address(*at, lanes.trailing_zeros() as usize));
        format!("a wait that never ends: {}", place.map(|p| cluster.lacks(p)).unwrap_or_default())
    }

    pub fn value(&self, s: Source, lane: usize) -> u64 {
        match s {
            Source::Register(r) => self.registers[r * LANES + lane],
            Source::Constant(c) => c,
        }
    }

    /// A value that all lanes have to agree on.
    pub fn uniform(&self, s: Source) -> Result<u64, String> {
        let value = self.value(s, 0);
        let agree = (1..LANES).all(|l| self.value(s, l) == value);
        if agree { Ok(value) } else { Err("lanes disagree on what has to be the same for all".into()) }
    }

    pub fn set(&mut self, register: usize, lane: usize, value: u64) {
        self.registers[register * LANES + lane] = value;
    }

    pub fn address(&self, a: Address, lane: usize) -> u64 {
        self.value(a.base, lane).wrapping_add(a.offset as u64)
    }

    /// An instruction of the lanes that stand at it; returns those that have to stay.
    fn step(&mut self, i: &Instruction, pc: usize, here: u32, cluster: &mut Cluster<'_>) -> Result<u32, String> {
        let taking = self.active(i.guard, here);
        let mut stays = 0u32;
        if here == u32::MAX {
            self.at = [pc + 1; LANES];
        } else {
            (0..LANES).filter(|l| here >> l & 1 == 1).for_each(|l| self.at[l] = pc + 1);
        }
        if taking != 0 && !i.touches.is_empty() {
            self.flights.touch(&i.touches)?;
        }
        if let Kind::Plain { op, to, from } = &i.kind {
            self.plain(*op, *to, from, taking);
            cluster.counts.instructions += 1;
            return Ok(0);
        }
        for lane in (0..LANES).filter(|l| taking >> l & 1 == 1) {
            match &i.kind {
                Kind::Branch { to } => self.at[lane] = *to,
                Kind::Return if !self.open[lane].is_empty() => return Err("copies that no group holds at the end".into()),
                Kind::Return if self.flights.any() => return Err("a wgmma that nobody waited for".into()),
                Kind::Return => self.at[lane] = RETURNED,
                Kind::Async(a) => {
                    if !self.lane_async(a, pc, lane, cluster)? {
                        self.at[lane] = pc;
                        stays |= 1 << lane;
                    }
                }
                kind => self.lane(kind, lane, cluster)?,
            }
        }
        self.count(i, taking, cluster);
        cluster.counts.instructions += (stays != here) as u64;
        Ok(stays)
    }

    /// An instruction of all lanes at once.
    fn wide(&mut self, i: &Instruction, cluster: &mut Cluster<'_>) -> Result<Turn, String> {
        if !i.touches.is_empty() {
            self.flights.touch(&i.touches)?;
        }
        match &i.kind {
            Kind::Barrier { number, threads, waits } => return self.bar(*number, *threads, *waits, cluster),
            Kind::Async(Async::ClusterArrive) => cluster.cluster_arrive(self.index)?,
            Kind::Async(Async::ClusterWait) => {
                if !cluster.cluster_wait(self.index, self.cluster_waits) {
                    return Ok(Turn::Waits("a barrier that not all threads of the cluster reach".into()));
                }
                self.cluster_waits += 1;
            }
            Kind::Async(Async::MaxRegisters { count, more }) => return self.max_registers(i.line, *count, *more, cluster),
            Kind::Async(a) => self.products(i.line, a, cluster)?,
            kind => self.together(kind, cluster)?,
        }
        Ok(Turn::Done)
    }

    fn bar(&mut self, number: Source, threads: Option<Source>, waits: bool, cluster: &mut Cluster<'_>) -> Result<Turn, String> {
        if !self.parked {
            let all = (self.warps_of_block * LANES) as u64;
            let threads = threads.map_or(Ok(all), |t| self.uniform(t))? as u32;
            cluster.bar(self.block, self.uniform(number)?, threads, self.index, waits)?;
            if !waits {
                return Ok(Turn::Done);
            }
            cluster.counts.instructions += 1;
        }
        self.parked = !cluster.released.remove(&self.index);
        Ok(if self.parked { Turn::Waits("a barrier that not all threads of the block reach".into()) } else { Turn::Done })
    }

    /// `setmaxnreg`: gives registers back to the block, or takes some when there are enough.
    fn max_registers(&mut self, line: usize, count: u64, more: bool, cluster: &mut Cluster<'_>) -> Result<Turn, String> {
        if !count.is_multiple_of(8) || !(24..=256).contains(&count) || (more && count < self.held) || (!more && count > self.held) {
            return Err(format!("setmaxnreg from {} to {count} registers", self.held));
        }
        let free = &mut cluster.registers[self.block];
        let (before, after) = (self.held * LANES as u64, count * LANES as u64);
        if *free + before < after {
            return Ok(Turn::Waits(format!("setmaxnreg waits for registers: {count} a thread, {free} are left for the block")));
        }
        *free = *free + before - after;
        self.held = count;
        self.alike(line, count, 0, cluster)?;
        Ok(Turn::Done)
    }

    /// Notes an instruction that all warps of the warpgroup have to execute alike.
    pub fn alike(&mut self, line: usize, a: u64, b: u64, cluster: &mut Cluster<'_>) -> Step {
        if self.number() / 4 * 4 + 4 > self.warps_of_block {
            return Err("a warpgroup's instruction in a warp without a whole warpgroup".into());
        }
        let all = &mut cluster.alike[self.group()];
        match all.get(self.alike) {
            None => all.push((line, a, b)),
            Some(first) if *first == (line, a, b) => {}
            Some((other, ..)) if *other != line => {
                return Err(format!("another warp of the warpgroup executes line {other} instead"));
            }
            Some(_) => return Err("the warps of a warpgroup have different operands".into()),
        }
        self.alike += 1;
        Ok(())
    }
}
