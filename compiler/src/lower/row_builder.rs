//! Row programs for sets of nodes: every stored value is demanded over the space, and its operands follow.

use super::access::{self, Blocked};
use super::scene::{Class, Scene};
use crate::graph::{Expr, ExprNode, NodeId, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::*;
use std::collections::{BTreeMap, HashMap};

/// Why a set of nodes makes no row program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No affine access reaches through this value: it needs a buffer of its own.
    Blocked(ValueId),
    /// The nodes do not agree on rows, or one would be computed more often than before.
    Misaligned,
    TooLarge,
}

/// Bounds on a program, so that a GPU keeps its variables in registers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub loads: usize,
    pub statements: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { loads: 24, statements: 64 }
    }
}

/// A program and the values whose buffers are its arguments.
#[derive(Clone, Debug)]
pub(super) struct Built {
    pub program: RowProgram,
    pub owners: Vec<ValueId>,
}

/// An iteration space as runs of axes in row-major order: extent, and whether the run is folded.
pub(super) type Runs = Vec<(u64, bool)>;

/// One dimension of the space, with the strides of row-major tensors over all dimensions and over those that are not folded.
#[derive(Clone, Copy, Debug)]
struct Dim {
    extent: u64,
    tile: i64,
    row: i64,
    folded: bool,
}

/// Dimensions of a space, folded ones last.
fn dims(runs: &Runs) -> Vec<Dim> {
    let (mut tile, mut row) = (1, 1);
    let mut dims: Vec<Dim> = vec![];
    for &(extent, folded) in runs.iter().rev() {
        dims.push(Dim { extent, tile, row: if folded { 0 } else { row }, folded });
        tile *= extent as i64;
        row *= if folded { 1 } else { extent as i64 };
    }
    dims.reverse();
    dims.sort_by_key(|d| d.folded);
    dims
}

/// Builds the program that computes `stored` over a space, with `nodes` as the ones it may compute.
///
/// # Errors
/// A [`Refusal`].
pub(super) fn build(scene: &Scene, nodes: &[NodeId], stored: &[ValueId], runs: &Runs, limits: Limits) -> Result<Built, Refusal> {
    let mut dims = dims(runs);
    loop {
        let mut b = Builder::new(scene, nodes, &dims, limits);
        match stored.iter().try_for_each(|&v| b.store(v)) {
            Ok(()) => return b.finish(),
            Err(Stop::Refused(r)) => return Err(r),
            Err(Stop::Split { dim, inner }) => {
                let d = dims[dim];
                let outer = Dim { extent: d.extent / inner, tile: d.tile * inner as i64, row: d.row * inner as i64, ..d };
                dims.splice(dim..=dim, [outer, Dim { extent: inner, ..d }]);
            }
        }
    }
}

enum Stop {
    Split { dim: usize, inner: u64 },
    Refused(Refusal),
}

struct Builder<'s, 'a> {
    scene: &'s Scene<'a>,
    nodes: &'s [NodeId],
    dims: &'s [Dim],
    space: Vec<u64>,
    limits: Limits,
    body: Vec<Stmt>,
    kinds: Vec<Kind>,
    known: HashMap<Stmt, Var>,
    values: HashMap<(ValueId, Access), Var>,
    /// The access at which each computed value is computed.
    computed: BTreeMap<ValueId, Access>,
    args: Vec<Arg>,
    owners: Vec<ValueId>,
    loads: usize,
}

impl<'s, 'a> Builder<'s, 'a> {
    fn new(scene: &'s Scene<'a>, nodes: &'s [NodeId], dims: &'s [Dim], limits: Limits) -> Self {
        Builder {
            scene,
            nodes,
            dims,
            space: dims.iter().map(|d| d.extent).collect(),
            limits,
            body: vec![],
            kinds: vec![],
            known: HashMap::new(),
            values: HashMap::new(),
            computed: BTreeMap::new(),
            args: vec![],
            owners: vec![],
            loads: 0,
        }
    }

    fn whole(&self) -> Access {
        self.unguarded(self.dims.iter().map(|d| d.tile).collect())
    }

    fn rows(&self) -> Access {
        self.unguarded(self.dims.iter().map(|d| d.row).collect())
    }

    fn unguarded(&self, mut strides: Vec<i64>) -> Access {
        strides.iter_mut().zip(&self.space).filter(|(_, e)| **e == 1).for_each(|(s, _)| *s = 0);
        Access { offset: 0, strides, guards: vec![] }
    }

