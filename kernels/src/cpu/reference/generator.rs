//! Random row programs of operators whose results do not depend on an order of rounding.

use super::{Data, Random};
use crate::DType;
use crate::program::*;

/// A program under construction.
pub(crate) struct Builder {
    pub(crate) p: RowProgram,
}

impl Builder {
    pub(crate) fn new(space: &[u64], row_dims: u32) -> Builder {
        Builder { p: RowProgram { space: space.to_vec(), row_dims, args: Vec::new(), body: Vec::new() } }
    }

    pub(crate) fn arg(&mut self, dtype: DType, elements: u64, mode: Mode) -> u32 {
        self.p.args.push(Arg { dtype, elements, mode });
        self.p.args.len() as u32 - 1
    }

    pub(crate) fn push(&mut self, stmt: Stmt) -> Var {
        self.p.body.push(stmt);
        Var(self.p.body.len() as u32 - 1)
    }

    pub(crate) fn float(&mut self, value: f32) -> Var {
        self.push(Stmt::Const { kind: Kind::Float, value: Literal::float(value) })
    }

    pub(crate) fn unary(&mut self, op: Unary, x: Var) -> Var {
        self.push(Stmt::Unary { op, x })
    }

    pub(crate) fn binary(&mut self, op: Binary, x: Var, y: Var) -> Var {
        self.push(Stmt::Binary { op, x, y })
    }

    pub(crate) fn kernel(self) -> Kernel {
        Kernel::Row(self.p)
    }
}

pub(crate) fn access(strides: &[i64]) -> Access {
    Access { offset: 0, strides: strides.to_vec(), guards: Vec::new() }
}

/// A random program under construction.
pub(crate) struct Generator<'a> {
    random: Random<'a>,
    b: Builder,
    kinds: Vec<(Var, Kind)>,
    /// Index arguments are filled with numbers below their bound.
    bounds: Vec<Option<u64>>,
}

const FORMATS: [DType; 6] = [DType::F32, DType::Bf16, DType::E4m3, DType::I64, DType::I32, DType::Bool];

