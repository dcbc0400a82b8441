//! Memory that remembers who touched what.

/// What a buffer holds before a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    Initialised,
    /// Reading it before writing is a fault.
    Undefined,
    /// Writing it is a fault.
    ReadOnly,
}

/// A buffer of global memory.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    pub contents: Contents,
}

/// Where a thread stands, for judging whether two accesses are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Number among all threads of the launch, from 1.
    pub thread: u32,
    pub block: u32,
    /// Barriers that the block has passed.
    pub epoch: u32,
    /// Warp-wide synchronisations that the warp has passed.
    pub step: u32,
}

/// Who touched a byte last: a thread, or threads of one warp, of one block, of anywhere.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Scope {
    Thread,
    Warp,
    Block,
    Any,
}

#[derive(Clone, Copy)]
struct Touch {
    by: Actor,
    scope: Scope,
}

const NOBODY: Touch = Touch { by: Actor { thread: 0, block: 0, epoch: 0, step: 0 }, scope: Scope::Thread };

impl Touch {
    fn same_warp(&self, now: Actor) -> bool {
        self.scope <= Scope::Warp && (self.by.thread - 1) / 32 == (now.thread - 1) / 32
    }

    fn same_block(&self, now: Actor) -> bool {
        self.scope <= Scope::Block && self.by.block == now.block
    }

    /// True if an access by `now` is not ordered after this one.
    fn races(&self, now: Actor) -> bool {
        if self.by.thread == 0 || (self.scope == Scope::Thread && self.by.thread == now.thread) {
            return false;
        }
        let after_barrier = self.same_block(now) && self.by.epoch < now.epoch;
        let after_step = self.same_warp(now) && self.by.step < now.step;
        !after_barrier && !after_step
    }

    /// This one and an access by `now`, which need not be ordered.
    fn and(&self, now: Actor) -> Touch {
        let scope = match self.races(now) {
            false => Scope::Thread,
            true if self.same_warp(now) => Scope::Warp,
            true if self.same_block(now) => Scope::Block,
            true => Scope::Any,
        };
        Touch { by: now, scope }
    }
}

#[derive(Clone, Copy)]
struct Shadow {
    defined: bool,
    writer: Touch,
    reader: Touch,
}

/// Bytes with their shadows.
pub struct Region {
    pub bytes: Vec<u8>,
    shadows: Vec<Shadow>,
    writable: bool,
}

impl Region {
    pub fn new(bytes: Vec<u8>, contents: Contents) -> Self {
        let shadow = Shadow { defined: contents != Contents::Undefined, writer: NOBODY, reader: NOBODY };
        Region { shadows: vec![shadow; bytes.len()], bytes, writable: contents != Contents::ReadOnly }
    }

    fn check(&self, at: u64, size: usize) -> Result<usize, String> {
        let end = at.checked_add(size as u64).filter(|&e| e <= self.bytes.len() as u64);
        end.ok_or_else(|| format!("access of {size} bytes at offset {} of {}", at as i64, self.bytes.len()))?;
        Ok(at as usize)
    }

    /// Reads up to 16 bytes, little endian.
    pub fn read(&mut self, at: u64, size: usize, by: Actor) -> Result<u128, String> {
        let at = self.check(at, size)?;
        for (i, s) in self.shadows[at..at + size].iter_mut().enumerate() {
            if !s.defined {
                return Err(format!("read of undefined memory at offset {}", at + i));
            }
            if s.writer.races(by) {
                return Err(format!("read of offset {} races with its write by thread {}", at + i, s.writer.by.thread));
            }
            s.reader = s.reader.and(by);
        }
        Ok(self.bytes[at..at + size].iter().rev().fold(0, |v, &b| (v << 8) | b as u128))
    }

    /// Writes up to 16 bytes, little endian.
    pub fn write(&mut self, at: u64, size: usize, value: u128, by: Actor) -> Result<(), String> {
        let at = self.check(at, size)?;
        if !self.writable {
            return Err("write to memory that is only read".into());
        }
        for (i, s) in self.shadows[at..at + size].iter_mut().enumerate() {
            if s.writer.races(by) {
                return Err(format!("write of offset {} races with its write by thread {}", at + i, s.writer.by.thread));
            }
            if s.reader.races(by) {
                return Err(format!("write of offset {} races with its read by thread {}", at + i, s.reader.by.thread));
            }
            (s.defined, s.writer) = (true, Touch { by, scope: Scope::Thread });
        }
        self.bytes[at..at + size].iter_mut().enumerate().for_each(|(i, b)| *b = (value >> (8 * i)) as u8);
        Ok(())
    }

    /// Marks bytes as undefined: an asynchronous copy to them is under way.
    pub fn forget(&mut self, at: u64, size: usize, by: Actor) -> Result<(), String> {
        self.write(at, size, 0, by)?;
        self.shadows[at as usize..at as usize + size].iter_mut().for_each(|s| s.defined = false);
        Ok(())
    }
}
