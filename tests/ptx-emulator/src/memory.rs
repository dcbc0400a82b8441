//! Memory that remembers who touched what.

use crate::clock::{Agent, Clocks, Order};
use crate::readers::{NOBODY, Readers};

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
    pub fn after_access(&self, id: u32, time: u32) -> bool {
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

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Shadow {
    flight: Flight,
    writer: u32,
    written: u32,
    /// Number of the set of reads since the write.
    readers: u32,
}

/// Bytes of a page of shadows, which exist only where memory is touched.
const PAGE: usize = 1024;

/// Runs `each` on the shadow of every byte of a range.
fn each_shadow(
    pages: &mut [Option<Box<[Shadow]>>],
    at: usize,
    size: usize,
    mut each: impl FnMut(usize, &mut Shadow) -> Result<(), String>,
) -> Result<(), String> {
    let mut i = at;
    while i < at + size {
        let page = pages[i / PAGE].get_or_insert_with(|| vec![Shadow::default(); PAGE].into());
        let end = (at + size).min((i / PAGE + 1) * PAGE);
        for shadow in &mut page[i % PAGE..i % PAGE + end - i] {
            each(i, shadow)?;
            i += 1;
        }
    }
    Ok(())
}

/// Bytes with their shadows.
pub struct Region {
    pub bytes: Vec<u8>,
    defined: Vec<bool>,
    pages: Vec<Option<Box<[Shadow]>>>,
    readers: Readers,
    writable: bool,
}

impl Region {
    pub fn new(bytes: Vec<u8>, contents: Contents) -> Self {
        let defined = vec![contents != Contents::Undefined; bytes.len()];
        let pages = vec![None; bytes.len().div_ceil(PAGE)];
        Region { pages, readers: Readers::default(), defined, bytes, writable: contents != Contents::ReadOnly }
    }

    fn check(&self, at: u64, size: usize) -> Result<usize, String> {
        let end = at.checked_add(size as u64).filter(|&e| e <= self.bytes.len() as u64);
        end.ok_or_else(|| format!("access of {size} bytes at offset {} of {}", at as i64, self.bytes.len()))?;
        Ok(at as usize)
    }

    fn shadows(&mut self, at: usize, size: usize, each: impl FnMut(usize, &mut Shadow) -> Result<(), String>) -> Result<(), String> {
        each_shadow(&mut self.pages, at, size, each)
    }

    /// [`Region::shadows`] for an access, which makes the same of like shadows: neighbours mostly have one history.
    fn alike(
        &mut self,
        at: usize,
        size: usize,
        mut each: impl FnMut(usize, &mut Shadow, &mut Readers) -> Result<(), String>,
    ) -> Result<(), String> {
        let readers = &mut self.readers;
        let mut last: Option<(Shadow, Shadow)> = None;
        each_shadow(&mut self.pages, at, size, |i, s| {
            if let Some((_, after)) = last.filter(|(before, _)| before == s) {
                *s = after;
                return Ok(());
            }
            let before = *s;
            each(i, s, readers)?;
            last = Some((before, *s));
            Ok(())
        })
    }

    /// Forgets who touched what; what is defined stays so. Gives the bytes that were touched: offset, count, whether written.
    pub fn settle(&mut self) -> Vec<(usize, usize, bool)> {
        let mut runs: Vec<(usize, usize, bool)> = vec![];
        for (number, page) in self.pages.iter_mut().enumerate() {
            for (i, s) in page.take().iter().flat_map(|p| p.iter()).enumerate() {
                let (at, writes) = (number * PAGE + i, s.writer != 0);
                match runs.last_mut() {
                    _ if s.writer == 0 && s.readers == NOBODY => {}
                    Some((from, count, kind)) if *from + *count == at && *kind == writes => *count += 1,
                    _ => runs.push((at, 1, writes)),
                }
            }
        }
        self.readers = Readers::default();
        runs
    }

    fn touch_read(&mut self, at: usize, size: usize, by: &Actor<'_>) -> Result<(), String> {
        let undefined = self.defined[at..at + size].iter().position(|d| !d).map(|i| at + i);
        if self.writable {
            self.alike(at, size, |i, s, readers| {
                match s.flight {
                    Flight::Written => return Err(format!("read of offset {i}, which an asynchronous copy under way writes")),
                    Flight::Barrier => return Err(format!("read of offset {i}, which belongs to an mbarrier")),
                    Flight::None | Flight::Read(_) => {}
                }
                if undefined == Some(i) {
                    return Err(format!("read of undefined memory at offset {i}"));
                }
                by.after_write(s.writer, s.written).map_err(|how| format!("read of offset {i} {how} its write by agent {}", s.writer))?;
                s.readers = readers.and(s.readers, by);
                Ok(())
            })?;
        }
        undefined.map_or(Ok(()), |i| Err(format!("read of undefined memory at offset {i}")))
    }

    /// Reads up to 16 bytes, little endian.
    pub fn read(&mut self, at: u64, size: usize, by: &Actor<'_>) -> Result<u128, String> {
        let at = self.check(at, size)?;
        self.touch_read(at, size, by)?;
        let mut value = [0; 16];
        value[..size].copy_from_slice(&self.bytes[at..at + size]);
        Ok(u128::from_le_bytes(value))
    }

    fn touch_write(&mut self, at: usize, size: usize, by: &Actor<'_>) -> Result<(), String> {
        if !self.writable {
            return Err("write to memory that is only read".into());
        }
        self.alike(at, size, |i, s, readers| {
            match s.flight {
                Flight::None => {}
                Flight::Written => return Err(format!("write of offset {i}, which an asynchronous copy under way writes")),
                Flight::Read(_) => return Err(format!("write of offset {i}, which a wgmma under way reads")),
                Flight::Barrier => return Err(format!("write of offset {i}, which belongs to an mbarrier")),
            }
            by.after_write(s.writer, s.written).map_err(|how| format!("write of offset {i} {how} its write by agent {}", s.writer))?;
            if let Some(reader) = readers.unordered(s.readers, by) {
                return Err(format!("write of offset {i} races with its read by agent {reader}"));
            }
            (s.writer, s.written, s.readers) = (by.agent.id, by.clocks.now(), NOBODY);
            Ok(())
        })?;
        self.defined[at..at + size].fill(true);
        Ok(())
    }

    /// Writes up to 16 bytes, little endian.
    pub fn write(&mut self, at: u64, size: usize, value: u128, by: &Actor<'_>) -> Result<(), String> {
        let at = self.check(at, size)?;
        self.touch_write(at, size, by)?;
        self.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }

    /// Marks bytes as undefined: a thread's asynchronous copy to them is under way.
    pub fn forget(&mut self, at: u64, size: usize, by: &Actor<'_>) -> Result<(), String> {
        self.write(at, size, 0, by)?;
        self.defined[at as usize..at as usize + size].fill(false);
        Ok(())
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
        self.defined[at..at + bytes.len()].fill(true);
        self.shadows(at, bytes.len(), |_, s| {
            (s.flight, s.writer, s.written) = (Flight::None, barrier.id, time);
            Ok(())
        })
    }

    /// Makes bytes an `mbarrier`, or no longer one.
    pub fn occupy(&mut self, at: u64, size: usize, by: &Actor<'_>, occupied: bool) -> Result<(), String> {
        let at = self.check(at, size)?;
        if occupied {
            self.touch_write(at, size, by)?;
        }
        self.defined[at..at + size].fill(false);
        self.shadows(at, size, |_, s| {
            s.flight = if occupied { Flight::Barrier } else { Flight::None };
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
        self.alike(at as usize, size, |_, s, readers| {
            if let Flight::Read(n) = s.flight {
                s.flight = if n > 1 { Flight::Read(n - 1) } else { Flight::None };
            }
            s.readers = readers.and(s.readers, by);
            Ok(())
        })
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
}
