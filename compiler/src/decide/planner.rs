//! From a program to the fastest plan that fits a budget.
//!
//! Plans depend on the program alone: they are the best paths of the master program for a fixed series of transient bytes between the least
//! and what nothing is computed again in. A budget takes the last of them whose packed arena fits. Hence a larger budget never takes longer,
//! and a smaller one never needs more.

use super::chain::{Chain, Costed};
use super::forms::{Form, Stretch};
use super::master::{Master, Path, Steps};
use crate::Error;
use crate::graph::Epoch;
use crate::plan::assemble::persistent_bytes;
use crate::plan::offsets::{Packing, pack};
use crate::plan::schedule::{Decisions, Schedule, build};
use crate::quantity::{Bytes, Seconds};
use crate::sections::Sections;
use fp8c_kernels::program::Kernel;
use rayon::prelude::*;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

/// Sections that may run as one, so that nothing is kept between them.
const TOGETHER: [usize; 5] = [2, 3, 4, 6, 8];

/// Forms of each member that are tried where sections run as one.
const LEVELS: usize = 4;

/// Parts of the way from the least to the most transient bytes.
const GRID: u64 = 2048;

/// Plans of the fewest transient bytes that are packed to find the smallest arena.
const LEAN: usize = 4;

/// Sums of times in another order differ by less than this share of them.
const ORDER: f64 = 1e-12;

/// A plan with its addresses.
#[derive(Clone, Debug)]
pub struct Rung {
    pub decisions: Decisions,
    pub schedule: Schedule,
    pub packing: Packing,
    /// Persistent bytes and the packed height together.
    pub arena_bytes: Bytes,
}

/// Everything that plans of a program are made of.
pub struct Planner<'a> {
    costed: Costed<'a>,
    pub chain: Chain,
    pub master: Master,
    /// For each of the master's steps.
    stretches: Vec<Stretch>,
    persistent: Bytes,
    low: Bytes,
    full: Bytes,
    least: OnceCell<Option<Rung>>,
}

impl<'a> Planner<'a> {
    /// Cuts the program into sections and finds the forms of each kind.
    pub fn new(costed: Costed<'a>, sections: &Sections) -> Self {
        let chain = Chain::new(&costed, sections);
        let n = chain.links.len();
        let kernel_of = numbered(costed.program.units.iter().chain(&costed.program.again).map(|u| &u.kernel));
        let ranges = |len: usize| (0..(n + 1).saturating_sub(len)).map(move |s| s..s + len);
        let stretch = |range: &Range<usize>| Stretch::new(&costed, &chain, range.clone());
        let singles: Vec<Stretch> = ranges(1).map(|r| stretch(&r)).collect();
        let mut forms = shared(&singles, &kernel_of, |i| singles[i].forms());
        let thin: Vec<Vec<Form>> = forms.iter().map(|f| levels(f)).collect();
        let groups: Vec<Range<usize>> = TOGETHER.into_iter().flat_map(ranges).collect();
        let joined: Vec<Stretch> = groups.iter().map(stretch).collect();
        forms.extend(shared(&joined, &kernel_of, |i| {
            let members: Vec<_> = groups[i].clone().map(|s| (&singles[s], thin[s].iter().collect())).collect();
            joined[i].joined(&members)
        }));
        let stretches: Vec<Stretch> = singles.into_iter().chain(joined).collect();
        let all = ranges(1).chain(groups).zip(forms).zip(&stretches);
        let steps = all.map(|((r, forms), s)| Steps { start: r.start, sections: r.len(), forms, around: s.around }).collect();
        let base = costed.unit_seconds[..costed.program.units.len()].iter().copied().sum();
        let master = Master::new(steps, n, chain.update, base);
        let persistent = persistent_bytes(costed.program);
        let (low, full) = (master.least(), master.full());
        Planner { costed, chain, master, stretches, persistent, low, full, least: OnceCell::new() }
    }

    /// Transient bytes of the `i`-th plan.
    fn target(&self, i: u64) -> Bytes {
        self.low + Bytes(((self.full - self.low).0 as u128 * i as u128 / GRID as u128) as u64)
    }

