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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Scope {
    Thread,
    Warp,
    Block,
    Any,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Touch {
    by: Actor,
    scope: Scope,
}

impl Touch {
    fn same_warp(&self, now: Actor) -> bool {
        self.scope <= Scope::Warp && (self.by.thread - 1) / 32 == (now.thread - 1) / 32
    }

    fn same_block(&self, now: Actor) -> bool {
        self.scope <= Scope::Block && self.by.block == now.block
    }

    /// True if an access by `now` is not ordered after this one.
    fn races(&self, now: Actor) -> bool {
        if self.scope == Scope::Thread && self.by.thread == now.thread {
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

/// The touches of a launch by number: 0 is nobody's. A thread's accesses between two synchronisations share one.
#[derive(Clone, Debug, Default)]
struct Touches {
    all: Vec<Touch>,
    /// For each thread and scope the number of its newest touch.
    newest: Vec<[u32; 4]>,
}

impl std::fmt::Debug for Touch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.by)
    }
}

impl Touches {
    fn get(&self, number: u32) -> Option<Touch> {
        self.all.get((number as usize).wrapping_sub(1)).copied()
    }

    fn number(&mut self, touch: Touch) -> u32 {
        let thread = touch.by.thread as usize;
        if self.newest.len() <= thread {
            self.newest.resize(thread.next_power_of_two() * 2, [0; 4]);
        }
        let newest = self.newest[thread][touch.scope as usize];
        if self.get(newest) == Some(touch) {
            return newest;
        }
        self.all.push(touch);
        self.newest[thread][touch.scope as usize] = self.all.len() as u32;
        self.all.len() as u32
    }

    /// Who touched a byte without order before an access by `now`, if anybody.
    fn rival(&self, number: u32, now: Actor) -> Option<u32> {
        self.get(number).filter(|t| t.races(now)).map(|t| t.by.thread)
    }

    /// The number of the touch `number` and an access by `now`.
    fn and(&mut self, number: u32, now: Actor) -> u32 {
        let touch = self.get(number).map_or(Touch { by: now, scope: Scope::Thread }, |t| t.and(now));
        self.number(touch)
    }
}

/// Numbers of the last write and the last reads of a byte.
#[derive(Clone, Copy, Debug, Default)]
struct Shadow {
    writer: u32,
    reader: u32,
}

/// Bytes whose shadows are cleared together.
const PAGE: usize = 4096;

/// Bytes with their shadows.
#[derive(Clone, Debug)]
pub struct Region {
    pub bytes: Vec<u8>,
    defined: Vec<bool>,
    shadows: Vec<Shadow>,
    /// Pages whose shadows are not all clear.
    touched: Vec<bool>,
    touches: Touches,
    writable: bool,
}

impl Region {
    pub fn new(bytes: Vec<u8>, contents: Contents) -> Self {
        let n = bytes.len();
        Region {
            bytes,
            defined: vec![contents != Contents::Undefined; n],
            shadows: vec![Shadow::default(); n],
            touched: vec![false; n.div_ceil(PAGE)],
            touches: Touches::default(),
            writable: contents != Contents::ReadOnly,
        }
    }

    /// Forgets who touched what; what is defined stays so.
    pub fn settle(&mut self) {
        for (page, touched) in self.touched.iter_mut().enumerate().filter(|(_, t)| **t) {
            let end = ((page + 1) * PAGE).min(self.shadows.len());
            self.shadows[page * PAGE..end].fill(Shadow::default());
            *touched = false;
        }
        self.touches.all.clear();
        self.touches.newest.clear();
    }

    /// Empties the region for another block.
    pub fn reset(&mut self) {
        self.settle();
        self.bytes.fill(0);
        self.defined.fill(false);
    }

    fn check(&self, at: u64, size: usize) -> Result<usize, String> {
        let end = at.checked_add(size as u64).filter(|&e| e <= self.bytes.len() as u64);
        end.ok_or_else(|| format!("access of {size} bytes at offset {} of {}", at as i64, self.bytes.len()))?;
        Ok(at as usize)
    }

    fn touch(&mut self, at: usize, size: usize) {
        self.touched[at / PAGE] = true;
        self.touched[(at + size - 1) / PAGE] = true;
    }

    /// Reads up to 16 bytes, little endian.
    pub fn read(&mut self, at: u64, size: usize, by: Actor) -> Result<u128, String> {
        let at = self.check(at, size)?;
        if let Some(i) = self.defined[at..at + size].iter().position(|d| !d) {
            return Err(format!("read of undefined memory at offset {}", at + i));
        }
        self.touch(at, size);
        let mine = self.touches.number(Touch { by, scope: Scope::Thread });
        // Neighbours mostly have the same history: what was found for one holds for the next.
        let (mut before, mut after) = (Shadow::default(), mine);
        for i in at..at + size {
            let s = self.shadows[i];
            if s.writer != mine && s.writer != before.writer {
                if let Some(thread) = self.touches.rival(s.writer, by) {
                    return Err(format!("read of offset {i} races with its write by thread {thread}"));
                }
            }
            if s.reader != before.reader {
                after = if s.reader == mine { mine } else { self.touches.and(s.reader, by) };
            }
            self.shadows[i].reader = after;
            before = s;
        }
        let mut value = [0; 16];
        value[..size].copy_from_slice(&self.bytes[at..at + size]);
        Ok(u128::from_le_bytes(value))
    }

    /// Writes up to 16 bytes, little endian.
    pub fn write(&mut self, at: u64, size: usize, value: u128, by: Actor) -> Result<(), String> {
        let at = self.check(at, size)?;
        if !self.writable {
            return Err("write to memory that is only read".into());
        }
        self.touch(at, size);
        let mine = self.touches.number(Touch { by, scope: Scope::Thread });
        let mut before = Shadow::default();
        for i in at..at + size {
            let s = self.shadows[i];
            let rival = |number: u32, before: u32| if number == before { None } else { self.touches.rival(number, by) };
            if let Some(thread) = rival(s.writer, before.writer) {
                return Err(format!("write of offset {i} races with its write by thread {thread}"));
            }
            if let Some(thread) = rival(s.reader, before.reader) {
                return Err(format!("write of offset {i} races with its read by thread {thread}"));
            }
            self.shadows[i].writer = mine;
            before = s;
        }
        self.defined[at..at + size].fill(true);
        self.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }

    /// Copies bytes out on behalf of nobody in the launch.
    pub fn copy_out(&self, at: u64, to: &mut [u8]) -> Result<(), String> {
        let at = self.check(at, to.len())?;
        if let Some(i) = self.defined[at..at + to.len()].iter().position(|d| !d) {
            return Err(format!("read of undefined memory at offset {}", at + i));
        }
        to.copy_from_slice(&self.bytes[at..at + to.len()]);
        Ok(())
    }

    /// Copies bytes in on behalf of nobody in the launch.
    pub fn copy_in(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let at = self.check(at, bytes.len())?;
        self.defined[at..at + bytes.len()].fill(true);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Sets bytes on behalf of nobody in the launch.
    pub fn fill(&mut self, at: u64, bytes: u64, value: u8) -> Result<(), String> {
        let n = usize::try_from(bytes).map_err(|_| "a range beyond the last address".to_string())?;
        let at = self.check(at, n)?;
        self.defined[at..at + n].fill(true);
        self.bytes[at..at + n].fill(value);
        Ok(())
    }

    /// Marks bytes as undefined: an asynchronous copy to them is under way.
    pub fn forget(&mut self, at: u64, size: usize, by: Actor) -> Result<(), String> {
        self.write(at, size, 0, by)?;
        self.defined[at as usize..at as usize + size].fill(false);
        Ok(())
    }
}
