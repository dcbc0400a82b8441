//! Row programs as a compiler would make them.

use fp8c_kernels::DType;
use fp8c_kernels::program::*;

/// Writes a program statement by statement.
pub struct Writer {
    program: RowProgram,
}

impl Writer {
    pub fn new(space: &[u64], row_dims: u32) -> Self {
        Writer { program: RowProgram { space: space.to_vec(), row_dims, args: vec![], body: vec![] } }
    }

    pub fn arg(&mut self, dtype: DType, elements: u64, mode: Mode) -> u32 {
        self.program.args.push(Arg { dtype, elements, mode });
        self.program.args.len() as u32 - 1
    }

    pub fn stmt(&mut self, s: Stmt) -> Var {
        self.program.body.push(s);
        Var(self.program.body.len() as u32 - 1)
    }

    pub fn load(&mut self, arg: u32, strides: &[i64]) -> Var {
        self.stmt(Stmt::Load { arg, access: access(strides), indexed: None })
    }

    pub fn float(&mut self, x: f32) -> Var {
        self.stmt(Stmt::Const { kind: Kind::Float, value: Literal::float(x) })
    }

    pub fn int(&mut self, x: i64) -> Var {
        self.stmt(Stmt::Const { kind: Kind::Int, value: Literal::Int(x) })
    }

    pub fn unary(&mut self, op: Unary, x: Var) -> Var {
        self.stmt(Stmt::Unary { op, x })
    }

    pub fn binary(&mut self, op: Binary, x: Var, y: Var) -> Var {
        self.stmt(Stmt::Binary { op, x, y })
    }

    pub fn reduce(&mut self, op: Fold, x: Var) -> Var {
        self.stmt(Stmt::Reduce { op, x })
    }

    pub fn store(&mut self, arg: u32, strides: &[i64], x: Var) {
        self.stmt(Stmt::Store { arg, access: access(strides), x });
    }

    pub fn done(self) -> Kernel {
        Kernel::Row(self.program)
    }
}

pub fn access(strides: &[i64]) -> Access {
    Access { offset: 0, strides: strides.to_vec(), guards: vec![] }
}

pub fn softmax(rows: u64, cols: u64, dtype: DType) -> Kernel {
    let mut w = Writer::new(&[rows, cols], 1);
    let (x, y) = (w.arg(dtype, rows * cols, Mode::Read), w.arg(dtype, rows * cols, Mode::Write));
    let v = w.load(x, &[cols as i64, 1]);
    let max = w.reduce(Fold::Max, v);
    let shifted = w.binary(Binary::Sub, v, max);
    let e = w.unary(Unary::Exp, shifted);
    let sum = w.reduce(Fold::Sum, e);
    let p = w.binary(Binary::Div, e, sum);
    w.store(y, &[cols as i64, 1], p);
    w.done()
}

/// RMS norm with its statistic stored and its output quantized.
pub fn rmsnorm_quantized(rows: u64, cols: u64, power_of_two: bool) -> Kernel {
    let n = rows * cols;
    let mut w = Writer::new(&[rows, cols], 1);
    let (x, gain) = (w.arg(DType::Bf16, n, Mode::Read), w.arg(DType::F32, cols, Mode::Read));
    let (codes, scales) = (w.arg(DType::E4m3, n, Mode::Write), w.arg(DType::F32, rows * groups(cols), Mode::Write));
    let rstd = w.arg(DType::F32, rows, Mode::Write);
    let v = w.load(x, &[cols as i64, 1]);
    let square = w.binary(Binary::Mul, v, v);
    let sum = w.reduce(Fold::Sum, square);
    let inverse = w.float(1.0 / cols as f32);
    let mean = w.binary(Binary::Mul, sum, inverse);
    let r = w.unary(Unary::Rsqrt, mean);
    w.store(rstd, &[1, 0], r);
    let g = w.load(gain, &[0, 1]);
    let normed = w.binary(Binary::Mul, v, r);
    let out = w.binary(Binary::Mul, normed, g);
    w.stmt(Stmt::StoreQuantized { codes, access: access(&[cols as i64, 1]), scales, power_of_two, x: out });
    w.done()
}

