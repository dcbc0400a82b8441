//! How the iteration space is cut into tiles.
//!
//! Neighbouring dimensions that every access walks as one are merged. The dimension that most bytes have stride 1 along becomes the
//! innermost, so that a bias gradient or a transposition reads lines of memory, not columns of them. Tiles are boxes of the
//! dimensions in that order; a value's place in a tile is its row-major position in the box.

use crate::program::{Access, Rank, RowProgram, Stmt, VarType};

/// The part that a dimension has in a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Steps between rows, outside the row.
    Outer,
    /// Lies in the row.
    Column,
    /// Steps between rows, inside the columns.
    Lane,
}

/// What the order of the dimensions is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// No statement folds or stores by row: all dimensions are `Outer`.
    Flat,
    /// `Outer` dimensions, then `Column` ones: a row is contiguous in a tile.
    Rows,
    /// `Outer`, then `Column`, then one `Lane` dimension: rows lie side by side.
    Lanes,
}

#[derive(Clone, Copy, Debug)]
pub struct Dim {
    pub extent: usize,
    /// Extent in a tile; the last tile may have less.
    pub tile: usize,
    pub part: Part,
    /// The original dimension whose strides it has.
    origin: usize,
}

/// Dimensions in order, outermost first.
#[derive(Clone, Debug)]
pub struct Layout {
    pub order: Order,
    pub dims: Vec<Dim>,
}

/// Fewest rows side by side that are worth a layout of lanes.
const MIN_LANES: u64 = 8;
/// Rows shorter than this are laid side by side.
const SHORT_ROW: u64 = 64;
/// Tile of a transposition: elements along the dimension that is inner in the tile, and along the other.
const TRANSPOSE: (usize, usize) = (64, 32);

/// A run of original dimensions that are walked as one.
struct Group {
    extent: u64,
    origin: usize,
    row: bool,
    pinned: bool,
}

impl Layout {
    /// Orders the dimensions of a verified program whose space is not empty outside the row.
    pub fn new(p: &RowProgram, types: &[Option<VarType>]) -> Layout {
        let by_row = p.body.iter().any(|s| needs_rows(p, types, s));
        let quantizes = p.body.iter().any(|s| matches!(s, Stmt::StoreQuantized { .. }));
        let accesses = accesses(p);
        let groups = merge(p, &accesses, by_row);
        let votes: Vec<f64> = groups.iter().map(|g| votes(p, &accesses, g)).collect();
        if by_row { rows(&groups, &votes, quantizes) } else { flat(p, &accesses, groups, &votes) }
    }

    /// Strides of an access along the dimensions.
    pub fn strides(&self, strides: &[i64]) -> Vec<i64> {
        self.dims.iter().map(|d| strides[d.origin]).collect()
    }

    /// The dimension that is this one of the program; it is pinned, or of extent 1 and gone.
    pub fn find(&self, original: u32) -> Option<usize> {
        self.dims.iter().position(|d| d.origin == original as usize)
    }

    /// Product of the extents of a part.
    pub fn extent(&self, part: Part) -> usize {
        self.dims.iter().filter(|d| d.part == part).map(|d| d.extent).product()
    }

    /// Most points of a part in a tile.
    pub fn tile(&self, part: Part) -> usize {
        self.dims.iter().filter(|d| d.part == part).map(|d| d.tile).product()
    }

    /// Number of tiles along a part.
    pub fn tiles(&self, part: Part) -> usize {
        self.dims.iter().filter(|d| d.part == part).map(|d| d.extent.div_ceil(d.tile)).product()
    }

    /// Makes the tile of a part as large as fits in `points`, inner dimensions first, in pieces of one size; a cut is a multiple
    /// of `unit`.
    pub fn fill(&mut self, part: Part, points: usize, unit: usize) {
        let mut left = points.max(1);
        for dim in self.dims.iter_mut().rev().filter(|d| d.part == part) {
            dim.tile = even(dim.extent, left, unit);
            left = if dim.tile == dim.extent { (left / dim.extent.max(1)).max(1) } else { 1 };
        }
    }

    /// Cuts a space without rows into tiles of about `points`, square where accesses are transposed to each other.
    fn fill_square(&mut self, second: usize, points: usize) {
        let last = self.dims.len() - 1;
        self.dims[last].tile = even(self.dims[last].extent, TRANSPOSE.0, 1);
        let left = (points / self.dims[last].tile).max(TRANSPOSE.1);
        self.dims[second].tile = even(self.dims[second].extent, left, 1);
    }

    /// Cuts a space without rows into tiles of about `points`.
    pub fn fill_flat(&mut self, points: usize) {
        match self.second() {
            Some(second) => self.fill_square(second, points),
            None => self.fill(Part::Outer, points, 16),
        }
    }

    /// The dimension beside the innermost that tiles extend along, marked by [`flat`] with a tile of 0.
    fn second(&self) -> Option<usize> {
        self.dims.iter().position(|d| d.tile == 0)
    }
}

/// The size of equal pieces of an extent that are at most `most` long, a multiple of `unit` where it is cut.
fn even(extent: usize, most: usize, unit: usize) -> usize {
    if extent <= most {
        return extent.max(1);
    }
    let pieces = extent.div_ceil(most);
    let size = extent.div_ceil(pieces);
    if most < unit { size } else { (size.div_ceil(unit) * unit).min(most / unit * unit) }
}

