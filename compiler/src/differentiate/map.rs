//! Scalar expressions: reverse mode over the expression itself.

use super::backward::{Backward, Primal};
use super::*;
use crate::graph::expr::{Builder, Term, renumbered};
use fp8c_kernels::program::{Binary, Kind, Literal, Unary};

pub(super) fn rule(b: &mut Backward, p: &Primal, expr: &Expr, dy: ValueId) -> Result<(), Error> {
    let dy = b.unwidened(dy)?;
    let mut operands = Operands::of(b, p);
    let mut adjoints = adjoints(b, expr, &mut operands)?;
    let whole = b.shape(p.results[0]);
    // Whole operands first, so that a broadcast one with the same gradient (a bias) sums what is there already.
    adjoints.sort_by_key(|(slot, _)| b.shape(operands.values[*slot as usize]) != whole);
    let mut made: Vec<(Term, ValueId)> = vec![];
    for (slot, adjoint) in adjoints {
        let to = operands.values[slot as usize];
        let broadcast = b.shape(to) != whole;
        let gradient = match made.iter().find(|(term, _)| broadcast && *term == adjoint) {
            Some((_, made)) => *made,
            // What is summed over broadcast axes next stays in f32 until then.
            None => emit(b, &operands, adjoint, dy, if broadcast { DType::F32 } else { b.dtype(to) })?,
        };
        made.push((adjoint, gradient));
        b.contribute(to, gradient)?;
    }
    Ok(())
}

/// The value of an adjoint; the gradient of the result itself where it is just that.
fn emit(b: &mut Backward, operands: &Operands, adjoint: Term, dy: ValueId, dtype: DType) -> Result<ValueId, Error> {
    let (expr, used) = operands.builder.extract(adjoint);
    // The operand after the last is the result's gradient.
    let inputs: Vec<ValueId> = used.iter().map(|&o| *operands.values.get(o as usize).unwrap_or(&dy)).collect();
    if expr == Expr::identity() { Ok(inputs[0]) } else { b.emit(Op::Map(expr, dtype), &inputs) }
}

/// The values that a derivative reads: the operands, each once, then the result, then (beyond the end) the result's gradient.
struct Operands {
    builder: Builder,
    values: Vec<ValueId>,
    /// For each operand of the expression: its term, and its place in `values` if it is not a literal.
    terms: Vec<(Term, Option<u32>)>,
}

impl Operands {
    fn of(b: &Backward, p: &Primal) -> Self {
        let mut o = Operands { builder: Builder::default(), values: vec![], terms: vec![] };
        for &v in &p.inputs {
            let scalar = b.graph.constant(v).filter(|c| c.ty.dtype.is_float() && c.ty.elements() == 1);
            if let Some(c) = scalar {
                let term = o.builder.float(c.to_f32()[0]);
                o.terms.push((term, None));
                continue;
            }
            let slot = o.values.iter().position(|&have| have == v).unwrap_or(o.values.len());
            if slot == o.values.len() {
                o.values.push(v);
            }
            let term = o.builder.operand(slot as u32);
            o.terms.push((term, Some(slot as u32)));
        }
        o.values.push(p.results[0]);
        o
    }
}

