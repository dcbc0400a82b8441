//! Row programs.
//!
//! A program runs as a chain of phases: the scalars of a row that need no further reduction, then one loop over the row that feeds
//! every reduction whose operand is then computable, and so on; the last loop stores. A loop recomputes from memory what it needs:
//! the row is in cache. All stores happen in the last loop, so that a recomputation never reads what was just written.

mod emit;
mod loops;
mod shape;

use super::module::Emitter;
use crate::KernelError;
use crate::program::{Fold, RowProgram, Stmt};
use shape::{FLAT_THREADS, Mapping, Shape, WARPS, shape};

/// Generates the single entry of a row program; none if there is nothing to compute.
pub fn generate(e: &Emitter<'_>, k: &RowProgram, name: &str) -> Result<(), KernelError> {
    let shape = shape(k);
    let rows = shape.program.rows();
    if rows == 0 || (shape.mapping == Mapping::Flat && shape.program.row_len() == 0) {
        return Ok(());
    }
    let (grid, threads) = launch(&shape, rows);
    let b = e.entry(name, &k.args, grid, threads, shared_bytes(&shape))?;
    emit::Row::new(&b, &shape).run()?;
    b.finish();
    Ok(())
}

fn launch(shape: &Shape, rows: u64) -> (u64, u32) {
    let runs = shape.program.row_len() / shape.lanes as u64;
    match shape.mapping {
        Mapping::Flat => ((rows * runs).div_ceil(FLAT_THREADS as u64), FLAT_THREADS),
        Mapping::Warp => (rows.div_ceil(WARPS as u64), WARPS * 32),
        Mapping::Block { threads } => (rows, threads),
        Mapping::Columns { depth } => (rows.div_ceil(32), 32 * depth),
    }
}

/// Eight bytes for each partial result of each reduction.
fn shared_bytes(shape: &Shape) -> u32 {
    let reductions = shape.program.body.iter().filter(|s| matches!(s, Stmt::Reduce { .. })).count() as u32;
    let partials = match shape.mapping {
        Mapping::Flat | Mapping::Warp | Mapping::Columns { depth: 1 } => 0,
        Mapping::Block { threads } => threads / 32,
        Mapping::Columns { depth } => 32 * depth,
    };
    8 * reductions * partials
}

/// The reductions of a phase, with their operation and operand.
fn reductions(shape: &Shape, level: u32) -> Vec<(usize, Fold, usize)> {
    let of = |(i, s): (usize, &Stmt)| match s {
        Stmt::Reduce { op, x } if shape.facts[i].level == level + 1 => Some((i, *op, x.0 as usize)),
        _ => None,
    };
    shape.program.body.iter().enumerate().filter_map(of).collect()
}
