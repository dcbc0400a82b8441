//! Reductions.

use super::backward::{Backward, Primal};
use super::*;
use fp8c_kernels::program::{Binary, Fold, Kind, Literal};

pub(super) fn rule(b: &mut Backward, p: &Primal, op: Fold, axes: &[usize], dy: ValueId) -> Result<(), Error> {
    let (x, y) = (p.inputs[0], p.results[0]);
    let dx = match op {
        Fold::Sum => {
            // Converted while it is small.
            let dy = b.cast(dy, b.dtype(x))?;
            let shape = b.shape(x);
            if b.shape(dy) == shape { dy } else { b.emit(Op::Broadcast(shape), &[dy])? }
        }
        Fold::Max | Fold::Min => extremum(b, x, y, axes, dy)?,
        Fold::Prod => product(b, x, axes, dy)?,
    };
    b.contribute(x, dx)
}

const ONE: ExprNode = ExprNode::Const { kind: Kind::Float, value: Literal::Float(fp8c_kernels::program::FloatBits(0x3f80_0000)) };
const ZERO: ExprNode = ExprNode::Const { kind: Kind::Float, value: Literal::Float(fp8c_kernels::program::FloatBits(0)) };

/// Each place that attains the extremum gets an equal share.
fn extremum(b: &mut Backward, x: ValueId, y: ValueId, axes: &[usize], dy: ValueId) -> Result<ValueId, Error> {
    use ExprNode::{Operand, Select};
    let attains = Expr { body: vec![Operand(0), Operand(1), ExprNode::Binary(Binary::Eq, 0, 1), ONE, ZERO, Select(2, 3, 4)] };
    let ones = b.emit(Op::Map(attains, DType::F32), &[x, y])?;
    let ties = b.sum(ones, axes.to_vec())?;
    let share = Expr {
        body: vec![
            Operand(0),
            Operand(1),
            ExprNode::Binary(Binary::Eq, 0, 1),
            Operand(2),
            Operand(3),
            ExprNode::Binary(Binary::Div, 3, 4),
            ZERO,
            Select(2, 5, 6),
        ],
    };
    b.emit(Op::Map(share, b.dtype(x)), &[x, y, dy, ties])
}

/// The product of the other factors, from the product of those that are not zero.
fn product(b: &mut Backward, x: ValueId, axes: &[usize], dy: ValueId) -> Result<ValueId, Error> {
    use ExprNode::{Operand, Select};
    let is_zero = [Operand(0), ZERO, ExprNode::Binary(Binary::Eq, 0, 1), ONE];
    let choose = |last: ExprNode| Expr { body: is_zero.iter().cloned().chain([last]).collect() };
    let nonzero = b.emit(Op::Map(choose(Select(2, 3, 0)), DType::F32), &[x])?;
    let zeros = b.emit(Op::Map(choose(Select(2, 3, 1)), DType::F32), &[x])?;
    let rest = b.emit(Op::Reduce { op: Fold::Prod, axes: axes.to_vec(), dtype: DType::F32 }, &[nonzero])?;
    let zeros = b.sum(zeros, axes.to_vec())?;
    // x, dy, rest, zeros: a factor that is zero matters when it is the only one; one that is not, when there is none.
    let body = vec![
        Operand(0),
        Operand(1),
        Operand(2),
        Operand(3),
        ZERO,
        ONE,
        ExprNode::Binary(Binary::Eq, 0, 4),
        ExprNode::Select(6, 5, 4),
        ExprNode::Binary(Binary::Eq, 3, 7),
        ExprNode::Select(6, 5, 0),
        ExprNode::Binary(Binary::Div, 2, 9),
        ExprNode::Binary(Binary::Mul, 1, 10),
        Select(8, 11, 4),
    ];
    b.emit(Op::Map(Expr { body }, b.dtype(x)), &[x, dy, rest, zeros])
}
