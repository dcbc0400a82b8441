//! What is known of a program's variables before it is scheduled.

use super::access::Access;
use super::layout::{Layout, Order, Part};
use crate::program::{Binary, Kind, Literal, Rank as TypeRank, RowProgram, Stmt, Unary, Var, VarType};
use crate::{DType, program};

/// For how much of the space a variable has one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// All of it.
    Uniform,
    Row,
    Tile,
}

/// Facts about a variable.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    pub kind: Kind,
    pub rank: Rank,
    /// Folds that must be complete before it can be computed, one after the other.
    pub level: usize,
    /// Dimensions of the layout along which it changes, as bits.
    pub dims: u32,
    /// The variable that it equals.
    pub same: Var,
    /// A format that represents it exactly.
    exact: Option<DType>,
}

/// Facts about the variables of a verified program; `None` for statements without a value.
pub fn analyse(p: &RowProgram, types: &[Option<VarType>], layout: &Layout) -> Vec<Option<Info>> {
    let mut infos: Vec<Option<Info>> = Vec::with_capacity(types.len());
    for (at, (stmt, ty)) in p.body.iter().zip(types).enumerate() {
        infos.push(ty.map(|ty| info(p, layout, &infos, Var(at as u32), stmt, ty)));
    }
    infos
}

/// The variable that stands for this one.
pub fn canonical(infos: &[Option<Info>], v: Var) -> Var {
    infos[v.0 as usize].map_or(v, |i| i.same)
}

fn info(p: &RowProgram, layout: &Layout, infos: &[Option<Info>], at: Var, stmt: &Stmt, ty: VarType) -> Info {
    let of = |v: Var| infos[v.0 as usize];
    let inputs: Vec<Info> = stmt.operands().into_iter().filter_map(of).collect();
    let level = inputs.iter().map(|i| i.level).max().unwrap_or(0);
    let dims = inputs.iter().fold(0, |d, i| d | i.dims);
    let joined = inputs.iter().map(|i| i.rank).max().unwrap_or(Rank::Uniform);
    let plain = Info { kind: ty.kind, rank: joined, level, dims, same: at, exact: None };
    let placed = match (layout.order, ty.rank) {
        (Order::Flat, _) | (_, TypeRank::Tile) => Rank::Tile,
        _ => Rank::Row,
    };
    match *stmt {
        Stmt::Load { arg, ref access, indexed } => {
            let moving = Access::new(layout, arg, access).moving_dims();
            // Only a row access may leave the loop along the row: others are not bounded where the row is empty.
            let uniform = ty.rank == TypeRank::Row && indexed.is_none() && access.guards.is_empty() && moving == 0;
            let rank = if uniform { Rank::Uniform } else { placed };
            Info { rank, dims: dims | moving, exact: Some(p.args[arg as usize].dtype), ..plain }
        }
        Stmt::Index { dim } => Info { rank: placed, dims: layout.find(dim).map_or(0, |d| 1 << d), ..plain },
        Stmt::Reduce { .. } => {
            let rows = layout.dims.iter().enumerate().filter(|(_, d)| d.part != Part::Column).fold(0, |bits, (d, _)| bits | 1 << d);
            Info { rank: Rank::Row, level: level + 1, dims: dims & rows, ..plain }
        }
        Stmt::Cast { x, to } => {
            let same = match of(x) {
                Some(from) if from.kind == ty.kind && represents(to, from) => from.same,
                _ => at,
            };
            Info { same, exact: Some(to), ..plain }
        }
        _ => plain,
    }
}

/// True if rounding to a format leaves a value of the format's own kind as it is.
fn represents(to: DType, from: Info) -> bool {
    match to {
        DType::F32 | DType::I64 | DType::Bool => true,
        DType::Bf16 => matches!(from.exact, Some(DType::Bf16 | DType::E4m3)),
        DType::E4m3 => from.exact == Some(DType::E4m3),
        DType::I32 => from.exact == Some(DType::I32),
    }
}

/// The statement with an operator that computes the same faster, if there is one.
pub fn cheaper(p: &RowProgram, stmt: &Stmt) -> Stmt {
    let constant = |v: Var| match p.body[v.0 as usize] {
        Stmt::Const { kind: Kind::Float, value } => Some(Literal::as_f32(value)),
        _ => None,
    };
    match *stmt {
        Stmt::Binary { op: Binary::Pow, x, y } if constant(y) == Some(2.0) => Stmt::Binary { op: Binary::Mul, x, y: x },
        Stmt::Binary { op: Binary::Div, x, y } if constant(x) == Some(1.0) => Stmt::Unary { op: Unary::Recip, x: y },
        _ => stmt.clone(),
    }
}

/// Bytes of a value of a kind in a tile.
pub const fn size(kind: Kind) -> usize {
    match kind {
        Kind::Float => 4,
        Kind::Int => 8,
        Kind::Bool => 1,
    }
}

/// True where an argument is written as well as read.
pub fn updates(p: &RowProgram, arg: u32) -> bool {
    p.args[arg as usize].mode == program::Mode::Update
}
