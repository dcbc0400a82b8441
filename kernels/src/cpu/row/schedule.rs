//! A program as phases of steps.
//!
//! A phase folds along the rows what later phases need. Where a tile holds whole rows its values stay for the next phase; where rows
//! are cut into several tiles each phase computes again, from the arguments, what it needs (loads of a row that was just read come
//! from the cache), so that memory does not grow with a row.

use super::access::Access;
use super::folds::{self, FoldLoops};
use super::layout::{Layout, Order};
use super::loops::{Broadcast, Isa, MapFn};
use super::ops;
use super::transfers::{self, RunFn};
use super::values::{self, Info, Rank, canonical, size, updates};
use crate::KernelError;
use crate::numerics::ScaleMode;
use crate::program::{self, GROUP, Indexed, Kind, Literal, RowProgram, Stmt, Var, groups};
use std::collections::HashMap;

/// A value in memory: a variable, made once or, with cut rows, once in each phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value(pub usize);

#[derive(Clone, Copy, Debug)]
pub struct ValueType {
    pub kind: Kind,
    pub rank: Rank,
}

/// How an operand moves from one run of a tile to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Still,
    /// By one value.
    One,
    /// By a run.
    Run,
}

#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub value: Value,
    pub bytes: usize,
    pub moves: Move,
}

/// Where a gather finds its indices.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    pub index: Value,
    pub stride: i64,
    pub bound: i64,
    /// Dimensions along which the index changes, as bits.
    pub dims: u32,
}

/// One loop over a tile, over its rows, or over one value.
#[derive(Clone, Debug)]
pub enum Step {
    Const {
        out: Value,
        bits: [u8; 8],
    },
    Load {
        out: Value,
        access: Access,
        run: RunFn,
        gather: Option<Gather>,
        direct: bool,
    },
    Index {
        out: Value,
        dim: Option<usize>,
    },
    Map {
        out: Value,
        map: MapFn,
        operands: [Operand; 3],
        by_run: bool,
    },
    /// Repeats a value of a lower rank.
    Expand {
        out: Value,
        x: Value,
    },
    Fold {
        x: Value,
        fold: usize,
    },
    /// Makes a row value of accumulators.
    Finish {
        out: Value,
        fold: usize,
    },
    Store {
        x: Value,
        access: Access,
        run: RunFn,
    },
    Quantize {
        x: Value,
        codes: Access,
        scales: Access,
        mode: ScaleMode,
    },
}

#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// Folds that start with this phase.
    pub folds: Vec<usize>,
    /// Once for each set of rows.
    pub head: Vec<Step>,
    /// Once for each tile of them.
    pub body: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Schedule {
    pub values: Vec<ValueType>,
    pub folds: Vec<FoldLoops>,
    /// Once for each launch.
    pub uniform: Vec<Step>,
    pub phases: Vec<Phase>,
}

/// What steps are made from.
pub struct Source<'a> {
    pub program: &'a RowProgram,
    pub infos: &'a [Option<Info>],
    pub layout: &'a Layout,
    pub isa: Isa,
}

/// Schedules a verified program. With `cut` rows lie in several tiles.
pub fn schedule(source: &Source, cut: bool) -> Result<Schedule, KernelError> {
    let needed = source.needed();
    let phases = source.phase_count(&needed);
    let schedule = Schedule { values: Vec::new(), folds: Vec::new(), uniform: Vec::new(), phases: vec![Phase::default(); phases] };
    let (once, tiles, expanded) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut scheduler = Scheduler { source, cut, schedule, once, tiles, expanded, loads: source.updated_loads(&needed) };
    for phase in 0..phases {
        if cut {
            scheduler.tiles.clear();
            scheduler.expanded.clear();
        }
        for (at, stmt) in source.program.body.iter().enumerate().filter(|(at, _)| needed[*at]) {
            if source.phase_of(stmt, phases) == Some(phase) {
                scheduler.sink(at, stmt, phase)?;
            }
        }
    }
    let mut schedule = scheduler.schedule;
    schedule.drop_unused();
    Ok(schedule)
}

