//! Streams, events and captured graphs as queues: an operation runs when somebody waits for it, not before, and of those that may run
//! the next is drawn by lot.

use crate::codes::Code;
use crate::order::{Clock, Stamp};
use fp8c_ptx_emulator::Program;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A number of an operation; later ones are larger.
pub type OpId = u64;

/// A kernel with its parameters as they were when it was launched.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub module: u64,
    pub program: Arc<Program>,
    pub entry: String,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    pub parameters: Vec<u64>,
}

/// What an operation does. Host addresses are numbers: whether they are still valid is checked when they are used.
#[derive(Clone, Debug)]
pub enum Work {
    Nothing,
    Kernel(Kernel),
    ToDevice { to: u64, from: u64, bytes: u64 },
    ToHost { to: u64, from: u64, bytes: u64 },
    Fill { to: u64, bytes: u64, value: u8 },
}

impl Work {
    /// The operation in a report.
    pub fn name(&self) -> String {
        match self {
            Work::Nothing => "nothing".into(),
            Work::Kernel(k) => format!("kernel {}", k.entry),
            Work::ToDevice { bytes, .. } => format!("a copy of {bytes} bytes to the device"),
            Work::ToHost { bytes, .. } => format!("a copy of {bytes} bytes to the host"),
            Work::Fill { bytes, .. } => format!("a fill of {bytes} bytes"),
        }
    }
}

/// An operation in the queue.
#[derive(Clone, Debug)]
pub struct Op {
    pub work: Work,
    /// Operations that must have run.
    after: Vec<OpId>,
    pub stamp: Stamp,
    pub clock: Clock,
}

/// A node of a captured graph.
#[derive(Clone, Debug)]
pub struct Node {
    pub work: Work,
    /// Nodes that come before.
    pub after: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Capture {
    origin: u64,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    blocking: bool,
    /// The chain of its operations.
    chain: u32,
    tail: Vec<OpId>,
    /// The capture that it takes part in and its newest nodes.
    capture: Option<(u64, Vec<usize>)>,
}

#[derive(Clone, Debug)]
enum Event {
    Never,
    Recorded(Vec<OpId>),
    Captured(u64, Vec<usize>),
}

/// The legacy default stream.
pub const DEFAULT_STREAM: u64 = 0;
/// The chain of what the host does itself.
const HOST_CHAIN: u32 = 0;

/// All queues of a context.
pub struct Queue {
    streams: BTreeMap<u64, Stream>,
    events: BTreeMap<u64, Event>,
    captures: BTreeMap<u64, Capture>,
    pending: BTreeMap<OpId, Op>,
    /// Stamp and clock of what has run and is still the end of something.
    done: BTreeMap<OpId, (Stamp, Clock)>,
    /// Length of each chain.
    chains: Vec<u32>,
    /// What the host has waited for.
    host: Clock,
    next: OpId,
    random: u64,
}

impl Queue {
    pub fn new(seed: u64) -> Queue {
        let default = Stream { blocking: true, chain: 1, ..Stream::default() };
        Queue {
            streams: BTreeMap::from([(DEFAULT_STREAM, default)]),
            events: BTreeMap::new(),
            captures: BTreeMap::new(),
            pending: BTreeMap::new(),
            done: BTreeMap::new(),
            chains: vec![0, 0],
            host: Clock::default(),
            next: 1,
            random: seed,
        }
    }

    pub fn add_stream(&mut self, handle: u64, blocking: bool) {
        self.chains.push(0);
        let chain = self.chains.len() as u32 - 1;
        self.streams.insert(handle, Stream { blocking, chain, ..Stream::default() });
    }

    pub fn add_event(&mut self, handle: u64) {
        self.events.insert(handle, Event::Never);
    }

    pub fn remove_stream(&mut self, handle: u64) -> Result<(), Code> {
        if handle == DEFAULT_STREAM {
            return Err(Code::INVALID_HANDLE);
        }
        self.streams.remove(&handle).map(drop).ok_or(Code::INVALID_HANDLE)
    }

