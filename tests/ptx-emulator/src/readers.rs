//! Who has read a byte since it was written: sets of reads by number, so that neighbours with one history share it.

use crate::memory::{Actor, Path};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const LANES: u32 = 32;

/// A read: by one thread, or by any lanes of its warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reader {
    id: u32,
    time: u32,
    warp: bool,
}

impl Reader {
    fn first_of_warp(&self) -> u32 {
        (self.id - 1) / LANES * LANES + 1
    }

    fn before(&self, by: &Actor<'_>) -> bool {
        let first = self.first_of_warp();
        match self.warp {
            false => by.after_access(self.id, self.time),
            true => (first..first + LANES).all(|id| by.after_access(id, self.time)),
        }
    }
}

/// Spreads small numbers; the default hasher would take most of the time.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u64(b.into()));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

type Map<K> = HashMap<K, u32, BuildHasherDefault<Spread>>;

/// The set without a read.
pub const NOBODY: u32 = 0;
/// Threads of several clusters: no write can be ordered after all of them.
const CROWD: u32 = 1;

/// The sets of a launch.
pub struct Readers {
    sets: Vec<Vec<Reader>>,
    numbers: Map<Vec<Reader>>,
    /// The set that a read makes of another: by set, agent (with its path) and time.
    made: Map<(u32, u64, u32)>,
    /// A set, and an order by its address and time, that is after all of it.
    ordered: (u32, usize, u32),
    /// Somebody of the crowd.
    example: u32,
}

impl Default for Readers {
    fn default() -> Self {
        let (numbers, made) = (Map::default(), Map::default());
        Readers { sets: vec![vec![], vec![]], numbers, made, ordered: (NOBODY, 0, 0), example: 0 }
    }
}

impl Readers {
    /// The set of `set` and a read now. A later read stands for those ordered before it.
    pub fn and(&mut self, set: u32, by: &Actor<'_>) -> u32 {
        if set == CROWD {
            return CROWD;
        }
        let warp = by.path == Path::Matrix;
        let key = (set, u64::from(by.agent.id) << 1 | u64::from(warp), by.clocks.now());
        if let Some(&made) = self.made.get(&key) {
            return made;
        }
        let made = self.make(set, Reader { id: by.agent.id, time: by.clocks.now(), warp }, by);
        self.made.insert(key, made);
        made
    }

    fn make(&mut self, set: u32, new: Reader, by: &Actor<'_>) -> u32 {
        let mut all = self.sets[set as usize].clone();
        if let Some(r) = all.iter().find(|r| !by.clocks.knows(r.id)) {
            self.example = r.id;
            return CROWD;
        }
        all.retain(|r| !r.before(by));
        match all.iter_mut().find(|r| r.first_of_warp() == new.first_of_warp()) {
            Some(r) => *r = Reader { id: new.first_of_warp(), warp: true, ..new },
            None => all.push(new),
        }
        *self.numbers.entry(all.clone()).or_insert_with(|| {
            self.sets.push(all);
            self.sets.len() as u32 - 1
        })
    }

    /// A reader of a set that is not ordered before a write now.
    pub fn unordered(&mut self, set: u32, by: &Actor<'_>) -> Option<u32> {
        if set == CROWD {
            return Some(self.example);
        }
        // Threads that have met share their order.
        let key = (set, std::ptr::from_ref(by.order) as usize, by.clocks.now());
        if set == NOBODY || self.ordered == key {
            return None;
        }
        let found = self.sets[set as usize].iter().find(|r| !r.before(by)).map(|r| r.id);
        let own = |r: &Reader| r.id == by.agent.id;
        if found.is_none() && !self.sets[set as usize].iter().any(own) {
            self.ordered = key;
        }
        found
    }
}