impl Source<'_> {
    fn info(&self, v: Var) -> Info {
        self.infos[v.0 as usize].expect("verified: an operand has a value")
    }

    /// Statements that a store depends on, and stores.
    fn needed(&self) -> Vec<bool> {
        let mut needed = vec![false; self.infos.len()];
        for (at, stmt) in self.program.body.iter().enumerate().rev() {
            needed[at] |= self.infos[at].is_none();
            if needed[at] {
                values::cheaper(self.program, stmt).operands().iter().for_each(|&v| needed[canonical(self.infos, v).0 as usize] = true);
            }
        }
        needed
    }

    /// The loads of each argument that is updated whose values are used, in order.
    fn updated_loads(&self, needed: &[bool]) -> HashMap<u32, Vec<Var>> {
        let mut loads: HashMap<u32, Vec<Var>> = HashMap::new();
        for (at, stmt) in self.program.body.iter().enumerate().filter(|(at, _)| needed[*at]) {
            if let Stmt::Load { arg, .. } = *stmt
                && updates(self.program, arg)
            {
                loads.entry(arg).or_default().push(Var(at as u32));
            }
        }
        loads
    }

    fn phase_count(&self, needed: &[bool]) -> usize {
        let level = |at: usize, stmt: &Stmt| match self.infos[at] {
            Some(info) => info.level,
            None => stmt.operands().into_iter().map(|v| self.info(v).level).max().unwrap_or(0),
        };
        let levels = self.program.body.iter().enumerate().filter(|(at, _)| needed[*at]).map(|(at, stmt)| level(at, stmt));
        levels.max().unwrap_or(0) + 1
    }

    /// The phase of a fold or store; `None` for other statements, which are made where they are used.
    fn phase_of(&self, stmt: &Stmt, phases: usize) -> Option<usize> {
        match stmt {
            Stmt::Reduce { x, .. } | Stmt::StoreQuantized { x, .. } => Some(self.info(*x).level),
            // What is updated in place is not read again.
            Stmt::Store { arg, .. } | Stmt::Accumulate { arg, .. } if updates(self.program, *arg) => Some(phases - 1),
            Stmt::Store { x, .. } | Stmt::Accumulate { x, .. } => Some(self.info(*x).level),
            _ => None,
        }
    }

    /// Which rank a store works at.
    fn store_rank(&self, access: &program::Access, x: Var) -> Rank {
        let by_row = self.layout.order != Order::Flat && self.program.constant_along_row(access);
        if by_row && self.info(x).rank < Rank::Tile { Rank::Row } else { Rank::Tile }
    }
}

struct Scheduler<'a> {
    source: &'a Source<'a>,
    cut: bool,
    schedule: Schedule,
    /// Uniform and row values.
    once: HashMap<Var, Value>,
    tiles: HashMap<Var, Value>,
    expanded: HashMap<(Value, Rank), Value>,
    /// The loads of each argument that is updated whose values are used, in order.
    loads: HashMap<u32, Vec<Var>>,
}

