//! Row programs on the CPU against the reference: random programs bit for bit, known ones within rounding.

use super::row::reference;
use super::{Data, Random, norm_error, run, tolerance};
use crate::program::*;
use crate::{DType, KernelError};
use proptest::prelude::*;

/// A program under construction.
pub(super) struct Builder {
    pub(super) p: RowProgram,
}

impl Builder {
    pub(super) fn new(space: &[u64], row_dims: u32) -> Builder {
        Builder { p: RowProgram { space: space.to_vec(), row_dims, args: Vec::new(), body: Vec::new() } }
    }

    fn arg(&mut self, dtype: DType, elements: u64, mode: Mode) -> u32 {
        self.p.args.push(Arg { dtype, elements, mode });
        self.p.args.len() as u32 - 1
    }

    pub(super) fn push(&mut self, stmt: Stmt) -> Var {
        self.p.body.push(stmt);
        Var(self.p.body.len() as u32 - 1)
    }

    /// Reads a new argument with these strides.
    pub(super) fn load(&mut self, dtype: DType, elements: u64, strides: &[i64]) -> Var {
        let arg = self.arg(dtype, elements, Mode::Read);
        self.push(Stmt::Load { arg, access: access(strides), indexed: None })
    }

    pub(super) fn store(&mut self, dtype: DType, elements: u64, strides: &[i64], x: Var) {
        let arg = self.arg(dtype, elements, Mode::Write);
        self.push(Stmt::Store { arg, access: access(strides), x });
    }

    pub(super) fn float(&mut self, value: f32) -> Var {
        self.push(Stmt::Const { kind: Kind::Float, value: Literal::float(value) })
    }

    pub(super) fn unary(&mut self, op: Unary, x: Var) -> Var {
        self.push(Stmt::Unary { op, x })
    }

    pub(super) fn binary(&mut self, op: Binary, x: Var, y: Var) -> Var {
        self.push(Stmt::Binary { op, x, y })
    }

    pub(super) fn reduce(&mut self, op: Fold, x: Var) -> Var {
        self.push(Stmt::Reduce { op, x })
    }

    pub(super) fn kernel(self) -> Kernel {
        Kernel::Row(self.p)
    }
}

fn access(strides: &[i64]) -> Access {
    Access { offset: 0, strides: strides.to_vec(), guards: Vec::new() }
}

/// True if values are equal, NaN to NaN.
pub(crate) fn same(x: &Data, y: &Data) -> Result<(), String> {
    let differs = |(_, (a, b)): &(usize, (f64, f64))| !(a == b || (a.is_nan() && b.is_nan()));
    match x.values().into_iter().zip(y.values()).enumerate().find(differs) {
        Some((at, (a, b))) => Err(format!("element {at} is {a}, expected {b}")),
        None => Ok(()),
    }
}

/// Checks a program against the reference: written floats within rounding, all else exactly.
fn check(kernel: &Kernel, inputs: &[Data]) {
    let Kernel::Row(p) = kernel else { panic!("not a row program") };
    let (out, expected) = (run(kernel, inputs), reference(p, inputs));
    for (i, arg) in p.args.iter().enumerate() {
        if arg.dtype.is_float() && arg.dtype != DType::E4m3 {
            let error = norm_error(&out[i].values(), &expected[i].values());
            assert!(error < tolerance(arg.dtype), "argument {i}: {error} in {p:?}");
        } else {
            same(&out[i], &expected[i]).unwrap_or_else(|e| panic!("argument {i}: {e} in {p:?}"));
        }
    }
}

fn softmax(rows: u64, len: u64, strides: [i64; 2]) -> Kernel {
    let mut b = Builder::new(&[rows, len], 1);
    let x = b.load(DType::F32, rows * len, &strides);
    let max = b.reduce(Fold::Max, x);
    let shifted = b.binary(Binary::Sub, x, max);
    let e = b.unary(Unary::Exp, shifted);
    let sum = b.reduce(Fold::Sum, e);
    let y = b.binary(Binary::Div, e, sum);
    b.store(DType::F32, rows * len, &strides, y);
    b.kernel()
}

