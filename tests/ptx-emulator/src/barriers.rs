//! Barriers of a cluster: `mbarrier` objects with the bulk copies that complete on them, `bar`, and the cluster's own.

use crate::clock::{Agent, Order};
use crate::exec::Cluster;
use crate::memory::Path;
use crate::parse::Space;
use crate::warp::LANES;

/// Bytes of an `mbarrier` object.
const OBJECT: usize = 8;

/// An `mbarrier` object.
#[derive(Default)]
pub(crate) struct MBarrier {
    number: usize,
    expected: u32,
    pending: u32,
    /// Bytes expected and not yet there.
    bytes: i64,
    phase: u32,
    /// What the arrivals of this phase release, and what those of the last one did.
    releasing: Order,
    released: Order,
    initialiser: u32,
    initialised: u32,
    /// Whether its initialiser has made it known to the asynchronous proxy.
    fenced: bool,
}

/// A bulk copy under way.
pub(crate) struct BulkCopy {
    issuer: Agent,
    order: Order,
    from: u64,
    to: Place,
    bytes: usize,
    barrier: Place,
}

/// A block of the cluster and an offset in its shared memory.
pub(crate) type Place = (usize, u64);

/// The barrier of all threads of the cluster.
#[derive(Default)]
pub(crate) struct ClusterBarrier {
    arrived: usize,
    phase: u32,
    releasing: Order,
    released: Order,
}

/// Warps that stand at a `bar`.
#[derive(Default)]
pub(crate) struct Named {
    threads: u32,
    /// Warps and whether they wait.
    arrived: Vec<(usize, bool)>,
}

type Done = Result<(), String>;