    pub fn remove_event(&mut self, handle: u64) -> Result<(), Code> {
        self.events.remove(&handle).map(drop).ok_or(Code::INVALID_HANDLE)
    }

    /// Handles of streams and events that exist.
    pub fn handles(&self) -> (usize, usize) {
        (self.streams.len() - 1, self.events.len())
    }

    /// True while a stream is being captured.
    pub fn capturing(&self) -> bool {
        !self.captures.is_empty()
    }

    pub fn is_capturing(&self, stream: u64) -> Result<bool, Code> {
        self.streams.get(&stream).map(|s| s.capture.is_some()).ok_or(Code::INVALID_HANDLE)
    }

    /// Adds an operation to a stream, or to the graph that the stream is captured into.
    pub fn enqueue(&mut self, stream: u64, work: Work) -> Result<(), Code> {
        let s = self.streams.get(&stream).ok_or(Code::INVALID_HANDLE)?;
        if let Some((capture, after)) = s.capture.clone() {
            let nodes = &mut self.captures.get_mut(&capture).ok_or(Code::CAPTURE_UNMATCHED)?.nodes;
            nodes.push(Node { work, after });
            let newest = nodes.len() - 1;
            self.set_captured(stream, capture, vec![newest]);
            return Ok(());
        }
        let mut after = s.tail.clone();
        if s.blocking {
            // The default stream waits for the blocking ones and they for it.
            let others = self.streams.iter().filter(|(h, o)| o.blocking && (stream == DEFAULT_STREAM || **h == DEFAULT_STREAM));
            after.extend(others.flat_map(|(_, o)| o.tail.iter()));
        }
        let chain = s.chain;
        let op = self.push(work, after, Some(chain));
        self.set_tail(stream, vec![op]);
        Ok(())
    }

    fn set_tail(&mut self, stream: u64, tail: Vec<OpId>) {
        if let Some(s) = self.streams.get_mut(&stream) {
            s.tail = tail;
        }
        self.forget();
    }

    fn set_captured(&mut self, stream: u64, capture: u64, tail: Vec<usize>) {
        if let Some(s) = self.streams.get_mut(&stream) {
            s.capture = Some((capture, tail));
        }
    }

    fn order_of(&self, op: OpId) -> Option<(Stamp, &Clock)> {
        let queued = self.pending.get(&op).map(|o| (o.stamp, &o.clock));
        queued.or_else(|| self.done.get(&op).map(|(s, c)| (*s, c)))
    }

    /// Queues an operation, at the end of a chain that it comes after or of a new one.
    fn push(&mut self, work: Work, mut after: Vec<OpId>, chain: Option<u32>) -> OpId {
        after.sort_unstable();
        after.dedup();
        let mut clock = self.host.clone();
        let mut found = None;
        for op in &after {
            let Some((stamp, before)) = self.order_of(*op) else { continue };
            clock.join(before);
            clock.add(stamp);
            if self.chains[stamp.chain as usize] == stamp.index {
                found = Some(stamp.chain);
            }
        }
        let chain = chain.or(found).unwrap_or_else(|| {
            self.chains.push(0);
            self.chains.len() as u32 - 1
        });
        self.chains[chain as usize] += 1;
        let stamp = Stamp { chain, index: self.chains[chain as usize] };
        let id = self.next;
        self.next += 1;
        self.pending.insert(id, Op { work, after, stamp, clock });
        id
    }

    /// Drops what has run and is no longer the end of anything.
    fn forget(&mut self) {
        let tails = self.streams.values().flat_map(|s| s.tail.iter());
        let recorded = self.events.values().filter_map(|e| if let Event::Recorded(ops) = e { Some(ops) } else { None });
        let held: BTreeSet<OpId> = tails.chain(recorded.flatten()).copied().collect();
        self.done.retain(|op, _| held.contains(op));
    }