#[test]
fn softmax_agrees_along_either_axis_for_short_long_and_huge_rows() {
    for (rows, len) in [(1, 1), (7, 3), (300, 10), (33, 768), (3, 5000), (2, 70_000), (1, 300_001), (40, 20_000)] {
        for strides in [[len as i64, 1], [1, rows as i64]] {
            let kernel = softmax(rows, len, strides);
            check(&kernel, &Random::new(rows ^ len).inputs(&kernel));
        }
    }
}

#[test]
fn layer_norm_forward_and_backward_agree() {
    for (rows, len) in [(5u64, 64u64), (130, 768), (2, 9000)] {
        let n = rows * len;
        let along = [len as i64, 1];
        let mut b = Builder::new(&[rows, len], 1);
        let (x, scale, dy) = (b.load(DType::Bf16, n, &along), b.load(DType::F32, len, &[0, 1]), b.load(DType::F32, n, &along));
        let (inv, eps) = (b.float(1.0 / len as f32), b.float(1e-5));
        let mean = |b: &mut Builder, x: Var| {
            let sum = b.reduce(Fold::Sum, x);
            b.binary(Binary::Mul, sum, inv)
        };
        let mu = mean(&mut b, x);
        let centred = b.binary(Binary::Sub, x, mu);
        let square = b.binary(Binary::Mul, centred, centred);
        let variance = mean(&mut b, square);
        let shifted = b.binary(Binary::Add, variance, eps);
        let rstd = b.unary(Unary::Rsqrt, shifted);
        let normed = b.binary(Binary::Mul, centred, rstd);
        let y = b.binary(Binary::Mul, normed, scale);
        b.store(DType::Bf16, n, &along, y);
        b.store(DType::F32, rows, &[1, 0], rstd);
        let g = b.binary(Binary::Mul, dy, scale);
        let gx = b.binary(Binary::Mul, g, normed);
        let (mg, mgx) = (mean(&mut b, g), mean(&mut b, gx));
        let part = b.binary(Binary::Mul, normed, mgx);
        let d = b.binary(Binary::Sub, g, mg);
        let d = b.binary(Binary::Sub, d, part);
        let dx = b.binary(Binary::Mul, d, rstd);
        b.store(DType::F32, n, &along, dx);
        let kernel = b.kernel();
        check(&kernel, &Random::new(len).inputs(&kernel));
    }
}

#[test]
fn an_optimizer_updates_in_place() {
    for n in [1u64, 1000, 100_003] {
        let mut b = Builder::new(&[n], 0);
        let g = b.load(DType::F32, n, &[1]);
        let control = b.arg(DType::F32, 8, Mode::Read);
        let scalar =
            |b: &mut Builder, offset| b.push(Stmt::Load { arg: control, access: Access { offset, ..access(&[0]) }, indexed: None });
        let (rate, keep) = (scalar(&mut b, 3), scalar(&mut b, 5));
        let state: Vec<u32> = [DType::F32, DType::Bf16, DType::Bf16].map(|d| b.arg(d, n, Mode::Update)).to_vec();
        let old: Vec<Var> = state.iter().map(|&arg| b.push(Stmt::Load { arg, access: access(&[1]), indexed: None })).collect();
        let zero = b.float(0.0);
        let go = b.binary(Binary::Gt, keep, zero);
        let (beta, rest, eps) = (b.float(0.9), b.float(0.1), b.float(1e-3));
        let (m0, m1) = (b.binary(Binary::Mul, old[1], beta), b.binary(Binary::Mul, g, rest));
        let m = b.binary(Binary::Add, m0, m1);
        let v0 = b.unary(Unary::Abs, old[2]);
        let g2 = b.binary(Binary::Mul, g, g);
        let v = b.binary(Binary::Add, v0, g2);
        let root = b.unary(Unary::Sqrt, v);
        let below = b.binary(Binary::Add, root, eps);
        let step = b.binary(Binary::Div, m, below);
        let step = b.binary(Binary::Mul, step, rate);
        let p = b.binary(Binary::Sub, old[0], step);
        for ((arg, new), old) in state.into_iter().zip([p, m, v]).zip(old) {
            let x = b.push(Stmt::Select { c: go, x: new, y: old });
            b.push(Stmt::Store { arg, access: access(&[1]), x });
        }
        let kernel = b.kernel();
        let mut inputs = Random::new(n).inputs(&kernel);
        for keep in [0.0, 1.0] {
            inputs[1] = Data::new(DType::F32, &[0.0, 0.0, 0.0, 0.01, 0.0, keep, 0.0, 0.0]);
            check(&kernel, &inputs);
            if keep == 0.0 {
                assert!(run(&kernel, &inputs) == inputs, "a skipped update changed something");
            }
        }
    }
}