    /// The access at which a value of the space, or of its rows, is stored.
    fn own_access(&self, v: ValueId) -> Result<Access, Stop> {
        let elements = self.scene.elements(v);
        let rows: u64 = self.dims.iter().filter(|d| !d.folded).map(|d| d.extent).product();
        match elements {
            n if n == self.space.iter().product::<u64>() => Ok(self.whole()),
            n if n == rows => Ok(self.rows()),
            _ => Err(Stop::Refused(Refusal::Misaligned)),
        }
    }

    fn store(&mut self, v: ValueId) -> Result<(), Stop> {
        let access = self.own_access(v)?;
        let x = self.value(v, &access)?;
        let (owner, access) = self.scene.placed(v, access, &self.space).map_err(|b| stop(b, v))?;
        let arg = self.arg(owner, Mode::Write)?;
        self.push(Stmt::Store { arg, access, x })?;
        Ok(())
    }

    /// The variable that holds a value at an access.
    fn value(&mut self, v: ValueId, access: &Access) -> Result<Var, Stop> {
        let mut access = access.clone();
        access.strides.iter_mut().zip(&self.space).filter(|(_, e)| **e == 1).for_each(|(s, _)| *s = 0);
        let key = (v, access.clone());
        if let Some(&x) = self.values.get(&key) {
            return Ok(x);
        }
        let (n, node) = self.scene.def(v);
        let x = if node.op.is_view() {
            let from = node.inputs[0];
            let next = access::through(&node.op, &access, &self.space, self.scene.shape(v), self.scene.shape(from));
            let next = next.unwrap_or(Err(Blocked::Opaque)).map_err(|b| stop(b, v))?;
            self.value(from, &next)?
        } else if let Some(constant) = uniform(&node.op) {
            let x = self.constant(constant.0, constant.1)?;
            self.guarded(x, &access)?
        } else if self.scene.class_of(n) == Class::Inline || self.nodes.contains(&n) {
            let bare = Access { guards: vec![], ..access.clone() };
            let bare = if bare_is_inside(&bare, &self.space, self.scene.elements(v)) { bare } else { access.clone() };
            let x = self.compute(v, n, &bare)?;
            self.guarded(x, &access)?
        } else {
            self.load(v, access, None)?
        };
        self.values.insert(key, x);
        Ok(x)
    }

    fn load(&mut self, v: ValueId, access: Access, indexed: Option<Indexed>) -> Result<Var, Stop> {
        let (owner, access) = self.scene.placed(v, access, &self.space).map_err(|b| stop(b, v))?;
        let arg = self.arg(owner, Mode::Read)?;
        self.push(Stmt::Load { arg, access, indexed })
    }

    /// Position of a buffer among the arguments. A program does not read a buffer that it writes.
    fn arg(&mut self, owner: ValueId, mode: Mode) -> Result<u32, Stop> {
        if let Some(i) = self.owners.iter().position(|&o| o == owner) {
            return if self.args[i].mode == mode { Ok(i as u32) } else { Err(Stop::Refused(Refusal::Blocked(owner))) };
        }
        let ty = self.scene.graph().ty(owner);
        self.args.push(Arg { dtype: ty.dtype, elements: ty.elements(), mode });
        self.owners.push(owner);
        Ok(self.args.len() as u32 - 1)
    }

    fn push(&mut self, stmt: Stmt) -> Result<Var, Stop> {
        if let Some(&x) = self.known.get(&stmt) {
            return Ok(x);
        }
        self.loads += matches!(stmt, Stmt::Load { .. }) as usize;
        if self.loads > self.limits.loads || self.body.len() >= 2 * self.limits.statements {
            return Err(Stop::Refused(Refusal::TooLarge));
        }
        let kind = |x: &Var| self.kinds[x.0 as usize];
        let kind = match &stmt {
            Stmt::Load { arg, .. } => Kind::from(self.args[*arg as usize].dtype),
            Stmt::Const { kind, .. } => *kind,
            Stmt::Index { .. } => Kind::Int,
            Stmt::Unary { op, x } => op.result_kind(kind(x)).unwrap_or(Kind::Float),
            Stmt::Binary { op, x, .. } => op.result_kind(kind(x)).unwrap_or(Kind::Float),
            Stmt::Select { x, .. } | Stmt::Reduce { x, .. } => kind(x),
            Stmt::Cast { to, .. } => Kind::from(*to),
            Stmt::Store { x, .. } | Stmt::Accumulate { x, .. } | Stmt::StoreQuantized { x, .. } => kind(x),
        };
        let x = Var(self.body.len() as u32);
        self.known.insert(stmt.clone(), x);
        self.body.push(stmt);
        self.kinds.push(kind);
        Ok(x)
    }

    fn constant(&mut self, kind: Kind, value: Literal) -> Result<Var, Stop> {
        self.push(Stmt::Const { kind, value })
    }

