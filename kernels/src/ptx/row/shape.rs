//! How a row program is laid over threads: a simplified iteration space, phases, and a mapping.

use crate::program::{Access, Binary, Kind, RowProgram, Stmt, Unary};

/// Which threads share a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// No reductions: a thread takes one run of lanes of one row.
    Flat,
    /// A warp takes a row; eight rows a block.
    Warp,
    /// A block takes a row.
    Block { threads: u32 },
    /// 32 neighbouring rows a block, `depth` threads each: for rows whose elements lie far apart while neighbouring rows touch.
    Columns { depth: u32 },
}

pub const FLAT_THREADS: u32 = 256;
pub const WARPS: u32 = 8;

/// What the generator needs to know about one statement.
#[derive(Clone, Copy, Debug)]
pub struct Fact {
    /// One value a row.
    pub scalar: bool,
    /// Number of reductions that have to be finished before it can be computed, at the longest chain.
    pub level: u32,
    /// None for stores.
    pub kind: Option<Kind>,
}

/// A program ready for emission.
#[derive(Debug)]
pub struct Shape {
    pub program: RowProgram,
    pub facts: Vec<Fact>,
    pub mapping: Mapping,
    /// Neighbouring elements of the last dimension that a thread takes at a time.
    pub lanes: usize,
    /// Bits of index arithmetic.
    pub width: u32,
}

impl Stmt {
    /// The access of a statement that touches memory, with its argument.
    pub(in crate::ptx) fn memory(&self) -> Option<(u32, &Access)> {
        match self {
            Stmt::Load { arg, access, .. } | Stmt::Store { arg, access, .. } | Stmt::Accumulate { arg, access, .. } => Some((*arg, access)),
            Stmt::StoreQuantized { codes, access, .. } => Some((*codes, access)),
            _ => None,
        }
    }

    fn memory_mut(&mut self) -> Option<&mut Access> {
        match self {
            Stmt::Load { access, .. } | Stmt::Store { access, .. } => Some(access),
            Stmt::Accumulate { access, .. } | Stmt::StoreQuantized { access, .. } => Some(access),
            _ => None,
        }
    }

    /// True for statements that write memory.
    pub fn writes(&self) -> bool {
        matches!(self, Stmt::Store { .. } | Stmt::Accumulate { .. } | Stmt::StoreQuantized { .. })
    }
}

fn quantizes(k: &RowProgram) -> bool {
    k.body.iter().any(|s| matches!(s, Stmt::StoreQuantized { .. }))
}

/// Lays a program over threads.
pub fn shape(k: &RowProgram) -> Shape {
    let flat = is_flat(k);
    let mut program = k.clone();
    if flat {
        // The row boundary means nothing without reductions: merge as if all were one row, then split off the last dimension.
        program.row_dims = program.space.len() as u32;
    }
    simplify(&mut program);
    if program.space.is_empty() || (program.row_dims == 0 && !flat) {
        add_unit_dim(&mut program);
        program.row_dims = 1;
    }
    if flat {
        program.row_dims = 1;
    }
    let facts = facts(&program);
    let mapping = if flat { Mapping::Flat } else { reducing(&program, &facts) };
    let lanes = lanes(&program, mapping, &facts);
    let width = width(&program);
    Shape { program, facts, mapping, lanes, width }
}

fn is_flat(k: &RowProgram) -> bool {
    let reduces = k.body.iter().any(|s| matches!(s, Stmt::Reduce { .. }));
    // A store that does not move along a dimension happens once a row; write-once rules it out elsewhere.
    let once = |s: &Stmt| s.writes() && s.memory().is_some_and(|(_, a)| k.space.iter().zip(&a.strides).any(|(&n, &s)| n != 1 && s == 0));
    !quantizes(k) && !k.body.iter().any(once) && (!reduces || k.row_len() == 1)
}