impl Cluster<'_> {
    fn object(&mut self, at: Place, slot: usize) -> Result<&mut MBarrier, String> {
        let order = self.clocks.of(slot);
        let barrier = self.mbarriers.get_mut(&at).ok_or_else(|| format!("there is no mbarrier at offset {} of block {}", at.1, at.0))?;
        match self.clocks.before(barrier.initialiser, barrier.initialised, order, slot) {
            true => Ok(barrier),
            false => Err(format!("the initialisation of the mbarrier at offset {} is not ordered before its use", at.1)),
        }
    }

    pub fn init(&mut self, at: Place, count: u64, slot: usize) -> Done {
        let number = self.barriers_made;
        if number >= crate::clock::MAX_BARRIERS || count == 0 || !at.1.is_multiple_of(OBJECT as u64) {
            return Err(format!("an mbarrier at offset {} with count {count}, the {number}th", at.1));
        }
        self.occupy(at, slot, true)?;
        self.barriers_made += 1;
        let (initialiser, initialised) = (self.clocks.thread(slot).id, self.clocks.now());
        let count = count as u32;
        let barrier = MBarrier { number, expected: count, pending: count, initialiser, initialised, ..MBarrier::default() };
        self.mbarriers.insert(at, barrier);
        Ok(())
    }

    pub fn invalidate(&mut self, at: Place, slot: usize) -> Done {
        self.object(at, slot)?;
        if self.copies.iter().any(|c| c.barrier == at) {
            return Err("an mbarrier is invalidated while a copy that completes on it is under way".into());
        }
        self.mbarriers.remove(&at);
        self.occupy(at, slot, false)
    }

    /// Makes the barriers that a thread has initialised known to the asynchronous proxy.
    pub fn fence_init(&mut self, slot: usize) {
        let id = self.clocks.thread(slot).id;
        self.mbarriers.values_mut().filter(|b| b.initialiser == id).for_each(|b| b.fenced = true);
    }

    pub fn expect(&mut self, at: Place, bytes: u64, slot: usize) -> Done {
        self.object(at, slot)?.bytes += bytes as u32 as i64;
        Ok(())
    }

    pub fn arrive(&mut self, at: Place, count: u64, bytes: u64, slot: usize) -> Done {
        self.expect(at, bytes, slot)?;
        let Some(barrier) = self.mbarriers.get_mut(&at) else { return Ok(()) };
        if u64::from(barrier.pending) < count {
            return Err(format!("{count} arrivals at an mbarrier that waits for {} more", barrier.pending));
        }
        barrier.pending -= count as u32;
        self.clocks.release_into(&mut barrier.releasing, slot);
        barrier.turn();
        Ok(())
    }

    /// Whether the phase of a parity is over, in which case what it released is ordered before the thread.
    ///
    /// Where only copies are missing and the thread `waits` for them, they land now: as late as permitted.
    pub fn try_wait(&mut self, at: Place, parity: u64, slot: usize, waits: bool) -> Result<bool, String> {
        if parity > 1 {
            return Err(format!("a wait for parity {parity}"));
        }
        let barrier = self.object(at, slot)?;
        if waits && barrier.phase & 1 == parity as u32 && barrier.pending == 0 {
            self.land(at)?;
        }
        let Some(barrier) = self.mbarriers.get(&at) else { return Ok(false) };
        if barrier.phase & 1 == parity as u32 {
            return Ok(false);
        }
        if barrier.phase > 0 {
            self.clocks.acquire(slot..slot + 1, &barrier.released);
        }
        Ok(true)
    }

    /// What a wait at a barrier lacks.
    pub fn lacks(&self, at: Place) -> String {
        let Some(b) = self.mbarriers.get(&at) else { return "a barrier".into() };
        format!("phase {} of the mbarrier at offset {} lacks {} arrivals and {} bytes", b.phase, at.1, b.pending, b.bytes)
    }

    pub fn copy_bulk(&mut self, to: Place, from: u64, bytes: u64, barrier: Place, slot: usize) -> Done {
        if bytes == 0 || [to.1, from, bytes].iter().any(|x| !x.is_multiple_of(16)) {
            return Err(format!("a bulk copy of {bytes} bytes from {from:#x} to offset {}: not multiples of 16", to.1));
        }
        if !self.object(barrier, slot)?.fenced {
            return Err("an mbarrier that no fence has made known to the asynchronous proxy".into());
        }
        let (issuer, order) = (self.clocks.thread(slot), self.clocks.of(slot).clone());
        self.with_shared(to.0, slot, Path::Bulk, |region, by| region.take_off(to.1, bytes as usize, by))?;
        self.counts.bulk_copies += 1;
        self.copies.push(BulkCopy { issuer, order, from, to, bytes: bytes as usize, barrier });
        Ok(())
    }

    fn land(&mut self, at: Place) -> Done {
        let (landing, rest) = std::mem::take(&mut self.copies).into_iter().partition(|c| c.barrier == at);
        self.copies = rest;
        let landing: Vec<BulkCopy> = landing;
        for copy in landing.iter().rev() {
            let bytes = self.global_bulk(copy.from, copy.bytes, copy.issuer, &copy.order)?;
            let Some(barrier) = self.mbarriers.get_mut(&at) else { continue };
            let agent = self.clocks.barrier(barrier.number);
            barrier.bytes -= copy.bytes as i64;
            if barrier.bytes < 0 {
                return Err(format!("copies bring {} bytes more to an mbarrier than it expects", -barrier.bytes));
            }
            self.shared[copy.to.0].land(copy.to.1, &bytes, agent, self.clocks.now())?;
            self.clocks.landed(&mut barrier.releasing, barrier.number);
        }
        if let Some(barrier) = self.mbarriers.get_mut(&at) {
            barrier.turn();
        }
        Ok(())
    }

    /// A warp arrives at `bar`; those who wait are in `released` when all have.
    pub fn bar(&mut self, block: usize, number: u64, threads: u32, warp: usize, waits: bool) -> Done {
        if number > 15 || !threads.is_multiple_of(32) || threads == 0 {
            return Err(format!("barrier {number} of {threads} threads"));
        }
        let named = self.named.entry((block, number)).or_default();
        if !named.arrived.is_empty() && named.threads != threads {
            return Err(format!("barrier {number} of {threads} threads, at which others expect {}", named.threads));
        }
        named.threads = threads;
        named.arrived.push((warp, waits));
        if (named.arrived.len() as u32) < threads / LANES as u32 {
            return Ok(());
        }
        let mut arrived = self.named.remove(&(block, number)).unwrap_or_default().arrived;
        arrived.sort_unstable();
        let (first, last) = (arrived[0].0, arrived[arrived.len() - 1].0);
        if arrived.iter().all(|a| a.1) && last - first + 1 == arrived.len() {
            self.clocks.meet(LANES * first..LANES * (last + 1));
        } else {
            let lanes = |warp: usize| LANES * warp..LANES * (warp + 1);
            let mut all = Order::default();
            arrived.iter().flat_map(|&(w, _)| lanes(w)).for_each(|slot| self.clocks.release_into(&mut all, slot));
            arrived.iter().filter(|a| a.1).for_each(|&(w, _)| self.clocks.acquire(lanes(w), &all));
        }
        self.released.extend(arrived.iter().filter(|a| a.1).map(|a| a.0));
        Ok(())
    }

    /// A warp arrives at the barrier of the cluster.
    pub fn cluster_arrive(&mut self, warp: usize) -> Done {
        for slot in LANES * warp..LANES * (warp + 1) {
            self.clocks.release_into(&mut self.cluster.releasing, slot);
        }
        self.cluster.arrived += 1;
        if self.cluster.arrived == self.clocks.threads() / LANES {
            let released = std::mem::take(&mut self.cluster.releasing);
            self.cluster = ClusterBarrier { released, phase: self.cluster.phase + 1, ..ClusterBarrier::default() };
        }
        Ok(())
    }

    /// Whether the cluster's barrier has opened more than `waits` times.
    pub fn cluster_wait(&mut self, warp: usize, waits: u32) -> bool {
        if self.cluster.phase <= waits {
            return false;
        }
        self.clocks.acquire(LANES * warp..LANES * (warp + 1), &self.cluster.released);
        true
    }

    /// Occupies or frees the bytes of a barrier.
    fn occupy(&mut self, at: Place, slot: usize, occupied: bool) -> Done {
        self.with_shared(at.0, slot, Path::Generic, |region, by| region.occupy(at.1, OBJECT, by, occupied))
    }

    /// Resolves an address of shared memory, own or of the cluster.
    pub fn place(&self, block: usize, address: u64) -> Result<Place, String> {
        let place = match address >> SHARED_WINDOW {
            0 => (block, address),
            rank => (rank as usize - 1, address & ((1 << SHARED_WINDOW) - 1)),
        };
        if place.0 < self.shared.len() { Ok(place) } else { Err(format!("{address:#x} is no address in {:?} memory", Space::Shared)) }
    }
}

impl MBarrier {
    /// Ends the phase if all have arrived and all bytes are there.
    fn turn(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.released = std::mem::take(&mut self.releasing);
        }
    }
}

/// Bits of an address in one block's shared memory; those above name the block in its cluster, from 1, or are 0 for the own one.
pub(crate) const SHARED_WINDOW: u32 = 24;
