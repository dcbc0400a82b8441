//! The forms of a stretch of sections: what it keeps, what it computes again, and what that takes.
//!
//! A form says for each buffer that the stretch owns whether it is kept. Scheduled by itself, with everything else in place, it gives exactly
//! the bytes that wait, the bytes at the worst event of either pass, and the seconds of what is computed again. Sections that are equal up
//! to what is alive around them share their forms.

use super::chain::{Chain, Costed};
use crate::graph::Epoch;
use crate::plan::schedule::{Decisions, Facts, Local, Schedule, build};
use crate::quantity::{Bytes, Seconds};
use crate::units::BufferId;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Launches that the search for forms of one stretch may schedule.
const WORK: usize = 200_000;

/// Forms that are tried at most, and at least.
const TRIED: Range<usize> = 64..4096;

/// A choice that has fewer bytes than this share of the largest is kept.
const TINY: u64 = 512;

/// One way to run a stretch.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// For each choice of the stretch: whether it is kept.
    pub keep: Vec<bool>,
    /// Bytes that wait from the stretch's forward to its backward pass.
    pub kept: Bytes,
    /// Bytes at the worst event of the forward and of the backward pass, above the least that is alive around the stretch in that pass.
    pub forward: Bytes,
    pub backward: Bytes,
    /// Time of what is computed again.
    pub seconds: Seconds,
}

impl Form {
    fn beats(&self, other: &Form) -> bool {
        self.kept <= other.kept && self.forward <= other.forward && self.backward <= other.backward && self.seconds <= other.seconds
    }
}

/// Sections that run as one, scheduled by themselves.
pub struct Stretch {
    local: Local,
    /// Buffers that are kept or not together, largest first, by their local numbers.
    choices: Vec<Vec<u32>>,
    bytes: Vec<Bytes>,
    seconds: Vec<Seconds>,
    /// For each local unit: what is alive around it, and around what is computed again for it.
    base: Vec<Bytes>,
    before: Vec<Bytes>,
    /// The least of that, forward and backward.
    pub around: (Bytes, Bytes),
}

impl Stretch {
    pub fn new(costed: &Costed, chain: &Chain, sections: Range<usize>) -> Self {
        let links = &chain.links[sections.clone()];
        let forward = links.iter().flat_map(|l| l.forward.clone());
        let units: Vec<u32> = forward.chain(links.iter().rev().flat_map(|l| l.backward.clone())).collect();
        let inside = |b: BufferId| chain.owner[b.0 as usize].is_some_and(|o| sections.contains(&(o as usize)));
        let there = |b: BufferId| chain.owner[b.0 as usize].is_none();
        let local = costed.facts.local(&units, inside, there);
        let last = &links[links.len() - 1].forward;
        let at = |u: &u32, of: &[Bytes]| of.get(*u as usize).copied().unwrap_or(Bytes(0));
        let tail = |u: &u32| if last.contains(u) { at(u, &chain.tail) } else { Bytes(0) };
        let base: Vec<Bytes> = local.units.iter().map(|u| at(u, &chain.base) + tail(u)).collect();
        let before: Vec<Bytes> = local.units.iter().map(|u| at(u, &chain.before)).collect();
        let seconds = local.units.iter().map(|&u| costed.unit_seconds.get(u as usize).copied().unwrap_or(Seconds(0.0))).collect();
        let first = sections.start;
        let least = |r: &Range<u32>| r.clone().map(|u| chain.base[u as usize].min(chain.before[u as usize])).min().unwrap_or(Bytes(0));
        let around = (least(&chain.links[first].forward), least(&chain.links[first].backward));
        let mut stretch = Stretch { local, choices: vec![], bytes: vec![], seconds, base, before, around };
        stretch.find_choices();
        stretch
    }

    /// Groups the buffers that a backward pass can want by who makes and who reads them.
    fn find_choices(&mut self) {
        let facts = &self.local.facts;
        let mut readers: Vec<Vec<u32>> = vec![vec![]; self.local.buffers.len()];
        for u in 0..facts.units() as u32 {
            facts.touches(u).iter().filter(|t| t.reads).for_each(|t| readers[t.buffer.0 as usize].push(u));
        }
        let mut alike: BTreeMap<(&[u32], &[u32]), Vec<u32>> = BTreeMap::new();
        for b in self.wanted() {
            alike.entry((&facts.forward_writers[b as usize], &readers[b as usize])).or_default().push(b);
        }
        let bytes = |of: &[u32]| of.iter().map(|&b| facts.bytes_of(BufferId(b))).sum::<Bytes>();
        let mut choices: Vec<(Bytes, Vec<u32>)> = alike.into_values().map(|of| (bytes(&of), of)).collect();
        choices.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        (self.bytes, self.choices) = choices.into_iter().unzip();
    }