    /// Lets an event stand for what a stream holds now.
    pub fn record(&mut self, event: u64, stream: u64) -> Result<(), Code> {
        let s = self.streams.get(&stream).ok_or(Code::INVALID_HANDLE)?;
        let e = self.events.get_mut(&event).ok_or(Code::INVALID_HANDLE)?;
        *e = match &s.capture {
            Some((capture, tail)) => Event::Captured(*capture, tail.clone()),
            None => Event::Recorded(s.tail.clone()),
        };
        Ok(())
    }

    /// Makes what comes next in a stream wait for an event. `Ok(false)` when the event was never recorded: then nothing waits.
    pub fn wait_event(&mut self, stream: u64, event: u64) -> Result<bool, Code> {
        let s = self.streams.get(&stream).ok_or(Code::INVALID_HANDLE)?.clone();
        match (self.events.get(&event).ok_or(Code::INVALID_HANDLE)?.clone(), s.capture) {
            (Event::Never, _) => return Ok(false),
            (Event::Recorded(ops), None) => {
                let op = self.push(Work::Nothing, s.tail.into_iter().chain(ops).collect(), Some(s.chain));
                self.set_tail(stream, vec![op]);
            }
            (Event::Recorded(_), Some(_)) => return Err(Code::CAPTURE_ISOLATION),
            (Event::Captured(capture, nodes), None) => {
                self.captures.get(&capture).ok_or(Code::CAPTURED_EVENT)?;
                self.set_captured(stream, capture, nodes);
            }
            (Event::Captured(capture, nodes), Some((own, tail))) if own == capture => {
                self.set_captured(stream, capture, tail.into_iter().chain(nodes).collect());
            }
            (Event::Captured(..), Some(_)) => return Err(Code(902)),
        }
        Ok(true)
    }

