//! The bytes of the arena, and what they hold.

use crate::units::BufferId;
use fp8c_runtime::plan::{ALIGN, Plan, TensorId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Which of a buffer's writes a tensor has seen, by their number in the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// All before this one.
    pub before: u32,
    /// And these, each beyond the first that is missing.
    pub beyond: BTreeSet<u32>,
}

impl Written {
    pub fn is_exactly(&self, writes: u32) -> bool {
        self.before == writes && self.beyond.is_empty()
    }

    pub fn add(&mut self, write: u32) {
        if write >= self.before {
            self.beyond.insert(write);
        }
        while self.beyond.remove(&self.before) {
            self.before += 1;
        }
    }

    /// The writes from `first` on.
    pub fn since(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        (first..self.before).chain(self.beyond.range(first..).copied())
    }
}

/// What a tensor holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub buffer: BufferId,
    /// The micro-batch that it belongs to; 0 for what lasts.
    pub pass: u32,
    pub written: Written,
}

/// A stretch of bytes and whose they are.
#[derive(Clone, Copy)]
struct Stretch {
    end: u64,
    tensor: TensorId,
}

/// Who has claimed each byte last.
pub struct Arena<'a> {
    plan: &'a Plan,
    /// By start.
    stretches: BTreeMap<u64, Stretch>,
    contents: HashMap<TensorId, Content>,
    /// One past the highest byte claimed so far.
    pub peak: u64,
}

impl<'a> Arena<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        Arena { plan, stretches: BTreeMap::new(), contents: HashMap::new(), peak: 0 }
    }

    /// What a tensor holds, if its bytes are still its own.
    pub fn content(&mut self, id: TensorId) -> Option<&mut Content> {
        self.contents.get_mut(&id)
    }

    /// True if a tensor's bytes are its own.
    pub fn is_there(&self, id: TensorId) -> bool {
        let start = self.plan.tensors.get(id.0 as usize).map(|t| t.offset);
        start.and_then(|s| self.stretches.get(&s)).is_some_and(|s| s.tensor == id)
    }

    /// Makes what a tensor holds worthless.
    pub fn forget(&mut self, id: TensorId) {
        self.contents.remove(&id);
    }

    /// Gives a tensor its bytes, with what it holds; whatever lay there is gone.
    pub fn claim(&mut self, id: TensorId, content: Content) -> Result<(), String> {
        self.occupy(id)?;
        self.contents.insert(id, content);
        Ok(())
    }

    /// Gives a tensor its bytes, with nothing in them. One without bytes has a place all the same.
    pub fn occupy(&mut self, id: TensorId) -> Result<(), String> {
        let t = self.plan.tensors.get(id.0 as usize).ok_or_else(|| format!("tensor {} does not exist", id.0))?;
        let end = t.bytes.max(1).checked_next_multiple_of(ALIGN).and_then(|b| b.checked_add(t.offset));
        let end = end.filter(|_| t.offset.is_multiple_of(ALIGN)).ok_or_else(|| format!("{} has no place", t.name))?;
        let first = self.stretches.range(..t.offset).next_back().filter(|(_, s)| s.end > t.offset).map_or(t.offset, |(&s, _)| s);
        let hit: Vec<u64> = self.stretches.range(first..end).map(|(&s, _)| s).collect();
        for start in hit {
            if let Some(gone) = self.stretches.remove(&start) {
                self.contents.remove(&gone.tensor);
            }
        }
        self.stretches.insert(t.offset, Stretch { end, tensor: id });
        self.peak = self.peak.max(end);
        Ok(())
    }
}