    /// Owned buffers that a backward unit reads, and those that it takes to make them again.
    fn wanted(&self) -> Vec<u32> {
        let facts = &self.local.facts;
        let mut wanted: HashSet<u32> = HashSet::new();
        let mut open: Vec<u32> = (0..facts.units() as u32).filter(|&u| facts.epoch(u) != Epoch::Forward).collect();
        while let Some(u) = open.pop() {
            for t in facts.touches(u).iter().filter(|t| t.reads) {
                let b = t.buffer.0 as usize;
                if !facts.is_persistent(t.buffer) && !facts.forward_writers[b].is_empty() && wanted.insert(b as u32) {
                    open.extend(&facts.forward_writers[b]);
                }
            }
        }
        let mut all: Vec<u32> = wanted.into_iter().collect();
        all.sort_unstable();
        all
    }

    /// What a schedule of the stretch takes; `None` where it would need something that is gone.
    pub fn form(&self, keep: Vec<bool>) -> Option<Form> {
        let mut decisions = Decisions { keep: vec![false; self.local.buffers.len()] };
        self.choices.iter().zip(&keep).for_each(|(of, &k)| of.iter().for_each(|&b| decisions.keep[b as usize] = k));
        let schedule = build(&self.local.facts, &decisions);
        // Unit 0 stands for what the sections before have made.
        if schedule.events.iter().any(|e| e.recompute && e.unit == 0) {
            return None;
        }
        let late = |e: &crate::plan::schedule::Event| e.recompute || self.local.facts.epoch(e.unit) != Epoch::Forward;
        let start = schedule.events.iter().position(late).unwrap_or(schedule.events.len());
        let (forward, backward) = self.worst(&schedule, start);
        let waits = schedule.instances.iter().filter(|i| (i.first as usize) < start && (i.last as usize) >= start);
        let again = schedule.events.iter().filter(|e| e.recompute);
        Some(Form {
            keep,
            kept: waits.map(|i| i.bytes).sum(),
            forward: forward - self.around.0,
            backward: backward - self.around.1,
            seconds: again.map(|e| self.seconds[e.unit as usize]).sum(),
        })
    }

    /// The largest number of bytes alive at one event of either pass.
    fn worst(&self, schedule: &Schedule, start: usize) -> (Bytes, Bytes) {
        let (mut forward, mut backward) = (Bytes(0), Bytes(0));
        let mut for_unit = 0;
        for (t, (e, live)) in schedule.events.iter().zip(schedule.live()).enumerate().rev() {
            let around = match e.recompute {
                true => self.before[for_unit as usize],
                false => {
                    for_unit = e.unit;
                    self.base[e.unit as usize]
                }
            };
            match t {
                0 => {}
                t if t < start => forward = forward.max(live + around),
                _ => backward = backward.max(live + around),
            }
        }
        (forward, backward)
    }

    /// The buffers of the program that a form keeps.
    pub fn kept<'a>(&'a self, form: &'a Form) -> impl Iterator<Item = BufferId> + 'a {
        let chosen = self.choices.iter().zip(&form.keep).filter(|(_, k)| **k);
        chosen.flat_map(|(of, _)| of).map(|&b| self.local.buffers[b as usize])
    }

    /// Forms that no other beats: all of them where the choices are few, else what changes of one or two choices lead to from those that keep
    /// everything and nothing.
    pub fn forms(&self) -> Vec<Form> {
        let n = self.choices.len();
        let largest = self.bytes.first().copied().unwrap_or(Bytes(0));
        let free: Vec<usize> = (0..n).filter(|&i| self.bytes[i].0.saturating_mul(TINY) >= largest.0).collect();
        let budget = (WORK / self.local.units.len().max(1)).clamp(TRIED.start, TRIED.end);
        match 1usize.checked_shl(free.len() as u32) {
            Some(all) if all <= budget => {
                let kept = |mask: usize| {
                    let mut keep = vec![true; n];
                    free.iter().enumerate().for_each(|(bit, &i)| keep[i] = mask >> bit & 1 == 0);
                    keep
                };
                best((0..all).filter_map(|mask| self.form(kept(mask))).collect())
            }
            _ => self.explored(&free, budget),
        }
    }