fn add_unit_dim(k: &mut RowProgram) {
    k.space.push(1);
    k.body.iter_mut().filter_map(Stmt::memory_mut).for_each(|a| a.strides.push(0));
}

/// Merges neighbouring dimensions that every access walks as one, and drops those of extent 1, within rows and across rows.
fn simplify(k: &mut RowProgram) {
    let mut d = 0;
    while d < k.space.len() {
        let outer = k.space.len() - k.row_dims as usize;
        let pinned = |d: usize| {
            k.body.iter().any(|s| matches!(s, Stmt::Index { dim } if *dim as usize == d))
                || k.body.iter().filter_map(Stmt::memory).any(|(_, a)| a.guards.iter().any(|g| g.dim as usize == d))
        };
        let merges = d + 1 < k.space.len()
            && d + 1 != outer
            && !pinned(d)
            && !pinned(d + 1)
            && k.body.iter().filter_map(Stmt::memory).all(|(_, a)| a.strides[d] == a.strides[d + 1] * k.space[d + 1] as i64);
        if merges {
            remove(k, d, d >= outer);
            // The product of the extents now stands at d, with the inner stride.
        } else if k.space[d] == 1 && !pinned(d) && (d < outer || k.row_dims > 1) {
            drop_unit(k, d, d >= outer);
        } else {
            d += 1;
        }
    }
}

/// Folds dimension `d` into the next one.
fn remove(k: &mut RowProgram, d: usize, in_row: bool) {
    k.space[d + 1] *= k.space[d];
    drop_unit(k, d, in_row);
}

fn drop_unit(k: &mut RowProgram, d: usize, in_row: bool) {
    k.space.remove(d);
    k.row_dims -= in_row as u32;
    for s in &mut k.body {
        if let Stmt::Index { dim } = s {
            *dim -= (*dim as usize > d) as u32;
        }
        if let Some(a) = s.memory_mut() {
            a.strides.remove(d);
            a.guards.iter_mut().for_each(|g| g.dim -= (g.dim as usize > d) as u32);
        }
    }
}

fn facts(k: &RowProgram) -> Vec<Fact> {
    let outer = k.space.len() - k.row_dims as usize;
    let mut facts: Vec<Fact> = Vec::with_capacity(k.body.len());
    for s in &k.body {
        let inputs: Vec<Fact> = s.operands().iter().map(|v| facts[v.0 as usize]).collect();
        let still = |a: &Access| {
            a.strides[outer..].iter().zip(&k.space[outer..]).all(|(&s, &n)| s == 0 || n == 1)
                && a.guards.iter().all(|g| (g.dim as usize) < outer)
        };
        let scalar = match s {
            Stmt::Index { dim } => (*dim as usize) < outer,
            Stmt::Reduce { .. } => true,
            Stmt::StoreQuantized { .. } => false,
            _ => inputs.iter().all(|f| f.scalar) && s.memory().is_none_or(|(_, a)| still(a)),
        };
        let level = inputs.iter().map(|f| f.level).max().unwrap_or(0) + matches!(s, Stmt::Reduce { .. }) as u32;
        let kind = kind(k, s, &inputs);
        facts.push(Fact { scalar, level, kind });
    }
    facts
}

fn kind(k: &RowProgram, s: &Stmt, inputs: &[Fact]) -> Option<Kind> {
    match s {
        Stmt::Load { arg, .. } => Some(Kind::from(k.args[*arg as usize].dtype)),
        Stmt::Const { kind, .. } => Some(*kind),
        Stmt::Index { .. } => Some(Kind::Int),
        Stmt::Unary { op: Unary::Not | Unary::IsNan | Unary::IsInf, .. } => Some(Kind::Bool),
        Stmt::Binary { op: Binary::Eq | Binary::Ne | Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge, .. } => Some(Kind::Bool),
        Stmt::Unary { .. } | Stmt::Binary { .. } | Stmt::Reduce { .. } => inputs[0].kind,
        Stmt::Select { .. } => inputs[1].kind,
        Stmt::Cast { to, .. } => Some(Kind::from(*to)),
        Stmt::Store { .. } | Stmt::Accumulate { .. } | Stmt::StoreQuantized { .. } => None,
    }
}

