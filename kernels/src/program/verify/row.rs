//! Row programs: kinds and order of statements, bounds of every access, one write for each element.
//!
//! What is bounded is what `program/row.rs` says that executors do: a row access at every row, any other access at every point, where
//! its guards hold.

use super::conflicts::{Touch, conflicts};
use super::overlap::{Bounds, Image, Prover};
use super::{Family, MAX_DIMS, MAX_LEVELS, MAX_STATEMENTS};
use crate::program::{Access, GROUP, Mode, Rank, RowProgram, Stmt, VarType, groups};
use crate::{DType, KernelError};

const ROW: Family = Family("row");
/// Largest offset and stride.
const MAX_TERM: u64 = 1 << 56;

pub(in crate::program) fn row(p: &RowProgram) -> Result<(), KernelError> {
    ROW.require(p.space.len() <= MAX_DIMS, "the space has too many dimensions")?;
    ROW.require(p.row_dims as usize <= p.space.len(), "the row has more dimensions than the space")?;
    ROW.require(p.body.len() <= MAX_STATEMENTS, "the body has too many statements")?;
    ROW.volume(&p.space, "the space")?;
    ROW.arguments(&p.args)?;
    let types = p.types().or_else(|e| ROW.fail(e))?;
    ROW.require(levels(p) <= MAX_LEVELS, "too many folds depend on one another")?;
    let mut touched = Touched { program: p, types: &types, prover: Prover::new(), all: Vec::new() };
    for (at, stmt) in p.body.iter().enumerate() {
        touched.statement(at, stmt).or_else(|e| ROW.fail(format!("statement {at}: {e}")))?;
    }
    let Touched { mut prover, all, .. } = touched;
    conflicts(all, &mut prover).or_else(|e| ROW.fail(e))
}

/// The longest chain of folds that depend on one another.
fn levels(p: &RowProgram) -> usize {
    let mut levels: Vec<usize> = Vec::with_capacity(p.body.len());
    for stmt in &p.body {
        let before = stmt.operands().iter().map(|v| levels[v.0 as usize]).max().unwrap_or(0);
        levels.push(before + usize::from(matches!(stmt, Stmt::Reduce { .. })));
    }
    levels.into_iter().max().unwrap_or(0)
}

/// What the statements of a program read and write.
struct Touched<'a> {
    program: &'a RowProgram,
    types: &'a [Option<VarType>],
    prover: Prover,
    all: Vec<Touch>,
}

impl Touched<'_> {
    fn statement(&mut self, at: usize, stmt: &Stmt) -> Result<(), String> {
        let p = self.program;
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
                if let Some((image, bounds)) = bounded(p, *arg, access, reach)? {
                    let image = indexed.is_none().then(|| by_row(p, access, image));
                    self.all.push(Touch { at, arg: *arg as usize, write: false, image, bounds });
                }
            }
            Stmt::Store { arg, access, x } => {
                mode(p, *arg, &[Mode::Write, Mode::Update])?;
                self.store(at, *arg, access, self.types[x.0 as usize])?;
            }
            Stmt::Accumulate { arg, access, x } => {
                mode(p, *arg, &[Mode::Update])?;
                self.store(at, *arg, access, self.types[x.0 as usize])?;
            }
            Stmt::StoreQuantized { codes, access, scales, x, .. } => {
                self.scales(at, *codes, access, *scales)?;
                // The whole row is written, whatever the rank of x.
                let tile = self.types[x.0 as usize].map(|t| VarType { rank: Rank::Tile, ..t });
                self.store(at, *codes, access, tile)?;
            }
            Stmt::Const { .. } | Stmt::Index { .. } | Stmt::Unary { .. } | Stmt::Binary { .. } => {}
            Stmt::Select { .. } | Stmt::Cast { .. } | Stmt::Reduce { .. } => {}
        }
        Ok(())
    }

    fn store(&mut self, at: usize, arg: u32, access: &Access, ty: Option<VarType>) -> Result<(), String> {
        let Some((image, bounds)) = bounded(self.program, arg, access, (0, 0))? else { return Ok(()) };
        let once = ty.is_some_and(|t| t.rank == Rank::Row);
        let image = if once { by_row(self.program, access, image) } else { image };
        if !self.prover.one_to_one(&image) {
            return Err(format!("stores into argument {arg} may hit an element twice"));
        }
        self.all.push(Touch { at, arg: arg as usize, write: true, image: Some(image), bounds });
        Ok(())
    }

    /// Checks a quantizing store, and notes the scales that it writes.
    fn scales(&mut self, at: usize, codes: u32, access: &Access, scales: u32) -> Result<(), String> {
        let p = self.program;
        mode(p, codes, &[Mode::Write])?;
        mode(p, scales, &[Mode::Write])?;
        let dtype = |arg: u32| p.args[arg as usize].dtype;
        if dtype(codes) != DType::E4m3 || dtype(scales) != DType::F32 {
            return Err("codes must be e4m3 and scales f32".into());
        }
        if p.row_dims != 1 || access.strides.last() != Some(&1) || !access.guards.is_empty() {
            return Err(format!("a quantizing store needs one row dimension, stride 1 along it (runs of {GROUP}) and no guard"));
        }
        let count = p.rows().saturating_mul(groups(p.row_len()));
        if count > p.args[scales as usize].elements {
            return Err(format!("{count} scales do not fit argument {scales}"));
        }
        if count > 0 {
            let image = Some(Image { offset: 0, dims: vec![(1, 0, count.into())] });
            self.all.push(Touch { at, arg: scales as usize, write: true, image, bounds: (0, i128::from(count) - 1) });
        }
        Ok(())
    }
}

