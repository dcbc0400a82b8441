//! Which elements a launch reads and writes, argument by argument.
//!
//! For those who follow what bytes hold. Reads are all that a launch may read, writes only what it is sure to write, whatever the data:
//! so a tensor that these footprints call written is written, and what they call unread is not read. Both are those of a kernel that
//! has passed [`Kernel::verify`]; of any other they mean nothing.

use super::{Access, Attention, Contract, Conv, Heads, Kernel, Matrix, Mode, Pool, Rank, RowProgram, ScatterAdd, Stmt, groups};

/// Elements `offset + sum(stride * index)` of an argument, for every `index < extent` in each dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region {
    pub offset: u64,
    /// `(stride, extent)`: strides positive and descending, extents above 1, neighbours that are one dimension merged.
    pub dims: Vec<(u64, u64)>,
}

/// What a launch does to one argument.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Holds every element that may be read.
    pub reads: Vec<Region>,
    /// Holds only elements that are written.
    pub writes: Vec<Region>,
}

impl Region {
    /// The first `elements` elements; `None` for none.
    pub fn first(elements: u64) -> Option<Region> {
        Region::new(0, [(1, 0, i128::from(elements))])
    }

    /// The elements `offset + sum(stride * index)` for `lower <= index < upper`, given as `(stride, lower, upper)`. `None` where a range is
    /// empty, or an element is no number from 0 on.
    pub fn new(offset: i128, ranges: impl IntoIterator<Item = (i128, i128, i128)>) -> Option<Region> {
        let mut low = offset;
        let mut dims = vec![];
        for (stride, lower, upper) in ranges {
            if upper <= lower {
                return None;
            }
            low = low.saturating_add(stride.saturating_mul(if stride < 0 { upper - 1 } else { lower }));
            if stride != 0 && upper - lower > 1 {
                dims.push((u64::try_from(stride.unsigned_abs()).ok()?, u64::try_from(upper - lower).ok()?));
            }
        }
        Some(Region { offset: u64::try_from(low).ok()?, dims }.normal())
    }

    /// Smallest and largest element.
    pub fn bounds(&self) -> (u64, u64) {
        let reach = self.dims.iter().fold(0u64, |r, &(stride, extent)| r.saturating_add(stride.saturating_mul(extent - 1)));
        (self.offset, self.offset.saturating_add(reach))
    }

    /// Brings the dimensions into the order that the fields promise.
    pub fn normal(mut self) -> Region {
        self.dims.retain(|&(_, extent)| extent > 1);
        self.dims.sort_unstable_by(|a, b| b.cmp(a));
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.dims.len());
        for &(stride, extent) in self.dims.iter().rev() {
            match merged.last_mut() {
                Some(inner) if inner.0.checked_mul(inner.1) == Some(stride) => inner.1 = inner.1.saturating_mul(extent),
                _ => merged.push((stride, extent)),
            }
        }
        merged.reverse();
        Region { offset: self.offset, dims: merged }
    }
}

impl Kernel {
    /// What a launch of this kernel, which has passed [`Kernel::verify`], does to each of its arguments.
    pub fn footprint(&self) -> Vec<Footprint> {
        let mut all = match self {
            Kernel::Row(k) => row(k),
            Kernel::Contract(k) => contract(k),
            Kernel::Attention(k) => attention(k, false),
            Kernel::AttentionGrad(k) => attention(k, true),
            Kernel::Conv(k) => if_any(self, conv_runs(k)),
            Kernel::Pool(k) => if_any(self, pool_runs(k)),
            Kernel::ScatterAdd(k) => if_any(self, scatter_runs(k)),
            Kernel::ScaledContract(_) | Kernel::Quantize(_) | Kernel::Scan(_) => if_any(self, true),
            // What it leaves as it was holds what it held.
            Kernel::Update(_) => if_any(self, true),
        };
        for f in &mut all {
            for regions in [&mut f.reads, &mut f.writes] {
                regions.sort_unstable();
                regions.dedup();
            }
        }
        all
    }
}