pub fn elementwise(n: u64, dtype: DType, op: Unary) -> Kernel {
    let mut w = Writer::new(&[n], 0);
    let (x, y) = (w.arg(dtype, n, Mode::Read), w.arg(dtype, n, Mode::Write));
    let v = w.load(x, &[1]);
    let r = w.unary(op, v);
    w.store(y, &[1], r);
    w.done()
}

pub fn transpose(rows: u64, cols: u64, dtype: DType) -> Kernel {
    let mut w = Writer::new(&[cols, rows], 0);
    let (x, y) = (w.arg(dtype, rows * cols, Mode::Read), w.arg(dtype, rows * cols, Mode::Write));
    let v = w.load(x, &[1, cols as i64]);
    w.store(y, &[rows as i64, 1], v);
    w.done()
}

/// The gradient of a bias, added to what is there: sums down the columns of a matrix.
pub fn column_sums(rows: u64, cols: u64, dtype: DType) -> Kernel {
    let mut w = Writer::new(&[cols, rows], 1);
    let (x, y) = (w.arg(dtype, rows * cols, Mode::Read), w.arg(DType::F32, cols, Mode::Update));
    let v = w.load(x, &[1, cols as i64]);
    let sum = w.reduce(Fold::Sum, v);
    w.stmt(Stmt::Accumulate { arg: y, access: access(&[1, 0]), x: sum });
    w.done()
}

/// Rows of a table by an index; what is out of range reads row 0.
pub fn gather(picks: u64, vocabulary: u64, width: u64) -> Kernel {
    let mut w = Writer::new(&[picks, width], 1);
    let (table, index) = (w.arg(DType::Bf16, vocabulary * width, Mode::Read), w.arg(DType::I64, picks, Mode::Read));
    let y = w.arg(DType::F32, picks * width, Mode::Write);
    let i = w.load(index, &[1, 0]);
    let indexed = Some(Indexed { index: i, stride: width as i64, bound: vocabulary as i64 });
    let v = w.stmt(Stmt::Load { arg: table, access: access(&[0, 1]), indexed });
    w.store(y, &[width as i64, 1], v);
    w.done()
}

/// Two matrices side by side, by guarded loads.
pub fn concat(rows: u64, left: u64, right: u64) -> Kernel {
    let cols = left + right;
    let mut w = Writer::new(&[rows, cols], 0);
    let (a, b) = (w.arg(DType::F32, rows * left, Mode::Read), w.arg(DType::F32, rows * right, Mode::Read));
    let y = w.arg(DType::F32, rows * cols, Mode::Write);
    let part = |offset: i64, width: u64, lower: u64, upper: u64| Access {
        offset,
        strides: vec![width as i64, 1],
        guards: vec![Guard { dim: 1, lower: lower as i64, upper: upper as i64 }],
    };
    let x = w.stmt(Stmt::Load { arg: a, access: part(0, left, 0, left), indexed: None });
    let z = w.stmt(Stmt::Load { arg: b, access: part(-(left as i64), right, left, cols), indexed: None });
    let sum = w.binary(Binary::Add, x, z);
    w.store(y, &[cols as i64, 1], sum);
    w.done()
}

