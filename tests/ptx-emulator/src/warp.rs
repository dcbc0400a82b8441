//! Thirty-two lanes: divergence, warp-wide instructions, asynchronous copies.
//!
//! Of lanes at different instructions, those furthest behind in the text go first, which brings them together again after
//! structured divergence. Lanes at a warp-wide instruction wait until all stand at it.

use crate::Fault;
use crate::exec::Memory;
use crate::memory::Actor;
use crate::parse::{Address, Entry, Instruction, Kind, Source, Space, Special};
use std::collections::VecDeque;

pub(crate) const LANES: usize = 32;
/// Program counter of a lane that has returned.
const RETURNED: usize = usize::MAX;

/// Why a warp stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Returned,
    /// All lanes wait at the barrier of a line.
    Barrier(usize),
}

/// A copy of 16 bytes that has not landed.
#[derive(Clone, Copy)]
struct Pending {
    to: u64,
    from: u64,
    bytes: u64,
}

pub(crate) struct Warp<'e> {
    entry: &'e Entry,
    /// Register r of lane l at `r * 32 + l`.
    pub(crate) registers: Vec<u64>,
    pub(crate) at: [usize; LANES],
    block: u32,
    first_thread: u32,
    threads: u32,
    epoch: u32,
    step: u32,
    open: Vec<Vec<Pending>>,
    groups: Vec<VecDeque<Vec<Pending>>>,
}

/// True for instructions that all lanes execute together.
fn is_wide(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Barrier | Kind::WarpBarrier | Kind::Shuffle { .. } | Kind::Ballot { .. } | Kind::Matrices { .. } | Kind::Mma { .. }
    )
}

type Step = Result<(), String>;

impl<'e> Warp<'e> {
    pub fn new(entry: &'e Entry, block: u32, number: u32, threads: u32) -> Self {
        Warp {
            entry,
            registers: vec![0; entry.registers * LANES],
            at: [0; LANES],
            block,
            first_thread: number * 32,
            threads,
            epoch: 1,
            step: 1,
            open: vec![vec![]; LANES],
            groups: vec![VecDeque::new(); LANES],
        }
    }

    /// Runs to the next barrier or to the end.
    pub fn run(&mut self, memory: &mut Memory<'_>) -> Result<Stop, Fault> {
        // Lanes that wait for the others at a warp-wide instruction.
        let mut waiting = 0u32;
        loop {
            if let Some((instruction, pc)) = self.converged().filter(|(i, _)| !is_wide(&i.kind)) {
                self.step(instruction, pc, u32::MAX, memory).map_err(|reason| Fault { line: instruction.line, reason })?;
                continue;
            }
            let free = (0..LANES).filter(|l| waiting >> l & 1 == 0).map(|l| self.at[l]).min().unwrap_or(RETURNED);
            if free == RETURNED && waiting == 0 {
                return Ok(Stop::Returned);
            }
            let pc = if free == RETURNED { self.at.iter().copied().min().unwrap_or(RETURNED) } else { free };
            let Some(instruction) = self.entry.code.get(pc) else {
                return Err(Fault { line: 0, reason: "the code ends without a return".into() });
            };
            let fault = |reason: String| Fault { line: instruction.line, reason };
            let here: u32 = (0..LANES).filter(|&l| self.at[l] == pc).fold(0, |m, l| m | 1 << l);
            if is_wide(&instruction.kind) {
                if here != u32::MAX && free != RETURNED {
                    waiting |= here;
                    continue;
                }
                if here != u32::MAX || instruction.guard.is_some() {
                    return Err(fault(format!("a warp-wide instruction that only lanes {here:#010x} reach")));
                }
                waiting = 0;
                if matches!(instruction.kind, Kind::Barrier) {
                    return Ok(Stop::Barrier(instruction.line));
                }
            }
            self.step(instruction, pc, here, memory).map_err(fault)?;
        }
    }

    /// The instruction at which all lanes stand.
    fn converged(&self) -> Option<(&'e Instruction, usize)> {
        let pc = self.at[0];
        if self.at.iter().any(|&p| p != pc) {
            return None;
        }
        self.entry.code.get(pc).map(|i| (i, pc))
    }

    /// Lets the lanes past the barrier at which they wait.
    pub fn release(&mut self) {
        self.at.iter_mut().filter(|pc| **pc != RETURNED).for_each(|pc| *pc += 1);
        self.epoch += 1;
        self.step += 1;
    }

    fn actor(&self, lane: usize) -> Actor {
        let thread = self.block * self.threads + self.first_thread + lane as u32 + 1;
        Actor { thread, block: self.block, epoch: self.epoch, step: self.step }
    }