impl Scheduler<'_> {
    fn value(&mut self, kind: Kind, rank: Rank) -> Value {
        self.schedule.values.push(ValueType { kind, rank });
        Value(self.schedule.values.len() - 1)
    }

    fn kind(&self, v: Value) -> Kind {
        self.schedule.values[v.0].kind
    }

    /// Appends a step where values of a rank are made; row values of level `l` are made at the head of phase `l`.
    fn push(&mut self, rank: Rank, level: usize, phase: usize, step: Step) {
        match rank {
            Rank::Uniform => self.schedule.uniform.push(step),
            Rank::Row => self.schedule.phases[level].head.push(step),
            Rank::Tile => self.schedule.phases[phase].body.push(step),
        }
    }

    fn made(&self, v: Var) -> Option<Value> {
        let made = if self.source.info(v).rank == Rank::Tile { &self.tiles } else { &self.once };
        made.get(&v).copied()
    }

    /// The value of a variable, for steps of a phase; makes it, and what it is made of, if there is none yet.
    fn need(&mut self, v: Var, phase: usize) -> Result<Value, KernelError> {
        let v = canonical(self.source.infos, v);
        // Not by recursion: a chain of statements may be longer than a thread's stack.
        let mut open = vec![v];
        while let Some(&at) = open.last() {
            if self.made(at).is_none() {
                let stmt = values::cheaper(self.source.program, &self.source.program.body[at.0 as usize]);
                let mut operands = stmt.operands().into_iter().map(|v| canonical(self.source.infos, v));
                if let Some(missing) = operands.find(|&v| self.made(v).is_none()) {
                    open.push(missing);
                    continue;
                }
                let value = self.make(at, &stmt, phase)?;
                let made = if self.source.info(at).rank == Rank::Tile { &mut self.tiles } else { &mut self.once };
                made.insert(at, value);
            }
            open.pop();
        }
        self.made(v).ok_or_else(|| internal("a value that was made is missing"))
    }

    /// The value of a variable at a rank that is not below its own.
    fn need_at(&mut self, v: Var, rank: Rank, phase: usize) -> Result<Value, KernelError> {
        let x = self.need(v, phase)?;
        let info = self.source.info(v);
        if info.rank == rank {
            return Ok(x);
        }
        if let Some(&out) = self.expanded.get(&(x, rank)) {
            return Ok(out);
        }
        let out = self.value(info.kind, rank);
        self.push(rank, phase, phase, Step::Expand { out, x });
        if rank == Rank::Tile {
            self.expanded.insert((x, rank), out);
        }
        Ok(out)
    }

    /// Makes a variable, as this statement, of operands that there are.
    fn make(&mut self, v: Var, stmt: &Stmt, phase: usize) -> Result<Value, KernelError> {
        let source = self.source;
        let info = source.info(v);
        let (rank, isa) = (info.rank, source.isa);
        // Row values are made at their level, whoever asks.
        let phase = if rank == Rank::Tile { phase } else { info.level };
        let step = match *stmt {
            Stmt::Load { arg, ref access, indexed } => return self.load(arg, access, indexed, info, phase),
            Stmt::Const { value, kind } => {
                let out = self.value(info.kind, rank);
                Step::Const { out, bits: literal(kind, value) }
            }
            Stmt::Index { dim } => Step::Index { out: self.value(info.kind, rank), dim: source.layout.find(dim) },
            Stmt::Unary { op, x } => {
                let map = ops::of_unary(op, source.info(x).kind, isa);
                return self.map(info, &[x], phase, |_| map);
            }
            Stmt::Binary { op, x, y } => {
                let kind = source.info(x).kind;
                return self.map(info, &[x, y], phase, |b| ops::of_binary(op, kind, isa, b));
            }
            Stmt::Select { c, x, y } => return self.map(info, &[c, x, y], phase, |b| Some(ops::of_select(info.kind, isa, b))),
            Stmt::Cast { x, to } => {
                let map = ops::of_cast(source.info(x).kind, to, isa);
                return self.map(info, &[x], phase, |_| Some(map));
            }
            Stmt::Reduce { .. } | Stmt::Store { .. } | Stmt::Accumulate { .. } | Stmt::StoreQuantized { .. } => {
                return Err(internal("a fold is used before it is made"));
            }
        };
        let out = out_of(&step).ok_or_else(|| internal("a step without a value"))?;
        self.push(rank, info.level, phase, step);
        Ok(out)
    }

    fn load(
        &mut self,
        arg: u32,
        access: &program::Access,
        indexed: Option<Indexed>,
        info: Info,
        phase: usize,
    ) -> Result<Value, KernelError> {
        let source = self.source;
        let gather = match indexed {
            None => None,
            Some(i) => {
                let index = self.need_at(i.index, info.rank, phase)?;
                Some(Gather { index, stride: i.stride, bound: i.bound, dims: source.info(i.index).dims })
            }
        };
        let dtype = source.program.args[arg as usize].dtype;
        // Read in place where it needs no conversion and nothing overwrites it.
        let direct = gather.is_none() && dtype == crate::DType::F32 && !updates(source.program, arg) && info.rank == Rank::Tile;
        let out = self.value(info.kind, info.rank);
        let access = Access::new(source.layout, arg, access);
        let step = Step::Load { out, access, run: transfers::load(dtype, source.isa), gather, direct };
        self.push(info.rank, info.level, phase, step);
        Ok(out)
    }

    fn map(&mut self, info: Info, vars: &[Var], phase: usize, find: impl Fn(Broadcast) -> Option<MapFn>) -> Result<Value, KernelError> {
        let rows = self.source.layout.order == Order::Rows;
        let ranks: Vec<Rank> = vars.iter().map(|&v| self.source.info(v).rank).collect();
        let by_run = info.rank == Rank::Tile && ranks.contains(&Rank::Row);
        let mut broadcast = [false; 3];
        let mut operands = Vec::with_capacity(3);
        for (i, (&v, &rank)) in vars.iter().zip(&ranks).enumerate() {
            let value = self.need(v, phase)?;
            let (one, moves) = match (rank, info.rank) {
                (Rank::Row, Rank::Tile) if rows => (true, Move::One),
                (Rank::Row, Rank::Tile) => (false, Move::Still),
                (Rank::Uniform, Rank::Row | Rank::Tile) => (true, Move::Still),
                _ => (false, Move::Run),
            };
            broadcast[i] = one;
            operands.push(Operand { value, bytes: size(self.kind(value)), moves });
        }
        let map = find(Broadcast(broadcast)).ok_or_else(|| internal("an operator of a kind it does not take"))?;
        let out = self.value(info.kind, info.rank);
        let first = operands[0];
        let operands = std::array::from_fn(|i| operands.get(i).copied().unwrap_or(Operand { moves: Move::Still, ..first }));
        self.push(info.rank, info.level, phase, Step::Map { out, map, operands, by_run });
        Ok(out)
    }

    /// Appends a fold or a store.
    fn sink(&mut self, at: usize, stmt: &Stmt, phase: usize) -> Result<(), KernelError> {
        let source = self.source;
        match stmt {
            Stmt::Reduce { op, x } => {
                let value = self.need_at(*x, Rank::Tile, phase)?;
                let kind = source.info(*x).kind;
                self.schedule.folds.push(folds::of(*op, kind, source.isa).ok_or_else(|| internal("a fold of bools"))?);
                let fold = self.schedule.folds.len() - 1;
                self.schedule.phases[phase].folds.push(fold);
                self.push(Rank::Tile, phase, phase, Step::Fold { x: value, fold });
                let out = self.value(kind, Rank::Row);
                self.push(Rank::Row, phase + 1, phase, Step::Finish { out, fold });
                self.once.insert(Var(at as u32), out);
            }
            Stmt::Store { arg, access, x } => {
                let to = source.program.args[*arg as usize].dtype;
                self.store(at, *arg, access, *x, phase, transfers::store(source.info(*x).kind, to, source.isa))?;
            }
            Stmt::Accumulate { arg, access, x } => {
                let to = source.program.args[*arg as usize].dtype;
                let run = transfers::accumulate(to, source.isa).ok_or_else(|| internal("accumulation of bools"))?;
                self.store(at, *arg, access, *x, phase, run)?;
            }
            Stmt::StoreQuantized { codes, access, scales, power_of_two, x } => {
                let value = self.need_at(*x, Rank::Tile, phase)?;
                let codes = Access::new(source.layout, *codes, access);
                let scales = Access::new(source.layout, *scales, &scale_access(source.program));
                let mode = ScaleMode::from_flag(*power_of_two);
                self.push(Rank::Tile, phase, phase, Step::Quantize { x: value, codes, scales, mode });
            }
            _ => {}
        }
        Ok(())
    }

    fn store(&mut self, at: usize, arg: u32, access: &program::Access, x: Var, phase: usize, run: RunFn) -> Result<(), KernelError> {
        let source = self.source;
        if updates(source.program, arg) {
            // Whatever was read before the store is read before it.
            let loads = std::mem::take(&mut self.loads);
            let earlier = loads.get(&arg).into_iter().flatten().take_while(|v| (v.0 as usize) < at);
            let made = earlier.map(|&v| self.need(v, phase)).find(Result::is_err);
            self.loads = loads;
            made.transpose()?;
        }
        let rank = source.store_rank(access, x);
        let value = self.need_at(x, rank, phase)?;
        let access = Access::new(source.layout, arg, access);
        self.push(rank, phase, phase, Step::Store { x: value, access, run });
        debug_assert!(self.cut || phase < self.schedule.phases.len());
        Ok(())
    }
}

