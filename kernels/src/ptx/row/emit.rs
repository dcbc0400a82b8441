//! Statements of a row program at a point of its space.

use super::shape::{Shape, vectorises};
use crate::DType;
use crate::KernelError;
use crate::program::{Access, GROUP, Guard, Indexed, Kind, Mode, Stmt, Var, groups};
use crate::ptx::build::{Build, Float, Int};
use crate::ptx::value::Val;

/// Values of neighbouring elements; one value where all share it.
pub type Lanes<'c> = Vec<Val<'c>>;

/// Which lanes of a run lie inside the row.
#[derive(Clone)]
pub enum Inside<'c> {
    All,
    /// All or none.
    Run(Int<'c>),
    Each(Vec<Int<'c>>),
}

/// A run of neighbouring points along the last dimension.
pub struct Point<'c> {
    /// Index along each dimension; the last is the run's first.
    pub at: Vec<Int<'c>>,
    /// Last index of each lane, where lanes are not simply neighbours.
    pub last: Option<Vec<Int<'c>>>,
    pub inside: Inside<'c>,
    pub lanes: usize,
}

/// Emission of one program.
pub struct Row<'c, 'b, 's> {
    pub b: &'b Build<'c, 'b>,
    pub shape: &'s Shape,
    /// Values of the row variables computed so far.
    pub scalars: Vec<Option<Val<'c>>>,
}

impl<'c, 'b, 's> Row<'c, 'b, 's> {
    pub fn new(b: &'b Build<'c, 'b>, shape: &'s Shape) -> Self {
        Row { b, shape, scalars: vec![None; shape.program.body.len()] }
    }