/// AdamW on f32 weights with bf16 moments and decoupled decay, by a learning rate and a step size held in memory.
pub fn adamw(n: u64) -> Kernel {
    let mut w = Writer::new(&[n], 0);
    let weight = w.arg(DType::F32, n, Mode::Update);
    let moments = [w.arg(DType::Bf16, n, Mode::Update), w.arg(DType::Bf16, n, Mode::Update)];
    let (gradient, rates) = (w.arg(DType::F32, n, Mode::Read), w.arg(DType::F32, 4, Mode::Read));
    let copy = w.arg(DType::Bf16, n, Mode::Write);
    let rate =
        [0, 1, 2].map(|i| w.stmt(Stmt::Load { arg: rates, access: Access { offset: i, strides: vec![0], guards: vec![] }, indexed: None }));
    let (p, g) = (w.load(weight, &[1]), w.load(gradient, &[1]));
    let blend = |w: &mut Writer, old: Var, new: Var, beta: f32| {
        let (beta, rest) = (w.float(beta), w.float(1.0 - beta));
        let (a, b) = (w.binary(Binary::Mul, old, beta), w.binary(Binary::Mul, new, rest));
        w.binary(Binary::Add, a, b)
    };
    let (m, v) = (w.load(moments[0], &[1]), w.load(moments[1], &[1]));
    let square = w.binary(Binary::Mul, g, g);
    let (m, v) = (blend(&mut w, m, g, 0.9), blend(&mut w, v, square, 0.95));
    w.store(moments[0], &[1], m);
    w.store(moments[1], &[1], v);
    let corrected = w.binary(Binary::Mul, v, rate[1]);
    let root = w.unary(Unary::Sqrt, corrected);
    let epsilon = w.float(1e-8);
    let root = w.binary(Binary::Add, root, epsilon);
    let step = w.binary(Binary::Div, m, root);
    let step = w.binary(Binary::Mul, step, rate[0]);
    let decay = w.binary(Binary::Mul, p, rate[2]);
    let p = w.binary(Binary::Sub, p, decay);
    let p = w.binary(Binary::Sub, p, step);
    w.store(weight, &[1], p);
    w.store(copy, &[1], p);
    w.done()
}

/// Cross-entropy of logits: loss and probability-minus-target, with the label in memory.
pub fn cross_entropy(rows: u64, classes: u64) -> Kernel {
    let mut w = Writer::new(&[rows, classes], 1);
    let (x, labels) = (w.arg(DType::Bf16, rows * classes, Mode::Read), w.arg(DType::I64, rows, Mode::Read));
    let (loss, grad) = (w.arg(DType::F32, rows, Mode::Write), w.arg(DType::Bf16, rows * classes, Mode::Write));
    let v = w.load(x, &[classes as i64, 1]);
    let label = w.load(labels, &[1, 0]);
    let column = w.stmt(Stmt::Index { dim: 1 });
    let hit = w.binary(Binary::Eq, column, label);
    let max = w.reduce(Fold::Max, v);
    let shifted = w.binary(Binary::Sub, v, max);
    let e = w.unary(Unary::Exp, shifted);
    let sum = w.reduce(Fold::Sum, e);
    let zero = w.float(0.0);
    let at_label = w.stmt(Stmt::Select { c: hit, x: shifted, y: zero });
    let target = w.reduce(Fold::Sum, at_label);
    let log = w.unary(Unary::Log, sum);
    let nll = w.binary(Binary::Sub, log, target);
    w.store(loss, &[1, 0], nll);
    let p = w.binary(Binary::Div, e, sum);
    let one = w.float(1.0);
    let less = w.binary(Binary::Sub, p, one);
    let d = w.stmt(Stmt::Select { c: hit, x: less, y: p });
    w.store(grad, &[classes as i64, 1], d);
    w.done()
}

/// Counter-based noise from the index alone: integer arithmetic in bulk.
pub fn noise(n: u64) -> Kernel {
    let mut w = Writer::new(&[n], 0);
    let y = w.arg(DType::F32, n, Mode::Write);
    let mut x = w.stmt(Stmt::Index { dim: 0 });
    for k in [0x9E37_79B9_7F4A_7C15u64 as i64, 0x2545_F491_4F6C_DD1D] {
        let c = w.int(k);
        x = w.binary(Binary::Mul, x, c);
        let s = w.int(1 << 29);
        let high = w.binary(Binary::Div, x, s);
        x = w.binary(Binary::Sub, x, high);
    }
    let m = w.int(1 << 24);
    let r = w.binary(Binary::Mod, x, m);
    let f = w.stmt(Stmt::Cast { x: r, to: DType::F32 });
    let scale = w.float(1.0 / (1 << 24) as f32);
    let u = w.binary(Binary::Mul, f, scale);
    w.store(y, &[1], u);
    w.done()
}

