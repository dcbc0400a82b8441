//! The update epoch: row programs that change parameters and optimizer state in place.
//!
//! Every number that the trainer sets is loaded from the control block; what is computed from it alone is computed once a row.

use super::{At, Draft, Fault};
use crate::graph::{Op, ValueId};
use crate::lower::tidy::tidy;
use crate::quantity::Flops;
use fp8c_kernels::program::{Access, Arg, Binary, Kernel, Kind, Literal, Mode, RowProgram, Stmt, Unary, Var};
use fp8c_runtime::plan::Control;

/// PyTorch's `clip_grad_norm_` adds this to the norm.
const CLIP_EPS: f32 = 1e-6;

/// A program over the elements of one tensor, or over one point.
struct Update<'s, 'a> {
    at: At<'s, 'a>,
    elements: u64,
    args: Vec<Arg>,
    owners: Vec<ValueId>,
    body: Vec<Stmt>,
}

impl<'s, 'a> Update<'s, 'a> {
    fn new(at: At<'s, 'a>, elements: u64) -> Self {
        Update { at, elements, args: vec![], owners: vec![], body: vec![] }
    }

    /// Makes an input an argument; one that must be written may not be a buffer that outlives the step unchanged.
    fn arg(&mut self, input: usize, mode: Mode) -> Result<u32, Fault> {
        let owner = self.at.whole(input)?;
        if mode == Mode::Update {
            writable(self.at, input, owner)?;
        }
        let ty = self.at.scene.graph().ty(owner);
        self.args.push(Arg { dtype: ty.dtype, elements: ty.elements(), mode });
        self.owners.push(owner);
        Ok(self.args.len() as u32 - 1)
    }

    fn push(&mut self, stmt: Stmt) -> Var {
        self.body.push(stmt);
        Var(self.body.len() as u32 - 1)
    }

    fn element(&self) -> Access {
        Access { offset: 0, strides: vec![1], guards: vec![] }
    }

    fn load(&mut self, arg: u32) -> Var {
        let access = self.element();
        self.push(Stmt::Load { arg, access, indexed: None })
    }

    /// Element `at` of a small tensor.
    fn scalar(&mut self, arg: u32, at: usize) -> Var {
        self.push(Stmt::Load { arg, access: Access { offset: at as i64, strides: vec![0], guards: vec![] }, indexed: None })
    }

    fn store(&mut self, arg: u32, x: Var) {
        let access = self.element();
        self.push(Stmt::Store { arg, access, x });
    }

    fn float(&mut self, x: f32) -> Var {
        self.push(Stmt::Const { kind: Kind::Float, value: Literal::float(x) })
    }

    fn un(&mut self, op: Unary, x: Var) -> Var {
        self.push(Stmt::Unary { op, x })
    }

    fn bin(&mut self, op: Binary, x: Var, y: Var) -> Var {
        self.push(Stmt::Binary { op, x, y })
    }

    fn mul(&mut self, x: Var, y: Var) -> Var {
        self.bin(Binary::Mul, x, y)
    }

    fn add(&mut self, x: Var, y: Var) -> Var {
        self.bin(Binary::Add, x, y)
    }

    fn sub(&mut self, x: Var, y: Var) -> Var {
        self.bin(Binary::Sub, x, y)
    }

    /// `1 - x`
    fn rest(&mut self, x: Var) -> Var {
        let one = self.float(1.0);
        self.sub(one, x)
    }

    /// `x * a + y * b`
    fn mix(&mut self, x: Var, a: Var, y: Var, b: Var) -> Var {
        let (p, q) = (self.mul(x, a), self.mul(y, b));
        self.add(p, q)
    }

    /// Stores `new` where the gradient is finite, else what was there.
    fn keep_or_store(&mut self, finite: Var, arg: u32, new: Var, old: Var) {
        let x = self.push(Stmt::Select { c: finite, x: new, y: old });
        self.store(arg, x);
    }

    fn draft(self, row_dims: u32) -> Draft {
        let program = RowProgram { space: vec![self.elements], row_dims, args: self.args, body: self.body };
        Draft { kernel: Kernel::Row(tidy(program)), owners: self.owners, flops: Flops(0) }
    }
}