/// For each operand that needs a gradient, its slot and its adjoint; those that are zero are left out.
fn adjoints(b: &Backward, expr: &Expr, o: &mut Operands) -> Result<Vec<(u32, Term)>, Error> {
    let needs = |slot: &Option<u32>| slot.is_some_and(|s| b.needs(o.values[s as usize]));
    let wanted = wanted(expr, &o.terms.iter().map(|(_, slot)| needs(slot)).collect::<Vec<_>>());
    let result = o.values.len() as u32 - 1;
    let seed = o.builder.operand(result + 1);
    let terms = import(expr, o, result);
    let mut grads: Vec<Option<Term>> = vec![None; expr.body.len()];
    if let Some(last) = grads.last_mut() {
        *last = Some(seed);
    }
    let mut found: Vec<(u32, Term)> = vec![];
    for i in (0..expr.body.len()).rev() {
        let (Some(g), true) = (grads[i], wanted[i]) else { continue };
        if let ExprNode::Operand(n) = expr.body[i] {
            let slot = o.terms[n as usize].1.expect("a wanted operand is no literal");
            match found.iter_mut().find(|(s, _)| *s == slot) {
                Some((_, sum)) => *sum = o.builder.binary(Binary::Add, *sum, g),
                None => found.push((slot, g)),
            }
            continue;
        }
        let local = Local { node: &expr.body[i], terms: &terms, y: terms[i], wanted: &wanted };
        let parts = local.partials(&mut o.builder, g).map_err(|what| b.unsupported(what))?;
        for (x, part) in parts {
            let sum = match grads[x as usize] {
                Some(before) => o.builder.binary(Binary::Add, before, part),
                None => part,
            };
            grads[x as usize] = Some(sum);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// By position of the expression: a change of a wanted operand reaches it, through floats.
fn wanted(expr: &Expr, operands: &[bool]) -> Vec<bool> {
    let mut out: Vec<bool> = vec![];
    for node in &expr.body {
        let at = |i: u32| out[i as usize];
        let now = match *node {
            ExprNode::Operand(i) => operands[i as usize],
            ExprNode::Const { .. } => false,
            ExprNode::Unary(op, x) => !is_flat(op) && at(x),
            ExprNode::Binary(op, x, y) => !is_comparison(op) && (at(x) || at(y)),
            ExprNode::Select(_, x, y) => at(x) || at(y),
            ExprNode::Cast(x, to) => to.is_float() && at(x),
        };
        out.push(now);
    }
    out
}

fn is_flat(op: Unary) -> bool {
    matches!(op, Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round | Unary::Not | Unary::IsNan | Unary::IsInf)
}

fn is_comparison(op: Binary) -> bool {
    use Binary::*;
    matches!(op, Eq | Ne | Lt | Le | Gt | Ge | And | Or | Xor)
}

/// The terms of a forward expression's positions. The last one, unless it is trivial, is the result itself.
fn import(expr: &Expr, o: &mut Operands, result: u32) -> Vec<Term> {
    let mut terms: Vec<Term> = vec![];
    for (i, node) in expr.body.iter().enumerate() {
        let trivial = matches!(node, ExprNode::Operand(_) | ExprNode::Const { .. } | ExprNode::Cast(..));
        let term = match node {
            ExprNode::Operand(n) => o.terms[*n as usize].0,
            _ if i + 1 == expr.body.len() && !trivial => o.builder.operand(result),
            _ => o.builder.push(renumbered(node, &terms)),
        };
        terms.push(term);
    }
    terms
}

/// One operation of the forward expression, seen from its adjoint.
struct Local<'a> {
    node: &'a ExprNode,
    /// Terms of the forward expression's positions.
    terms: &'a [Term],
    /// The term of this operation's value.
    y: Term,
    wanted: &'a [bool],
}

impl Local<'_> {
    /// Contributions to the adjoints of the operation's inputs, by position.
    fn partials(&self, e: &mut Builder, g: Term) -> Result<Vec<(u32, Term)>, &'static str> {
        let mut out = vec![];
        match *self.node {
            ExprNode::Operand(_) | ExprNode::Const { .. } => {}
            ExprNode::Cast(x, _) => out.push((x, g)),
            ExprNode::Unary(op, x) => out.push((x, unary(e, op, self.terms[x as usize], self.y, g)?)),
            ExprNode::Select(c, x, y) => {
                let (c, zero) = (self.terms[c as usize], e.float(0.0));
                if self.wanted[x as usize] {
                    out.push((x, e.select(c, g, zero)));
                }
                if self.wanted[y as usize] {
                    out.push((y, e.select(c, zero, g)));
                }
            }
            ExprNode::Binary(op, x, y) => {
                let (a, b) = (self.terms[x as usize], self.terms[y as usize]);
                if self.wanted[x as usize] {
                    out.extend(left(e, op, (a, b, self.y), g).map(|t| (x, t)));
                }
                if self.wanted[y as usize] {
                    out.extend(right(e, op, (a, b, self.y), g).map(|t| (y, t)));
                }
            }
        }
        Ok(out)
    }
}