    /// A computed value is zero outside the guards of its access.
    fn guarded(&mut self, mut x: Var, access: &Access) -> Result<Var, Stop> {
        for g in &access.guards {
            let at = self.push(Stmt::Index { dim: g.dim })?;
            let mut inside = vec![];
            if g.lower > 0 {
                let y = self.constant(Kind::Int, Literal::Int(g.lower))?;
                inside.push(self.push(Stmt::Binary { op: Binary::Ge, x: at, y })?);
            }
            if g.upper < self.space[g.dim as usize] as i64 {
                let y = self.constant(Kind::Int, Literal::Int(g.upper))?;
                inside.push(self.push(Stmt::Binary { op: Binary::Lt, x: at, y })?);
            }
            let kind = self.kinds[x.0 as usize];
            for c in inside {
                let y = self.constant(kind, if kind == Kind::Float { Literal::float(0.0) } else { Literal::Int(0) })?;
                x = self.push(Stmt::Select { c, x, y })?;
            }
        }
        Ok(x)
    }

    fn compute(&mut self, v: ValueId, n: NodeId, access: &Access) -> Result<Var, Stop> {
        let node = self.scene.graph().node(n);
        if self.scene.class_of(n) != Class::Inline {
            self.once(v, access)?;
        }
        let dtype = self.scene.graph().ty(v).dtype;
        let x = match &node.op {
            Op::Map(expr, _) => self.map(expr, v, &node.inputs, access)?,
            Op::Iota { shape, axis } => self.iota(v, access, shape, *axis)?,
            Op::Take => self.take(v, &node.inputs, access)?,
            Op::Reduce { op, .. } => {
                if access.strides != self.rows().strides || access.offset != 0 || !access.guards.is_empty() {
                    return Err(Stop::Refused(Refusal::Misaligned));
                }
                let whole = self.whole();
                if self.scene.elements(node.inputs[0]) != self.space.iter().product::<u64>() {
                    return Err(Stop::Refused(Refusal::Misaligned));
                }
                let x = self.value(node.inputs[0], &whole)?;
                self.push(Stmt::Reduce { op: *op, x })?
            }
            _ => return Err(Stop::Refused(Refusal::Misaligned)),
        };
        self.rounded(x, dtype, matches!(node.op, Op::Take | Op::Iota { .. }))
    }

    /// Refuses to compute a value at two accesses, or once for many points that share it.
    fn once(&mut self, v: ValueId, access: &Access) -> Result<(), Stop> {
        let fresh = self.computed.entry(v).or_insert_with(|| access.clone());
        let shared = (0..self.space.len()).any(|d| !self.dims[d].folded && self.space[d] > 1 && access.strides[d] == 0);
        let row = self.dims.iter().zip(&access.strides).any(|(d, &s)| d.folded && s != 0 && d.extent > 1);
        let folded = self.dims.iter().any(|d| d.folded);
        let partly = folded && row && self.dims.iter().zip(&access.strides).any(|(d, &s)| d.folded && d.extent > 1 && s == 0);
        if fresh != access || shared || partly { Err(Stop::Refused(Refusal::Misaligned)) } else { Ok(()) }
    }

    /// Rounds a variable to a value's dtype; what comes from a buffer of that dtype is rounded already.
    fn rounded(&mut self, x: Var, dtype: DType, stored: bool) -> Result<Var, Stop> {
        let same_kind = self.kinds[x.0 as usize] == Kind::from(dtype);
        match dtype {
            DType::F32 | DType::I64 | DType::Bool if same_kind => Ok(x),
            _ if stored && same_kind => Ok(x),
            to => self.push(Stmt::Cast { x, to }),
        }
    }

    fn map(&mut self, expr: &Expr, v: ValueId, inputs: &[ValueId], access: &Access) -> Result<Var, Stop> {
        let to = self.scene.shape(v);
        let mut vars: Vec<Var> = vec![];
        for node in &expr.body {
            let var = |i: &u32| vars[*i as usize];
            let x = match node {
                ExprNode::Operand(i) => {
                    let operand = inputs[*i as usize];
                    let access = access::broadcast(access, &self.space, to, self.scene.shape(operand)).map_err(|b| stop(b, v))?;
                    self.value(operand, &access)?
                }
                ExprNode::Const { kind, value } => self.constant(*kind, *value)?,
                ExprNode::Unary(op, x) => self.push(Stmt::Unary { op: *op, x: var(x) })?,
                ExprNode::Binary(op, x, y) => self.push(Stmt::Binary { op: *op, x: var(x), y: var(y) })?,
                ExprNode::Select(c, x, y) => self.push(Stmt::Select { c: var(c), x: var(x), y: var(y) })?,
                ExprNode::Cast(x, to) => self.push(Stmt::Cast { x: var(x), to: *to })?,
            };
            vars.push(x);
        }
        vars.last().copied().ok_or(Stop::Refused(Refusal::Misaligned))
    }