impl<'a> Generator<'a> {
    pub(crate) fn new(mut random: Random<'a>) -> Generator<'a> {
        let rank = random.below(5) as usize;
        let mut space: Vec<u64> = (0..rank).map(|_| [1, 2, 3, 5, 8, 17, 40][random.below(7) as usize]).collect();
        if rank > 0 && random.below(3) == 0 {
            space = space.into_iter().map(|e| e.min(3)).collect();
            space[random.below(rank as u64) as usize] = [70, 300, 5000, 20_000][random.below(4) as usize];
        }
        if rank > 0 && random.once_in(10) {
            space[random.below(rank as u64) as usize] = 0;
        }
        let row_dims = random.below(rank as u64 + 1) as u32;
        Generator { random, b: Builder::new(&space, row_dims), kinds: Vec::new(), bounds: Vec::new() }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.random.once_in(one_in)
    }

    /// A map that is one-to-one over the dimensions not in `still`, and the elements it needs.
    fn layout(&mut self, still: impl Fn(&mut Self, usize) -> bool) -> (Access, u64) {
        let space = self.b.p.space.clone();
        let mut order: Vec<usize> = (0..space.len()).collect();
        if self.chance(2) {
            for i in (1..order.len()).rev() {
                order.swap(i, self.random.below(i as u64 + 1) as usize);
            }
        }
        let (mut map, mut stride) = (access(&vec![0; space.len()]), 1i64);
        for &d in order.iter().rev() {
            if still(self, d) {
                continue;
            }
            if self.chance(8) {
                map.strides[d] = -stride;
                map.offset += stride * (space[d] as i64 - 1);
            } else {
                map.strides[d] = stride;
            }
            stride *= space[d].max(1) as i64 + i64::from(self.chance(6));
        }
        let padding = self.random.below(3) as i64;
        map.offset += padding;
        (map, (stride + padding) as u64 + self.random.below(3))
    }

    /// Shifts an access past the beginning of its argument, guarded.
    fn shift(&mut self, map: &mut Access) {
        let space = &self.b.p.space;
        if space.is_empty() {
            return;
        }
        let d = self.random.below(space.len() as u64) as usize;
        let by = self.random.below(space[d].min(4) + 1) as i64;
        map.guards.push(Guard { dim: d as u32, lower: by, upper: (space[d] as i64 - self.random.below(2) as i64).max(0) });
        map.offset -= map.strides[d] * by;
    }

    fn some(&mut self, kind: Kind) -> Option<Var> {
        let of_kind: Vec<Var> = self.kinds.iter().filter(|k| k.1 == kind).map(|k| k.0).collect();
        (!of_kind.is_empty()).then(|| of_kind[self.random.below(of_kind.len() as u64) as usize])
    }

    fn define(&mut self, stmt: Stmt) {
        let v = self.b.push(stmt);
        if let Some(ty) = self.b.p.types().expect("typed")[v.0 as usize] {
            self.kinds.push((v, ty.kind));
        }
    }

    fn argument(&mut self, dtype: DType, elements: u64, mode: Mode, bound: Option<u64>) -> u32 {
        self.bounds.push(bound);
        self.b.arg(dtype, elements, mode)
    }

    fn load(&mut self) {
        let dtype = FORMATS[self.random.below(6) as usize];
        let (mut map, elements) = self.layout(|g, _| g.chance(4));
        if self.chance(4) {
            self.shift(&mut map);
        }
        let arg = self.argument(dtype, elements, Mode::Read, None);
        self.define(Stmt::Load { arg, access: map, indexed: None });
    }

    fn gather(&mut self) {
        let bound = 1 + self.random.below(5);
        let (index_map, elements) = self.layout(|g, _| g.chance(2));
        let arg = self.argument(DType::I64, elements, Mode::Read, Some(bound));
        let index = self.b.push(Stmt::Load { arg, access: index_map, indexed: None });
        let (map, elements) = self.layout(|g, _| g.chance(3));
        let arg = self.argument(DType::F32, elements * bound, Mode::Read, None);
        let indexed = Some(Indexed { index, stride: elements as i64, bound: bound as i64 });
        self.define(Stmt::Load { arg, access: map, indexed });
    }

    fn operator(&mut self) {
        let pick = self.random.below(9);
        let kind = [Kind::Float, Kind::Float, Kind::Int, Kind::Bool][self.random.below(4) as usize];
        let (Some(x), Some(y)) = (self.some(kind), self.some(kind)) else { return };
        match pick {
            0 | 1 => {
                use Unary::*;
                let op = [Neg, Abs, Sign, Floor, Ceil, Round, IsNan, IsInf, Not][self.random.below(9) as usize];
                if op.result_kind(kind).is_some() {
                    self.define(Stmt::Unary { op, x });
                }
            }
            2..=4 => {
                use Binary::*;
                let all = [Add, Sub, Mul, Min, Max, Div, Mod, Fmod, Eq, Ne, Lt, Le, Gt, Ge, And, Or, Xor];
                let op = all[self.random.below(17) as usize];
                let integral = matches!(op, Div | Mod | Fmod) && kind == Kind::Float;
                if op.result_kind(kind).is_some() && !integral {
                    self.define(Stmt::Binary { op, x, y });
                }
            }
            5 => {
                if let Some(c) = self.some(Kind::Bool) {
                    self.define(Stmt::Select { c, x, y });
                }
            }
            6 => {
                let to = FORMATS[self.random.below(6) as usize];
                self.define(Stmt::Cast { x, to });
            }
            7 if kind != Kind::Bool => {
                let op = [Fold::Sum, Fold::Max, Fold::Min][self.random.below(3) as usize];
                let x = if kind == Kind::Float && op == Fold::Sum { self.small(x) } else { x };
                self.define(Stmt::Reduce { op, x });
            }
            _ if !self.b.p.space.is_empty() => {
                let dim = self.random.below(self.b.p.space.len() as u64) as u32;
                self.define(Stmt::Index { dim });
            }
            _ => {
                let v = self.random.below(9) as i64 - 4;
                self.define(Stmt::Const { kind: Kind::Float, value: Literal::Int(v) });
            }
        }
    }

    /// A float made a small integer, so that sums of it are exact.
    fn small(&mut self, x: Var) -> Var {
        let (low, high) = (self.b.float(-8.0), self.b.float(8.0));
        let x = self.b.binary(Binary::Min, x, high);
        let x = self.b.binary(Binary::Max, x, low);
        self.b.unary(Unary::Round, x)
    }

    fn store(&mut self) {
        let x = self.kinds[self.random.below(self.kinds.len() as u64) as usize].0;
        let ty = self.b.p.types().expect("typed")[x.0 as usize].expect("a value");
        let program = self.b.p.clone();
        let by_row = ty.rank == Rank::Row && self.chance(2);
        let (mut map, elements) = self.layout(|_, d| by_row && program.in_row(d));
        let dtype = FORMATS[self.random.below(6) as usize];
        match self.random.below(4) {
            0 if Kind::from(dtype) == ty.kind && ty.kind != Kind::Bool => {
                let arg = self.argument(dtype, elements, Mode::Update, None);
                self.b.push(Stmt::Accumulate { arg, access: map, x });
            }
            1 => {
                let arg = self.argument(dtype, elements, Mode::Update, None);
                let old = self.b.push(Stmt::Load { arg, access: map.clone(), indexed: None });
                let x = self.b.push(Stmt::Cast { x, to: dtype });
                let x =
                    if Kind::from(dtype) == Kind::Bool { self.b.binary(Binary::Xor, old, x) } else { self.b.binary(Binary::Max, old, x) };
                self.b.push(Stmt::Store { arg, access: map, x });
                // The old value is still there for what comes after.
                self.kinds.push((old, dtype.into()));
            }
            2 if !by_row => {
                self.shift(&mut map);
                let arg = self.argument(dtype, elements, Mode::Write, None);
                self.b.push(Stmt::Store { arg, access: map, x });
            }
            _ => {
                let arg = self.argument(dtype, elements, Mode::Write, None);
                self.b.push(Stmt::Store { arg, access: map, x });
            }
        }
    }

    fn quantized(&mut self) {
        let p = &self.b.p;
        let Some(x) = (if p.row_dims == 1 { self.some(Kind::Float) } else { None }) else { return };
        let (rows, len) = (self.b.p.rows(), self.b.p.row_len());
        let mut strides = vec![1i64; self.b.p.space.len()];
        for d in (0..strides.len() - 1).rev() {
            strides[d] = strides[d + 1] * self.b.p.space[d + 1] as i64;
        }
        let codes = self.argument(DType::E4m3, rows * len, Mode::Write, None);
        let scales = self.argument(DType::F32, rows * len.div_ceil(128), Mode::Write, None);
        self.b.push(Stmt::StoreQuantized { codes, access: access(&strides), scales, power_of_two: false, x });
    }

    pub(crate) fn finish(mut self) -> (Kernel, Vec<Data>) {
        for _ in 0..1 + self.random.below(4) {
            self.load();
        }
        if self.chance(3) {
            self.gather();
        }
        for _ in 0..self.random.below(16) {
            self.operator();
        }
        for _ in 0..1 + self.random.below(3) {
            self.store();
            self.operator();
        }
        if self.chance(4) {
            self.quantized();
        }
        let kernel = self.b.kernel();
        let mut inputs = self.random.inputs(&kernel);
        for ((data, arg), bound) in inputs.iter_mut().zip(kernel.args()).zip(&self.bounds) {
            if let Some(bound) = bound {
                let indices: Vec<f32> = (0..arg.elements).map(|_| self.random.below(*bound) as f32).collect();
                *data = Data::new(arg.dtype, &indices);
            } else if arg.mode != Mode::Write && arg.dtype.is_float() && arg.elements > 0 && self.random.below(4) == 0 {
                let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 1e30, -1e-30];
                let mut values: Vec<f32> = data.values().iter().map(|x| *x as f32).collect();
                let at = self.random.below(values.len() as u64) as usize;
                values[at] = odd[self.random.below(6) as usize];
                *data = Data::new(arg.dtype, &values);
            }
        }
        (kernel, inputs)
    }
}