/// Refuses to write an input in place that is fixed, or whose old value is still wanted.
fn writable(at: At, input: usize, owner: ValueId) -> Result<(), Fault> {
    let base = at.scene.base(at.inputs()[input]);
    let wanted = || at.scene.pinned[base.index()] || at.scene.readers[base.index()].iter().any(|&r| r > at.n);
    match at.scene.def(owner).1.op {
        Op::Parameter(_) | Op::State { .. } | Op::Control => Ok(()),
        Op::Constant(_) | Op::Input { .. } | Op::DecayOf(_) => Err(at.copy(input)),
        _ if wanted() => Err(at.copy(input)),
        _ => Ok(()),
    }
}

/// What the optimizers share: the arguments' values and the scaled gradient.
struct Common {
    p: Var,
    p_arg: u32,
    g: Var,
    finite: Var,
    rate: Var,
    /// Rate of weight decay of this parameter.
    decay: Var,
}

fn common(u: &mut Update, control: u32, decay: u32, p_arg: u32, g_arg: u32) -> Common {
    let (finite, zero) = (u.scalar(control, Control::FINITE), u.float(0.0));
    let finite = u.bin(Binary::Ne, finite, zero);
    let multiplier = u.scalar(control, Control::GRAD_MULTIPLIER);
    let rate = u.scalar(control, Control::LEARNING_RATE);
    let (all, own) = (u.scalar(control, Control::WEIGHT_DECAY), u.scalar(decay, 0));
    let decay = u.mul(all, own);
    let (p, raw) = (u.load(p_arg), u.load(g_arg));
    let g = u.mul(raw, multiplier);
    Common { p, p_arg, g, finite, rate, decay }
}

/// `p * (1 - rate * decay)`
fn decayed(u: &mut Update, c: &Common) -> Var {
    let taken = u.mul(c.rate, c.decay);
    let kept = u.rest(taken);
    u.mul(c.p, kept)
}

/// Inputs p, g, m, v, control, decay.
pub(super) fn adam_w(at: At) -> Result<Draft, Fault> {
    let mut u = Update::new(at, at.scene.elements(at.inputs()[0]));
    let (p, g) = (u.arg(0, Mode::Update)?, u.arg(1, Mode::Read)?);
    let (m_arg, v_arg) = (u.arg(2, Mode::Update)?, u.arg(3, Mode::Update)?);
    let (control, decay) = (u.arg(4, Mode::Read)?, u.arg(5, Mode::Read)?);
    let c = common(&mut u, control, decay, p, g);
    let (b1, b2) = (u.scalar(control, Control::BETA1), u.scalar(control, Control::BETA2));
    let (r1, r2) = (u.rest(b1), u.rest(b2));
    let correction = u.scalar(control, Control::CORRECTION1);
    let step = u.bin(Binary::Div, c.rate, correction);
    let correction = u.scalar(control, Control::CORRECTION2);
    let spread = u.un(Unary::Recip, correction);
    let eps = u.scalar(control, Control::EPS);
    let (old_m, old_v) = (u.load(m_arg), u.load(v_arg));
    let m = u.mix(old_m, b1, c.g, r1);
    let square = u.mul(c.g, c.g);
    let v = u.mix(old_v, b2, square, r2);
    let root = u.un(Unary::Sqrt, v);
    let root = u.mul(root, spread);
    let below = u.add(root, eps);
    let above = u.mul(m, step);
    let change = u.bin(Binary::Div, above, below);
    let kept = decayed(&mut u, &c);
    let new = u.sub(kept, change);
    u.keep_or_store(c.finite, c.p_arg, new, c.p);
    u.keep_or_store(c.finite, m_arg, m, old_m);
    u.keep_or_store(c.finite, v_arg, v, old_v);
    Ok(u.draft(1))
}