    fn iota(&mut self, v: ValueId, access: &Access, shape: &[u64], axis: usize) -> Result<Var, Stop> {
        let axes = access::axes(access, &self.space, shape).map_err(|b| stop(b, v))?;
        let mut sum: Option<Var> = None;
        for (d, &c) in axes[axis].coefficients.iter().enumerate().filter(|(_, c)| **c != 0) {
            let mut x = self.push(Stmt::Index { dim: d as u32 })?;
            if c != 1 {
                let y = self.constant(Kind::Int, Literal::Int(c))?;
                x = self.push(Stmt::Binary { op: Binary::Mul, x, y })?;
            }
            sum = Some(match sum {
                Some(y) => self.push(Stmt::Binary { op: Binary::Add, x, y })?,
                None => x,
            });
        }
        let offset = axes[axis].offset;
        match sum {
            Some(x) if offset == 0 => Ok(x),
            Some(x) => {
                let y = self.constant(Kind::Int, Literal::Int(offset))?;
                self.push(Stmt::Binary { op: Binary::Add, x, y })
            }
            None => self.constant(Kind::Int, Literal::Int(offset)),
        }
    }

    fn take(&mut self, v: ValueId, inputs: &[ValueId], access: &Access) -> Result<Var, Stop> {
        let (data, index) = (inputs[0], inputs[1]);
        let axes = access::axes(access, &self.space, self.scene.shape(v)).map_err(|b| stop(b, v))?;
        let base = self.scene.base(data);
        if self.nodes.contains(&self.scene.def(base).0) {
            return Err(Stop::Refused(Refusal::Misaligned));
        }
        if !self.scene.is_contiguous(data) {
            return Err(Stop::Refused(Refusal::Blocked(data)));
        }
        let (extent, inner) = (self.scene.shape(data)[1] as i64, self.scene.shape(data)[2] as i64);
        let steps: Vec<i64> = access::row_major(self.scene.shape(index));
        let steps: Vec<i64> = steps.iter().zip(self.scene.shape(index)).map(|(&s, &e)| if e == 1 { 0 } else { s }).collect();
        let at = access::linear(&axes, &steps, 0, &access.guards, self.space.len());
        let index = self.value(index, &at)?;
        let access = access::linear(&axes, &[extent * inner, 0, 1], 0, &access.guards, self.space.len());
        let owner = self.scene.place(base).owner;
        let arg = self.arg(owner, Mode::Read)?;
        self.push(Stmt::Load { arg, access, indexed: Some(Indexed { index, stride: inner, bound: extent }) })
    }

    fn finish(self) -> Result<Built, Refusal> {
        let folded = self.dims.iter().filter(|d| d.folded).count();
        let program = RowProgram { space: self.space, row_dims: folded as u32, args: self.args, body: self.body };
        let program = super::tidy::tidy(program);
        if program.body.len() > self.limits.statements {
            return Err(Refusal::TooLarge);
        }
        Ok(Built { program, owners: self.owners })
    }
}

/// True if an access without its guards stays inside a tensor.
fn bare_is_inside(access: &Access, space: &[u64], elements: u64) -> bool {
    let mut bounds = (access.offset, access.offset);
    for (s, &e) in access.strides.iter().zip(space) {
        let span = s * (e as i64 - 1).max(0);
        bounds = (bounds.0 + span.min(0), bounds.1 + span.max(0));
    }
    bounds.0 >= 0 && bounds.1 < elements as i64
}

fn stop(blocked: Blocked, v: ValueId) -> Stop {
    match blocked {
        Blocked::Split { dim, inner } => Stop::Split { dim, inner },
        Blocked::Opaque => Stop::Refused(Refusal::Blocked(v)),
    }
}

/// The one value of a constant whose elements are all alike.
fn uniform(op: &Op) -> Option<(Kind, Literal)> {
    let Op::Constant(data) = op else { return None };
    let size = data.ty.dtype.size() as usize;
    let first = data.bytes.get(..size)?;
    if data.bytes.len() > 1 << 16 && data.bytes[..1 << 16].chunks_exact(size).any(|c| c != first) {
        return None;
    }
    if data.bytes.chunks_exact(size).any(|c| c != first) {
        return None;
    }
    let one = crate::graph::ConstData { ty: crate::graph::TensorType::new(data.ty.dtype, []), bytes: first.to_vec() };
    Some(match data.ty.dtype.is_float() {
        true => (Kind::Float, Literal::float(one.to_f32()[0])),
        false => (Kind::from(data.ty.dtype), Literal::Int(one.to_i64()[0])),
    })
}
