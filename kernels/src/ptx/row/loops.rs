//! Threads, loops and reductions of a row program.

use super::emit::{Inside, Lanes, Point, Row};
use super::reductions;
use super::shape::{FLAT_THREADS, Mapping, WARPS};
use crate::KernelError;
use crate::program::{Fold, Stmt};
use crate::ptx::build::{Cell, Int};
use crate::ptx::value::Val;
use inkwell::values::{FloatValue, IntValue};

/// A running fold in a register.
enum Partial<'c> {
    F(Cell<'c, FloatValue<'c>>),
    I(Cell<'c, IntValue<'c>>),
}

/// Where a thread stands: its row and its place among the row's threads.
struct Place<'c> {
    /// Index along each dimension outside the row.
    outer: Vec<Int<'c>>,
    /// Position among the threads of the row.
    rank: Int<'c>,
    /// Number of threads of the row.
    team: i64,
    /// False where the row does not exist; None where it always does.
    active: Option<Int<'c>>,
}

impl<'c> Row<'c, '_, '_> {
    /// Emits the whole program.
    pub fn run(mut self) -> Result<(), KernelError> {
        let (b, rows) = (self.b, self.shape.program.rows() as i64);
        let (thread, block) = (b.zext(b.thread(), self.shape.width), b.zext(b.block_index(), self.shape.width));
        let mut result = Ok(());
        match self.shape.mapping {
            Mapping::Flat => {
                let run = b.add(b.mulc(block, FLAT_THREADS as i64), thread);
                let runs = rows * (self.shape.program.row_len() as i64 / self.shape.lanes as i64);
                match runs % FLAT_THREADS as i64 {
                    0 => result = self.flat(run),
                    _ => b.if_then(b.ltc(run, runs), || result = self.flat(run)),
                }
            }
            Mapping::Warp => {
                let row = b.add(b.mulc(block, WARPS as i64), b.udivc(thread, 32));
                let place = Place { outer: self.unravel(row, false), rank: b.andc(thread, 31), team: 32, active: None };
                // Uniform in a warp, as the shuffles inside need it.
                b.if_then(b.ltc(row, rows), || result = self.phases(&place));
            }
            Mapping::Block { threads } => {
                let place = Place { outer: self.unravel(block, false), rank: thread, team: threads as i64, active: None };
                result = self.phases(&place);
            }
            Mapping::Columns { depth } => {
                let row = b.add(b.mulc(block, 32), b.andc(thread, 31));
                // Every thread of the block reaches the barriers; one without a row stands in the last one and does nothing there.
                let active = (rows % 32 != 0).then(|| b.ltc(row, rows));
                let held = if active.is_some() { b.minc(row, rows - 1) } else { row };
                let place = Place { outer: self.unravel(held, false), rank: b.udivc(thread, 32), team: depth as i64, active };
                result = self.phases(&place);
            }
        }
        result
    }

