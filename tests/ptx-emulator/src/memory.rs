//! Memory that remembers who touched what.

use crate::clock::{Agent, Clocks, Order};

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

/// A thread that touches memory, with all that is ordered before it.
#[derive(Clone, Copy)]
pub struct Actor<'a> {
    pub agent: Agent,
    pub order: &'a Order,
    pub clocks: &'a Clocks,
    pub path: Path,
}

/// How memory is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Generic,
    /// By a thread's bulk copy. Generic writes before it need a proxy fence.
    Bulk,
    /// By a warp's `wgmma`, likewise.
    Matrix,
}

impl Actor<'_> {
    fn after_access(&self, id: u32, time: u32) -> bool {
        id == 0 || self.clocks.before(id, time, self.order, self.agent.slot)
    }

    fn after_write(&self, id: u32, time: u32) -> Result<(), &'static str> {
        if !self.after_access(id, time) {
            return Err("races with");
        }
        let fenced = self.path == Path::Generic || id == 0 || self.clocks.before_async(id, time, self.order);
        if fenced { Ok(()) } else { Err("has no fence.proxy.async after") }
    }
}

const LANES: u32 = 32;

/// A read: by one thread, or by any lanes of its warp.
#[derive(Clone, Copy)]
struct Reader {
    id: u32,
    time: u32,
    warp: bool,
}

impl Reader {
    fn before(&self, by: &Actor<'_>) -> bool {
        let first = (self.id - 1) / LANES * LANES + 1;
        match self.warp {
            false => by.after_access(self.id, self.time),
            true => (first..first + LANES).all(|id| by.after_access(id, self.time)),
        }
    }

    fn same_warp(&self, id: u32) -> bool {
        (self.id - 1) / LANES == (id - 1) / LANES
    }
}

/// What an asynchronous operation under way does with a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flight {
    #[default]
    None,
    /// A bulk copy writes it.
    Written,
    /// So many `wgmma` read it.
    Read(u16),
    /// None: it belongs to an `mbarrier`.
    Barrier,
}

#[derive(Clone, Default)]
struct Shadow {
    undefined: bool,
    flight: Flight,
    writer: u32,
    written: u32,
    /// The first of the reads since the write; more are in `readers`.
    reader: Option<Reader>,
    readers: Option<Box<Vec<Reader>>>,
}

impl Shadow {
    fn read(&mut self, by: &Actor<'_>) {
        let new = Reader { id: by.agent.id, time: by.clocks.now(), warp: by.path == Path::Matrix };
        let more = self.readers.as_deref().is_some_and(|r| !r.is_empty());
        match &mut self.reader {
            None => self.reader = Some(new),
            // A later read stands for those ordered before it.
            Some(r) if !more && r.before(by) => *r = new,
            Some(r) if r.same_warp(new.id) => *r = Reader { warp: new.warp || r.warp || r.id != new.id, ..new },
            Some(_) => {
                let readers = self.readers.get_or_insert_default();
                match readers.iter_mut().find(|r| r.same_warp(new.id)) {
                    Some(r) => *r = Reader { warp: new.warp || r.warp || r.id != new.id, ..new },
                    None => readers.push(new),
                }
            }
        }
    }

    fn unordered_reader(&self, by: &Actor<'_>) -> Option<u32> {
        let more = self.readers.iter().flat_map(|r| r.iter());
        self.reader.iter().chain(more).find(|r| !r.before(by)).map(|r| r.id)
    }

    fn write(&mut self, by: &Actor<'_>) {
        (self.undefined, self.writer, self.written, self.reader) = (false, by.agent.id, by.clocks.now(), None);
        if let Some(r) = &mut self.readers {
            r.clear();
        }
    }
}

/// Bytes of a page of shadows, which exist only where memory is touched.
const PAGE: usize = 1024;

/// Bytes with their shadows.
pub struct Region {
    pub bytes: Vec<u8>,
    pages: Vec<Option<Box<[Shadow]>>>,
    contents: Contents,
}

impl Region {
    pub fn new(bytes: Vec<u8>, contents: Contents) -> Self {
        Region { pages: vec![None; bytes.len().div_ceil(PAGE)], bytes, contents }
    }

    fn check(&self, at: u64, size: usize) -> Result<usize, String> {
        let end = at.checked_add(size as u64).filter(|&e| e <= self.bytes.len() as u64);
        end.ok_or_else(|| format!("access of {size} bytes at offset {} of {}", at as i64, self.bytes.len()))?;
        Ok(at as usize)
    }

    /// Runs `each` on the shadow of every byte of a range.
    fn shadows(&mut self, at: usize, size: usize, mut each: impl FnMut(usize, &mut Shadow) -> Result<(), String>) -> Result<(), String> {
        let undefined = self.contents == Contents::Undefined;
        let mut i = at;
        while i < at + size {
            let page = self.pages[i / PAGE].get_or_insert_with(|| vec![Shadow { undefined, ..Shadow::default() }; PAGE].into());
            let end = (at + size).min((i / PAGE + 1) * PAGE);
            for shadow in &mut page[i % PAGE..i % PAGE + end - i] {
                each(i, shadow)?;
                i += 1;
            }
        }
        Ok(())
    }