/// Where the scale of a row's first group lies.
fn scale_access(p: &RowProgram) -> program::Access {
    let mut strides = vec![0i64; p.space.len()];
    let mut stride = groups(p.row_len()) as i64;
    for d in (0..p.row_start()).rev() {
        strides[d] = stride;
        stride *= p.space[d] as i64;
    }
    program::Access { offset: 0, strides, guards: Vec::new() }
}

/// Elements that a tile's columns must be a multiple of.
pub const QUANTUM: usize = GROUP as usize;

fn literal(kind: Kind, value: Literal) -> [u8; 8] {
    let mut bits = [0; 8];
    match (kind, value) {
        (Kind::Float, _) => bits[..4].copy_from_slice(&value.as_f32().to_ne_bytes()),
        (Kind::Int, Literal::Int(i)) => bits = i.to_ne_bytes(),
        (Kind::Int, Literal::Float(_)) => bits = (value.as_f32() as i64).to_ne_bytes(),
        (Kind::Bool, _) => bits[0] = u8::from(value.as_f32() != 0.0),
    }
    bits
}

fn internal(reason: &str) -> KernelError {
    KernelError::Invalid { family: "row", reason: reason.into() }
}

/// The value that a step makes.
pub fn out_of(step: &Step) -> Option<Value> {
    match step {
        Step::Const { out, .. } | Step::Load { out, .. } | Step::Index { out, .. } | Step::Map { out, .. } => Some(*out),
        Step::Expand { out, .. } | Step::Finish { out, .. } => Some(*out),
        Step::Fold { .. } | Step::Store { .. } | Step::Quantize { .. } => None,
    }
}

