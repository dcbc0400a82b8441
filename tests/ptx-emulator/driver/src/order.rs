//! What is ordered before what, and who touched which bytes: races between operations are found whatever the order they ran in.

use std::collections::{BTreeMap, HashMap};

/// A place in a chain of operations of which each waits for the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub chain: u32,
    /// From 1.
    pub index: u32,
}

/// For each chain the operations that are ordered before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clock(HashMap<u32, u32>);

impl Clock {
    /// Adds what is ordered before another.
    pub fn join(&mut self, other: &Clock) {
        other.0.iter().for_each(|(&chain, &index)| self.add(Stamp { chain, index }));
    }

    pub fn add(&mut self, stamp: Stamp) {
        let at = self.0.entry(stamp.chain).or_default();
        *at = (*at).max(stamp.index);
    }

    pub fn has(&self, stamp: Stamp) -> bool {
        self.0.get(&stamp.chain).is_some_and(|&index| index >= stamp.index)
    }
}

/// An access of an operation.
#[derive(Clone, Debug)]
struct Access {
    stamp: Stamp,
    name: String,
}

#[derive(Clone, Debug, Default)]
struct Segment {
    end: u64,
    writer: Option<Access>,
    readers: Vec<Access>,
}

/// The last accesses of each byte.
#[derive(Debug, Default)]
pub struct History(BTreeMap<u64, Segment>);

impl History {
    /// Takes note of an access.
    ///
    /// # Errors
    /// A sentence when an earlier access of the same bytes, one of the two a write, is not ordered before this one.
    pub fn access(&mut self, from: u64, bytes: u64, writes: bool, stamp: Stamp, clock: &Clock, name: &str) -> Result<(), String> {
        let (end, mut at) = (from + bytes, from);
        self.split(from);
        self.split(end);
        while at < end {
            let next = self.0.range(at..end).next().map(|(start, _)| *start);
            if next != Some(at) {
                let until = next.unwrap_or(end);
                self.0.insert(at, Segment { end: until, ..Segment::default() });
            }
            let segment = self.0.entry(at).or_default();
            let unordered = |a: &&Access| !clock.has(a.stamp) && a.stamp != stamp;
            let rival = segment.writer.iter().find(unordered).map(|a| (a, "written"));
            let rival = rival.or_else(|| segment.readers.iter().filter(|_| writes).find(unordered).map(|a| (a, "read")));
            if let Some((rival, how)) = rival {
                let what = if writes { "writes" } else { "reads" };
                return Err(format!("a race between streams: {name} {what} {at:#x}, {how} by {} with no order between them", rival.name));
            }
            let access = Access { stamp, name: name.to_string() };
            if writes {
                segment.writer = Some(access);
                segment.readers.clear();
            } else {
                segment.readers.retain(|a| !clock.has(a.stamp));
                segment.readers.push(access);
            }
            at = segment.end;
        }
        Ok(())
    }

    /// Forgets bytes that are freed.
    pub fn forget(&mut self, from: u64, bytes: u64) {
        self.split(from);
        self.split(from + bytes);
        self.0.retain(|start, _| !(from..from + bytes).contains(start));
    }

    /// Makes a boundary between segments.
    fn split(&mut self, at: u64) {
        let Some((_, segment)) = self.0.range_mut(..at).next_back() else { return };
        if segment.end > at {
            let mut right = segment.clone();
            right.end = segment.end;
            segment.end = at;
            self.0.insert(at, right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_races_with_an_unordered_read_of_one_of_its_bytes() {
        let mut history = History::default();
        let (a, b, before) = (Stamp { chain: 0, index: 1 }, Stamp { chain: 1, index: 1 }, Clock::default());
        let mut after = Clock::default();
        after.add(a);
        history.access(0, 100, false, a, &before, "a").unwrap();
        assert!(history.access(99, 10, true, b, &before, "b").unwrap_err().contains("read by a"));
        history.access(99, 10, true, b, &after, "b").unwrap();
        assert!(history.access(105, 1, false, a, &before, "c").unwrap_err().contains("written by b"));
        history.access(50, 10, false, a, &before, "d").unwrap();
    }
}
