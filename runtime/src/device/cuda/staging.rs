//! A ring of pinned host memory through which bytes reach the GPU while the host goes on.

use super::failed;
use super::handles::{Event, Pinned, Stream, copy_in};
use crate::Error;
use cudarc::driver::sys::CUdeviceptr;
use std::collections::VecDeque;
use std::ops::Range;

/// The ring.
pub struct Staging {
    memory: Pinned,
    /// Where the next bytes go.
    head: usize,
    /// Copies that may be under way, oldest first.
    under_way: VecDeque<(Range<usize>, Event)>,
    /// Events to be used again.
    spare: Vec<Event>,
}

impl Staging {
    pub fn new(bytes: usize) -> Result<Self, Error> {
        Ok(Staging { memory: Pinned::allocate(bytes)?, head: 0, under_way: VecDeque::new(), spare: vec![] })
    }

    /// Queues copies of `bytes` to the device, which may be changed once this returns. Waits only where the ring is full.
    pub fn copy(&mut self, to: CUdeviceptr, bytes: &[u8], stream: &Stream) -> Result<(), Error> {
        let capacity = self.memory.bytes().len();
        for (n, chunk) in bytes.chunks(capacity).enumerate() {
            let range = self.reserve(chunk.len())?;
            let place = &mut self.memory.bytes_mut()[range.clone()];
            place.copy_from_slice(chunk);
            copy_in(to + (n * capacity) as u64, place, stream)?;
            let event = self.spare.pop().map_or_else(Event::new, Ok)?;
            event.record(stream)?;
            self.under_way.push_back((range, event));
        }
        Ok(())
    }

    /// A part of the ring that no copy uses.
    fn reserve(&mut self, bytes: usize) -> Result<Range<usize>, Error> {
        let from = if self.head + bytes > self.memory.bytes().len() { 0 } else { self.head };
        let range = from..from + bytes;
        while self.under_way.iter().any(|(r, _)| r.start < range.end && range.start < r.end) {
            let Some((_, event)) = self.under_way.pop_front() else { break };
            event.synchronize().map_err(failed("copying to the GPU"))?;
            self.spare.push(event);
        }
        self.head = range.end;
        Ok(range)
    }
}