/// The values that a step reads.
pub fn inputs_of(step: &Step) -> Vec<Value> {
    match step {
        Step::Const { .. } | Step::Index { .. } | Step::Finish { .. } => Vec::new(),
        Step::Load { gather, .. } => gather.iter().map(|g| g.index).collect(),
        Step::Map { operands, .. } => operands.iter().map(|o| o.value).collect(),
        Step::Expand { x, .. } | Step::Fold { x, .. } | Step::Store { x, .. } | Step::Quantize { x, .. } => vec![*x],
    }
}

impl Schedule {
    /// All steps in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.uniform.iter().chain(self.phases.iter().flat_map(|p| p.head.iter().chain(&p.body)))
    }

    /// Drops steps whose value nobody reads.
    fn drop_unused(&mut self) {
        let mut used = vec![false; self.values.len()];
        let mut keep = |step: &Step| {
            let keep = out_of(step).is_none_or(|out| used[out.0]);
            if keep {
                inputs_of(step).iter().for_each(|v| used[v.0] = true);
            }
            keep
        };
        for phase in self.phases.iter_mut().rev() {
            retain_from_back(&mut phase.body, &mut keep);
            retain_from_back(&mut phase.head, &mut keep);
        }
        retain_from_back(&mut self.uniform, &mut keep);
    }
}

fn retain_from_back(steps: &mut Vec<Step>, keep: &mut impl FnMut(&Step) -> bool) {
    let mut kept: Vec<Step> = Vec::with_capacity(steps.len());
    while let Some(step) = steps.pop() {
        if keep(&step) {
            kept.push(step);
        }
    }
    kept.reverse();
    *steps = kept;
}
