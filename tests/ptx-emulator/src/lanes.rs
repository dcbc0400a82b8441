//! What lanes do: registers, memory, copies, shuffles, `mma`.

use crate::exec::Cluster;
use crate::memory::{Actor, Path, Region};
use crate::parse::{Address, Async, Instruction, Kind, Source, Space, Special};
use crate::warp::{LANES, Step, Warp};

/// A copy that has not landed.
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    to: u64,
    from: u64,
    size: u64,
    bytes: u64,
}

impl Warp<'_> {
    /// An instruction of one lane.
    pub fn lane(&mut self, kind: &Kind, lane: usize, cluster: &mut Cluster<'_>) -> Step {
        match kind {
            Kind::Special { to, which } => {
                let value = match which {
                    Special::Thread => (self.number() * LANES + lane) as u32,
                    Special::Block => self.first_block + self.block as u32,
                    Special::BlockInCluster => self.block as u32,
                };
                self.set(*to, lane, value as u64);
            }
            Kind::Parameter { to, number } => {
                let value = self.parameters.get(*number).copied().ok_or("a parameter that the entry does not have")?;
                self.set(*to, lane, value);
            }
            Kind::Pack { to, from, bits } => {
                let mask = u64::MAX >> (64 - bits);
                let value = from.iter().rev().fold(0u64, |v, s| v << bits | self.value(*s, lane) & mask);
                self.set(*to, lane, value);
            }
            Kind::Unpack { to, from, bits } => {
                let value = self.value(*from, lane);
                let mask = u64::MAX >> (64 - bits);
                for (i, register) in to.iter().enumerate().filter_map(|(i, r)| r.map(|r| (i, r))) {
                    self.set(register, lane, value >> (i as u32 * bits) & mask);
                }
            }
            Kind::Load { .. } | Kind::Store { .. } => self.access(kind, lane, cluster)?,
            Kind::Copy { to, from, size, bytes } => {
                let bytes = self.value(*bytes, lane) as u32 as u64;
                let copy = Pending { to: self.address(*to, lane), from: self.address(*from, lane), size: *size, bytes };
                self.copy(copy, lane, cluster)?;
            }
            Kind::Commit => {
                let group = std::mem::take(&mut self.open[lane]);
                self.groups[lane].push_back(group);
            }
            Kind::Wait { pending } => {
                while self.groups[lane].len() as u64 > *pending {
                    for copy in self.groups[lane].pop_front().unwrap_or_default().into_iter().rev() {
                        self.land(copy, lane, cluster)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A load or a store of one lane.
    fn access(&mut self, kind: &Kind, lane: usize, cluster: &mut Cluster<'_>) -> Step {
        match kind {
            Kind::Load { space, to, bytes, signed, from } => {
                let all = cluster.read(*space, self.block, self.address(*from, lane), bytes * to.len(), self.slot(lane))?;
                for (i, register) in to.iter().enumerate().filter_map(|(i, r)| r.map(|r| (i, r))) {
                    let unused = 64 - 8 * *bytes as u32;
                    let raw = ((all >> (8 * bytes * i)) as u64) << unused;
                    self.set(register, lane, if *signed { ((raw as i64) >> unused) as u64 } else { raw >> unused });
                }
            }
            Kind::Store { space, from, bytes, to } => {
                let mask = u128::MAX >> (128 - 8 * bytes);
                let all = from
                    .iter()
                    .rev()
                    .fold(0u128, |v, s| v.checked_shl(8 * *bytes as u32).unwrap_or(0) | (self.value(*s, lane) as u128 & mask));
                cluster.write(*space, self.block, self.address(*to, lane), bytes * from.len(), all, self.slot(lane))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn copy(&mut self, copy: Pending, lane: usize, cluster: &mut Cluster<'_>) -> Step {
        if copy.bytes > copy.size || [copy.to, copy.from].iter().any(|a| !a.is_multiple_of(copy.size)) {
            return Err(format!("a copy of {} bytes from {:#x} to {:#x}", copy.bytes, copy.from, copy.to));
        }
        let place = cluster.place(self.block, copy.to)?;
        let forget = |region: &mut Region, by: &Actor<'_>| region.forget(place.1, copy.size as usize, by);
        cluster.with_shared(place.0, self.slot(lane), Path::Generic, forget)?;
        self.open[lane].push(copy);
        Ok(())
    }

    fn land(&mut self, copy: Pending, lane: usize, cluster: &mut Cluster<'_>) -> Step {
        let slot = self.slot(lane);
        let mut value = 0;
        for i in 0..copy.bytes {
            value |= cluster.read(Space::Global, self.block, copy.from + i, 1, slot)? << (8 * i);
        }
        cluster.write(Space::Shared, self.block, copy.to, copy.size as usize, value, slot)
    }

    /// An instruction of one lane of the asynchronous machinery, the `pc`-th; false if the lane has to wait.
    pub fn lane_async(&mut self, kind: &Async, pc: usize, lane: usize, cluster: &mut Cluster<'_>) -> Result<bool, String> {
        let slot = self.slot(lane);
        let place = |a: Address| cluster.place(self.block, self.address(a, lane));
        match kind {
            Async::Init { at, count } => cluster.init(place(*at)?, self.value(*count, lane), slot)?,
            Async::Invalidate { at } => cluster.invalidate(place(*at)?, slot)?,
            Async::Arrive { at, count, bytes } => {
                cluster.arrive(place(*at)?, self.value(*count, lane), self.value(*bytes, lane), slot)?;
            }
            Async::Expect { at, bytes } => cluster.expect(place(*at)?, self.value(*bytes, lane), slot)?,
            Async::TryWait { to, at, parity } => {
                // Nothing promises that it waits: it says no once, and waits when it is asked again.
                let again = self.tried[lane] == pc;
                let over = cluster.try_wait(place(*at)?, self.value(*parity, lane), slot, again)?;
                self.set(*to, lane, over as u64);
                self.tried[lane] = if over { usize::MAX } else { pc };
                return Ok(over || !again);
            }
            Async::BulkCopy { to, from, bytes, barrier, blocks } => {
                let (to, barrier) = (place(*to)?, place(*barrier)?);
                let (from, bytes) = (self.address(*from, lane), self.value(*bytes, lane));
                let Some(blocks) = blocks.map(|b| self.value(b, lane)) else {
                    cluster.copy_bulk(to, from, bytes, barrier, slot)?;
                    return Ok(true);
                };
                for block in (0..16).filter(|b| blocks >> b & 1 == 1) {
                    cluster.copy_bulk((block, to.1), from, bytes, (block, barrier.1), slot)?;
                }
            }
            Async::ProxyFence => {
                cluster.clocks.fence(slot);
                cluster.fence_init(slot);
            }
            Async::InitFence => cluster.fence_init(slot),
            Async::MapShared { to, from, block } => {
                let (_, at) = cluster.place(self.block, self.value(*from, lane))?;
                let address = (self.value(*block, lane) + 1) << crate::barriers::SHARED_WINDOW | at;
                self.set(*to, lane, address);
            }
            _ => {}
        }
        Ok(true)
    }

    /// Counts what the lanes that took part in an access touched.
    pub fn count(&self, i: &Instruction, taking: u32, cluster: &mut Cluster<'_>) {
        let lanes = || (0..LANES).filter(|l| taking >> l & 1 == 1);
        let at = |a: Address, size: u64| -> Vec<(u64, u64)> { lanes().map(|l| (self.address(a, l), size)).collect() };
        let counts = &mut *cluster.counts;
        match &i.kind {
            // A load may have overwritten its own address: what it touched is then not known, and rare enough to leave out.
            Kind::Load { to, from, .. } if to.iter().flatten().any(|r| matches!(from.base, Source::Register(b) if b == *r)) => {}
            Kind::Load { space: Space::Global, to, bytes, from, .. } => counts.global_reads.request(&at(*from, (bytes * to.len()) as u64)),
            Kind::Load { space: Space::Shared, to, bytes, from, .. } => counts.shared.request(&at(*from, (bytes * to.len()) as u64)),
            Kind::Store { space: Space::Global, from, bytes, to } => counts.global_writes.request(&at(*to, (bytes * from.len()) as u64)),
            Kind::Store { space: Space::Shared, from, bytes, to } => counts.shared.request(&at(*to, (bytes * from.len()) as u64)),
            Kind::Copy { to, from, size, bytes } => {
                counts.shared.request(&at(*to, *size));
                let read = lanes().map(|l| (self.address(*from, l), self.value(*bytes, l) as u32 as u64)).filter(|r| r.1 > 0);
                counts.global_reads.request(&read.collect::<Vec<_>>());
            }
            _ => {}
        }
    }

    /// An instruction of all lanes at once.
    pub fn together(&mut self, kind: &Kind, cluster: &mut Cluster<'_>) -> Step {
        let all = |w: &Self, s: Source| -> [u64; LANES] { std::array::from_fn(|l| w.value(s, l)) };
        match kind {
            Kind::WarpBarrier => cluster.clocks.meet(self.slot(0)..self.slot(LANES)),
            Kind::Shuffle { to, from, lane, xor } => {
                let (values, lanes) = (all(self, *from), all(self, *lane));
                for (l, &by) in lanes.iter().enumerate() {
                    let source = if *xor { l ^ by as usize } else { by as usize };
                    let value = values.get(source).copied().ok_or("a shuffle from a lane that does not exist")?;
                    self.set(*to, l, value);
                }
            }
            Kind::Ballot { to, from } => {
                let mask = all(self, *from).iter().enumerate().fold(0, |m, (l, v)| m | (v & 1) << l);
                (0..LANES).for_each(|l| self.set(*to, l, mask));
            }
            Kind::Matrices { to, from, transposed } => self.matrices(*to, *from, *transposed, cluster)?,
            Kind::Mma { to, a, b, c, codes } => {
                let (name, depth) = if *codes { ("mma.e4m3", 32) } else { ("mma.bf16", 16) };
                cluster.counts.product(name, 16 * 8 * depth);
                let (a, b, c) = (a.map(|s| all(self, s)), b.map(|s| all(self, s)), c.map(|s| all(self, s)));
                self.mma(*to, &a, &b, &c, *codes);
            }
            _ => {}
        }
        Ok(())
    }

    /// `ldmatrix`: lane 8 m + r names row r of matrix m; lane l gets elements 2 (l % 4) and the next of row l / 4.
    fn matrices(&mut self, to: [usize; 4], from: Address, transposed: bool, cluster: &mut Cluster<'_>) -> Step {
        let mut halves = [[[0u64; 8]; 8]; 4];
        let rows: Vec<(u64, u64)> = (0..LANES).map(|l| (self.address(from, l), 16)).collect();
        cluster.counts.shared.request(&rows);
        for (lane, (row, _)) in rows.into_iter().enumerate() {
            // The row is read on behalf of all lanes that get a part of it.
            let row = cluster.read(Space::Shared, self.block, row, 16, self.slot(lane))?;
            (0..8).for_each(|i| halves[lane / 8][lane % 8][i] = (row >> (16 * i)) as u16 as u64);
        }
        for (matrix, register) in to.into_iter().enumerate() {
            for lane in 0..LANES {
                let (row, col) = (lane / 4, 2 * (lane % 4));
                let at = |c: usize| if transposed { halves[matrix][c][row] } else { halves[matrix][row][c] };
                self.set(register, lane, at(col) | at(col + 1) << 16);
            }
        }
        Ok(())
    }
}