    /// An index constant.
    pub fn index(&self, x: i64) -> Int<'c> {
        self.b.int_type(self.shape.width).const_int(x as u64, true)
    }

    /// The value of a variable in the loop at hand, or of the row.
    fn var(&self, tile: &[Option<Lanes<'c>>], v: Var) -> Result<Lanes<'c>, KernelError> {
        let i = v.0 as usize;
        let found = tile.get(i).cloned().flatten().or_else(|| self.scalars[i].map(|x| vec![x]));
        found.ok_or_else(|| KernelError::Invalid { family: "row", reason: format!("statement {i} is used before it has a value") })
    }

    /// Emits one statement that gives a value.
    pub fn value(&self, i: usize, p: &Point<'c>, tile: &[Option<Lanes<'c>>]) -> Result<Lanes<'c>, KernelError> {
        let b = self.b;
        let each = |vars: &[Var], f: &dyn Fn(&[Val<'c>]) -> Result<Val<'c>, KernelError>| {
            let inputs = vars.iter().map(|&v| self.var(tile, v)).collect::<Result<Vec<_>, _>>()?;
            let lanes = inputs.iter().map(Vec::len).max().unwrap_or(1);
            (0..lanes).map(|l| f(&inputs.iter().map(|x| x[l.min(x.len() - 1)]).collect::<Vec<_>>())).collect()
        };
        match &self.shape.program.body[i] {
            Stmt::Load { arg, access, indexed } => self.load(*arg as usize, access, indexed.as_ref(), p, tile),
            Stmt::Const { kind, value } => Ok(vec![b.literal(*kind, *value)]),
            Stmt::Index { dim } => Ok(self.lane_indices(*dim as usize, p).iter().map(|&i| Val::I(b.to_i64(i))).collect()),
            Stmt::Unary { op, x } => each(&[*x], &|v| b.unary(*op, v[0])),
            Stmt::Binary { op, x, y } => each(&[*x, *y], &|v| b.binary(*op, v[0], v[1])),
            Stmt::Cast { x, to } => each(&[*x], &|v| Ok(b.cast(v[0], *to))),
            Stmt::Select { c, x, y } => each(&[*c, *x, *y], &|v| {
                let kind = v[1].kind();
                Ok(b.as_kind(kind, b.select(b.to_bool(v[0]), v[1].raw(), v[2].raw())))
            }),
            Stmt::Reduce { .. } | Stmt::Store { .. } | Stmt::Accumulate { .. } | Stmt::StoreQuantized { .. } => {
                Err(KernelError::Invalid { family: "row", reason: format!("statement {i} has no value of its own") })
            }
        }
    }

    /// Indices of the lanes along a dimension; one where they agree.
    fn lane_indices(&self, dim: usize, p: &Point<'c>) -> Vec<Int<'c>> {
        match (dim + 1 == p.at.len(), &p.last) {
            (false, _) => vec![p.at[dim]],
            (true, Some(last)) => last.clone(),
            (true, None) => (0..p.lanes).map(|l| self.b.addc(p.at[dim], l as i64)).collect(),
        }
    }

    /// Offset of lane 0 but for the last dimension.
    fn base(&self, a: &Access, p: &Point<'c>) -> Int<'c> {
        let outer = p.at.len() - 1;
        let terms = p.at[..outer].iter().zip(&a.strides).filter(|(_, s)| **s != 0);
        terms.fold(self.index(a.offset), |sum, (&i, &s)| self.b.add(sum, self.b.mulc(i, s)))
    }

    fn lane_offset(&self, a: &Access, p: &Point<'c>, base: Int<'c>, lane: usize) -> Int<'c> {
        let outer = p.at.len() - 1;
        let stride = a.strides[outer];
        let index = p.last.as_ref().map_or_else(|| self.b.addc(p.at[outer], lane as i64), |last| last[lane]);
        self.b.add(base, self.b.mulc(index, stride))
    }

    /// Whether a lane satisfies guards; None if nothing can fail.
    fn guards(&self, guards: &[Guard], p: &Point<'c>, lane: usize) -> Option<Int<'c>> {
        let b = self.b;
        let tests = guards.iter().flat_map(|g| {
            let (dim, extent) = (g.dim as usize, self.shape.program.space[g.dim as usize] as i64);
            let indices = self.lane_indices(dim, p);
            let i = indices[lane.min(indices.len() - 1)];
            let low = (g.lower > 0).then(|| b.not(b.ltc(i, g.lower)));
            let high = (g.upper < extent).then(|| b.ltc(i, g.upper));
            low.into_iter().chain(high)
        });
        tests.reduce(|x, y| b.and(x, y))
    }

    /// Whether a lane lies inside the row and satisfies guards.
    fn allowed(&self, guards: &[Guard], p: &Point<'c>, lane: usize) -> Option<Int<'c>> {
        let inside = match &p.inside {
            Inside::All => None,
            Inside::Run(c) => Some(*c),
            Inside::Each(c) => Some(c[lane]),
        };
        match (inside, self.guards(guards, p, lane)) {
            (Some(x), Some(y)) => Some(self.b.and(x, y)),
            (x, y) => x.or(y),
        }
    }

    /// Whether all lanes of the access are one aligned piece.
    fn whole(&self, a: &Access, p: &Point<'c>) -> bool {
        p.lanes > 1 && p.last.is_none() && vectorises(&self.shape.program, a, p.lanes)
    }

    fn load(
        &self,
        arg: usize,
        a: &Access,
        indexed: Option<&Indexed>,
        p: &Point<'c>,
        tile: &[Option<Lanes<'c>>],
    ) -> Result<Lanes<'c>, KernelError> {
        let info = self.b.arg_info(arg);
        let picks = indexed.map(|x| Ok::<_, KernelError>((x, self.var(tile, x.index)?))).transpose()?;
        if info.elements == 0 {
            // Every point is guarded away.
            return Ok(vec![self.b.zero(Kind::from(info.dtype))]);
        }
        let base = self.base(a, p);
        if info.mode == Mode::Update && !matches!(p.inside, Inside::All) {
            let lane = |l: usize| self.load_inside(arg, a, p, l, self.pick(self.lane_offset(a, p, base, l), &picks, l));
            return Ok((0..p.lanes).map(lane).collect());
        }
        let shared_pick = picks.as_ref().is_none_or(|(x, v)| v.len() == 1 && x.stride % p.lanes as i64 == 0);
        if self.whole(a, p) && shared_pick && info.elements >= p.lanes as u64 {
            let offset = self.pick(self.lane_offset(a, p, base, 0), &picks, 0);
            let guard = self.guards(&a.guards, p, 0);
            let offset = guard.map_or(offset, |c| self.b.select(c, offset, self.index(0)));
            let values = self.b.load_elems(self.b.arg(arg), info.dtype, offset, p.lanes);
            return Ok(values.into_iter().map(|v| self.or_zero(guard, v)).collect());
        }
        let last = p.at.len() - 1;
        let moves = a.strides[last] != 0 || a.guards.iter().any(|g| g.dim as usize == last);
        let varying = moves || picks.as_ref().is_some_and(|(_, v)| v.len() > 1);
        let lane = |l: usize| {
            let offset = self.pick(self.lane_offset(a, p, base, l), &picks, l);
            let guard = self.guards(&a.guards, p, l);
            let offset = guard.map_or(offset, |c| self.b.select(c, offset, self.index(0)));
            self.or_zero(guard, self.b.load_elem(self.b.arg(arg), info.dtype, offset))
        };
        Ok((0..if varying { p.lanes } else { 1 }).map(lane).collect())
    }

    /// A load that lanes outside the row do not make: what they would read may be being written.
    fn load_inside(&self, arg: usize, a: &Access, p: &Point<'c>, lane: usize, offset: Int<'c>) -> Val<'c> {
        let (b, info) = (self.b, self.b.arg_info(arg));
        let kind = Kind::from(info.dtype);
        let slot = b.cell(b.encode(info.dtype, b.zero(kind)));
        let load = || {
            let raw = b.load(b.storage(info.dtype), b.at(b.arg(arg), offset, info.dtype.size()), info.dtype.size());
            b.set(&slot, raw);
        };
        match self.allowed(&a.guards, p, lane) {
            Some(c) => b.if_then(c, load),
            None => load(),
        }
        b.decode(info.dtype, b.get(&slot))
    }

    /// Adds the data-dependent term of an address; an index out of range reads element 0 of its axis.
    fn pick(&self, offset: Int<'c>, picks: &Option<(&Indexed, Lanes<'c>)>, lane: usize) -> Int<'c> {
        let Some((x, values)) = picks else { return offset };
        let b = self.b;
        let index = b.to_int(values[lane.min(values.len() - 1)], 64);
        let in_range = b.cmp(inkwell::IntPredicate::ULT, index, b.i64(x.bound));
        let index = b.select(in_range, index, b.i64(0));
        b.add(offset, b.mulc(b.resize(index, self.shape.width), x.stride))
    }

    fn or_zero(&self, guard: Option<Int<'c>>, v: Val<'c>) -> Val<'c> {
        guard.map_or(v, |c| self.b.as_kind(v.kind(), self.b.select(c, v.raw(), self.b.zero(v.kind()).raw())))
    }

    /// Emits one statement that writes.
    pub fn write(&self, i: usize, p: &Point<'c>, tile: &[Option<Lanes<'c>>]) -> Result<(), KernelError> {
        match &self.shape.program.body[i] {
            Stmt::Store { arg, access, x } => self.store(*arg as usize, access, &self.var(tile, *x)?, p, false),
            Stmt::Accumulate { arg, access, x } => self.store(*arg as usize, access, &self.var(tile, *x)?, p, true),
            Stmt::StoreQuantized { codes, access, scales, power_of_two, x } => {
                let values = self.var(tile, *x)?;
                self.quantize((*codes as usize, access), *scales as usize, *power_of_two, &values, p);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn store(&self, arg: usize, a: &Access, values: &[Val<'c>], p: &Point<'c>, add: bool) -> Result<(), KernelError> {
        let (b, info) = (self.b, self.b.arg_info(arg));
        let base = self.base(a, p);
        let value = |l: usize| values[l.min(values.len() - 1)];
        let kind = Kind::from(info.dtype);
        let sum = |old: Val<'c>, l: usize| match add {
            true => b.fold(crate::program::Fold::Sum, old, b.to_kind(value(l), kind)),
            false => Ok(value(l)),
        };
        if self.whole(a, p) {
            let offset = self.lane_offset(a, p, base, 0);
            return self.when(self.allowed(&a.guards, p, 0), || {
                let old = if add { b.load_elems(b.arg(arg), info.dtype, offset, p.lanes) } else { vec![b.zero(kind); p.lanes] };
                let new = old.into_iter().enumerate().map(|(l, v)| sum(v, l)).collect::<Result<Vec<_>, _>>()?;
                b.store_elems(b.arg(arg), info.dtype, offset, &new);
                Ok(())
            });
        }
        for l in 0..p.lanes {
            let offset = self.lane_offset(a, p, base, l);
            self.when(self.allowed(&a.guards, p, l), || {
                let old = if add { b.load_elem(b.arg(arg), info.dtype, offset) } else { b.zero(kind) };
                b.store_elem(b.arg(arg), info.dtype, offset, sum(old, l)?);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn when(&self, condition: Option<Int<'c>>, body: impl FnOnce() -> Result<(), KernelError>) -> Result<(), KernelError> {
        match condition {
            None => body(),
            Some(c) => {
                let mut result = Ok(());
                self.b.if_then(c, || result = body());
                result
            }
        }
    }

    /// Codes and scale of a group of 128: four elements a lane, one group a warp.
    fn quantize(&self, (codes, a): (usize, &Access), scales: usize, power_of_two: bool, values: &[Val<'c>], p: &Point<'c>) {
        let b = self.b;
        let x: Vec<Float<'c>> = (0..p.lanes).map(|l| b.to_float(values[l.min(values.len() - 1)])).collect();
        let magnitude = |l: usize| {
            let inside = match &p.inside {
                Inside::All => return b.fabs(x[l]),
                Inside::Run(c) => *c,
                Inside::Each(c) => c[l],
            };
            b.select(inside, b.fabs(x[l]), b.f32(0.0))
        };
        let amax = (0..p.lanes).map(magnitude).reduce(|m, x| b.fmax_number(m, x)).unwrap_or_else(|| b.f32(0.0));
        let scale = b.scale_of(b.warp_max(amax), power_of_two);
        let inverse = b.fdiv(b.f32(1.0), scale);
        let scaled: Vec<Val<'c>> = x.iter().map(|&x| Val::F(b.fmul(x, inverse))).collect();
        // Storing floats into an E4M3 argument cannot fail: every kind converts.
        let stored = self.store(codes, a, &scaled, p, false);
        debug_assert!(stored.is_ok());
        let last = p.at.len() - 1;
        let first = b.eqc(b.andc(b.thread(), 31), 0);
        let first = self.allowed(&a.guards, p, 0).map_or(first, |c| b.and(first, c));
        b.if_then(first, || {
            let rows = p.at[..last].iter().zip(&self.shape.program.space);
            let row = rows.fold(self.index(0), |r, (&i, &n)| b.add(b.mulc(r, n as i64), i));
            let count = groups(self.shape.program.space[last]) as i64;
            let group = b.udivc(p.last.as_ref().map_or(p.at[last], |l| l[0]), GROUP as i64);
            b.store_elem(b.arg(scales), DType::F32, b.add(b.mulc(row, count), group), Val::F(scale));
        });
    }
}