    fn touch_read(&mut self, at: usize, size: usize, by: &Actor<'_>) -> Result<(), String> {
        if self.contents == Contents::ReadOnly {
            return Ok(());
        }
        self.shadows(at, size, |i, s| {
            match s.flight {
                Flight::Written => return Err(format!("read of offset {i}, which an asynchronous copy under way writes")),
                Flight::Barrier => return Err(format!("read of offset {i}, which belongs to an mbarrier")),
                Flight::None | Flight::Read(_) => {}
            }
            if s.undefined {
                return Err(format!("read of undefined memory at offset {i}"));
            }
            by.after_write(s.writer, s.written).map_err(|how| format!("read of offset {i} {how} its write by agent {}", s.writer))?;
            s.read(by);
            Ok(())
        })
    }

    /// Reads up to 16 bytes, little endian.
    pub fn read(&mut self, at: u64, size: usize, by: &Actor<'_>) -> Result<u128, String> {
        let at = self.check(at, size)?;
        self.touch_read(at, size, by)?;
        Ok(self.bytes[at..at + size].iter().rev().fold(0, |v, &b| (v << 8) | b as u128))
    }

    fn touch_write(&mut self, at: usize, size: usize, by: &Actor<'_>) -> Result<(), String> {
        if self.contents == Contents::ReadOnly {
            return Err("write to memory that is only read".into());
        }
        self.shadows(at, size, |i, s| {
            match s.flight {
                Flight::None => {}
                Flight::Written => return Err(format!("write of offset {i}, which an asynchronous copy under way writes")),
                Flight::Read(_) => return Err(format!("write of offset {i}, which a wgmma under way reads")),
                Flight::Barrier => return Err(format!("write of offset {i}, which belongs to an mbarrier")),
            }
            by.after_write(s.writer, s.written).map_err(|how| format!("write of offset {i} {how} its write by agent {}", s.writer))?;
            if let Some(reader) = s.unordered_reader(by) {
                return Err(format!("write of offset {i} races with its read by agent {reader}"));
            }
            s.write(by);
            Ok(())
        })
    }

    /// Writes up to 16 bytes, little endian.
    pub fn write(&mut self, at: u64, size: usize, value: u128, by: &Actor<'_>) -> Result<(), String> {
        let at = self.check(at, size)?;
        self.touch_write(at, size, by)?;
        self.bytes[at..at + size].iter_mut().enumerate().for_each(|(i, b)| *b = (value >> (8 * i)) as u8);
        Ok(())
    }

    /// Marks bytes as undefined: a thread's asynchronous copy to them is under way.
    pub fn forget(&mut self, at: u64, size: usize, by: &Actor<'_>) -> Result<(), String> {
        self.write(at, size, 0, by)?;
        self.shadows(at as usize, size, |_, s| {
            s.undefined = true;
            Ok(())
        })
    }

    /// Starts a bulk copy to a range: what was there is lost, and nobody may touch it until it lands.
    pub fn take_off(&mut self, at: u64, size: usize, by: &Actor<'_>) -> Result<(), String> {
        let at = self.check(at, size)?;
        self.touch_write(at, size, by)?;
        self.shadows(at, size, |_, s| {
            s.flight = Flight::Written;
            Ok(())
        })
    }

    /// Ends a bulk copy; `barrier` stands for it.
    pub fn land(&mut self, at: u64, bytes: &[u8], barrier: Agent, time: u32) -> Result<(), String> {
        let at = at as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.shadows(at, bytes.len(), |_, s| {
            (s.flight, s.undefined, s.writer, s.written) = (Flight::None, false, barrier.id, time);
            Ok(())
        })
    }

    /// Makes bytes an `mbarrier`, or no longer one.
    pub fn occupy(&mut self, at: u64, size: usize, by: &Actor<'_>, occupied: bool) -> Result<(), String> {
        let at = self.check(at, size)?;
        if occupied {
            self.touch_write(at, size, by)?;
        }
        self.shadows(at, size, |_, s| {
            (s.flight, s.undefined) = (if occupied { Flight::Barrier } else { Flight::None }, true);
            Ok(())
        })
    }

    /// Bytes that a bulk copy reads.
    pub fn read_bulk(&mut self, at: u64, size: usize, by: &Actor<'_>) -> Result<Vec<u8>, String> {
        let at = self.check(at, size)?;
        self.touch_read(at, size, by)?;
        Ok(self.bytes[at..at + size].to_vec())
    }

    /// Starts a `wgmma`'s read of a row of its operand.
    pub fn start_reading(&mut self, at: u64, size: usize, by: &Actor<'_>) -> Result<&[u8], String> {
        let at = self.check(at, size)?;
        self.touch_read(at, size, by)?;
        self.shadows(at, size, |_, s| {
            let readers = if let Flight::Read(n) = s.flight { n } else { 0 };
            s.flight = Flight::Read(readers + 1);
            Ok(())
        })?;
        Ok(&self.bytes[at..at + size])
    }

    /// Ends it: from here on the read is the waiting warp's.
    pub fn stop_reading(&mut self, at: u64, size: usize, by: &Actor<'_>) -> Result<(), String> {
        self.shadows(at as usize, size, |_, s| {
            if let Flight::Read(n) = s.flight {
                s.flight = if n > 1 { Flight::Read(n - 1) } else { Flight::None };
            }
            s.read(by);
            Ok(())
        })
    }
}
