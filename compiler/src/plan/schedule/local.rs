//! The facts of some units by themselves.

use super::{Facts, Touch};
use crate::graph::Epoch;
use crate::quantity::Bytes;
use crate::units::BufferId;
use std::collections::HashMap;

/// Some units by themselves, numbered anew, units that make a buffer alone behind the others.
pub struct Local {
    pub facts: Facts,
    /// The program's number of each unit.
    pub units: Vec<u32>,
    /// The program's number of each buffer.
    pub buffers: Vec<BufferId>,
}

impl Facts {
    /// The facts of some units, forward before backward. Only what is `inside` takes memory; what is `there` exists throughout. Unit 0 is
    /// none of the program's: it makes whatever is inside and comes from outside.
    pub fn local(&self, units: &[u32], inside: impl Fn(BufferId) -> bool, there: impl Fn(BufferId) -> bool) -> Local {
        let mut n = Numbering { of: HashMap::new(), buffers: vec![], units: vec![u32::MAX], touches: vec![vec![]] };
        units.iter().for_each(|&u| n.add(self, u));
        let epoch: Vec<Epoch> = std::iter::once(Epoch::Forward).chain(units.iter().map(|&u| self.epoch(u))).collect();
        let mut forward_writers = vec![vec![]; n.buffers.len()];
        let mut made = vec![false; n.buffers.len()];
        for (u, touches) in n.touches.iter().enumerate() {
            for b in touches.iter().filter(|t| t.writes).map(|t| t.buffer.0 as usize) {
                made[b] = true;
                if epoch[u] == Epoch::Forward && forward_writers[b].last() != Some(&(u as u32)) {
                    forward_writers[b].push(u as u32);
                }
            }
        }
        for b in (0..made.len()).filter(|&b| !made[b] && inside(n.buffers[b])) {
            n.touches[0].push(Touch { buffer: BufferId(b as u32), reads: false, writes: true });
            forward_writers[b].push(0);
        }
        let at_hand = |t: &Touch| inside(t.buffer) || there(t.buffer);
        let mut alone = vec![None; made.len()];
        for (b, alone) in alone.iter_mut().enumerate().filter(|(b, _)| inside(n.buffers[*b])).collect::<Vec<_>>() {
            let unit = self.alone[n.buffers[b].0 as usize];
            if let Some(u) = unit.filter(|&u| self.touches(u).iter().all(at_hand)) {
                *alone = Some(n.units.len() as u32);
                n.add(self, u);
            }
        }
        alone.resize(n.buffers.len(), None);
        forward_writers.resize(n.buffers.len(), vec![]);
        n.finish(self, Facts { forward_writers, alone, epoch, ..Facts::default() }, inside)
    }
}

/// Numbers buffers in the order in which they are met.
struct Numbering {
    of: HashMap<BufferId, u32>,
    buffers: Vec<BufferId>,
    units: Vec<u32>,
    touches: Vec<Vec<Touch>>,
}

impl Numbering {
    fn add(&mut self, facts: &Facts, unit: u32) {
        let touch = |t: &Touch| {
            let next = self.buffers.len() as u32;
            let b = *self.of.entry(t.buffer).or_insert(next);
            if b == next {
                self.buffers.push(t.buffer);
            }
            Touch { buffer: BufferId(b), ..*t }
        };
        let touches = facts.touches(unit).iter().map(touch).collect();
        self.touches.push(touches);
        self.units.push(unit);
    }

    fn finish(self, whole: &Facts, part: Facts, inside: impl Fn(BufferId) -> bool) -> Local {
        let mut first_touch = vec![0];
        self.touches.iter().for_each(|t| first_touch.push(first_touch[first_touch.len() - 1] + t.len() as u32));
        let scratch = |u: &u32| whole.scratch.get(*u as usize).copied().unwrap_or(Bytes(0));
        let facts = Facts {
            first_touch,
            touches: self.touches.concat(),
            persistent: self.buffers.iter().map(|&b| !inside(b)).collect(),
            bytes: self.buffers.iter().map(|&b| whole.bytes_of(b)).collect(),
            scratch: self.units.iter().map(scratch).collect(),
            pinned: vec![false; self.buffers.len()],
            ..part
        };
        Local { facts, units: self.units, buffers: self.buffers }
    }
}