/// Whole arguments, as their modes say; nothing is written for certain where the kernel may not run.
fn if_any(kernel: &Kernel, runs: bool) -> Vec<Footprint> {
    let whole = |a: super::Arg| Footprint {
        reads: Region::first(a.elements).filter(|_| a.mode != Mode::Write).into_iter().collect(),
        writes: Region::first(a.elements).filter(|_| a.mode != Mode::Read && runs).into_iter().collect(),
    };
    kernel.args().into_iter().map(whole).collect()
}

/// An executor may leave out a convolution in which one of its tensors is empty.
fn conv_runs(k: &Conv) -> bool {
    let [x, y] = [k.window.input, k.window.output];
    ![k.batch, k.cin, k.cout, x[0], x[1], y[0], y[1]].contains(&0)
}

/// As [`conv_runs`].
fn pool_runs(k: &Pool) -> bool {
    let [x, y] = [k.window.input, k.window.output];
    ![k.planes, x[0], x[1], y[0], y[1]].contains(&0)
}

fn scatter_runs(k: &ScatterAdd) -> bool {
    ![k.outer, k.inner, k.extent].contains(&0)
}

fn matrix(m: &Matrix, batch: &[u64], rows: u64, cols: u64) -> Option<Region> {
    let extents = batch.iter().copied().chain([rows, cols]);
    let strides = m.batch_strides.iter().copied().chain([m.row_stride, m.col_stride]);
    Region::new(m.offset.into(), strides.zip(extents).map(|(s, e)| (s.into(), 0, e.into())))
}

fn contract(k: &Contract) -> Vec<Footprint> {
    let read = |region: Option<Region>| Footprint { reads: region.into_iter().collect(), writes: vec![] };
    let mut all = vec![read(matrix(&k.a, &k.batch, k.m, k.k)), read(matrix(&k.b, &k.batch, k.k, k.n))];
    all.extend(k.epilogue.bias.map(|_| read(Region::first(k.n))));
    let c: Vec<Region> = matrix(&k.c, &k.batch, k.m, k.n).into_iter().collect();
    all.push(Footprint { reads: if k.epilogue.accumulate { c.clone() } else { vec![] }, writes: c });
    all
}

fn attention(k: &Attention, backward: bool) -> Vec<Footprint> {
    let heads = |h: &Heads, shape: [u64; 4]| {
        let strides = [h.batch, h.head, h.position, 1];
        Region::new(h.offset.into(), strides.into_iter().zip(shape).map(|(s, e)| (s.into(), 0, e.into())))
    };
    let read = |region: Option<Region>| Footprint { reads: region.into_iter().collect(), writes: vec![] };
    // An executor may leave out a launch without scores.
    let runs = ![k.batch, k.heads, k.q_len, k.kv_len, k.depth].contains(&0);
    let write = |region: Option<Region>| Footprint { reads: vec![], writes: region.filter(|_| runs).into_iter().collect() };
    let q = [k.batch, k.heads, k.q_len, k.depth];
    let kv = [k.batch, k.kv_heads, k.kv_len, k.depth];
    let v = [k.batch, k.kv_heads, k.kv_len, k.v_depth];
    let o = [k.batch, k.heads, k.q_len, k.v_depth];
    let lse = Region::first(super::volume(&[k.batch, k.heads, k.q_len]));
    let mut all = vec![read(heads(&k.q, q)), read(heads(&k.k, kv)), read(heads(&k.v, v))];
    all.extend(k.bias.map(|b| {
        let dims = [(k.batch, b.batch), (k.heads, b.head), (k.q_len, b.query), (k.kv_len, b.key)];
        read(Region::new(0, dims.map(|(e, s)| (s.into(), 0, e.into()))))
    }));
    if !backward {
        all.extend([write(heads(&k.o, o)), write(lse)]);
        return all;
    }
    let [d_o, dq, dk, dv] = &k.grads;
    all.extend([read(heads(&k.o, o)), read(lse), read(heads(d_o, o))]);
    all.extend([write(heads(dq, q)), write(heads(dk, kv)), write(heads(dv, v))]);
    all
}