fn mode(p: &RowProgram, arg: u32, allowed: &[Mode]) -> Result<(), String> {
    let have = p.args.get(arg as usize).ok_or(format!("there is no argument {arg}"))?.mode;
    if allowed.contains(&have) { Ok(()) } else { Err(format!("argument {arg} has mode {have:?}")) }
}

/// Leaves one access for the whole row where that is what happens.
fn by_row(p: &RowProgram, access: &Access, mut image: Image) -> Image {
    if p.constant_along_row(access) && p.row_len() != 1 {
        image.dims.truncate(p.row_start());
    }
    image
}

/// The elements that an access touches, and the range that they and what an index adds lie in.
type Bounded = (Image, Bounds);

/// What an access touches, shown to be in the argument; `None` if it touches nothing.
fn bounded(p: &RowProgram, arg: u32, access: &Access, reach: (i128, i128)) -> Result<Option<Bounded>, String> {
    if access.strides.len() != p.space.len() {
        return Err(format!("{} strides for {} dimensions", access.strides.len(), p.space.len()));
    }
    if access.strides.iter().chain([&access.offset]).any(|t| t.unsigned_abs() > MAX_TERM) {
        return Err("an offset or stride is too large".into());
    }
    let mut dims: Vec<(i128, i128, i128)> = p.space.iter().zip(&access.strides).map(|(&e, &s)| (s.into(), 0, e.into())).collect();
    if p.constant_along_row(access) {
        // A row access: made once a row, even where the row is empty.
        dims[p.row_start()..].iter_mut().for_each(|d| d.2 = d.2.max(1));
    }
    for guard in &access.guards {
        let d = guard.dim as usize;
        let extent = *p.space.get(d).ok_or(format!("there is no dimension {d}"))?;
        let within = |x: i64| u64::try_from(x).is_ok_and(|x| x <= extent);
        if !within(guard.lower) || !within(guard.upper) {
            return Err(format!("a guard from {} to {} leaves dimension {d} of {extent}", guard.lower, guard.upper));
        }
        dims[d].1 = dims[d].1.max(guard.lower.into());
        dims[d].2 = dims[d].2.min(guard.upper.into());
    }
    if dims.iter().any(|d| d.1 >= d.2) {
        return Ok(None);
    }
    let image = Image { offset: access.offset.into(), dims };
    let elements = p.args[arg as usize].elements;
    match image.bounds().map(|(low, high)| (low + reach.0, high + reach.1)) {
        Some(bounds) if bounds.0 >= 0 && bounds.1 < i128::from(elements) => Ok(Some((image, bounds))),
        _ => Err(format!("the access leaves the {elements} elements of argument {arg}")),
    }
}