/// Inputs p, g, m, control, decay. Decay goes through the gradient.
pub(super) fn sgd(at: At) -> Result<Draft, Fault> {
    let (mut u, c, m_arg, control) = with_momentum(at)?;
    let beta = u.scalar(control, Control::BETA1);
    let old = u.load(m_arg);
    let (kept, pull) = (u.mul(old, beta), u.mul(c.p, c.decay));
    let pulled = u.add(kept, c.g);
    let m = u.add(pulled, pull);
    let change = u.mul(m, c.rate);
    let new = u.sub(c.p, change);
    u.keep_or_store(c.finite, c.p_arg, new, c.p);
    u.keep_or_store(c.finite, m_arg, m, old);
    Ok(u.draft(1))
}

/// Inputs p, g, m, control, decay.
pub(super) fn lion(at: At) -> Result<Draft, Fault> {
    let (mut u, c, m_arg, control) = with_momentum(at)?;
    let (b1, b2) = (u.scalar(control, Control::BETA1), u.scalar(control, Control::BETA2));
    let (r1, r2) = (u.rest(b1), u.rest(b2));
    let old = u.load(m_arg);
    let toward = u.mix(old, b1, c.g, r1);
    let sign = u.un(Unary::Sign, toward);
    let change = u.mul(sign, c.rate);
    let kept = decayed(&mut u, &c);
    let new = u.sub(kept, change);
    let m = u.mix(old, b2, c.g, r2);
    u.keep_or_store(c.finite, c.p_arg, new, c.p);
    u.keep_or_store(c.finite, m_arg, m, old);
    Ok(u.draft(1))
}

fn with_momentum<'s, 'a>(at: At<'s, 'a>) -> Result<(Update<'s, 'a>, Common, u32, u32), Fault> {
    let mut u = Update::new(at, at.scene.elements(at.inputs()[0]));
    let (p, g, m) = (u.arg(0, Mode::Update)?, u.arg(1, Mode::Read)?, u.arg(2, Mode::Update)?);
    let (control, decay) = (u.arg(3, Mode::Read)?, u.arg(4, Mode::Read)?);
    let c = common(&mut u, control, decay, p, g);
    Ok((u, c, m, control))
}

/// Inputs buffer, g.
pub(super) fn accumulate(at: At) -> Result<Draft, Fault> {
    let mut u = Update::new(at, at.scene.elements(at.inputs()[0]));
    let (buffer, g) = (u.arg(0, Mode::Update)?, u.arg(1, Mode::Read)?);
    let (old, x) = (u.load(buffer), u.load(g));
    let sum = u.add(old, x);
    u.store(buffer, sum);
    Ok(u.draft(1))
}

/// Inputs control, sum.
pub(super) fn finish_norm(at: At, accumulation: u32) -> Result<Draft, Fault> {
    let mut u = Update::new(at, 1);
    let (control, sum) = (u.arg(0, Mode::Update)?, u.arg(1, Mode::Read)?);
    let (scale, limit) = (u.scalar(control, Control::LOSS_SCALE), u.scalar(control, Control::CLIP));
    let micro = u.float(accumulation as f32);
    let scale = u.mul(scale, micro);
    let unscale = u.un(Unary::Recip, scale);
    let sum = u.scalar(sum, 0);
    let root = u.un(Unary::Sqrt, sum);
    let norm = u.mul(root, unscale);
    let (nan, inf) = (u.un(Unary::IsNan, norm), u.un(Unary::IsInf, norm));
    let broken = u.bin(Binary::Or, nan, inf);
    let (one, zero, eps) = (u.float(1.0), u.float(0.0), u.float(CLIP_EPS));
    let finite = u.push(Stmt::Select { c: broken, x: zero, y: one });
    let above = u.add(norm, eps);
    let clip = u.bin(Binary::Div, limit, above);
    let clip = u.bin(Binary::Min, clip, one);
    let multiplier = u.mul(clip, unscale);
    for (at, x) in [(Control::GRAD_NORM, norm), (Control::FINITE, finite), (Control::GRAD_MULTIPLIER, multiplier)] {
        let access = Access { offset: at as i64, strides: vec![0], guards: vec![] };
        u.push(Stmt::Store { arg: control, access, x });
    }
    Ok(u.draft(1))
}
