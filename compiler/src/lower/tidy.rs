//! What a built row program is left with: no useless statement, no dimension more than its accesses need.

use fp8c_kernels::DType;
use fp8c_kernels::program::*;

/// Points that a row without reductions has at least, where the space has as many: enough to fill vectors.
const ROW: u64 = 1024;

/// Removes dead statements and merges dimensions.
pub(super) fn tidy(mut p: RowProgram) -> RowProgram {
    forward_stores(&mut p);
    drop_dead(&mut p);
    merge_dims(&mut p);
    if !p.body.iter().any(|s| matches!(s, Stmt::Reduce { .. })) {
        let mut points = 1;
        let long = |e: &&u64| {
            let more = points < ROW;
            points *= **e;
            more
        };
        p.row_dims = p.space.iter().rev().take_while(long).count() as u32;
    }
    p
}

/// A store rounds by itself: it need not store the rounded variable.
fn forward_stores(p: &mut RowProgram) {
    for i in 0..p.body.len() {
        let Stmt::Store { arg, x, .. } = &p.body[i] else { continue };
        if let Stmt::Cast { x: wide, to } = p.body[x.0 as usize]
            && to == p.args[*arg as usize].dtype
            && matches!(to, DType::Bf16 | DType::E4m3)
            && let Stmt::Store { x, .. } = &mut p.body[i]
        {
            *x = wide;
        }
    }
}

/// The variables that a statement reads.
fn operands(s: &mut Stmt) -> Vec<&mut Var> {
    match s {
        Stmt::Load { indexed: Some(i), .. } => vec![&mut i.index],
        Stmt::Load { .. } | Stmt::Const { .. } | Stmt::Index { .. } => vec![],
        Stmt::Unary { x, .. } | Stmt::Cast { x, .. } | Stmt::Reduce { x, .. } => vec![x],
        Stmt::Binary { x, y, .. } => vec![x, y],
        Stmt::Select { c, x, y } => vec![c, x, y],
        Stmt::Store { x, .. } | Stmt::Accumulate { x, .. } | Stmt::StoreQuantized { x, .. } => vec![x],
    }
}

fn drop_dead(p: &mut RowProgram) {
    let mut live = vec![false; p.body.len()];
    for i in (0..p.body.len()).rev() {
        live[i] |= matches!(p.body[i], Stmt::Store { .. } | Stmt::Accumulate { .. } | Stmt::StoreQuantized { .. });
        if live[i] {
            operands(&mut p.body[i]).iter().for_each(|x| live[x.0 as usize] = true);
        }
    }
    let mut at = vec![Var(0); p.body.len()];
    let mut kept: Vec<Stmt> = vec![];
    for (i, mut s) in std::mem::take(&mut p.body).into_iter().enumerate().filter(|(i, _)| live[*i]) {
        operands(&mut s).into_iter().for_each(|x| *x = at[x.0 as usize]);
        at[i] = Var(kept.len() as u32);
        kept.push(s);
    }
    p.body = kept;
}

fn accesses(s: &mut Stmt) -> Option<&mut Access> {
    match s {
        Stmt::Load { access, .. } | Stmt::Store { access, .. } | Stmt::Accumulate { access, .. } => Some(access),
        Stmt::StoreQuantized { access, .. } => Some(access),
        _ => None,
    }
}

/// Merges neighbouring dimensions that every access steps through as one, and drops those of extent 1.
fn merge_dims(p: &mut RowProgram) {
    let mut d = p.space.len();
    while d > 0 {
        d -= 1;
        let named = p.body.iter_mut().any(|s| {
            let index = matches!(s, Stmt::Index { dim } if *dim as usize == d);
            index || accesses(s).is_some_and(|a| a.guards.iter().any(|g| g.dim as usize == d))
        });
        if named {
            continue;
        }
        let start = p.space.len() - p.row_dims as usize;
        let into_previous = d > 0 && d != start && mergeable(p, d);
        if p.space[d] == 1 || into_previous {
            remove(p, d, into_previous && p.space[d] != 1);
        }
    }
}

/// True if dimension `d - 1` steps over `d` in every access, and nothing else names it.
fn mergeable(p: &mut RowProgram, d: usize) -> bool {
    let extent = p.space[d] as i64;
    let single = p.space[d - 1] == 1;
    p.body.iter_mut().all(|s| match s {
        Stmt::Index { dim } => *dim as usize != d - 1,
        s => accesses(s).is_none_or(|a| {
            let steps = single || a.strides[d - 1] == a.strides[d] * extent;
            steps && a.guards.iter().all(|g| g.dim as usize != d - 1)
        }),
    })
}

/// Removes dimension `d`; where `merged`, the one before it takes its points over.
fn remove(p: &mut RowProgram, d: usize, merged: bool) {
    let start = p.space.len() - p.row_dims as usize;
    if d >= start {
        p.row_dims -= 1;
    }
    let extent = p.space.remove(d);
    if merged {
        p.space[d - 1] *= extent;
    }
    for s in &mut p.body {
        if let Stmt::Index { dim } = s
            && *dim as usize > d
        {
            *dim -= 1;
        }
        let Some(a) = accesses(s) else { continue };
        let stride = a.strides.remove(d);
        if merged {
            a.strides[d - 1] = stride;
        }
        a.guards.iter_mut().filter(|g| g.dim as usize > d).for_each(|g| g.dim -= 1);
    }
}