fn row(p: &RowProgram) -> Vec<Footprint> {
    let mut all = vec![Footprint::default(); p.args.len()];
    let Ok(types) = p.types() else { return all };
    // Without folds, or without rows, an executor may leave an empty space out.
    let folds = p.body.iter().any(|s| matches!(s, Stmt::Reduce { .. }));
    let runs = if folds { p.rows() > 0 } else { !p.space.contains(&0) };
    for stmt in &p.body {
        match stmt {
            Stmt::Load { arg, access, indexed } => {
                let along = indexed.map(|i| (i128::from(i.stride), 0, i128::from(i.bound)));
                let region = Region::new(access.offset.into(), ranges(p, access, true).into_iter().chain(along));
                all[*arg as usize].reads.extend(region);
            }
            Stmt::Store { arg, access, x } | Stmt::Accumulate { arg, access, x } => {
                let by_row = types[x.0 as usize].is_some_and(|t| t.rank == Rank::Row);
                let region = Region::new(access.offset.into(), ranges(p, access, by_row)).filter(|_| runs);
                let of_arg = &mut all[*arg as usize];
                if matches!(stmt, Stmt::Accumulate { .. }) {
                    of_arg.reads.extend(region.clone());
                }
                of_arg.writes.extend(region);
            }
            Stmt::StoreQuantized { codes, access, scales, .. } if runs => {
                all[*codes as usize].writes.extend(Region::new(access.offset.into(), ranges(p, access, false)));
                all[*scales as usize].writes.extend(Region::first(p.rows().saturating_mul(groups(p.row_len()))));
            }
            _ => {}
        }
    }
    all
}

/// The ranges of an access, guards applied. One that is constant along the row is touched once a row, even an empty one, where the
/// value is a row's.
fn ranges(p: &RowProgram, access: &Access, by_row: bool) -> Vec<(i128, i128, i128)> {
    let mut ranges: Vec<(i128, i128, i128)> = p.space.iter().zip(&access.strides).map(|(&e, &s)| (s.into(), 0, e.into())).collect();
    if by_row && p.constant_along_row(access) {
        ranges.iter_mut().skip(p.row_start()).for_each(|r| r.2 = r.2.max(1));
    }
    for g in &access.guards {
        if let Some(r) = ranges.get_mut(g.dim as usize) {
            (r.1, r.2) = (r.1.max(g.lower.into()), r.2.min(g.upper.into()));
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::program::{Arg, Guard, Var};

    fn region(offset: u64, dims: &[(u64, u64)]) -> Region {
        Region { offset, dims: dims.to_vec() }
    }

    #[test]
    fn regions_are_brought_into_one_form() {
        assert_eq!(Region::new(0, [(12, 0, 2), (4, 0, 3), (1, 0, 4)]), Some(region(0, &[(1, 24)])));
        assert_eq!(Region::new(3, [(1, 0, 4), (8, 1, 3)]), Some(region(11, &[(8, 2), (1, 4)])));
        assert_eq!(Region::new(9, [(-3, 0, 4), (0, 0, 7)]), Some(region(0, &[(3, 4)])));
        assert_eq!(Region::new(0, [(1, 5, 5)]), None);
        assert_eq!(Region::new(-1, [(1, 0, 5)]), None);
    }

    #[test]
    fn a_guarded_store_writes_what_its_guards_leave() {
        let arg = |mode| Arg { dtype: DType::F32, elements: 20, mode };
        let whole = Access { offset: 0, strides: vec![5, 1], guards: vec![] };
        let some = Access { guards: vec![Guard { dim: 1, lower: 1, upper: 3 }], ..whole.clone() };
        let body = vec![Stmt::Load { arg: 0, access: whole, indexed: None }, Stmt::Store { arg: 1, access: some, x: Var(0) }];
        let k = Kernel::Row(RowProgram { space: vec![4, 5], row_dims: 1, args: vec![arg(Mode::Read), arg(Mode::Write)], body });
        k.verify().expect("the program is sound");
        let [x, y] = &k.footprint()[..] else { panic!("two arguments") };
        assert_eq!((&x.reads[..], &x.writes[..]), (&[region(0, &[(1, 20)])][..], &[][..]));
        assert_eq!((&y.reads[..], &y.writes[..]), (&[][..], &[region(1, &[(5, 4), (1, 2)])][..]));
    }
}
