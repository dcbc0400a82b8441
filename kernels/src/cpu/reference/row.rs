//! Reference of row programs, one point after the other, and their tests.

use super::Data;
use crate::program::*;
use crate::{DType, numerics};

/// A value of a variable at a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    Float(f32),
    Int(i64),
    Bool(bool),
}

use Scalar::{Bool, Float, Int};

impl Scalar {
    fn zero(kind: Kind) -> Scalar {
        match kind {
            Kind::Float => Float(0.0),
            Kind::Int => Int(0),
            Kind::Bool => Bool(false),
        }
    }

    fn float(self) -> f32 {
        match self {
            Float(x) => x,
            Int(i) => i as f32,
            Bool(b) => f32::from(u8::from(b)),
        }
    }

    fn int(self) -> i64 {
        match self {
            Float(x) => x as i64,
            Int(i) => i,
            Bool(b) => i64::from(b),
        }
    }

    fn truth(self) -> bool {
        match self {
            Float(x) => x != 0.0,
            Int(i) => i != 0,
            Bool(b) => b,
        }
    }

    /// Rounds to a format and comes back.
    fn cast(self, to: DType) -> Scalar {
        match to {
            DType::F32 => Float(self.float()),
            DType::Bf16 => Float(half::bf16::from_f32(self.float()).to_f32()),
            DType::E4m3 => Float(numerics::e4m3_to_f32(numerics::f32_to_e4m3(self.float()))),
            DType::I64 => Int(self.int()),
            DType::I32 => Int(match self {
                Float(x) => i64::from(x as i32),
                other => i64::from(other.int() as i32),
            }),
            DType::Bool => Bool(self.truth()),
        }
    }
}

/// One argument as scalars.
struct Memory {
    dtype: DType,
    elements: Vec<Scalar>,
    before: Vec<u8>,
    written: Vec<bool>,
}