/// Chooses who reduces a row.
fn reducing(k: &RowProgram, facts: &[Fact]) -> Mapping {
    let (outer, len) = (k.space.len() - k.row_dims as usize, k.row_len());
    let wide = Mapping::Block { threads: if len <= 8192 { 256 } else { 512 } };
    if quantizes(k) {
        return if len <= 1024 { Mapping::Warp } else { wide };
    }
    let loads = || k.body.iter().zip(facts).filter(|(s, f)| !f.scalar && matches!(s, Stmt::Load { .. })).filter_map(|(s, _)| s.memory());
    let along_row = loads().filter(|(_, a)| a.strides.last() == Some(&1)).count();
    let across = loads().filter(|(_, a)| outer > 0 && a.strides[outer - 1] == 1 && a.strides.last() != Some(&1)).count();
    if across > along_row {
        let depth = len.div_ceil(4).next_power_of_two().clamp(1, 16) as u32;
        return Mapping::Columns { depth };
    }
    match len {
        0..=8 => Mapping::Columns { depth: 1 },
        9..=1024 => Mapping::Warp,
        _ => wide,
    }
}

/// How many neighbouring elements a thread takes: as many as a 16-byte access holds, if the accesses allow it.
fn lanes(k: &RowProgram, mapping: Mapping, facts: &[Fact]) -> usize {
    let last = *k.space.last().unwrap_or(&1);
    if quantizes(k) {
        return 4;
    }
    if matches!(mapping, Mapping::Columns { .. }) {
        return 1;
    }
    let moving = || k.body.iter().zip(facts).filter(|(_, f)| !f.scalar).filter_map(|(s, _)| s.memory());
    let widest = moving().map(|(arg, _)| k.args[arg as usize].dtype.size()).max().unwrap_or(8);
    let limit = match (widest, k.body.len()) {
        (_, 61..) => 2,
        (0..=2, 0..=30) => 8,
        (8, _) => 2,
        _ => 4,
    };
    let fits = |v: usize| last.is_multiple_of(v as u64) && moving().any(|(_, a)| vectorises(k, a, v));
    [8, 4, 2].into_iter().find(|&v| v <= limit && fits(v)).unwrap_or(1)
}

/// True if `lanes` neighbouring elements from a multiple of `lanes` on are one aligned piece of the argument.
pub fn vectorises(k: &RowProgram, a: &Access, lanes: usize) -> bool {
    let (n, last) = (lanes as i64, k.space.len() - 1);
    let aligned = |(d, &s): (usize, &i64)| d == last || k.space[d] == 1 || s % n == 0;
    let guarded = a.guards.iter().any(|g| g.dim as usize == last);
    a.strides[last] == 1 && a.offset % n == 0 && a.strides.iter().enumerate().all(aligned) && !guarded
}

/// 32 bits where every index and offset fits.
fn width(k: &RowProgram) -> u32 {
    let limit = 1i128 << 31;
    let reach = |a: &Access| {
        let spans = a.strides.iter().zip(&k.space).map(|(&s, &n)| (s as i128).abs() * n as i128);
        (a.offset as i128).abs() + spans.sum::<i128>()
    };
    let indexed = |s: &Stmt| match s {
        Stmt::Load { indexed: Some(i), .. } => (i.stride as i128).abs() * i.bound as i128,
        _ => 0,
    };
    let points: i128 = k.space.iter().map(|&n| n as i128).product();
    // Loops step past their end by at most a block's worth of lanes.
    let slack = 1 << 14;
    let far = k.body.iter().map(|s| s.memory().map_or(0, |(_, a)| reach(a)) + indexed(s)).max().unwrap_or(0);
    if points + slack < limit && far + slack < limit { 32 } else { 64 }
}
