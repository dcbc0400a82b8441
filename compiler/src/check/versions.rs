//! Which version of a buffer each unit of a program reads and makes.
//!
//! A buffer's writes are numbered in the program's order. Before its write of number n, or where a unit reads it after n writes, a
//! buffer is in version n. Writes of mode `Write` fill parts that are their own, so they may happen again, and reading a part does not
//! mind that another part is finished already; writes of mode `Update` depend on what was there, and happen once and in order. A unit of
//! [`Program::again`] makes a buffer as the whole forward pass leaves it.

use super::arena::Written;
use crate::graph::Epoch;
use crate::units::{BufferId, Program, Unit};
use fp8c_kernels::program::{Arg, Mode, Region};
use std::collections::HashSet;

/// How a unit touches one of its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    pub buffer: BufferId,
    pub mode: Mode,
    /// Writes of the buffer before the unit.
    pub version: u32,
}

/// One write of a buffer.
#[derive(Clone, Copy, Debug)]
struct Write {
    unit: u32,
    /// Position among the unit's arguments.
    arg: usize,
    updates: bool,
}

/// The versions of a program's buffers.
pub struct Versions<'a> {
    program: &'a Program,
    touches: Vec<Vec<Touch>>,
    writes: Vec<Vec<Write>>,
    /// For each buffer: its writes by units of a micro-batch.
    of_micro: Vec<u32>,
    lasting: Vec<bool>,
}

impl<'a> Versions<'a> {
    /// Follows a program, of which the plan runs `micro` once a micro-batch.
    pub fn new(program: &'a Program, micro: &[u32]) -> Self {
        let micro: HashSet<u32> = micro.iter().copied().collect();
        let mut writes: Vec<Vec<Write>> = vec![vec![]; program.buffers.len()];
        let mut of_micro = vec![0; program.buffers.len()];
        let mut touches = Vec::with_capacity(program.units.len());
        for (u, unit) in (0u32..).zip(&program.units) {
            let args = unit.kernel.args();
            let touch = |(arg, &buffer): (&fp8c_kernels::program::Arg, &BufferId)| {
                let version = writes[buffer.0 as usize].len() as u32;
                Touch { buffer, mode: arg.mode, version }
            };
            let of_unit: Vec<Touch> = args.iter().zip(&unit.args).map(touch).collect();
            for (arg, t) in of_unit.iter().enumerate().filter(|(_, t)| t.mode != Mode::Read) {
                let b = t.buffer.0 as usize;
                writes[b].push(Write { unit: u, arg, updates: t.mode == Mode::Update });
                of_micro[b] += u32::from(micro.contains(&u));
            }
            touches.push(of_unit);
        }
        touches.extend(program.again.iter().map(|unit| again(program, unit, &writes)));
        let sums = |b: usize| writes[b].first().is_some_and(|w| w.updates);
        let lasting = program.buffers.iter().enumerate().map(|(b, buffer)| buffer.persistent || sums(b)).collect();
        Versions { program, touches, writes, of_micro, lasting }
    }

    /// How a unit touches its arguments, in order.
    pub fn touches(&self, unit: u32) -> &[Touch] {
        &self.touches[unit as usize]
    }

    /// True for a buffer that outlives a micro-batch: a persistent one, or one that is added to from the start.
    pub fn lasts(&self, b: BufferId) -> bool {
        self.lasting[b.0 as usize]
    }

    /// Writes of a buffer in one micro-batch.
    pub fn of_micro(&self, b: BufferId) -> u32 {
        self.of_micro[b.0 as usize]
    }

    /// Writes of a buffer in one micro-batch and the update.
    pub fn of_step(&self, b: BufferId) -> u32 {
        self.writes[b.0 as usize].len() as u32
    }

    /// True if a unit finds in an argument what it reads: every write before it, and none after it that it would notice.
    pub fn readable(&self, unit: u32, arg: usize, written: &Written) -> bool {
        let touch = self.touches[unit as usize][arg];
        let unnoticed = |n: u32| {
            let w = self.writes[touch.buffer.0 as usize][n as usize];
            touch.mode == Mode::Read && !w.updates && self.apart(unit, arg, w)
        };
        written.before >= touch.version && written.since(touch.version).all(unnoticed)
    }

    /// Notes a unit's write. Where it undoes an update, what was there before it is all that counts as gone.
    pub fn write(&self, unit: u32, arg: usize, written: &mut Written) {
        let touch = self.touches[unit as usize][arg];
        if unit as usize >= self.program.units.len() {
            *written = Written { before: touch.version, ..Written::default() };
            return;
        }
        let writes = &self.writes[touch.buffer.0 as usize];
        let earlier = self.touches[unit as usize][..arg].iter().filter(|t| t.buffer == touch.buffer && t.mode != Mode::Read);
        let number = touch.version + earlier.count() as u32;
        if written.since(number).any(|n| writes[n as usize].updates) {
            *written = Written::default();
        }
        written.add(number);
    }

    /// True if what a unit reads of an argument is shown to be none of what a write fills.
    fn apart(&self, unit: u32, arg: usize, write: Write) -> bool {
        let footprint = |u: u32, n: usize| self.program.unit(u).kernel.footprint().swap_remove(n);
        let (read, written) = (footprint(unit, arg).reads, footprint(write.unit, write.arg).writes);
        read.iter().all(|r| written.iter().all(|w| regions_apart(r, w)))
    }
}

/// How one of [`Program::again`] touches its arguments: it finds and leaves what the forward pass has made.
fn again(program: &Program, unit: &Unit, writes: &[Vec<Write>]) -> Vec<Touch> {
    let forward = |w: &&Write| program.units[w.unit as usize].epoch == Epoch::Forward;
    let touch = |(arg, &buffer): (Arg, &BufferId)| {
        let version = writes[buffer.0 as usize].iter().filter(forward).count() as u32;
        Touch { buffer, mode: arg.mode, version }
    };
    unit.kernel.args().into_iter().zip(&unit.args).map(touch).collect()
}

/// Shows two regions disjoint: they do not meet, or not within the period of a stride that both have outside of what they differ in.
fn regions_apart(a: &Region, b: &Region) -> bool {
    let (x, y) = (a.bounds(), b.bounds());
    let periods = a.dims.iter().chain(&b.dims).map(|d| d.0);
    let within = |r: &Region, period: u64| {
        let reach: u64 = r.dims.iter().filter(|d| d.0 % period != 0).fold(0, |n, d| n.saturating_add(d.0.saturating_mul(d.1 - 1)));
        let first = r.offset % period;
        (first, first.saturating_add(reach))
    };
    let mut periods = periods.map(|p| (within(a, p), within(b, p), p));
    x.1 < y.0 || y.1 < x.0 || periods.any(|(a, b, p)| a.1.max(b.1) < p && (a.1 < b.0 || b.1 < a.0))
}
