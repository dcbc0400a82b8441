//! Operators of the graph.

use super::ConstData;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, FloatBits, Fold, Kind, Layout, Literal, Mask, PoolOp, Rule, Unary, Window};
use std::sync::Arc;

/// An operator. Axes are non-negative and in range; shapes are result shapes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    // ---- sources: no inputs
    /// A graph input, fed at every step.
    Input {
        name: String,
    },
    /// A parameter or buffer: index into `Graph::parameters`.
    Parameter(usize),
    Constant(Arc<ConstData>),
    /// Optimizer state of a parameter (`m`, `v`), persistent, zero at first.
    State {
        parameter: usize,
        slot: u32,
        dtype: DType,
        /// One element for each group of 128 of the parameter, instead of one for each of its elements.
        grouped: bool,
    },
    /// The control block, f32 `[Control::LEN]`: learning rate, loss scale, ... (see `fp8c_runtime::plan::Control`).
    Control,
    /// Weight-decay multiplier of a parameter, f32 scalar, set by the trainer.
    DecayOf(usize),

    // ---- core
    /// A scalar expression over operands that broadcast (numpy rules) to the result shape.
    Map(Expr, DType),
    /// Folds over `axes` (kept with extent 1). Floats give f32 or the input's dtype, as `dtype` says.
    Reduce {
        op: Fold,
        axes: Vec<usize>,
        dtype: DType,
    },
    /// `[batch.., m, k] x [batch.., k, n]`; operands of equal rank >= 2; batch extents equal or 1. `trans_*` swaps an operand's last two.
    Matmul {
        trans_a: bool,
        trans_b: bool,
        dtype: DType,
    },
    Reshape(Vec<u64>),
    Transpose(Vec<usize>),
    /// Result extent `sizes[d]`, elements `starts[d] + i * steps[d]`; steps may be negative.
    Slice {
        starts: Vec<i64>,
        steps: Vec<i64>,
        sizes: Vec<u64>,
    },
    /// Zero padding (other fills are a Map after it).
    Pad {
        low: Vec<u64>,
        high: Vec<u64>,
    },
    Concat {
        axis: usize,
    },
    Broadcast(Vec<u64>),
    /// The index along `axis`, i64, of a tensor of this shape.
    Iota {
        shape: Vec<u64>,
        axis: usize,
    },
    /// Data `[o, n, i]`, index `[1|o, j, 1|i]` (i64 or i32, already non-negative) -> `[o, j, i]`.
    Take,
    /// Transpose of `Take`: source `[o, j, i]`, index -> `[o, extent, i]`, f32 sums.
    PutAdd {
        extent: u64,
        dtype: DType,
    },
    /// (x, mask bool, broadcast to x) -> x, whose derivative is zero where the mask is false: an embedding's padding row. Forward graphs
    /// only; `differentiate` takes it out.
    MaskGradient,
    CumSum {
        axis: usize,
        exclusive: bool,
        reverse: bool,
    },
    Conv(ConvOp),
    /// (dy, w) -> dx
    ConvDgrad(ConvOp),
    /// (dy, x) -> dw (f32)
    ConvWgrad(ConvOp),
    /// `[n, c, h, w]`
    Pool {
        op: PoolOp,
        window: Window,
    },
    /// (x, dy) -> dx
    PoolGrad {
        op: PoolOp,
        window: Window,
    },

    // ---- composites
    /// Over the last `axes` axes. Inputs x, scale, [bias] (both of the normalised shape). Results: y, mean (f32; layer norm only), rstd (f32),
    /// statistics with extent 1 along the normalised axes.
    Norm(NormOp),
    /// (dy, x, scale, [mean], rstd) -> dx, dscale f32, [dbias f32].
    NormGrad(NormOp),
    /// Along the last axis.
    Softmax {
        log: bool,
    },
    /// (dy, y) -> dx
    SoftmaxGrad {
        log: bool,
    },
    /// q `[b, h, s, d]`, k `[b, hk, t, d]`, v `[b, hk, t, dv]`, [bias, broadcast to `[b, h, s, t]`] -> o `[b, h, s, dv]`, lse f32 `[b, h, s, 1]`.
    Attention(AttentionOp),
    /// (q, k, v, [bias], o, lse, do) -> dq, dk, dv
    AttentionGrad(AttentionOp),
    /// x `[b, h, s, d]`, cos and sin broadcastable to it over `d = rotated`: rotates the first `rotated` of the last axis, halves
    /// paired (`interleaved`: neighbours paired), the rest unchanged. `inverse` rotates back.
    Rotary {
        rotated: u64,
        interleaved: bool,
        inverse: bool,
    },
    /// (logits `[n, c]`, labels i64 `[n]`) -> loss f32 scalar, lse f32 `[n]`. Mean or sum over labels that are not `ignore_index`.
    CrossEntropy(CrossEntropyOp),
    /// (dloss, logits, labels, lse) -> dlogits
    CrossEntropyGrad(CrossEntropyOp),

    // ---- introduced by `decide`
    /// A `[rows, cols]` matrix (leading axes flattened) -> codes, scales (and again, per layout).
    Quantize {
        layout: Layout,
        power_of_two: bool,
    },
    /// (a codes `[m, k]`, a scales, b codes `[n, k]`, b scales) -> `shape`, whose row-major matrix is `[m, n]`.
    ScaledMatmul {
        block_b: bool,
        shape: Vec<u64>,
        dtype: DType,
    },

    // ---- update epoch
    /// (gradient, sum f32 [1]) -> sum' f32 [1]: adds the gradient's sum of squares. Result aliases input 1.
    SumSquares,
    /// (control, sum) -> control': gradient norm, finite flag, clip coefficient. Result aliases input 0.
    FinishNorm {
        accumulation: u32,
    },
    /// (p, g, each moment, control, decay, [site], [sum]) -> p', each moment', aliasing; an E4M3 moment is codes and words. Leaves all
    /// untouched where control, or the sum of squares, says not finite. SGD's momentum is control's beta1.
    Optimize(OptimizeOp),
    /// (buffer, g) -> buffer', aliasing 0: gradient accumulation.
    AccumulateGradient,
}