#[test]
fn column_sums_agree_and_accumulate() {
    for (rows, columns) in [(1000u64, 3u64), (4096, 768), (20_000, 64), (17, 4097)] {
        let mut b = Builder::new(&[columns, rows], 1);
        let x = b.load(DType::Bf16, rows * columns, &[1, columns as i64]);
        let sum = b.reduce(Fold::Sum, x);
        let total = b.arg(DType::F32, columns, Mode::Update);
        b.push(Stmt::Accumulate { arg: total, access: access(&[1, 0]), x: sum });
        b.store(DType::F32, columns, &[1, 0], sum);
        let kernel = b.kernel();
        check(&kernel, &Random::new(rows).inputs(&kernel));
    }
}

#[test]
fn a_gather_reads_rows_by_index_and_reports_one_out_of_range() {
    let (tokens, vocab, depth) = (37u64, 11u64, 65u64);
    let mut b = Builder::new(&[tokens, depth], 1);
    let index = b.load(DType::I64, tokens, &[1, 0]);
    let table = b.arg(DType::Bf16, vocab * depth, Mode::Read);
    let indexed = Some(Indexed { index, stride: depth as i64, bound: vocab as i64 });
    let x = b.push(Stmt::Load { arg: table, access: access(&[0, 1]), indexed });
    b.store(DType::Bf16, tokens * depth, &[depth as i64, 1], x);
    let kernel = b.kernel();
    let mut random = Random::new(3);
    let mut inputs = random.inputs(&kernel);
    let mut indices: Vec<f32> = (0..tokens).map(|_| random.below(vocab) as f32).collect();
    inputs[0] = Data::new(DType::I64, &indices);
    check(&kernel, &inputs);
    for bad in [-1.0, 11.0, 1e18] {
        indices[20] = bad;
        inputs[0] = Data::new(DType::I64, &indices);
        let error = super::try_launch(&kernel, &inputs, 2).expect_err("out of range");
        assert_eq!(error, KernelError::IndexOutOfRange { index: bad as i64, bound: 11 });
    }
}

#[test]
fn a_quantizing_store_writes_codes_and_scales_of_each_group() {
    for (rows, len) in [(1u64, 5u64), (9, 128), (4, 1000), (3, 20_001)] {
        let mut b = Builder::new(&[rows, len], 1);
        let x = b.load(DType::F32, rows * len, &[len as i64, 1]);
        let sum = b.reduce(Fold::Sum, x);
        let y = b.binary(Binary::Add, x, sum);
        let y = if rows == 4 { x } else { y };
        let codes = b.arg(DType::E4m3, rows * len, Mode::Write);
        let scales = b.arg(DType::F32, rows * len.div_ceil(128), Mode::Write);
        b.push(Stmt::StoreQuantized { codes, access: access(&[len as i64, 1]), scales, power_of_two: true, x: y });
        let kernel = b.kernel();
        // Small integers: sums are exact whatever their order.
        let mut inputs = Random::new(len).inputs(&kernel);
        let whole: Vec<f32> = inputs[0].values().iter().map(|x| (x * 4.0).round() as f32).collect();
        inputs[0] = Data::new(DType::F32, &whole);
        check(&kernel, &inputs);
    }
}