    /// The last plan whose transient bytes are within `room`.
    fn at_most(&self, room: Bytes) -> Option<u64> {
        (0..=GRID).rev().find(|&i| self.target(i) <= room)
    }

    /// What a path keeps.
    pub fn decisions(&self, path: &Path) -> Decisions {
        let mut decisions = self.chain.nothing_owned();
        for &c in &path.choices {
            let kept = self.stretches[c.steps as usize].kept(self.master.form(c));
            kept.for_each(|b| decisions.keep[b.0 as usize] = true);
        }
        decisions
    }

    /// The best path within some transient bytes, scheduled and packed, if it can be into a height that is `enough`.
    fn rung(&self, room: Bytes, enough: Bytes) -> Result<Option<(Path, Rung)>, Error> {
        let Some(path) = self.master.solve(room)? else { return Ok(None) };
        let decisions = self.decisions(&path);
        let schedule = build(self.costed.facts, &decisions);
        let packing = pack(&schedule, enough);
        let arena_bytes = self.persistent + packing.height;
        Ok(Some((path, Rung { decisions, schedule, packing, arena_bytes })))
    }

    /// The fastest plan whose arena fits a budget.
    ///
    /// # Errors
    /// [`Error::Infeasible`] with the least budget, the event that binds it and what is alive there; what [`Master::solve`] says.
    pub fn choose(&self, budget: Bytes) -> Result<Rung, Error> {
        let least = self.least()?.filter(|l| l.arena_bytes <= budget);
        let Some(least) = least else { return Err(self.infeasible(budget)?) };
        let room = budget - self.persistent;
        let mut next = self.at_most(room);
        while let Some(i) = next {
            let Some((path, rung)) = self.rung(self.target(i), room)? else { break };
            if rung.arena_bytes <= budget {
                return Ok(rung);
            }
            // Down to the first plan that is another one.
            next = (0..i).rev().find(|&j| self.target(j) < path.peak);
        }
        Ok(least.clone())
    }

    /// The plan of the smallest arena among those of the fewest transient bytes: packing may lose more than the next plan takes.
    ///
    /// # Errors
    /// What [`Master::solve`] says.
    pub fn least(&self) -> Result<Option<&Rung>, Error> {
        if let Some(known) = self.least.get() {
            return Ok(known.as_ref());
        }
        let mut best: Option<Rung> = None;
        let mut next = Some(0);
        for _ in 0..LEAN {
            let Some(i) = next.filter(|&i| best.as_ref().is_none_or(|b| self.persistent + self.target(i) < b.arena_bytes)) else { break };
            let Some((path, rung)) = self.rung(self.target(i), Bytes(0))? else { break };
            if best.as_ref().is_none_or(|b| rung.arena_bytes < b.arena_bytes) {
                best = Some(rung);
            }
            next = (i + 1..=GRID).find(|&j| self.target(j) > path.peak);
        }
        Ok(self.least.get_or_init(|| best).as_ref())
    }

    /// No plan of these forms within `budget` takes less time a step than this, in this order of launches and by these costs.
    ///
    /// # Errors
    /// What [`Master::solve`] says.
    pub fn lower_bound(&self, budget: Bytes) -> Result<Seconds, Error> {
        let bound = self.master.solve(budget - self.persistent)?.map(|p| p.bound);
        Ok(Seconds((self.master.base + bound.unwrap_or(Seconds(0.0))).0 * (1.0 - ORDER)))
    }

    /// The schedule that recomputes nothing.
    pub fn everything_kept(&self) -> Schedule {
        build(self.costed.facts, &self.chain.everything())
    }

