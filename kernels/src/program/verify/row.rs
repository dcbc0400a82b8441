//! Row programs: kinds and order of statements, bounds of every access, one write for each element.

use super::overlap::Image;
use super::{Family, MAX_DIMS, MAX_STATEMENTS};
use crate::program::{Access, GROUP, Mode, Rank, RowProgram, Stmt, VarType, groups};
use crate::{DType, KernelError};

const ROW: Family = Family("row");
/// Most stores into one argument: each pair of them is compared.
const MAX_STORES: usize = 64;
/// Largest offset, stride and guard.
const MAX_TERM: u64 = 1 << 56;

pub(in crate::program) fn row(p: &RowProgram) -> Result<(), KernelError> {
    ROW.require(p.space.len() <= MAX_DIMS, "the space has too many dimensions")?;
    ROW.require(p.row_dims as usize <= p.space.len(), "the row has more dimensions than the space")?;
    ROW.require(p.body.len() <= MAX_STATEMENTS, "the body has too many statements")?;
    ROW.volume(&p.space, "the space")?;
    ROW.arguments(&p.args)?;
    let types = p.types().or_else(|e| ROW.fail(e))?;
    let mut touched = Vec::new();
    for (at, stmt) in p.body.iter().enumerate() {
        statement(p, &types, stmt, &mut touched).or_else(|e| ROW.fail(format!("statement {at}: {e}")))?;
    }
    for arg in 0..p.args.len() {
        let of_arg: Vec<&Touch> = touched.iter().filter(|t| t.arg == arg).collect();
        conflicts(&of_arg).or_else(|e| ROW.fail(format!("argument {arg}: {e}")))?;
    }
    Ok(())
}

/// The elements that one statement reads or writes.
struct Touch {
    arg: usize,
    write: bool,
    /// `None` for an access that depends on data.
    image: Option<Image>,
}

fn statement(p: &RowProgram, types: &[Option<VarType>], stmt: &Stmt, out: &mut Vec<Touch>) -> Result<(), String> {
    match stmt {
        Stmt::Load { arg, access, indexed } => {
            mode(p, *arg, &[Mode::Read, Mode::Update])?;
            let reach = match indexed {
                None => (0, 0),
                Some(i) if i.bound < 1 => return Err("an index into an empty axis".into()),
                Some(i) => {
                    let last = i128::from(i.bound - 1) * i128::from(i.stride);
                    (last.min(0), last.max(0))
                }
            };
            if let Some(mut image) = bounded(p, *arg, access, reach)? {
                by_row(p, access, &mut image);
                out.push(Touch { arg: *arg as usize, write: false, image: indexed.is_none().then_some(image) });
            }
        }
        Stmt::Store { arg, access, x } => {
            mode(p, *arg, &[Mode::Write, Mode::Update])?;
            store(p, *arg, access, types[x.0 as usize], out)?;
        }
        Stmt::Accumulate { arg, access, x } => {
            mode(p, *arg, &[Mode::Update])?;
            store(p, *arg, access, types[x.0 as usize], out)?;
        }
        Stmt::StoreQuantized { codes, access, scales, x, .. } => {
            mode(p, *codes, &[Mode::Write])?;
            mode(p, *scales, &[Mode::Write])?;
            let dtype = |arg: u32| p.args[arg as usize].dtype;
            if dtype(*codes) != DType::E4m3 || dtype(*scales) != DType::F32 {
                return Err("codes must be e4m3 and scales f32".into());
            }
            if p.row_dims != 1 || access.strides.last() != Some(&1) || !access.guards.is_empty() {
                return Err(format!("a quantizing store needs one row dimension, stride 1 along it (runs of {GROUP}) and no guard"));
            }
            let scale_count = p.rows().saturating_mul(groups(p.row_len()));
            if scale_count > p.args[*scales as usize].elements {
                return Err(format!("{scale_count} scales do not fit argument {scales}"));
            }
            if scale_count > 0 {
                let image = Image { offset: 0, dims: vec![(1, 0, i128::from(scale_count))] };
                out.push(Touch { arg: *scales as usize, write: true, image: Some(image) });
            }
            // The whole row is written, whatever the rank of x.
            let tile = types[x.0 as usize].map(|t| VarType { rank: Rank::Tile, ..t });
            store(p, *codes, access, tile, out)?;
        }
        Stmt::Const { .. } | Stmt::Index { .. } | Stmt::Unary { .. } | Stmt::Binary { .. } => {}
        Stmt::Select { .. } | Stmt::Cast { .. } | Stmt::Reduce { .. } => {}
    }
    Ok(())
}