    fn value(&self, s: Source, lane: usize) -> u64 {
        match s {
            Source::Register(r) => self.registers[r * LANES + lane],
            Source::Constant(c) => c,
        }
    }

    fn set(&mut self, register: usize, lane: usize, value: u64) {
        self.registers[register * LANES + lane] = value;
    }

    fn address(&self, a: Address, lane: usize) -> u64 {
        self.value(a.base, lane).wrapping_add(a.offset as u64)
    }

    fn step(&mut self, i: &Instruction, pc: usize, here: u32, memory: &mut Memory<'_>) -> Step {
        if let Kind::Plain { op, to, from } = &i.kind {
            self.advance(pc, here);
            self.plain(*op, *to, from, self.active(i.guard, here));
            return Ok(());
        }
        for lane in (0..LANES).filter(|l| here >> l & 1 == 1) {
            self.at[lane] = pc + 1;
            if let Some((register, wanted)) = i.guard
                && self.registers[register * LANES + lane] & 1 != wanted
            {
                continue;
            }
            match &i.kind {
                Kind::Branch { to } => self.at[lane] = *to,
                Kind::Return if !self.open[lane].is_empty() => return Err("copies that no group holds at the end".into()),
                Kind::Return => self.at[lane] = RETURNED,
                _ => self.lane(&i.kind, lane, memory)?,
            }
        }
        self.together(&i.kind, memory)
    }

    /// An instruction of one lane.
    fn lane(&mut self, kind: &Kind, lane: usize, memory: &mut Memory<'_>) -> Step {
        match kind {
            Kind::Special { to, which } => {
                let value = match which {
                    Special::Thread => self.first_thread + lane as u32,
                    Special::Block => self.block,
                };
                self.set(*to, lane, value as u64);
            }
            Kind::Parameter { to, number } => {
                let value = memory.parameters.get(*number).ok_or("a parameter that the entry does not have")?;
                self.set(*to, lane, *value);
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
            Kind::Load { space, to, bytes, signed, from } => {
                let all = memory.read(*space, self.address(*from, lane), bytes * to.len(), self.actor(lane))?;
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
                memory.write(*space, self.address(*to, lane), bytes * from.len(), all, self.actor(lane))?;
            }
            Kind::Copy { to, from, bytes } => {
                let copy =
                    Pending { to: self.address(*to, lane), from: self.address(*from, lane), bytes: self.value(*bytes, lane) as u32 as u64 };
                if copy.bytes > 16 || !copy.to.is_multiple_of(16) || !copy.from.is_multiple_of(16) {
                    return Err(format!("a copy of {} bytes from {:#x} to {:#x}", copy.bytes, copy.from, copy.to));
                }
                memory.shared.forget(copy.to, 16, self.actor(lane))?;
                self.open[lane].push(copy);
            }
            Kind::Commit => {
                let group = std::mem::take(&mut self.open[lane]);
                self.groups[lane].push_back(group);
            }
            Kind::Wait { pending } => {
                while self.groups[lane].len() as u64 > *pending {
                    for copy in self.groups[lane].pop_front().unwrap_or_default().into_iter().rev() {
                        self.land(copy, lane, memory)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn land(&mut self, copy: Pending, lane: usize, memory: &mut Memory<'_>) -> Step {
        let by = self.actor(lane);
        let mut value = 0;
        for i in 0..copy.bytes {
            value |= memory.read(Space::Global, copy.from + i, 1, by)? << (8 * i);
        }
        memory.write(Space::Shared, copy.to, 16, value, by)
    }

    /// An instruction of all lanes at once.
    fn together(&mut self, kind: &Kind, memory: &mut Memory<'_>) -> Step {
        let all = |w: &Self, s: Source| -> [u64; LANES] { std::array::from_fn(|l| w.value(s, l)) };
        match kind {
            Kind::WarpBarrier => self.step += 1,
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
            Kind::Matrices { to, from, transposed } => self.matrices(*to, *from, *transposed, memory)?,
            Kind::Mma { to, a, b, c, codes } => {
                let (a, b, c) = (a.map(|s| all(self, s)), b.map(|s| all(self, s)), c.map(|s| all(self, s)));
                self.mma(*to, &a, &b, &c, *codes);
            }
            _ => {}
        }
        Ok(())
    }

    /// `ldmatrix`: lane 8 m + r names row r of matrix m; lane l gets elements 2 (l % 4) and the next of row l / 4.
    fn matrices(&mut self, to: [usize; 4], from: Address, transposed: bool, memory: &mut Memory<'_>) -> Step {
        let mut halves = [[[0u64; 8]; 8]; 4];
        for lane in 0..LANES {
            // The row is read on behalf of all lanes that get a part of it.
            let row = memory.read(Space::Shared, self.address(from, lane), 16, self.actor(lane))?;
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