impl Memory {
    fn new(data: &Data) -> Memory {
        let size = data.dtype.size() as usize;
        let element = |b: &[u8]| match data.dtype {
            DType::F32 => Float(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            DType::Bf16 => Float(half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            DType::E4m3 => Float(numerics::e4m3_to_f32(b[0])),
            DType::I64 => Int(i64::from_le_bytes(b.try_into().expect("8 bytes"))),
            DType::I32 => Int(i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            DType::Bool => Bool(b[0] != 0),
        };
        let elements: Vec<Scalar> = data.bytes.chunks_exact(size).map(element).collect();
        Memory { dtype: data.dtype, written: vec![false; elements.len()], elements, before: data.bytes.clone() }
    }

    fn write(&mut self, at: usize, x: Scalar) {
        self.elements[at] = x;
        self.written[at] = true;
    }

    fn data(&self) -> Data {
        let bytes = |x: &Scalar| match self.dtype {
            DType::F32 => x.float().to_le_bytes().to_vec(),
            DType::Bf16 => half::bf16::from_f32(x.float()).to_le_bytes().to_vec(),
            DType::E4m3 => vec![numerics::f32_to_e4m3(x.float())],
            DType::I64 => x.int().to_le_bytes().to_vec(),
            DType::I32 => (x.int() as i32).to_le_bytes().to_vec(),
            DType::Bool => vec![u8::from(x.truth())],
        };
        let size = self.dtype.size() as usize;
        let all = self.elements.iter().zip(&self.written).zip(self.before.chunks_exact(size));
        let bytes = all.flat_map(|((x, written), before)| if *written { bytes(x) } else { before.to_vec() }).collect();
        Data { dtype: self.dtype, bytes }
    }
}

/// Runs a program statement by statement over all points.
pub(super) fn reference(p: &RowProgram, inputs: &[Data]) -> Vec<Data> {
    let mut memory: Vec<Memory> = inputs.iter().map(Memory::new).collect();
    let types = p.types().expect("verified");
    let (rows, len) = (p.rows() as usize, p.row_len() as usize);
    for row in 0..rows {
        // Values of each variable for the points of the row; row variables have one.
        let mut values: Vec<Vec<Scalar>> = Vec::new();
        for (stmt, ty) in p.body.iter().zip(&types) {
            let points = if ty.is_some_and(|t| t.rank == Rank::Row) { 1 } else { len };
            let all = execute(p, stmt, row, points, &values, &mut memory);
            values.push(all);
        }
    }
    memory.iter().map(Memory::data).collect()
}

/// The index of a point of a row; of a row access, whose dimensions along the row do not matter, for point 0.
fn index(p: &RowProgram, row: usize, point: usize) -> Vec<i64> {
    let unravel = |dims: &[u64], mut rest: u64| {
        let mut index: Vec<i64> = Vec::with_capacity(dims.len());
        for &extent in dims.iter().rev().map(|e| e.max(&1)) {
            index.push((rest % extent) as i64);
            rest /= extent;
        }
        index.reverse();
        index
    };
    let (outer, inner) = p.space.split_at(p.row_start());
    [unravel(outer, row as u64), unravel(inner, point as u64)].concat()
}

fn address(access: &Access, index: &[i64]) -> Option<i64> {
    let inside = access.guards.iter().all(|g| (g.lower..g.upper).contains(&index[g.dim as usize]));
    inside.then(|| access.offset + access.strides.iter().zip(index).map(|(s, i)| s * i).sum::<i64>())
}

fn execute(p: &RowProgram, stmt: &Stmt, row: usize, points: usize, values: &[Vec<Scalar>], memory: &mut [Memory]) -> Vec<Scalar> {
    let get = |v: Var, i: usize| {
        let all = &values[v.0 as usize];
        if all.len() == 1 { all[0] } else { all[i] }
    };
    let each = |f: &dyn Fn(usize) -> Scalar| (0..points).map(f).collect();
    match stmt {
        Stmt::Load { arg, access, indexed } => each(&|i| {
            let Some(at) = address(access, &index(p, row, i)) else { return Scalar::zero(memory[*arg as usize].dtype.into()) };
            let zero = Scalar::zero(memory[*arg as usize].dtype.into());
            match indexed.map(|x| (x, get(x.index, i).int())) {
                None => memory[*arg as usize].elements[at as usize],
                Some((x, index)) if (0..x.bound).contains(&index) => memory[*arg as usize].elements[(at + index * x.stride) as usize],
                // An executor that needs the value fails.
                Some(_) => zero,
            }
        }),
        Stmt::Const { kind, value } => each(&|_| match (kind, *value) {
            (Kind::Float, v) => Float(v.as_f32()),
            (Kind::Int, Literal::Int(i)) => Int(i),
            (Kind::Int, v) => Int(v.as_f32() as i64),
            (Kind::Bool, v) => Bool(v.as_f32() != 0.0),
        }),
        Stmt::Index { dim } => each(&|i| Int(index(p, row, i)[*dim as usize])),
        Stmt::Unary { op, x } => each(&|i| unary(*op, get(*x, i))),
        Stmt::Binary { op, x, y } => each(&|i| binary(*op, get(*x, i), get(*y, i))),
        Stmt::Select { c, x, y } => each(&|i| if get(*c, i).truth() { get(*x, i) } else { get(*y, i) }),
        Stmt::Cast { x, to } => each(&|i| get(*x, i).cast(*to)),
        Stmt::Reduce { op, x } => {
            let kind = p.types().expect("verified")[x.0 as usize].expect("a value").kind;
            vec![fold(*op, kind, (0..p.row_len() as usize).map(|i| get(*x, i)))]
        }
        Stmt::Store { arg, access, x } | Stmt::Accumulate { arg, access, x } => {
            let once = values[x.0 as usize].len() == 1 && p.constant_along_row(access);
            for i in 0..if once { 1 } else { p.row_len() as usize } {
                if let Some(at) = address(access, &index(p, row, i)) {
                    let m = &mut memory[*arg as usize];
                    let old = m.elements[at as usize];
                    let new = if matches!(stmt, Stmt::Accumulate { .. }) { binary(Binary::Add, old, get(*x, i)) } else { get(*x, i) };
                    m.write(at as usize, new.cast(m.dtype));
                }
            }
            Vec::new()
        }
        Stmt::StoreQuantized { codes, access, scales, power_of_two, x } => {
            let row_values: Vec<f32> = (0..p.row_len() as usize).map(|i| get(*x, i).float()).collect();
            for (g, group) in row_values.chunks(128).enumerate() {
                let mut out = vec![0u8; group.len()];
                let scale = numerics::quantize_group(group, numerics::ScaleMode::from_flag(*power_of_two), &mut out);
                memory[*scales as usize].write(row * row_values.len().div_ceil(128) + g, Float(scale));
                for (j, code) in out.into_iter().enumerate() {
                    let at = address(access, &index(p, row, g * 128 + j)).expect("no guards");
                    memory[*codes as usize].write(at as usize, Float(numerics::e4m3_to_f32(code)));
                }
            }
            Vec::new()
        }
    }
}

/// Folds in f64.
fn fold(op: Fold, kind: Kind, values: impl Iterator<Item = Scalar>) -> Scalar {
    if kind == Kind::Int {
        let ints = values.map(Scalar::int);
        return Int(match op {
            Fold::Sum => ints.fold(0, i64::wrapping_add),
            Fold::Prod => ints.fold(1, i64::wrapping_mul),
            Fold::Max => ints.fold(i64::MIN, i64::max),
            Fold::Min => ints.fold(i64::MAX, i64::min),
        });
    }
    let floats = values.map(|x| f64::from(x.float()));
    let nan = |take: bool, a: f64, b: f64| if a.is_nan() || (take && !b.is_nan()) { a } else { b };
    Float(match op {
        Fold::Sum => floats.sum::<f64>(),
        Fold::Prod => floats.product::<f64>(),
        Fold::Max => floats.fold(f64::NEG_INFINITY, |a, b| nan(a > b, a, b)),
        Fold::Min => floats.fold(f64::INFINITY, |a, b| nan(a < b, a, b)),
    } as f32)
}

/// erf in f64: the series near 0, the continued fraction of erfc beyond.
pub(super) fn erf(x: f64) -> f64 {
    let t = x.abs();
    if t < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    (1.0 - erfc(t)).copysign(x)
}

/// erfc in f64 for arguments from 2 up.
pub(super) fn erfc(t: f64) -> f64 {
    let fraction = (1..=100).rev().fold(t, |f, n| t + f64::from(n) / 2.0 / f);
    (-t * t).exp() / (fraction * std::f64::consts::PI.sqrt())
}

/// A unary operator in f64, rounded once.
pub(crate) fn unary_f64(op: Unary, x: f64) -> f64 {
    let phi = |x: f64| {
        let y = x * std::f64::consts::FRAC_1_SQRT_2;
        if y < -2.0 { 0.5 * erfc(-y) } else { 0.5 * (1.0 + erf(y)) }
    };
    let tanh_inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    // (1 + tanh(u)) / 2 without cancellation.
    let gate = |x: f64| 1.0 / (1.0 + (-2.0 * tanh_inner(x)).exp());
    match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign if x > 0.0 => 1.0,
        Unary::Sign if x < 0.0 => -1.0,
        Unary::Sign => x,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Log1p => x.ln_1p(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Recip => 1.0 / x,
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Asinh => x.asinh(),
        Unary::Acosh => x.acosh(),
        Unary::Atanh => x.atanh(),
        Unary::Tanh => x.tanh(),
        Unary::Erf => erf(x),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        // Limits, where the formulas have infinity times 0.
        Unary::GeluErf | Unary::GeluTanh if x == f64::NEG_INFINITY => 0.0,
        Unary::GeluErfGrad | Unary::GeluTanhGrad if x.is_infinite() => f64::from(u8::from(x > 0.0)),
        Unary::GeluErf => x * phi(x),
        Unary::GeluErfGrad => phi(x) + x * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt(),
        Unary::GeluTanh => x * gate(x),
        Unary::GeluTanhGrad => {
            let slope = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
            gate(x) + x * gate(x) * (1.0 - gate(x)) * slope
        }
        Unary::Not | Unary::IsNan | Unary::IsInf => unreachable!("not a float function"),
    }
}

fn unary(op: Unary, x: Scalar) -> Scalar {
    match (op, x) {
        (Unary::Not, x) => Bool(!x.truth()),
        (Unary::IsNan, x) => Bool(x.float().is_nan()),
        (Unary::IsInf, x) => Bool(x.float().is_infinite()),
        (Unary::Neg, Int(i)) => Int(i.wrapping_neg()),
        (Unary::Abs, Int(i)) => Int(i.wrapping_abs()),
        (Unary::Sign, Int(i)) => Int(i.signum()),
        (op, x) => Float(unary_f64(op, f64::from(x.float())) as f32),
    }
}

fn binary(op: Binary, x: Scalar, y: Scalar) -> Scalar {
    use Binary::*;
    match (op, x, y) {
        (Eq, x, y) => Bool(x == y),
        (Ne, x, y) => Bool(x != y),
        (And, x, y) => Bool(x.truth() && y.truth()),
        (Or, x, y) => Bool(x.truth() || y.truth()),
        (Xor, x, y) => Bool(x.truth() != y.truth()),
        (op, Int(x), Int(y)) => binary_int(op, x, y),
        (op, x, y) => binary_float(op, x.float(), y.float()),
    }
}

fn binary_int(op: Binary, x: i64, y: i64) -> Scalar {
    use Binary::*;
    Int(match op {
        Lt => return Bool(x < y),
        Le => return Bool(x <= y),
        Gt => return Bool(x > y),
        Ge => return Bool(x >= y),
        Add => x.wrapping_add(y),
        Sub => x.wrapping_sub(y),
        Mul => x.wrapping_mul(y),
        Min => x.min(y),
        Max => x.max(y),
        Div | Mod | Fmod if y == 0 => 0,
        Div => x.wrapping_div(y),
        Fmod => x.wrapping_rem(y),
        Mod => {
            x.wrapping_sub(y.wrapping_mul((i128::from(x)).div_euclid(i128::from(y)) as i64))
                + if x.wrapping_rem(y) != 0 && y < 0 { y } else { 0 }
        }
        Pow if y >= 0 => (0..y).fold(1, |p: i64, _| p.wrapping_mul(x)),
        Pow => (x as f64).powi(y.max(-100) as i32) as i64,
        _ => unreachable!("handled above"),
    })
}

fn binary_float(op: Binary, x: f32, y: f32) -> Scalar {
    use Binary::*;
    Float(match op {
        Lt => return Bool(x < y),
        Le => return Bool(x <= y),
        Gt => return Bool(x > y),
        Ge => return Bool(x >= y),
        Add => x + y,
        Sub => x - y,
        Mul => x * y,
        Div => x / y,
        Min | Max if x.is_nan() || y.is_nan() => f32::NAN,
        Min => x.min(y),
        Max => x.max(y),
        Pow => f64::from(x).powf(f64::from(y)) as f32,
        Fmod => x % y,
        Mod => {
            let r = x % y;
            if r != 0.0 && r.is_sign_negative() != y.is_sign_negative() { r + y } else { r }
        }
        _ => unreachable!("handled above"),
    })
}
