//! Scalar expressions, built up one operation at a time.

use crate::graph::{Expr, ExprNode};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Kind, Literal, Unary};

/// Position of an operation in the expression.
pub(super) type At = u32;

/// An expression under construction; the last operation added is its result.
#[derive(Default)]
pub(super) struct Scalar {
    body: Vec<ExprNode>,
}

impl Scalar {
    fn push(&mut self, node: ExprNode) -> At {
        self.body.push(node);
        self.body.len() as u32 - 1
    }

    pub fn operand(&mut self, i: u32) -> At {
        self.push(ExprNode::Operand(i))
    }

    pub fn float(&mut self, x: f32) -> At {
        self.push(ExprNode::Const { kind: Kind::Float, value: Literal::float(x) })
    }

    pub fn int(&mut self, i: i64) -> At {
        self.push(ExprNode::Const { kind: Kind::Int, value: Literal::Int(i) })
    }

    /// A literal of the kind of `dtype`; fractions of integers truncate.
    pub fn literal(&mut self, x: f64, dtype: DType) -> At {
        match Kind::from(dtype) {
            Kind::Float => self.float(x as f32),
            Kind::Int => self.int(x as i64),
            Kind::Bool => self.push(ExprNode::Const { kind: Kind::Bool, value: Literal::Int((x != 0.0) as i64) }),
        }
    }

    pub fn unary(&mut self, op: Unary, x: At) -> At {
        self.push(ExprNode::Unary(op, x))
    }

    pub fn binary(&mut self, op: Binary, x: At, y: At) -> At {
        self.push(ExprNode::Binary(op, x, y))
    }

    /// `op(x, c)` with a float literal.
    pub fn with(&mut self, op: Binary, x: At, c: f32) -> At {
        let c = self.float(c);
        self.binary(op, x, c)
    }

    pub fn select(&mut self, c: At, x: At, y: At) -> At {
        self.push(ExprNode::Select(c, x, y))
    }

    pub fn cast(&mut self, x: At, to: DType) -> At {
        self.push(ExprNode::Cast(x, to))
    }

    pub fn finish(self) -> Expr {
        Expr { body: self.body }
    }
}