/// A convolution's attributes; `[n, cin, h, w]`, `[cout, cin / groups, kh, kw]`, [bias `[cout]`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvOp {
    pub groups: u64,
    pub window: Window,
    pub dtype: DType,
}

/// A normalisation's attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NormOp {
    /// Subtracts the mean (layer norm) or not (RMS norm).
    pub center: bool,
    pub axes: usize,
    pub eps: FloatBits,
    pub bias: bool,
    pub dtype: DType,
}

/// Attention's attributes; the formula is in `fp8c_kernels::program::Attention`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionOp {
    pub scale: FloatBits,
    pub softcap: Option<FloatBits>,
    pub mask: Mask,
    pub bias: bool,
}

/// Cross-entropy's attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CrossEntropyOp {
    pub ignore_index: Option<i64>,
    /// Sum instead of mean.
    pub sum: bool,
    /// Of the logits and their gradient.
    pub dtype: DType,
}

/// An optimizer's step: see `fp8c_kernels::program::Update`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptimizeOp {
    pub rule: Rule,
    /// Format of the moments.
    pub moments: DType,
    /// Reads the sum of squares of the gradients so far, and does nothing where it is not finite.
    pub guarded: bool,
}

impl OptimizeOp {
    /// Inputs that hold moments.
    pub fn states(&self) -> usize {
        self.rule.moments() * if self.moments == DType::E4m3 { 2 } else { 1 }
    }
}

/// A scalar expression: nodes in SSA order, the last one is the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Expr {
    pub body: Vec<ExprNode>,
}

/// One operation of an [`Expr`]; numbers are positions in its body.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExprNode {
    Operand(u32),
    Const { kind: Kind, value: Literal },
    Unary(Unary, u32),
    Binary(Binary, u32, u32),
    Select(u32, u32, u32),
    Cast(u32, DType),
}

impl Expr {
    /// `op(x0)`
    pub fn unary(op: Unary) -> Self {
        Expr { body: vec![ExprNode::Operand(0), ExprNode::Unary(op, 0)] }
    }

