//! Gathers, scatters and prefix sums.

use super::backward::{Backward, Primal};
use super::*;
use fp8c_kernels::program::{Kind, Literal};

pub(super) fn rule(b: &mut Backward, p: &Primal, dy: ValueId) -> Result<(), Error> {
    let x = p.inputs[0];
    let dx = match &p.op {
        Op::Take => {
            let extent = b.shape(x)[1];
            let dtype = b.dtype(x);
            let dy = b.unwidened(dy)?;
            b.emit(Op::PutAdd { extent, dtype }, &[dy, p.inputs[1]])?
        }
        Op::MaskGradient => {
            use ExprNode::{Const, Operand, Select};
            let zero = Const { kind: Kind::Float, value: Literal::float(0.0) };
            let kept = Expr { body: vec![Operand(0), Operand(1), zero, Select(0, 1, 2)] };
            let dtype = b.dtype(x);
            b.emit(Op::Map(kept, dtype), &[p.inputs[1], dy])?
        }
        Op::PutAdd { .. } => b.emit(Op::Take, &[dy, p.inputs[1]])?,
        Op::CumSum { axis, exclusive, reverse } => b.emit(Op::CumSum { axis: *axis, exclusive: *exclusive, reverse: !reverse }, &[dy])?,
        _ => return Err(b.unsupported("a derivative by an index")),
    };
    b.contribute(x, dx)
}