    fn explored(&self, free: &[usize], budget: usize) -> Vec<Form> {
        let n = self.choices.len();
        let mut nothing = vec![true; n];
        free.iter().for_each(|&i| nothing[i] = false);
        let mut seen: HashSet<Vec<bool>> = HashSet::new();
        let mut front: Vec<Form> = vec![];
        let mut expanded: HashSet<Vec<bool>> = HashSet::new();
        let mut tries = vec![vec![true; n], nothing];
        loop {
            for keep in tries.drain(..) {
                if seen.len() < budget && seen.insert(keep.clone()) {
                    front.extend(self.form(keep));
                }
            }
            front = best(front);
            // Widely spaced members first, so that a search that ends early has seen something of everything.
            let waiting: Vec<usize> = (0..front.len()).filter(|&i| !expanded.contains(&front[i].keep)).collect();
            if waiting.is_empty() || seen.len() >= budget {
                return front;
            }
            let stride = waiting.len().div_ceil(8);
            for &i in waiting.iter().step_by(stride) {
                let keep = front[i].keep.clone();
                let flipped = |which: &[usize]| {
                    let mut k = keep.clone();
                    which.iter().for_each(|&i| k[i] ^= true);
                    k
                };
                tries.extend(free.iter().map(|&a| flipped(&[a])));
                tries.extend(free.windows(2).map(flipped));
                expanded.insert(keep);
            }
        }
    }

    /// The forms of several sections as one: each section has one of a few of its own forms, and what passes between them is computed again.
    pub fn joined(&self, members: &[(&Stretch, Vec<&Form>)]) -> Vec<Form> {
        let combinations = members.iter().map(|(_, forms)| forms.len()).max().unwrap_or(0);
        let first: HashSet<BufferId> = members.first().map(|(s, _)| s.arriving().collect()).unwrap_or_default();
        let crossing: HashSet<BufferId> = members.iter().flat_map(|(s, _)| s.arriving()).filter(|b| !first.contains(b)).collect();
        let mut found = vec![];
        for c in 0..combinations * combinations {
            // Every other section may differ: attention and MLP take turns.
            let level = |i: usize| if i.is_multiple_of(2) { c / combinations } else { c % combinations };
            let kept: HashSet<BufferId> = members
                .iter()
                .enumerate()
                .filter_map(|(i, (s, forms))| Some((s, forms.get(level(i).min(forms.len().checked_sub(1)?))?)))
                .flat_map(|(s, f)| s.kept(f))
                .filter(|b| !crossing.contains(b))
                .collect();
            let keep = self.choices.iter().map(|of| of.iter().all(|&b| kept.contains(&self.local.buffers[b as usize]))).collect();
            found.extend(self.form(keep));
        }
        best(found)
    }

    /// Owned buffers that the section before makes.
    fn arriving(&self) -> impl Iterator<Item = BufferId> + '_ {
        self.local.facts.touches(0).iter().map(|t| self.local.buffers[t.buffer.0 as usize])
    }

    /// Everything that the forms depend on: two stretches of one key have the same.
    pub fn key(&self, kernel_of: &[u32]) -> Vec<u64> {
        let facts: &Facts = &self.local.facts;
        let mut key = vec![facts.units() as u64, self.local.units.len() as u64];
        for (i, &u) in self.local.units.iter().enumerate() {
            let around = if facts.epoch(i as u32) == Epoch::Forward { self.around.0 } else { self.around.1 };
            key.extend([kernel_of.get(u as usize).copied().unwrap_or(u32::MAX) as u64, facts.epoch(i as u32) as u64]);
            key.extend([(self.base[i] - around).0, (self.before[i] - around).0, self.seconds[i].0.to_bits()]);
            key.extend(facts.touches(i as u32).iter().map(|t| t.buffer.0 as u64 * 4 + t.reads as u64 * 2 + t.writes as u64));
        }
        key.extend(
            (0..self.local.buffers.len() as u32).map(|b| facts.bytes_of(BufferId(b)).0 * 2 + facts.is_persistent(BufferId(b)) as u64),
        );
        key
    }
}

/// The forms that no other beats, fewest bytes kept first.
pub fn best(mut forms: Vec<Form>) -> Vec<Form> {
    let order = |f: &Form| (f.kept, f.seconds, f.backward, f.forward);
    forms.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.keep.cmp(&b.keep)));
    let mut out: Vec<Form> = vec![];
    for f in forms {
        if !out.iter().any(|o| o.beats(&f)) {
            out.push(f);
        }
    }
    out
}