    /// `op(x0, x1)`
    pub fn binary(op: Binary) -> Self {
        Expr { body: vec![ExprNode::Operand(0), ExprNode::Operand(1), ExprNode::Binary(op, 0, 1)] }
    }

    /// `op(x0, c)`
    pub fn with_constant(op: Binary, c: f32) -> Self {
        let value = Literal::float(c);
        Expr { body: vec![ExprNode::Operand(0), ExprNode::Const { kind: Kind::Float, value }, ExprNode::Binary(op, 0, 1)] }
    }

    /// `if x0 { x1 } else { x2 }`
    pub fn select() -> Self {
        let operand = ExprNode::Operand;
        Expr { body: vec![operand(0), operand(1), operand(2), ExprNode::Select(0, 1, 2)] }
    }

    /// `x0`, converted to the result's dtype.
    pub fn identity() -> Self {
        Expr { body: vec![ExprNode::Operand(0)] }
    }

    /// One more than the largest operand number.
    pub fn operands(&self) -> usize {
        let used = self.body.iter().filter_map(|n| if let ExprNode::Operand(i) = n { Some(*i as usize + 1) } else { None });
        used.max().unwrap_or(0)
    }
}

impl Op {
    /// The operator's name in the printed graph.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input { .. } => "input",
            Op::Parameter(_) => "parameter",
            Op::Constant(_) => "constant",
            Op::State { .. } => "state",
            Op::Control => "control",
            Op::DecayOf(_) => "decay_of",
            Op::Map(..) => "map",
            Op::Reduce { .. } => "reduce",
            Op::Matmul { .. } => "matmul",
            Op::Reshape(_) => "reshape",
            Op::Transpose(_) => "transpose",
            Op::Slice { .. } => "slice",
            Op::Pad { .. } => "pad",
            Op::Concat { .. } => "concat",
            Op::Broadcast(_) => "broadcast",
            Op::Iota { .. } => "iota",
            Op::Take => "take",
            Op::PutAdd { .. } => "put_add",
            Op::MaskGradient => "mask_gradient",
            Op::CumSum { .. } => "cum_sum",
            Op::Conv(_) => "conv",
            Op::ConvDgrad(_) => "conv_dgrad",
            Op::ConvWgrad(_) => "conv_wgrad",
            Op::Pool { .. } => "pool",
            Op::PoolGrad { .. } => "pool_grad",
            Op::Norm(_) => "norm",
            Op::NormGrad(_) => "norm_grad",
            Op::Softmax { .. } => "softmax",
            Op::SoftmaxGrad { .. } => "softmax_grad",
            Op::Attention(_) => "attention",
            Op::AttentionGrad(_) => "attention_grad",
            Op::Rotary { .. } => "rotary",
            Op::CrossEntropy(_) => "cross_entropy",
            Op::CrossEntropyGrad(_) => "cross_entropy_grad",
            Op::Quantize { .. } => "quantize",
            Op::ScaledMatmul { .. } => "scaled_matmul",
            Op::SumSquares => "sum_squares",
            Op::FinishNorm { .. } => "finish_norm",
            Op::Optimize(o) => o.rule.name(),
            Op::AccumulateGradient => "accumulate_gradient",
        }
    }

    /// Which input each result replaces in place, if any.
    pub fn aliases(&self) -> &'static [Option<usize>] {
        match self {
            Op::SumSquares => &[Some(1)],
            Op::FinishNorm { .. } | Op::AccumulateGradient => &[Some(0)],
            Op::Optimize(o) => &[Some(0), Some(2), Some(3), Some(4), Some(5)][..1 + o.states()],
            _ => &[],
        }
    }

    /// True for operators that only rename elements: lowering folds them into their readers.
    pub fn is_view(&self) -> bool {
        matches!(self, Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Pad { .. } | Op::Broadcast(_))
    }

    /// True for nodes without inputs whose value exists before the step (all but `Iota`).
    pub fn is_source(&self) -> bool {
        matches!(self, Op::Input { .. } | Op::Parameter(_) | Op::Constant(_) | Op::State { .. } | Op::Control | Op::DecayOf(_))
    }
}