fn mode(p: &RowProgram, arg: u32, allowed: &[Mode]) -> Result<(), String> {
    let have = p.args.get(arg as usize).ok_or(format!("there is no argument {arg}"))?.mode;
    if allowed.contains(&have) { Ok(()) } else { Err(format!("argument {arg} has mode {have:?}")) }
}

fn store(p: &RowProgram, arg: u32, access: &Access, ty: Option<VarType>, out: &mut Vec<Touch>) -> Result<(), String> {
    let Some(mut image) = bounded(p, arg, access, (0, 0))? else { return Ok(()) };
    if ty.is_some_and(|t| t.rank == Rank::Row) {
        by_row(p, access, &mut image);
    }
    if !image.one_to_one() {
        return Err(format!("stores into argument {arg} may hit an element twice"));
    }
    out.push(Touch { arg: arg as usize, write: true, image: Some(image) });
    Ok(())
}

/// Leaves one access for the whole row where that is what happens.
fn by_row(p: &RowProgram, access: &Access, image: &mut Image) {
    if p.constant_along_row(access) && p.row_len() != 1 {
        image.dims.truncate(p.row_start());
    }
}

/// The elements that an access touches, shown to lie in its argument; `None` if it touches none.
fn bounded(p: &RowProgram, arg: u32, access: &Access, reach: (i128, i128)) -> Result<Option<Image>, String> {
    if access.strides.len() != p.space.len() {
        return Err(format!("{} strides for {} dimensions", access.strides.len(), p.space.len()));
    }
    let terms = access.strides.iter().chain([&access.offset]).chain(access.guards.iter().flat_map(|g| [&g.lower, &g.upper]));
    if terms.into_iter().any(|t| t.unsigned_abs() > MAX_TERM) {
        return Err("an offset, stride or guard is too large".into());
    }
    let mut dims: Vec<(i128, i128, i128)> = p.space.iter().zip(&access.strides).map(|(&e, &s)| (s.into(), 0, e.into())).collect();
    if p.constant_along_row(access) {
        // A row variable: touched once a row, even where the row is empty.
        dims[p.row_start()..].iter_mut().for_each(|d| d.2 = d.2.max(1));
    }
    for guard in &access.guards {
        let dim = dims.get_mut(guard.dim as usize).ok_or(format!("there is no dimension {}", guard.dim))?;
        dim.1 = dim.1.max(guard.lower.into());
        dim.2 = dim.2.min(guard.upper.into());
    }
    if dims.iter().any(|d| d.1 >= d.2) {
        return Ok(None);
    }
    let image = Image { offset: access.offset.into(), dims };
    let elements = p.args[arg as usize].elements;
    let inside = |(low, high): (i128, i128)| low + reach.0 >= 0 && high + reach.1 < i128::from(elements);
    match image.bounds() {
        Some(bounds) if inside(bounds) => Ok(Some(image)),
        _ => Err(format!("the access leaves the {elements} elements of argument {arg}")),
    }
}

/// Refuses two writes of one element, and reads of one that another point, or an earlier statement, writes.
fn conflicts(touches: &[&Touch]) -> Result<(), String> {
    if touches.iter().filter(|t| t.write).count() > MAX_STORES {
        return Err("too many stores".into());
    }
    for (at, a) in touches.iter().enumerate().filter(|(_, t)| t.write) {
        for (other, b) in touches.iter().enumerate() {
            let pair = a.image.as_ref().zip(b.image.as_ref());
            let fine = match b.write {
                true => other <= at || pair.is_some_and(|(a, b)| a.apart(b)),
                false => pair.is_some_and(|(a, b)| (other < at && same_element(a, b)) || a.apart(b)),
            };
            if !fine {
                let how = if b.write {
                    "two stores may hit one element"
                } else {
                    "a load may read what another point or an earlier store writes"
                };
                return Err(how.into());
            }
        }
    }
    Ok(())
}

/// True if both maps take every point, or every row, to the same element (guards and dimensions of one index aside).
fn same_element(a: &Image, b: &Image) -> bool {
    let moves = |d: &(i128, i128, i128)| d.2 - d.1 > 1 || d.1 > 0;
    let same = a.dims.iter().zip(&b.dims).all(|(x, y)| x.0 == y.0 || !(moves(x) || moves(y)));
    same && a.offset == b.offset && a.dims.len() == b.dims.len()
}