#[test]
fn an_empty_row_folds_to_the_neutral_value() {
    let mut b = Builder::new(&[3, 0], 1);
    let x = b.load(DType::F32, 0, &[0, 1]);
    for fold in [Fold::Sum, Fold::Prod, Fold::Max, Fold::Min] {
        let y = b.reduce(fold, x);
        b.store(DType::F32, 3, &[1, 0], y);
    }
    let kernel = b.kernel();
    let out = run(&kernel, &Random::new(1).inputs(&kernel));
    for (out, expected) in out[1..].iter().zip([0.0, 1.0, f64::NEG_INFINITY, f64::INFINITY]) {
        assert_eq!(out.values(), [expected; 3]);
    }
}

#[test]
fn a_buffer_that_is_too_short_is_refused() {
    let kernel = softmax(4, 4, [4, 1]);
    let buffer = crate::cpu::Buffer { ptr: std::ptr::null_mut(), bytes: 60 };
    // SAFETY: refused before anything is touched.
    let refused = unsafe { crate::cpu::launch(&kernel, &[buffer; 2], buffer) };
    assert_eq!(refused, Err(KernelError::Binding { arg: 0, have: 60, need: 64 }));
}

/// Random programs of operators whose results do not depend on an order of rounding.
pub(crate) struct Generator {
    random: Random,
    b: Builder,
    kinds: Vec<(Var, Kind)>,
    /// Index arguments are filled with numbers below their bound.
    bounds: Vec<Option<u64>>,
}

const FORMATS: [DType; 6] = [DType::F32, DType::Bf16, DType::E4m3, DType::I64, DType::I32, DType::Bool];

impl Generator {
    pub(crate) fn new(seed: u64) -> Generator {
        let mut random = Random::new(seed);
        let rank = random.below(5) as usize;
        let mut space: Vec<u64> = (0..rank).map(|_| [1, 2, 3, 5, 8, 17, 40][random.below(7) as usize]).collect();
        if rank > 0 && random.below(3) == 0 {
            space = space.into_iter().map(|e| e.min(3)).collect();
            space[random.below(rank as u64) as usize] = [70, 300, 5000, 20_000][random.below(4) as usize];
        }
        let row_dims = random.below(rank as u64 + 1) as u32;
        Generator { random, b: Builder::new(&space, row_dims), kinds: Vec::new(), bounds: Vec::new() }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    /// A map that is one-to-one over the dimensions not in `still`, and the elements it needs.
    fn layout(&mut self, still: impl Fn(&mut Generator, usize) -> bool) -> (Access, u64) {
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
            stride *= space[d] as i64 + i64::from(self.chance(6));
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
        map.guards.push(Guard { dim: d as u32, lower: by, upper: space[d] as i64 - self.random.below(2) as i64 });
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
            } else if arg.mode != Mode::Write && arg.dtype.is_float() && self.random.below(4) == 0 {
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

fn check_random(seed: u64) -> Result<(), TestCaseError> {
    let (kernel, inputs) = Generator::new(seed).finish();
    let Kernel::Row(p) = &kernel else { unreachable!("a row program") };
    prop_assert_eq!(kernel.verify(), Ok(()), "{:?}", p);
    let (out, expected) = (run(&kernel, &inputs), reference(p, &inputs));
    for i in 0..p.args.len() {
        if let Err(e) = same(&out[i], &expected[i]) {
            return Err(TestCaseError::fail(format!("argument {i}: {e} in {p:?}")));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn random_programs_agree_with_the_reference(seed: u64) {
        check_random(seed)?;
    }
}
