//! The update epoch: optimizer steps, the gradient's norm, and sums of gradients.

use super::{At, Draft, Fault};
use crate::graph::{Op, OptimizeOp, ValueId};
use crate::lower::tidy::tidy;
use crate::quantity::Flops;
use fp8c_kernels::program::{Access, Arg, Binary, Kernel, Kind, Literal, Mode, RowProgram, Stmt, Unary, Update as Step, Var};
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

/// An optimizer's step; see [`Op::Optimize`].
pub(super) fn optimize(at: At, o: &OptimizeOp) -> Result<Draft, Fault> {
    let inputs = at.inputs();
    let written = |i: usize| i == 0 || (2..2 + o.states()).contains(&i);
    let mut owners = vec![];
    for i in 0..inputs.len() {
        let owner = at.whole(i)?;
        if written(i) {
            writable(at, i, owner)?;
        }
        owners.push(owner);
    }
    let dtype = |i: usize| at.scene.graph().ty(owners[i]).dtype;
    let (elements, gradient, master) = (at.scene.elements(inputs[0]), dtype(1), dtype(0));
    let step = Step { rule: o.rule, elements, gradient, master, moments: o.moments, guarded: o.guarded };
    Ok(Draft { kernel: Kernel::Update(step), owners, flops: Flops(0) })
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