/// True for a statement that makes rows matter.
fn needs_rows(p: &RowProgram, types: &[Option<VarType>], stmt: &Stmt) -> bool {
    match stmt {
        Stmt::Reduce { .. } | Stmt::StoreQuantized { .. } => true,
        Stmt::Store { access, x, .. } | Stmt::Accumulate { access, x, .. } => {
            let row_value = types[x.0 as usize].is_some_and(|t| t.rank == Rank::Row);
            row_value && p.row_len() != 1 && p.constant_along_row(access)
        }
        _ => false,
    }
}

/// An access, and the bytes of one element.
type Weighted<'a> = (&'a Access, f64);

fn accesses(p: &RowProgram) -> Vec<Weighted<'_>> {
    let bytes = |arg: u32| p.args[arg as usize].dtype.size() as f64;
    let of = |s| match s {
        &Stmt::Load { arg, ref access, .. } => Some((access, bytes(arg))),
        &Stmt::Store { arg, ref access, .. } | &Stmt::Accumulate { arg, ref access, .. } => Some((access, bytes(arg))),
        &Stmt::StoreQuantized { codes, ref access, .. } => Some((access, bytes(codes))),
        _ => None,
    };
    p.body.iter().filter_map(of).collect()
}

fn merge(p: &RowProgram, accesses: &[Weighted], by_row: bool) -> Vec<Group> {
    let pinned = |d: usize| {
        let index = p.body.iter().any(|s| matches!(s, Stmt::Index { dim } if *dim as usize == d));
        index || accesses.iter().any(|(a, _)| a.guards.iter().any(|g| g.dim as usize == d))
    };
    let mut groups: Vec<Group> = Vec::new();
    for (d, &extent) in p.space.iter().enumerate() {
        let next = Group { extent, origin: d, row: by_row && p.in_row(d), pinned: pinned(d) };
        if extent == 1 && !next.pinned {
            continue;
        }
        let as_one = |g: &Group| {
            let walks = |a: &Access| i128::from(a.strides[g.origin]) == i128::from(a.strides[d]) * i128::from(extent);
            g.row == next.row && !g.pinned && !next.pinned && accesses.iter().all(|(a, _)| walks(a))
        };
        match groups.last_mut() {
            Some(last) if as_one(last) => *last = Group { extent: last.extent * extent, ..next },
            _ => groups.push(next),
        }
    }
    groups
}

/// Bytes that have stride 1 along a group, as a fraction of the space.
fn votes(p: &RowProgram, accesses: &[Weighted], group: &Group) -> f64 {
    let share = |a: &Access| {
        let still = p.space.iter().zip(&a.strides).filter(|(_, s)| **s == 0).map(|(&e, _)| e.max(1) as f64);
        1.0 / still.product::<f64>()
    };
    accesses.iter().filter(|(a, _)| a.strides[group.origin].abs() == 1).map(|(a, bytes)| bytes * share(a)).sum()
}

/// The candidate with the most votes, the last of equals.
fn favourite(candidates: impl Iterator<Item = usize>, votes: &[f64]) -> Option<usize> {
    candidates.fold(None, |best, i| if best.is_none_or(|b: usize| votes[i] >= votes[b]) { Some(i) } else { best })
}

fn dim(group: &Group, part: Part) -> Dim {
    let extent = group.extent as usize;
    Dim { extent, tile: extent.max(1), part, origin: group.origin }
}

fn flat(p: &RowProgram, accesses: &[Weighted], groups: Vec<Group>, votes: &[f64]) -> Layout {
    let Some(inner) = favourite((0..groups.len()).filter(|&i| groups[i].extent >= MIN_LANES || i + 1 == groups.len()), votes) else {
        return Layout { order: Order::Flat, dims: Vec::new() };
    };
    let others = (0..groups.len()).filter(|&i| i != inner);
    let mut dims: Vec<Dim> = others.clone().map(|i| dim(&groups[i], Part::Outer)).collect();
    let inner_origin = groups[inner].origin;
    // Accesses with stride 1 along another dimension and more than a line along the inner one.
    let across = |i: usize| {
        let turned = |a: &Access| a.strides[groups[i].origin].abs() == 1 && a.strides[inner_origin].unsigned_abs() > 8;
        groups[i].extent >= MIN_LANES && accesses.iter().any(|(a, _)| turned(a)) && p.space.len() > 1
    };
    if let Some(second) = favourite(others.clone().filter(|&i| across(i)), votes) {
        for (dim, i) in dims.iter_mut().zip(others) {
            dim.tile = usize::from(i != second);
        }
    }
    dims.push(dim(&groups[inner], Part::Outer));
    Layout { order: Order::Flat, dims }
}

fn rows(groups: &[Group], votes: &[f64], quantizes: bool) -> Layout {
    let all = 0..groups.len();
    let best_column = favourite(all.clone().filter(|&i| groups[i].row), votes);
    let best_outer = favourite(all.clone().filter(|&i| !groups[i].row && groups[i].extent >= MIN_LANES), votes);
    let row_len: u64 = groups.iter().filter(|g| g.row).map(|g| g.extent).product();
    let lane = best_outer.filter(|&o| {
        let more = best_column.is_none_or(|c| votes[o] > votes[c]);
        !quantizes && (more || row_len < SHORT_ROW)
    });
    let mut dims: Vec<Dim> = Vec::new();
    dims.extend(all.clone().filter(|&i| !groups[i].row && Some(i) != lane).map(|i| dim(&groups[i], Part::Outer)));
    dims.extend(all.filter(|&i| groups[i].row && Some(i) != best_column).map(|i| dim(&groups[i], Part::Column)));
    dims.extend(best_column.map(|i| dim(&groups[i], Part::Column)));
    dims.extend(lane.map(|i| dim(&groups[i], Part::Lane)));
    Layout { order: if lane.is_some() { Order::Lanes } else { Order::Rows }, dims }
}