pub const UNARIES: [Unary; 34] = [
    Unary::Neg,
    Unary::Abs,
    Unary::Sign,
    Unary::Exp,
    Unary::Log,
    Unary::Log1p,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Recip,
    Unary::Sin,
    Unary::Cos,
    Unary::Tan,
    Unary::Asin,
    Unary::Acos,
    Unary::Atan,
    Unary::Sinh,
    Unary::Cosh,
    Unary::Asinh,
    Unary::Acosh,
    Unary::Atanh,
    Unary::Tanh,
    Unary::Erf,
    Unary::Sigmoid,
    Unary::Softplus,
    Unary::Floor,
    Unary::Ceil,
    Unary::Round,
    Unary::IsNan,
    Unary::IsInf,
    Unary::GeluErf,
    Unary::GeluErfGrad,
    Unary::GeluTanh,
    Unary::GeluTanhGrad,
    Unary::Abs,
];

pub const BINARIES: [Binary; 15] = [
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::Div,
    Binary::Min,
    Binary::Max,
    Binary::Pow,
    Binary::Mod,
    Binary::Fmod,
    Binary::Eq,
    Binary::Ne,
    Binary::Lt,
    Binary::Le,
    Binary::Gt,
    Binary::Ge,
];

/// An operator between two vectors of a format.
pub fn pairwise(n: u64, dtype: DType, op: Binary) -> Kernel {
    let mut w = Writer::new(&[n], 0);
    let (x, y) = (w.arg(dtype, n, Mode::Read), w.arg(dtype, n, Mode::Read));
    let z = w.arg(dtype, n, Mode::Write);
    let (a, b) = (w.load(x, &[1]), w.load(y, &[1]));
    let r = w.binary(op, a, b);
    w.store(z, &[1], r);
    w.done()
}

/// Every program above once or more, by name.
pub fn all() -> Vec<(String, Kernel)> {
    let mut all: Vec<(String, Kernel)> = vec![];
    let mut add = |name: &str, kernel: Kernel| all.push((name.to_string(), kernel));
    for cols in [3, 64, 77, 1024, 4096, 50257] {
        add(&format!("softmax_{cols}"), softmax(64, cols, DType::Bf16));
    }
    add("softmax_f32", softmax(5, 2048, DType::F32));
    for cols in [100, 130, 512, 1028, 4096] {
        add(&format!("rmsnorm_quantized_{cols}"), rmsnorm_quantized(20, cols, cols == 512));
    }
    add("transpose", transpose(96, 200, DType::Bf16));
    add("column_sums", column_sums(1000, 70, DType::Bf16));
    add("column_sums_exact", column_sums(1000, 64, DType::F32));
    add("gather", gather(33, 1000, 64));
    add("concat", concat(7, 12, 20));
    add("adamw", adamw(10_000));
    add("adamw_odd", adamw(10_001));
    add("cross_entropy", cross_entropy(40, 5003));
    add("noise", noise(1000));
    all
}

/// Programs whose emulation is quick.
pub fn small() -> Vec<(String, Kernel)> {
    let mut all: Vec<(String, Kernel)> = vec![];
    let mut add = |name: &str, kernel: Kernel| all.push((name.to_string(), kernel));
    for cols in [3, 64, 77, 1024, 2050] {
        add(&format!("softmax_{cols}"), softmax(11, cols, DType::Bf16));
        add(&format!("softmax_f32_{cols}"), softmax(11, cols, DType::F32));
    }
    for cols in [100, 130, 512, 1028, 1280] {
        add(&format!("rmsnorm_quantized_{cols}"), rmsnorm_quantized(9, cols, cols == 512));
    }
    add("transpose", transpose(96, 200, DType::Bf16));
    add("column_sums", column_sums(100, 70, DType::Bf16));
    add("column_sums_exact", column_sums(101, 64, DType::F32));
    add("gather", gather(33, 1000, 64));
    add("concat", concat(7, 12, 20));
    add("concat_odd", concat(7, 13, 20));
    add("adamw", adamw(1000));
    add("adamw_odd", adamw(1001));
    add("cross_entropy", cross_entropy(12, 503));
    add("noise", noise(1000));
    all
}