/// `g * dy/dx`.
fn unary(e: &mut Builder, op: Unary, x: Term, y: Term, g: Term) -> Result<Term, &'static str> {
    let one = e.float(1.0);
    let square = |e: &mut Builder, t| e.binary(Binary::Mul, t, t);
    let slope = match op {
        Unary::Neg => return Ok(e.unary(Unary::Neg, g)),
        Unary::Abs => e.unary(Unary::Sign, x),
        Unary::Exp => y,
        Unary::Log => return Ok(e.binary(Binary::Div, g, x)),
        Unary::Log1p => {
            let d = e.binary(Binary::Add, x, one);
            return Ok(e.binary(Binary::Div, g, d));
        }
        Unary::Sqrt => {
            let (half, ratio) = (e.float(0.5), e.binary(Binary::Div, g, y));
            return Ok(e.binary(Binary::Mul, ratio, half));
        }
        Unary::Rsqrt => {
            let (c, s) = (e.float(-0.5), square(e, y));
            let cube = e.binary(Binary::Mul, s, y);
            e.binary(Binary::Mul, cube, c)
        }
        Unary::Recip => {
            let s = square(e, y);
            e.unary(Unary::Neg, s)
        }
        Unary::Tan | Unary::Tanh => {
            let s = square(e, y);
            e.binary(if op == Unary::Tan { Binary::Add } else { Binary::Sub }, one, s)
        }
        Unary::Sigmoid => {
            let rest = e.binary(Binary::Sub, one, y);
            e.binary(Binary::Mul, y, rest)
        }
        Unary::Softplus => e.unary(Unary::Sigmoid, x),
        Unary::GeluErf => e.unary(Unary::GeluErfGrad, x),
        Unary::GeluTanh => e.unary(Unary::GeluTanhGrad, x),
        Unary::Erf => {
            let s = square(e, x);
            let (n, c) = (e.unary(Unary::Neg, s), e.float(std::f32::consts::FRAC_2_SQRT_PI));
            let bell = e.unary(Unary::Exp, n);
            e.binary(Binary::Mul, bell, c)
        }
        Unary::GeluErfGrad | Unary::GeluTanhGrad => return Err("a second derivative of GELU"),
        _ => circular(e, op, x)?,
    };
    Ok(e.binary(Binary::Mul, g, slope))
}

/// Slopes of the circular and hyperbolic functions and their inverses.
fn circular(e: &mut Builder, op: Unary, x: Term) -> Result<Term, &'static str> {
    let one = e.float(1.0);
    let square = e.binary(Binary::Mul, x, x);
    Ok(match op {
        Unary::Sin => e.unary(Unary::Cos, x),
        Unary::Cos => {
            let s = e.unary(Unary::Sin, x);
            e.unary(Unary::Neg, s)
        }
        Unary::Sinh => e.unary(Unary::Cosh, x),
        Unary::Cosh => e.unary(Unary::Sinh, x),
        Unary::Asin | Unary::Acos => {
            let inside = e.binary(Binary::Sub, one, square);
            let slope = e.unary(Unary::Rsqrt, inside);
            if op == Unary::Asin { slope } else { e.unary(Unary::Neg, slope) }
        }
        Unary::Asinh | Unary::Acosh => {
            let inside = e.binary(if op == Unary::Asinh { Binary::Add } else { Binary::Sub }, square, one);
            e.unary(Unary::Rsqrt, inside)
        }
        Unary::Atan | Unary::Atanh => {
            let inside = if op == Unary::Atan { e.binary(Binary::Add, one, square) } else { e.binary(Binary::Sub, one, square) };
            e.unary(Unary::Recip, inside)
        }
        _ => return Err("a derivative of a scalar function without one"),
    })
}

/// `g * dy/da` of `y = op(a, b)`; `None` where it is zero.
fn left(e: &mut Builder, op: Binary, (a, b, y): (Term, Term, Term), g: Term) -> Option<Term> {
    Some(match op {
        Binary::Add | Binary::Sub | Binary::Mod | Binary::Fmod => g,
        Binary::Mul => e.binary(Binary::Mul, g, b),
        Binary::Div => e.binary(Binary::Div, g, b),
        Binary::Min | Binary::Max => extremum(e, op, (a, b, y), g),
        Binary::Pow => return power_base(e, (a, b, y), g),
        _ => return None,
    })
}