    pub fn begin_capture(&mut self, stream: u64, handle: u64) -> Result<(), Code> {
        let s = self.streams.get_mut(&stream).ok_or(Code::INVALID_HANDLE)?;
        if stream == DEFAULT_STREAM || s.capture.is_some() {
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        s.capture = Some((handle, vec![]));
        self.captures.insert(handle, Capture { origin: stream, nodes: vec![] });
        Ok(())
    }

    /// The nodes of a finished capture.
    pub fn end_capture(&mut self, stream: u64) -> Result<Vec<Node>, Code> {
        let s = self.streams.get(&stream).ok_or(Code::INVALID_HANDLE)?;
        let (handle, tail) = s.capture.clone().ok_or(Code::CAPTURE_UNMATCHED)?;
        if self.captures.get(&handle).is_none_or(|c| c.origin != stream) {
            return Err(Code::CAPTURE_UNMATCHED);
        }
        let nodes = self.captures.remove(&handle).map(|c| c.nodes).unwrap_or_default();
        let (mut joined, mut stack) = (BTreeSet::new(), tail);
        while let Some(node) = stack.pop() {
            if joined.insert(node) {
                stack.extend(&nodes[node].after);
            }
        }
        let mut unjoined = false;
        for s in self.streams.values_mut().filter(|s| s.capture.as_ref().is_some_and(|(c, _)| *c == handle)) {
            unjoined |= s.capture.take().is_some_and(|(_, tail)| !tail.iter().all(|n| joined.contains(n)));
        }
        if unjoined { Err(Code::CAPTURE_UNJOINED) } else { Ok(nodes) }
    }

    /// Adds a graph's nodes behind what a stream holds.
    pub fn launch_graph(&mut self, stream: u64, nodes: &[Node]) -> Result<(), Code> {
        if self.is_capturing(stream)? {
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        self.enqueue(stream, Work::Nothing)?;
        let entry = self.streams[&stream].tail.clone();
        let mut ids: Vec<OpId> = Vec::with_capacity(nodes.len());
        let mut ends = BTreeSet::new();
        for node in nodes {
            let after = if node.after.is_empty() { entry.clone() } else { node.after.iter().map(|&n| ids[n]).collect() };
            ends.retain(|e| !after.contains(e));
            let id = self.push(node.work.clone(), after, None);
            ids.push(id);
            ends.insert(id);
        }
        let ends = if nodes.is_empty() { entry } else { ends.into_iter().collect() };
        let chain = self.streams[&stream].chain;
        let exit = self.push(Work::Nothing, ends, Some(chain));
        self.set_tail(stream, vec![exit]);
        Ok(())
    }

    /// What a stream ends with.
    pub fn stream_end(&self, stream: u64) -> Result<Vec<OpId>, Code> {
        let s = self.streams.get(&stream).ok_or(Code::INVALID_HANDLE)?;
        if s.capture.is_some() { Err(Code::CAPTURE_UNSUPPORTED) } else { Ok(s.tail.clone()) }
    }

    /// What the default stream waits for.
    pub fn blocking_ends(&self) -> Vec<OpId> {
        self.streams.values().filter(|s| s.blocking).flat_map(|s| s.tail.iter().copied()).collect()
    }

    /// What an event stands for; nothing for one that was never recorded.
    pub fn event_end(&self, event: u64) -> Result<Vec<OpId>, Code> {
        match self.events.get(&event).ok_or(Code::INVALID_HANDLE)? {
            Event::Never => Ok(vec![]),
            Event::Recorded(ops) => Ok(ops.clone()),
            Event::Captured(..) => Err(Code::CAPTURED_EVENT),
        }
    }

    pub fn everything(&self) -> Vec<OpId> {
        self.pending.keys().copied().collect()
    }

    pub fn is_done(&self, ends: &[OpId]) -> bool {
        ends.iter().all(|op| !self.pending.contains_key(op))
    }

    /// Operations that have not run.
    pub fn pending(&self) -> impl Iterator<Item = &Work> {
        self.pending.values().map(|o| &o.work)
    }

    /// Takes an operation that must run before `ends` have, and that may run now.
    pub fn take(&mut self, ends: &[OpId]) -> Option<(OpId, Op)> {
        let (mut needed, mut stack, mut ready) = (BTreeSet::new(), ends.to_vec(), vec![]);
        while let Some(op) = stack.pop() {
            let Some(queued) = self.pending.get(&op).filter(|_| needed.insert(op)) else { continue };
            let waiting: Vec<OpId> = queued.after.iter().copied().filter(|a| self.pending.contains_key(a)).collect();
            if waiting.is_empty() {
                ready.push(op);
            }
            stack.extend(waiting);
        }
        ready.sort_unstable();
        let drawn = (self.draw() % ready.len().max(1) as u64) as usize;
        let id = *ready.get(drawn)?;
        self.pending.remove(&id).map(|op| (id, op))
    }

    /// Takes note that an operation has run.
    pub fn ran(&mut self, id: OpId, op: &Op) {
        self.done.insert(id, (op.stamp, op.clock.clone()));
    }

    /// The host has waited for these.
    pub fn waited(&mut self, ends: &[OpId]) {
        for op in ends {
            if let Some((stamp, clock)) = self.done.get(op) {
                self.host.join(clock);
                self.host.add(*stamp);
            }
        }
        self.forget();
    }

    /// What an access of the host now is ordered after, as an operation of its own.
    pub fn host_access(&mut self) -> (Stamp, Clock) {
        self.chains[HOST_CHAIN as usize] += 1;
        let stamp = Stamp { chain: HOST_CHAIN, index: self.chains[HOST_CHAIN as usize] };
        let clock = self.host.clone();
        self.host.add(stamp);
        (stamp, clock)
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = self.random ^ (self.random >> 33);
        x.wrapping_mul(0xff51_afd7_ed55_8ccd) >> 20
    }
}