    fn infeasible(&self, budget: Bytes) -> Result<Error, Error> {
        let program = self.costed.program;
        let Some(rung) = self.least()? else {
            return Ok(Error::Infeasible { budget, least: self.persistent, event: "the persistent state".into(), live: vec![] });
        };
        let at = rung.schedule.peak().1;
        let unit = rung.schedule.events.get(at as usize).map(|e| program.unit(e.unit));
        let epoch = match unit.map(|u| u.epoch) {
            Some(Epoch::Forward) => "forward",
            Some(Epoch::Update) => "update",
            _ => "backward",
        };
        let event = format!("{} ({epoch})", unit.map_or("the step", |u| u.site.as_ref()));
        let mut live = vec![("parameters, optimizer state, inputs".to_string(), self.persistent)];
        let alive = rung.schedule.instances.iter().filter(|i| i.first <= at && at <= i.last);
        let mut transient: Vec<(String, Bytes)> =
            alive.map(|i| (i.buffer.map_or("scratch".to_string(), |b| program.buffers[b.0 as usize].name.clone()), i.bytes)).collect();
        transient.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        live.extend(transient.into_iter().take(6));
        Ok(Error::Infeasible { budget, least: rung.arena_bytes, event, live })
    }

    /// The sections with the number of their forms, and the plan for some transient bytes: one line a step of its path.
    ///
    /// # Errors
    /// What [`Master::solve`] says.
    pub fn print(&self, room: Bytes) -> Result<String, Error> {
        let mut out = format!("chain: {} sections, least {} transient bytes, most {}\n", self.chain.links.len(), self.low.0, self.full.0);
        for (s, (link, steps)) in self.chain.links.iter().zip(&self.master.steps).enumerate() {
            let (f, b, owned) = (&link.forward, &link.backward, link.owned.len());
            let _ = writeln!(out, "section {s}: units {f:?} forward, {b:?} backward, {owned} buffers, {} forms", steps.forms.len());
        }
        if let Some(path) = self.master.solve(room)? {
            let _ = writeln!(out, "plan: {} transient bytes, {:.6} s again, at least {:.6} s", path.peak.0, path.again.0, path.bound.0);
            for &c in &path.choices {
                let (steps, form) = (&self.master.steps[c.steps as usize], self.master.form(c));
                let mut kept: Vec<_> = self.stretches[c.steps as usize].kept(form).collect();
                kept.sort();
                let names: Vec<&str> = kept.iter().map(|b| self.costed.program.buffers[b.0 as usize].name.as_str()).collect();
                let range = steps.start..steps.start + steps.sections;
                let _ =
                    writeln!(out, "sections {range:?}: {} bytes kept, {:.6} s again: {}", form.kept.0, form.seconds.0, names.join(", "));
            }
        }
        Ok(out)
    }
}

/// The number of each kernel: equal ones have the same.
fn numbered<'k>(kernels: impl Iterator<Item = &'k Kernel>) -> Vec<u32> {
    let mut seen: HashMap<&Kernel, u32> = HashMap::new();
    let mut number = |k| {
        let next = seen.len() as u32;
        *seen.entry(k).or_insert(next)
    };
    kernels.map(&mut number).collect()
}

/// The forms of each stretch, found once for each kind.
fn shared(stretches: &[Stretch], kernel_of: &[u32], forms: impl Fn(usize) -> Vec<Form> + Sync) -> Vec<Arc<Vec<Form>>> {
    let mut first: HashMap<Vec<u64>, usize> = HashMap::new();
    let kind: Vec<usize> = stretches.iter().enumerate().map(|(i, s)| *first.entry(s.key(kernel_of)).or_insert(i)).collect();
    let mut kinds: Vec<usize> = first.into_values().collect();
    kinds.sort_unstable();
    let found: HashMap<usize, Arc<Vec<Form>>> = kinds.into_par_iter().map(|i| (i, Arc::new(forms(i)))).collect();
    kind.iter().map(|k| found[k].clone()).collect()
}

/// A few forms from the one that keeps least to the one that computes least again.
fn levels(forms: &[Form]) -> Vec<Form> {
    let mut least = Seconds(f64::INFINITY);
    let mut front: Vec<&Form> = vec![];
    for f in forms {
        if f.seconds < least {
            least = f.seconds;
            front.push(f);
        }
    }
    let last = front.len().saturating_sub(1);
    let mut at: Vec<usize> = (0..LEVELS).map(|i| last * i / (LEVELS - 1)).collect();
    at.dedup();
    at.into_iter().filter_map(|i| front.get(i).copied().cloned()).collect()
}