/// `g * dy/db` of `y = op(a, b)`; `None` where it is zero.
fn right(e: &mut Builder, op: Binary, (a, b, y): (Term, Term, Term), g: Term) -> Option<Term> {
    Some(match op {
        Binary::Add => g,
        Binary::Sub => e.unary(Unary::Neg, g),
        Binary::Mul => e.binary(Binary::Mul, g, a),
        Binary::Div => {
            let slope = e.binary(Binary::Div, y, b);
            let product = e.binary(Binary::Mul, g, slope);
            e.unary(Unary::Neg, product)
        }
        Binary::Min | Binary::Max => extremum(e, op, (b, a, y), g),
        Binary::Pow => power_exponent(e, (a, b, y), g),
        Binary::Mod | Binary::Fmod => {
            let ratio = e.binary(Binary::Div, a, b);
            let whole = e.unary(Unary::Floor, ratio);
            let whole = if op == Binary::Mod { whole } else { toward_zero(e, ratio, whole) };
            let product = e.binary(Binary::Mul, g, whole);
            e.unary(Unary::Neg, product)
        }
        _ => return None,
    })
}

fn toward_zero(e: &mut Builder, x: Term, floor: Term) -> Term {
    let (zero, ceil) = (e.float(0.0), e.unary(Unary::Ceil, x));
    let negative = e.binary(Binary::Lt, x, zero);
    e.select(negative, ceil, floor)
}

/// The gradient of `a` in `y = max(a, b)` or `min(a, b)`.
fn extremum(e: &mut Builder, op: Binary, (a, b, y): (Term, Term, Term), g: Term) -> Term {
    let beyond = if op == Binary::Max { Binary::Gt } else { Binary::Lt };
    let zero = e.float(0.0);
    if e.constant(b).is_some() {
        // The result tells as well as the operand, and a ReLU's tends to be kept.
        let passes = e.binary(beyond, if e.is_operand(y) { y } else { a }, b);
        return e.select(passes, g, zero);
    }
    let (passes, ties, half) = (e.binary(beyond, a, b), e.binary(Binary::Eq, a, b), e.float(0.5));
    let shared = e.binary(Binary::Mul, g, half);
    let otherwise = e.select(ties, shared, zero);
    e.select(passes, g, otherwise)
}

/// The gradient of the base: `g * b * a^(b - 1)`.
fn power_base(e: &mut Builder, (a, b, y): (Term, Term, Term), g: Term) -> Option<Term> {
    let slope = match e.constant(b) {
        Some(0.0) => return None,
        Some(1.0) => return Some(g),
        Some(2.0) => e.binary(Binary::Mul, a, b),
        Some(0.5) => {
            let ratio = e.binary(Binary::Div, g, y);
            return Some(e.binary(Binary::Mul, ratio, b));
        }
        Some(3.0) => {
            let square = e.binary(Binary::Mul, a, a);
            e.binary(Binary::Mul, square, b)
        }
        Some(c) => {
            let less = e.float(c - 1.0);
            let power = e.binary(Binary::Pow, a, less);
            e.binary(Binary::Mul, power, b)
        }
        None => {
            let (one, zero) = (e.float(1.0), e.float(0.0));
            let less = e.binary(Binary::Sub, b, one);
            let power = e.binary(Binary::Pow, a, less);
            let slope = e.binary(Binary::Mul, power, b);
            let flat = e.binary(Binary::Eq, b, zero);
            e.select(flat, zero, slope)
        }
    };
    Some(e.binary(Binary::Mul, g, slope))
}

/// The gradient of the exponent: `g * y * log(a)`, zero where the base is zero and the exponent is not negative.
fn power_exponent(e: &mut Builder, (a, b, y): (Term, Term, Term), g: Term) -> Term {
    let zero = e.push(ExprNode::Const { kind: Kind::Float, value: Literal::float(0.0) });
    let log = e.unary(Unary::Log, a);
    let slope = e.binary(Binary::Mul, y, log);
    let (at_zero, rising) = (e.binary(Binary::Eq, a, zero), e.binary(Binary::Ge, b, zero));
    let flat = e.binary(Binary::And, at_zero, rising);
    let slope = e.select(flat, zero, slope);
    e.binary(Binary::Mul, g, slope)
}
