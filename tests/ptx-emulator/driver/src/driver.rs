//! The state behind the entry points.

use crate::codes::Code;
use crate::config::Config;
use crate::kernels::Function;
use crate::order::{Clock, History, Stamp};
use crate::queue::{Kernel, Node, OpId, Queue, Work};
use crate::report::Report;
use fp8c_ptx_emulator::{Contents, Global, Launch, Program, launch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub(crate) type Done = Result<(), Code>;

/// Distance between allocations at least, so that an access beyond one hits none.
const GUARD: u64 = 1 << 20;
/// Alignment of allocations.
const ALIGN: u64 = 256;
/// What the host finds in memory that a copy under way is to fill: a NaN in every float format.
const POISON: u8 = 0xff;

/// One device with its primary context.
pub struct Driver {
    pub config: Config,
    pub report: Report,
    memory: Global,
    history: History,
    used: u64,
    next_address: u64,
    next_handle: u64,
    /// Pinned host memory: the words, by address.
    pinned: BTreeMap<u64, Vec<u64>>,
    pinned_bytes: BTreeMap<u64, u64>,
    pub(crate) modules: BTreeMap<u64, Arc<Program>>,
    pub(crate) functions: BTreeMap<u64, Function>,
    graphs: BTreeMap<u64, Vec<Node>>,
    executables: BTreeMap<u64, Vec<Node>>,
    pub(crate) queue: Queue,
    retained: u32,
    /// The error that every call gives once the device has faulted.
    broken: Option<Code>,
}

impl Driver {
    pub fn new(config: Config) -> Driver {
        Driver {
            queue: Queue::new(config.seed),
            config,
            report: Report::default(),
            memory: Global::default(),
            history: History::default(),
            used: 0,
            next_address: 0x7_0000_0000,
            next_handle: 0x1000,
            pinned: BTreeMap::new(),
            pinned_bytes: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            retained: 0,
            broken: None,
        }
    }

    /// The error that a fault of the device has left behind.
    pub fn broken(&self) -> Option<Code> {
        self.broken
    }

    pub(crate) fn handle(&mut self) -> u64 {
        self.next_handle += 16;
        self.next_handle
    }

    /// Takes note of a misuse.
    pub(crate) fn misuse<T>(&mut self, code: Code, reason: impl Into<String>) -> Result<T, Code> {
        self.report.fault(reason.into());
        Err(code)
    }

    pub(crate) fn not_capturing(&mut self, what: &str) -> Done {
        if self.queue.capturing() { self.misuse(Code::CAPTURE_UNSUPPORTED, format!("{what} while a stream is captured")) } else { Ok(()) }
    }

    // ---- context

    pub fn retain(&mut self) {
        self.retained += 1;
    }

    /// Releases the context; with the last release everything has to be gone.
    pub fn release(&mut self) -> Done {
        if self.retained == 0 {
            return self.misuse(Code::INVALID_CONTEXT, "the context is released more often than retained");
        }
        self.retained -= 1;
        if self.retained == 0 {
            self.find_leaks();
        }
        Ok(())
    }

    /// The process ends.
    pub fn shut_down(&mut self) {
        if self.retained > 0 {
            self.report.leaks.push(format!("the context, retained {} times", self.retained));
            self.find_leaks();
        }
        if let Some(log) = self.config.log.clone() {
            self.report.write(&log);
        }
    }

    fn find_leaks(&mut self) {
        if self.broken.is_some() {
            // Nothing can be freed once the device has faulted.
            return;
        }
        let pending = self.queue.pending().filter(|w| !matches!(w, Work::Nothing)).count();
        let (streams, events) = self.queue.handles();
        let bytes: u64 = self.memory.allocations().map(|(_, n)| n).sum();
        let left = [
            (self.memory.allocations().count(), format!("{bytes} bytes of device memory")),
            (self.pinned.len(), "pinned host memory".to_string()),
            (streams, format!("{streams} streams")),
            (events, format!("{events} events")),
            (self.modules.len(), format!("{} modules", self.modules.len())),
            (self.graphs.len(), format!("{} graphs", self.graphs.len())),
            (self.executables.len(), format!("{} executable graphs", self.executables.len())),
            (pending, format!("{pending} operations that nobody waited for")),
        ];
        for (_, what) in left.into_iter().filter(|(n, _)| *n > 0) {
            eprintln!("driver stand-in: left behind: {what}");
            self.report.leaks.push(what);
        }
    }

    // ---- memory

    /// Free and total bytes.
    pub fn memory_info(&self) -> (u64, u64) {
        (self.config.memory - self.used, self.config.memory)
    }

    pub fn allocate(&mut self, bytes: u64) -> Result<u64, Code> {
        self.not_capturing("an allocation")?;
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        if bytes > self.config.memory - self.used {
            return Err(Code::OUT_OF_MEMORY);
        }
        let address = self.next_address;
        self.next_address = (address + bytes + GUARD).next_multiple_of(ALIGN);
        let words = usize::try_from(bytes).map_err(|_| Code::OUT_OF_MEMORY)?;
        if let Err(reason) = self.memory.insert(address, vec![POISON; words], Contents::Undefined) {
            return self.misuse(Code::INVALID_VALUE, reason);
        }
        self.used += bytes;
        self.report.allocations.push(bytes);
        self.report.peak_bytes = self.report.peak_bytes.max(self.used);
        Ok(address)
    }

    pub fn free(&mut self, address: u64) -> Done {
        self.not_capturing("freeing memory")?;
        let Some(bytes) = self.memory.remove(address) else {
            return self.misuse(Code::INVALID_VALUE, format!("freeing {address:#x}, which is no allocation, or no longer"));
        };
        self.used -= bytes.len() as u64;
        self.history.forget(address, bytes.len() as u64);
        let pending = self.queue.pending().filter(|w| !matches!(w, Work::Nothing)).count();
        if pending > 0 {
            self.report.fault(format!("memory is freed while {pending} operations are queued"));
        }
        Ok(())
    }

    /// The start of the first allocation.
    pub fn first_allocation(&self) -> Option<u64> {
        self.memory.allocations().next().map(|(address, _)| address)
    }

    /// Reserves pinned host memory; it stays where it is until it is freed.
    pub fn allocate_host(&mut self, bytes: u64) -> Result<u64, Code> {
        let words = usize::try_from(bytes.div_ceil(8)).map_err(|_| Code::OUT_OF_MEMORY)?;
        let block = vec![u64::from_ne_bytes([POISON; 8]); words.max(1)];
        let address = block.as_ptr() as u64;
        self.pinned.insert(address, block);
        self.pinned_bytes.insert(address, bytes);
        Ok(address)
    }

    pub fn free_host(&mut self, address: u64) -> Done {
        if self.pinned.remove(&address).is_none() {
            return self.misuse(Code::INVALID_VALUE, format!("freeing {address:#x}, which is no pinned memory, or no longer"));
        }
        let end = address + self.pinned_bytes.remove(&address).unwrap_or_default();
        let within = |a: u64| (address..end).contains(&a);
        let used = |w: &Work| match w {
            Work::ToDevice { from, .. } => within(*from),
            Work::ToHost { to, .. } => within(*to),
            _ => false,
        };
        if self.queue.pending().any(used) {
            self.report.fault("pinned memory is freed while a copy of it is queued".into());
        }
        Ok(())
    }

    fn is_pinned(&self, address: u64, bytes: u64) -> bool {
        let below = self.pinned_bytes.range(..=address).next_back();
        below.is_some_and(|(start, n)| address.checked_add(bytes).is_some_and(|end| end <= start + n))
    }

    // ---- copies

    /// Queues a copy or a fill. Host memory has to be pinned: a driver may read other memory at once or later.
    pub fn enqueue(&mut self, stream: u64, work: Work) -> Done {
        let (host, bytes) = match &work {
            Work::ToDevice { from, bytes, .. } => (Some(*from), *bytes),
            Work::ToHost { to, bytes, .. } => (Some(*to), *bytes),
            _ => (None, 0),
        };
        if host.is_some_and(|h| !self.is_pinned(h, bytes)) {
            return self.misuse(Code::INVALID_VALUE, "an asynchronous copy of host memory that is not pinned");
        }
        if let Work::ToHost { to, bytes, .. } = &work
            && !self.queue.is_capturing(stream)?
        {
            // SAFETY: the bytes lie within a block of pinned memory, which is alive.
            unsafe { std::ptr::write_bytes(*to as *mut u8, POISON, *bytes as usize) };
        }
        self.queue.enqueue(stream, work)
    }

    /// Copies at once, after what the default stream waits for and nothing else.
    pub fn copy_now(&mut self, work: Work) -> Done {
        self.not_capturing("a synchronous copy")?;
        let ends = self.queue.blocking_ends();
        self.run(&ends)?;
        let (stamp, clock) = self.queue.host_access();
        let result = self.execute(&work, stamp, &clock);
        self.settle(result, &work)
    }

    fn note(&mut self, at: u64, bytes: u64, writes: bool, stamp: Stamp, clock: &Clock, name: &str) -> Result<(), (Code, String)> {
        self.history.access(at, bytes, writes, stamp, clock, name).map_err(|reason| (Code::LAUNCH_FAILED, reason))
    }

    fn execute(&mut self, work: &Work, stamp: Stamp, clock: &Clock) -> Result<(), (Code, String)> {
        let illegal = |reason: String| (Code::ILLEGAL_ADDRESS, reason);
        let name = work.name();
        match work {
            Work::Nothing => Ok(()),
            Work::Fill { to, bytes, value } => {
                self.memory.fill(*to, *bytes, *value).map_err(illegal)?;
                self.note(*to, *bytes, true, stamp, clock, &name)
            }
            Work::ToDevice { to, from, bytes } => {
                self.report.copies_in += 1;
                // SAFETY: asynchronous copies are of pinned memory, whose end is a fault of its own; synchronous ones are the caller's.
                let host = unsafe { std::slice::from_raw_parts(*from as *const u8, *bytes as usize) };
                self.memory.write(*to, host).map_err(illegal)?;
                self.note(*to, *bytes, true, stamp, clock, &name)
            }
            Work::ToHost { to, from, bytes } => {
                self.report.copies_out += 1;
                // SAFETY: as above.
                let host = unsafe { std::slice::from_raw_parts_mut(*to as *mut u8, *bytes as usize) };
                self.memory.read(*from, host).map_err(illegal)?;
                self.note(*from, *bytes, false, stamp, clock, &name)
            }
            Work::Kernel(k) => self.interpret(k, stamp, clock, &name),
        }
    }

    fn interpret(&mut self, k: &Kernel, stamp: Stamp, clock: &Clock, name: &str) -> Result<(), (Code, String)> {
        self.report.kernels += 1;
        if !self.modules.contains_key(&k.module) {
            return Err((Code::ILLEGAL_ADDRESS, "its module has been unloaded".into()));
        }
        let started = Instant::now();
        let shape = Launch { entry: &k.entry, blocks: k.blocks, threads: k.threads, shared_bytes: k.shared_bytes };
        let result = launch(&k.program, &shape, &k.parameters, &mut self.memory);
        *self.report.seconds.entry(k.entry.clone()).or_default() += started.elapsed().as_secs_f64();
        result.map_err(|fault| {
            let code = if fault.reason.contains("belongs to no") { Code::ILLEGAL_ADDRESS } else { Code::LAUNCH_FAILED };
            (code, fault.to_string())
        })?;
        for access in self.memory.take_accesses() {
            self.note(access.address, access.bytes, access.writes, stamp, clock, name)?;
        }
        Ok(())
    }

    fn settle(&mut self, result: Result<(), (Code, String)>, work: &Work) -> Done {
        result.map_err(|(code, reason)| {
            self.report.fault(format!("{}: {reason}", work.name()));
            self.broken = Some(code);
            code
        })
    }

    // ---- waiting

    /// Runs what `ends` need, in an order drawn by lot, and nothing else.
    fn run(&mut self, ends: &[OpId]) -> Done {
        while let Some((id, op)) = self.queue.take(ends) {
            let result = self.execute(&op.work, op.stamp, &op.clock);
            self.queue.ran(id, &op);
            self.settle(result, &op.work)?;
        }
        self.queue.waited(ends);
        Ok(())
    }

    pub fn synchronize_stream(&mut self, stream: u64) -> Done {
        self.report.waits += 1;
        let ends = self.queue.stream_end(stream)?;
        self.run(&ends)
    }

    pub fn synchronize_event(&mut self, event: u64) -> Done {
        self.report.waits += 1;
        let ends = self.queue.event_end(event)?;
        if ends.is_empty() {
            self.report.fault("the host waits for an event that was never recorded, or behind nothing".into());
        }
        self.run(&ends)
    }

    pub fn synchronize_all(&mut self) -> Done {
        self.not_capturing("a wait for everything")?;
        let ends = self.queue.everything();
        self.run(&ends)
    }

    /// Whether an event has happened; each time that it has not, one operation more runs.
    pub fn query(&mut self, ends: Vec<OpId>) -> Done {
        if let Some((id, op)) = self.queue.take(&ends) {
            let result = self.execute(&op.work, op.stamp, &op.clock);
            self.queue.ran(id, &op);
            self.settle(result, &op.work)?;
        }
        if !self.queue.is_done(&ends) {
            return Err(Code::NOT_READY);
        }
        self.queue.waited(&ends);
        Ok(())
    }

    pub fn query_stream(&mut self, stream: u64) -> Done {
        let ends = self.queue.stream_end(stream)?;
        self.query(ends)
    }

    pub fn query_event(&mut self, event: u64) -> Done {
        let ends = self.queue.event_end(event)?;
        self.query(ends)
    }

    // ---- streams, events, graphs

    pub fn create_stream(&mut self, blocking: bool) -> u64 {
        let handle = self.handle();
        self.queue.add_stream(handle, blocking);
        handle
    }

    pub fn destroy_stream(&mut self, stream: u64) -> Done {
        self.queue.remove_stream(stream).or_else(|code| self.misuse(code, "a stream is destroyed that does not exist, or no longer"))
    }

    pub fn create_event(&mut self) -> u64 {
        let handle = self.handle();
        self.queue.add_event(handle);
        handle
    }

    pub fn destroy_event(&mut self, event: u64) -> Done {
        self.queue.remove_event(event).or_else(|code| self.misuse(code, "an event is destroyed that does not exist, or no longer"))
    }

    pub fn record(&mut self, event: u64, stream: u64) -> Done {
        self.queue.record(event, stream).or_else(|code| self.misuse(code, "an event or stream that does not exist is recorded"))
    }

    pub fn wait_event(&mut self, stream: u64, event: u64) -> Done {
        match self.queue.wait_event(stream, event) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.report.fault("a stream waits for an event that was never recorded: it waits for nothing".into());
                Ok(())
            }
            Err(code) => self.misuse(code, "a stream cannot wait for this event"),
        }
    }

    pub fn begin_capture(&mut self, stream: u64) -> Done {
        let handle = self.handle();
        self.queue.begin_capture(stream, handle)
    }

    pub fn end_capture(&mut self, stream: u64) -> Result<u64, Code> {
        let nodes = self.queue.end_capture(stream)?;
        let handle = self.handle();
        self.report.graphs += 1;
        self.graphs.insert(handle, nodes);
        Ok(handle)
    }

    pub fn is_capturing(&self, stream: u64) -> Result<bool, Code> {
        self.queue.is_capturing(stream)
    }

    pub fn instantiate(&mut self, graph: u64) -> Result<u64, Code> {
        let nodes = self.graphs.get(&graph).cloned().ok_or(Code::INVALID_HANDLE)?;
        let handle = self.handle();
        self.executables.insert(handle, nodes);
        Ok(handle)
    }

    pub fn launch_graph(&mut self, executable: u64, stream: u64) -> Done {
        let Some(nodes) = self.executables.get(&executable).cloned() else {
            return self.misuse(Code::INVALID_HANDLE, "a graph is launched that does not exist, or no longer");
        };
        self.report.graph_launches += 1;
        self.queue.launch_graph(stream, &nodes)
    }

    pub fn destroy_graph(&mut self, graph: u64) -> Done {
        self.graphs.remove(&graph).map(drop).ok_or(Code::INVALID_HANDLE)
    }

    pub fn destroy_executable(&mut self, executable: u64) -> Done {
        self.executables.remove(&executable).map(drop).ok_or(Code::INVALID_HANDLE)
    }
}