    /// Indices along the dimensions of the row, or of those outside, from a linear index.
    fn unravel(&self, mut linear: Int<'c>, row: bool) -> Vec<Int<'c>> {
        let (k, b) = (&self.shape.program, self.b);
        let outer = k.space.len() - k.row_dims as usize;
        let dims = if row { &k.space[outer..] } else { &k.space[..outer] };
        let mut indices = Vec::with_capacity(dims.len());
        for (d, &n) in dims.iter().enumerate().rev() {
            indices.push(if d == 0 { linear } else { b.uremc(linear, n as i64) });
            linear = if d == 0 { linear } else { b.udivc(linear, n as i64) };
        }
        indices.reverse();
        indices
    }

    /// A program without reductions at one run of lanes.
    fn flat(&mut self, run: Int<'c>) -> Result<(), KernelError> {
        let (b, lanes) = (self.b, self.shape.lanes as i64);
        let runs = self.shape.program.row_len() as i64 / lanes;
        let (row, run) = if self.shape.program.rows() == 1 { (self.index(0), run) } else { (b.udivc(run, runs), b.uremc(run, runs)) };
        let mut at = self.unravel(row, false);
        at.push(b.mulc(run, lanes));
        let p = Point { at, last: None, inside: Inside::All, lanes: self.shape.lanes };
        let mut tile = vec![None; self.scalars.len()];
        for (i, s) in self.shape.program.body.iter().enumerate() {
            match s {
                Stmt::Reduce { x, .. } => tile[i] = tile[x.0 as usize].clone(),
                s if s.writes() => self.write(i, &p, &tile)?,
                _ => tile[i] = Some(self.value(i, &p, &tile)?),
            }
        }
        Ok(())
    }

    fn phases(&mut self, place: &Place<'c>) -> Result<(), KernelError> {
        let facts = &self.shape.facts;
        let last = facts.iter().map(|f| f.level).max().unwrap_or(0);
        for level in 0..=last {
            self.row_values(level, place)?;
            let folds = reductions(self.shape, level);
            let stores = |i: usize| level == last && self.shape.program.body[i].writes() && !facts[i].scalar;
            let roots: Vec<usize> = (0..facts.len()).filter(|&i| stores(i)).chain(folds.iter().map(|f| f.2)).collect();
            if roots.is_empty() {
                continue;
            }
            let steps = self.needed(&roots);
            // A row of one point is read by a whole warp, and stored by a lane of it.
            let point = self.shape.mapping == Mapping::Warp && self.shape.program.row_len() == 1;
            if point && roots.iter().any(|&i| self.rereads(i)) {
                self.b.warp_barrier();
            }
            let partials = folds.iter().map(|&(i, op, _)| self.partial(i, op)).collect::<Vec<_>>();
            self.each_run(place, |p| self.step(p, &steps, &folds, &partials))?;
            self.combine(place, &folds, &partials)?;
        }
        self.row_stores(place)
    }

    /// Row variables of a level that are not reductions.
    fn row_values(&mut self, level: u32, place: &Place<'c>) -> Result<(), KernelError> {
        let p = self.row_point(place);
        for (i, s) in self.shape.program.body.iter().enumerate() {
            let fact = self.shape.facts[i];
            if fact.scalar && fact.level == level && !s.writes() && !matches!(s, Stmt::Reduce { .. }) {
                self.scalars[i] = self.value(i, &p, &[])?.first().copied();
            }
        }
        Ok(())
    }

    fn row_point(&self, place: &Place<'c>) -> Point<'c> {
        let mut at = place.outer.clone();
        at.resize(self.shape.program.space.len(), self.index(0));
        Point { at, last: None, inside: Inside::All, lanes: 1 }
    }

    /// The statements that a loop has to run for its roots, in order.
    fn needed(&self, roots: &[usize]) -> Vec<usize> {
        let body = &self.shape.program.body;
        let mut wanted = vec![false; body.len()];
        roots.iter().for_each(|&i| wanted[i] = true);
        for i in (0..body.len()).rev().filter(|&i| !self.shape.facts[i].scalar) {
            if wanted[i] {
                body[i].operands().iter().for_each(|v| wanted[v.0 as usize] = true);
            }
        }
        (0..body.len()).filter(|&i| wanted[i] && (!self.shape.facts[i].scalar)).collect()
    }

    fn partial(&self, i: usize, op: Fold) -> Vec<Partial<'c>> {
        let kind = self.shape.facts[i].kind.unwrap_or(crate::program::Kind::Float);
        let one = |_| match self.b.identity(op, kind) {
            Val::F(x) => Partial::F(self.b.cell(x)),
            Val::I(x) | Val::B(x) => Partial::I(self.b.cell(x)),
        };
        (0..self.shape.lanes).map(one).collect()
    }

    fn get(&self, p: &Partial<'c>) -> Val<'c> {
        match p {
            Partial::F(c) => Val::F(self.b.get(c)),
            Partial::I(c) => Val::I(self.b.get(c)),
        }
    }

    /// One run of a loop: values, stores, folds.
    fn step(
        &self,
        p: &Point<'c>,
        steps: &[usize],
        folds: &[(usize, Fold, usize)],
        partials: &[Vec<Partial<'c>>],
    ) -> Result<(), KernelError> {
        let mut tile: Vec<Option<Lanes<'c>>> = vec![None; self.scalars.len()];
        for &i in steps {
            match self.shape.program.body[i].writes() {
                true => self.write(i, p, &tile)?,
                false => tile[i] = Some(self.value(i, p, &tile)?),
            }
        }
        for (&(_, op, x), cells) in folds.iter().zip(partials) {
            let values = tile[x].clone().or_else(|| self.scalars[x].map(|v| vec![v])).unwrap_or_default();
            for (l, cell) in cells.iter().enumerate().filter(|_| !values.is_empty()) {
                let old = self.get(cell);
                let new = self.b.fold(op, old, values[l.min(values.len() - 1)])?;
                match (cell, self.kept(p, l, old, new)) {
                    (Partial::F(c), Val::F(v)) => self.b.set(c, v),
                    (Partial::I(c), Val::I(v)) => self.b.set(c, v),
                    _ => return Err(KernelError::Invalid { family: "row", reason: "a reduction of bools".into() }),
                }
            }
        }
        Ok(())
    }

    /// The new value of a fold where the lane lies inside the row, else the old one.
    fn kept(&self, p: &Point<'c>, lane: usize, old: Val<'c>, new: Val<'c>) -> Val<'c> {
        let inside = match &p.inside {
            Inside::All => return new,
            Inside::Run(c) => *c,
            Inside::Each(c) => c[lane],
        };
        self.b.as_kind(new.kind(), self.b.select(inside, new.raw(), old.raw()))
    }

    /// Runs `body` on each run of the row that falls to this thread.
    fn each_run(&self, place: &Place<'c>, body: impl FnOnce(&Point<'c>) -> Result<(), KernelError>) -> Result<(), KernelError> {
        let (b, k) = (self.b, &self.shape.program);
        let (len, lanes) = (k.row_len() as i64, self.shape.lanes as i64);
        let point = |base: Int<'c>, last: Option<Vec<Int<'c>>>, inside| {
            let at = place.outer.iter().copied().chain(self.unravel(base, true)).collect();
            Point { at, last, inside, lanes: self.shape.lanes }
        };
        let mut result = Ok(());
        let stride = place.team * lanes;
        if !k.body.iter().any(|s| matches!(s, Stmt::StoreQuantized { .. })) {
            let end = place.active.map_or(self.index(len), |c| b.select(c, self.index(len), self.index(0)));
            b.for_range(b.mulc(place.rank, lanes), end, stride, |base| result = body(&point(base, None, Inside::All)));
            return result;
        }
        // Quantizing lanes reduce among themselves, so that all of them take every turn; those outside the row repeat its end.
        b.for_range(self.index(0), self.index(len), stride, |start| {
            let base = b.add(start, b.mulc(place.rank, lanes));
            let p = match (len % stride, len % lanes) {
                (0, _) => point(base, None, Inside::All),
                (_, 0) => point(b.minc(base, len - lanes), None, Inside::Run(b.ltc(base, len))),
                _ => {
                    let each: Vec<Int<'c>> = (0..lanes).map(|l| b.addc(base, l)).collect();
                    let last: Vec<Int<'c>> = each.iter().map(|&i| b.minc(i, len - 1)).collect();
                    let inside = each.iter().map(|&i| b.ltc(i, len)).collect();
                    point(last[0], Some(last), Inside::Each(inside))
                }
            };
            result = body(&p);
        });
        result
    }

    /// Brings the threads' partial folds together; every thread of the row gets the result.
    fn combine(&mut self, place: &Place<'c>, folds: &[(usize, Fold, usize)], partials: &[Vec<Partial<'c>>]) -> Result<(), KernelError> {
        let b = self.b;
        let mut sums = Vec::with_capacity(folds.len());
        for (&(_, op, _), cells) in folds.iter().zip(partials) {
            let own = cells.iter().map(|c| self.get(c)).map(Ok).reduce(|x, y| b.fold(op, x?, y?));
            let own = own.unwrap_or_else(|| Err(KernelError::Invalid { family: "row", reason: "a run without lanes".into() }))?;
            sums.push(match self.shape.mapping {
                Mapping::Warp | Mapping::Block { .. } => self.warp_fold(op, own)?,
                _ => own,
            });
        }
        let (members, slot) = match self.shape.mapping {
            Mapping::Block { threads } => (threads as i64 / 32, b.udivc(place.rank, 32)),
            Mapping::Columns { depth } if depth > 1 => (depth as i64, b.thread()),
            _ => {
                folds.iter().zip(sums).for_each(|(f, v)| self.scalars[f.0] = Some(v));
                return Ok(());
            }
        };
        let by_warp = matches!(self.shape.mapping, Mapping::Block { .. });
        let (writer, column, stride) = match by_warp {
            true => (Some(b.eqc(b.andc(b.thread(), 31), 0)), b.i32(0), 1),
            false => (None, b.andc(b.thread(), 31), 32),
        };
        let area = members * stride;
        for (&(i, ..), &v) in folds.iter().zip(&sums) {
            let to = self.b.addc(b.resize(slot, 32), self.ordinal(i) * area);
            match writer {
                Some(c) => b.if_then(c, || self.put(to, v)),
                None => self.put(to, v),
            }
        }
        b.barrier();
        for (&(i, op, _), &v) in folds.iter().zip(&sums) {
            let from = |m: i64| self.take(b.addc(column, self.ordinal(i) * area + m * stride), v);
            let total = (1..members).try_fold(from(0), |sum, m| b.fold(op, sum, from(m)))?;
            self.scalars[i] = Some(total);
        }
        Ok(())
    }

    /// Which of the program's reductions a statement is.
    fn ordinal(&self, i: usize) -> i64 {
        self.shape.program.body[..i].iter().filter(|s| matches!(s, Stmt::Reduce { .. })).count() as i64
    }

    fn put(&self, slot: Int<'c>, v: Val<'c>) {
        self.b.store(self.b.at(self.b.shared(), slot, 8), v.raw(), if matches!(v, Val::F(_)) { 4 } else { 8 });
    }

    fn take(&self, slot: Int<'c>, like: Val<'c>) -> Val<'c> {
        let at = self.b.at(self.b.shared(), slot, 8);
        match like {
            Val::F(x) => Val::F(self.b.load(x.get_type(), at, 4).into_float_value()),
            Val::I(x) | Val::B(x) => Val::I(self.b.load(x.get_type(), at, 8).into_int_value()),
        }
    }

    fn warp_fold(&self, op: Fold, own: Val<'c>) -> Result<Val<'c>, KernelError> {
        [16, 8, 4, 2, 1].into_iter().try_fold(own, |v, mask| self.b.fold(op, v, self.b.shuffle_xor_value(v, mask)))
    }

    /// True for a store into an argument that is read as well.
    fn rereads(&self, i: usize) -> bool {
        let body = &self.shape.program.body;
        let written = if body[i].writes() { body[i].memory().map(|(arg, _)| arg) } else { None };
        body.iter().any(|s| matches!(s, Stmt::Load { arg, .. } if Some(*arg) == written))
    }

    /// Stores that happen once a row.
    fn row_stores(&mut self, place: &Place<'c>) -> Result<(), KernelError> {
        let (b, k) = (self.b, &self.shape.program);
        let stores: Vec<usize> = (0..k.body.len()).filter(|&i| k.body[i].writes() && self.shape.facts[i].scalar).collect();
        if stores.is_empty() {
            return Ok(());
        }
        let reread = stores.iter().any(|&i| self.rereads(i));
        match self.shape.mapping {
            // Nobody may still have to read what is about to change.
            Mapping::Warp if reread => b.warp_barrier(),
            Mapping::Block { .. } | Mapping::Columns { .. } if reread => b.barrier(),
            _ => {}
        }
        let first = b.eqc(place.rank, 0);
        let first = place.active.map_or(first, |c| b.and(first, c));
        let p = self.row_point(place);
        let mut result = Ok(());
        b.if_then(first, || result = stores.iter().try_for_each(|&i| self.write(i, &p, &[])));
        result
    }
}
