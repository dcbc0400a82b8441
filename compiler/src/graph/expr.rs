//! Working on scalar expressions: building them with common subexpressions once and trivial ones not at all, and their kinds.

use super::*;
use fp8c_kernels::program::{Binary, Kind, Literal, Unary};
use std::collections::HashMap;

/// Position of a node in a [`Builder`].
pub(crate) type Term = u32;

/// A scalar expression under construction, hash-consed.
#[derive(Default)]
pub(crate) struct Builder {
    nodes: Vec<ExprNode>,
    memo: HashMap<ExprNode, Term>,
}

impl Builder {
    pub fn push(&mut self, node: ExprNode) -> Term {
        let next = self.nodes.len() as Term;
        *self.memo.entry(node.clone()).or_insert_with(|| {
            self.nodes.push(node);
            next
        })
    }

    pub fn operand(&mut self, i: u32) -> Term {
        self.push(ExprNode::Operand(i))
    }

    pub fn float(&mut self, x: f32) -> Term {
        self.push(ExprNode::Const { kind: Kind::Float, value: Literal::float(x) })
    }

    /// The value of a float literal.
    pub fn constant(&self, t: Term) -> Option<f32> {
        match &self.nodes[t as usize] {
            ExprNode::Const { kind: Kind::Float, value } => Some(value.as_f32()),
            _ => None,
        }
    }

    pub fn is_operand(&self, t: Term) -> bool {
        matches!(self.nodes[t as usize], ExprNode::Operand(_))
    }

    pub fn unary(&mut self, op: Unary, x: Term) -> Term {
        if op == Unary::Neg {
            if let ExprNode::Unary(Unary::Neg, inner) = self.nodes[x as usize] {
                return inner;
            }
            if let Some(c) = self.constant(x) {
                return self.float(-c);
            }
        }
        self.push(ExprNode::Unary(op, x))
    }

    /// Applies an operator, but for a neutral float literal; only rewrites that keep every bit of a finite result.
    pub fn binary(&mut self, op: Binary, x: Term, y: Term) -> Term {
        match (op, self.constant(x), self.constant(y)) {
            (Binary::Mul | Binary::Div, _, Some(1.0)) | (Binary::Add | Binary::Sub, _, Some(0.0)) => return x,
            (Binary::Mul, Some(1.0), _) | (Binary::Add, Some(0.0), _) => return y,
            (Binary::Mul | Binary::Div, _, Some(-1.0)) => return self.unary(Unary::Neg, x),
            (Binary::Mul, Some(-1.0), _) => return self.unary(Unary::Neg, y),
            (Binary::Sub, Some(0.0), _) => return self.unary(Unary::Neg, y),
            (Binary::Mul, Some(a), Some(b)) => return self.float(a * b),
            (Binary::Add, Some(a), Some(b)) => return self.float(a + b),
            (Binary::Sub, Some(a), Some(b)) => return self.float(a - b),
            _ => {}
        }
        self.push(ExprNode::Binary(op, x, y))
    }

    pub fn select(&mut self, c: Term, x: Term, y: Term) -> Term {
        if x == y { x } else { self.push(ExprNode::Select(c, x, y)) }
    }

    /// The nodes that `root` needs as an expression of its own, operands numbered in the order that is returned.
    pub fn extract(&self, root: Term) -> (Expr, Vec<u32>) {
        let mut live = vec![false; root as usize + 1];
        live[root as usize] = true;
        for i in (0..=root as usize).rev() {
            if live[i] {
                inputs(&self.nodes[i]).into_iter().for_each(|j| live[j as usize] = true);
            }
        }
        let (mut at, mut body, mut used) = (vec![0; live.len()], vec![], vec![]);
        for i in (0..live.len()).filter(|&i| live[i]) {
            at[i] = body.len() as u32;
            body.push(match renumbered(&self.nodes[i], &at) {
                ExprNode::Operand(o) => {
                    used.push(o);
                    ExprNode::Operand(used.len() as u32 - 1)
                }
                node => node,
            });
        }
        (Expr { body }, used)
    }
}

/// Positions that a node reads.
fn inputs(node: &ExprNode) -> Vec<u32> {
    match *node {
        ExprNode::Operand(_) | ExprNode::Const { .. } => vec![],
        ExprNode::Unary(_, x) | ExprNode::Cast(x, _) => vec![x],
        ExprNode::Binary(_, x, y) => vec![x, y],
        ExprNode::Select(c, x, y) => vec![c, x, y],
    }
}

/// The node with its inputs at other positions.
pub(crate) fn renumbered(node: &ExprNode, at: &[u32]) -> ExprNode {
    let to = |i: u32| at[i as usize];
    match *node {
        ExprNode::Operand(o) => ExprNode::Operand(o),
        ExprNode::Const { kind, value } => ExprNode::Const { kind, value },
        ExprNode::Unary(op, x) => ExprNode::Unary(op, to(x)),
        ExprNode::Cast(x, dtype) => ExprNode::Cast(to(x), dtype),
        ExprNode::Binary(op, x, y) => ExprNode::Binary(op, to(x), to(y)),
        ExprNode::Select(c, x, y) => ExprNode::Select(to(c), to(x), to(y)),
    }
}

/// The kind of each node of an expression, from its operands' dtypes.
pub(crate) fn kinds(expr: &Expr, operands: &[DType]) -> Vec<Kind> {
    let mut out: Vec<Kind> = vec![];
    for node in &expr.body {
        let kind = match *node {
            ExprNode::Operand(i) => Kind::from(operands[i as usize]),
            ExprNode::Const { kind, .. } => kind,
            ExprNode::Unary(Unary::IsNan | Unary::IsInf | Unary::Not, _) => Kind::Bool,
            ExprNode::Binary(Binary::Eq | Binary::Ne | Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge, ..) => Kind::Bool,
            ExprNode::Unary(_, x) | ExprNode::Binary(_, x, _) | ExprNode::Select(_, x, _) => out[x as usize],
            ExprNode::Cast(_, to) => Kind::from(to),
        };
        out.push(kind);
    }
    out
}
