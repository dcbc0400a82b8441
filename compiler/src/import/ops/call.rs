//! A node being lowered: its operands and attributes, and the building blocks that rules share.

use super::{Lowering, expr::Scalar, site};
use crate::graph::{ConstData, Expr, Op, ValueId};
use crate::import::model::{Attribute, Elem, ModelNode};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Fold, Unary};
use std::sync::Arc;

/// One operator application in the course of its lowering.
pub(super) struct Call<'c> {
    pub lowering: &'c mut Lowering,
    pub node: &'c ModelNode,
    inputs: Vec<Option<ValueId>>,
    site: Arc<str>,
}

impl<'c> Call<'c> {
    pub fn new(lowering: &'c mut Lowering, node: &'c ModelNode, inputs: Vec<Option<ValueId>>) -> Self {
        Call { lowering, node, inputs, site: site(node) }
    }

    pub fn opset(&self) -> i64 {
        self.lowering.opset
    }

    // ---- operands

    /// Operand `i`, which must be there.
    pub fn input(&self, i: usize) -> Result<ValueId, String> {
        self.optional(i).ok_or_else(|| format!("needs input {i}"))
    }

    pub fn optional(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// All operands; none may be absent.
    pub fn all_inputs(&self) -> Result<Vec<ValueId>, String> {
        match (0..self.inputs.len()).map(|i| self.input(i)).collect::<Result<Vec<_>, _>>()? {
            inputs if inputs.is_empty() => Err("needs an input".into()),
            inputs => Ok(inputs),
        }
    }

    /// Operand `i`, which must be a float tensor.
    pub fn float_input(&self, i: usize) -> Result<ValueId, String> {
        let v = self.input(i)?;
        match self.dtype(v).is_float() {
            true => Ok(v),
            false => Err(format!("needs floats as input {i}, has {}", self.dtype(v))),
        }
    }

    /// The integers of operand `i`, if it is there.
    ///
    /// # Errors
    /// When its value is not known at compile time; `what` names it in the message.
    pub fn const_ints(&self, i: usize, what: &str) -> Result<Option<Vec<i64>>, String> {
        self.const_data(i, what).map(|data| data.map(|d| d.to_i64()))
    }

    /// Likewise, as constant data.
    pub fn const_data(&self, i: usize, what: &str) -> Result<Option<Arc<ConstData>>, String> {
        let Some(v) = self.optional(i) else { return Ok(None) };
        let data = self.lowering.graph.constant(v).cloned();
        data.map(Some).ok_or_else(|| format!("needs {what} to be constant once the dimensions are bound (input {i})"))
    }

    /// True if the model names output `i`.
    pub fn wants(&self, i: usize) -> bool {
        self.node.outputs.get(i).is_some_and(|name| !name.is_empty())
    }

    pub fn dtype(&self, v: ValueId) -> DType {
        self.lowering.graph.ty(v).dtype
    }

    pub fn shape(&self, v: ValueId) -> Vec<u64> {
        self.lowering.graph.ty(v).shape.clone()
    }

    pub fn rank(&self, v: ValueId) -> usize {
        self.lowering.graph.ty(v).rank()
    }

    // ---- attributes

    pub fn attribute(&self, name: &str) -> Option<&'c Attribute> {
        self.node.attributes.get(name)
    }

    pub fn int(&self, name: &str, default: i64) -> Result<i64, String> {
        match self.attribute(name) {
            None => Ok(default),
            Some(Attribute::Int(i)) => Ok(*i),
            Some(_) => Err(format!("needs an integer as attribute {name}")),
        }
    }

    /// An attribute that is 0 or 1.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        self.int(name, 0).map(|i| i != 0)
    }

    pub fn float(&self, name: &str, default: f32) -> Result<f32, String> {
        match self.attribute(name) {
            None => Ok(default),
            Some(Attribute::Float(x)) => Ok(*x),
            Some(_) => Err(format!("needs a float as attribute {name}")),
        }
    }

    pub fn string(&self, name: &str, default: &'c str) -> Result<&'c str, String> {
        match self.attribute(name) {
            None => Ok(default),
            Some(Attribute::String(s)) => Ok(s),
            Some(_) => Err(format!("needs a string as attribute {name}")),
        }
    }

    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, String> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Attribute::Ints(list)) => Ok(Some(list.clone())),
            Some(_) => Err(format!("needs a list of integers as attribute {name}")),
        }
    }

    /// A list of integers that is an attribute in older opsets and operand `i` in newer ones.
    pub fn ints_or_input(&self, name: &str, i: usize) -> Result<Option<Vec<i64>>, String> {
        match self.ints(name)? {
            Some(list) => Ok(Some(list)),
            None => self.const_ints(i, name),
        }
    }

    // ---- nodes

    /// Appends a node, or its value when that is constant.
    pub fn emit(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, String> {
        let site = self.site.clone();
        self.lowering.emit(op, inputs, &site)
    }

    /// The first result of [`Call::emit`].
    pub fn one(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, String> {
        self.emit(op, inputs)?.first().copied().ok_or_else(|| "has no result".into())
    }

    pub fn constant(&mut self, data: ConstData) -> ValueId {
        self.lowering.constant(data)
    }

    /// A constant of rank 0.
    pub fn scalar(&mut self, x: f64, dtype: DType) -> Result<ValueId, String> {
        super::constant::scalar(dtype, x).map(|data| self.constant(data))
    }

    /// Every element `x`.
    pub fn filled(&mut self, x: f64, dtype: DType, shape: Vec<u64>) -> Result<ValueId, String> {
        let scalar = self.scalar(x, dtype)?;
        self.broadcast(scalar, shape)
    }

    pub fn map(&mut self, expr: Expr, inputs: &[ValueId], dtype: DType) -> Result<ValueId, String> {
        self.one(Op::Map(expr, dtype), inputs)
    }

    /// `op(x)`, of x's type.
    pub fn unary(&mut self, op: Unary, x: ValueId) -> Result<ValueId, String> {
        let dtype = self.dtype(x);
        self.map(Expr::unary(op), &[x], dtype)
    }

    /// `op(x, y)`, of x's type or, for comparisons, bool.
    pub fn binary(&mut self, op: Binary, x: ValueId, y: ValueId) -> Result<ValueId, String> {
        let compares = matches!(op, Binary::Eq | Binary::Ne | Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge);
        let dtype = if compares { DType::Bool } else { self.dtype(x) };
        self.map(Expr::binary(op), &[x, y], dtype)
    }

    /// `op(x, c)` with a float literal.
    pub fn with(&mut self, op: Binary, x: ValueId, c: f32) -> Result<ValueId, String> {
        let dtype = self.dtype(x);
        self.map(Expr::with_constant(op, c), &[x], dtype)
    }

    pub fn cast(&mut self, x: ValueId, to: DType) -> Result<ValueId, String> {
        match self.dtype(x) == to {
            true => Ok(x),
            false => {
                let mut e = Scalar::default();
                let x0 = e.operand(0);
                e.cast(x0, to);
                self.map(e.finish(), &[x], to)
            }
        }
    }

    pub fn reduce(&mut self, op: Fold, x: ValueId, axes: &[usize], dtype: DType) -> Result<ValueId, String> {
        match axes.is_empty() {
            true => self.cast(x, dtype),
            false => self.one(Op::Reduce { op, axes: axes.to_vec(), dtype }, &[x]),
        }
    }

    pub fn reshape(&mut self, x: ValueId, shape: Vec<u64>) -> Result<ValueId, String> {
        match self.shape(x) == shape {
            true => Ok(x),
            false => self.one(Op::Reshape(shape), &[x]),
        }
    }

    pub fn transpose(&mut self, x: ValueId, perm: Vec<usize>) -> Result<ValueId, String> {
        match perm.iter().enumerate().all(|(i, &p)| i == p) {
            true => Ok(x),
            false => self.one(Op::Transpose(perm), &[x]),
        }
    }

    pub fn broadcast(&mut self, x: ValueId, shape: Vec<u64>) -> Result<ValueId, String> {
        match self.shape(x) == shape {
            true => Ok(x),
            false => self.one(Op::Broadcast(shape), &[x]),
        }
    }

    /// Elements `start .. start + size` along one axis.
    pub fn narrow(&mut self, x: ValueId, axis: usize, start: u64, size: u64) -> Result<ValueId, String> {
        let shape = self.shape(x);
        if start == 0 && size == shape[axis] {
            return Ok(x);
        }
        let (mut starts, mut sizes) = (vec![0; shape.len()], shape);
        (starts[axis], sizes[axis]) = (start as i64, size);
        let steps = vec![1; starts.len()];
        self.one(Op::Slice { starts, steps, sizes }, &[x])
    }

    pub fn concat(&mut self, axis: usize, inputs: &[ValueId]) -> Result<ValueId, String> {
        match inputs {
            [x] => Ok(*x),
            _ => self.one(Op::Concat { axis }, inputs),
        }
    }

    /// Elements of `x` along `axis`, by a constant list of non-negative positions.
    pub fn take_list(&mut self, x: ValueId, axis: usize, list: &[i64]) -> Result<ValueId, String> {
        let index = self.constant(ConstData::i64([1, list.len() as u64, 1], list));
        self.take(x, axis, index)
    }

    /// `Take` along one axis by an index `[1, j, 1]`: that axis's extent becomes `j`.
    pub fn take(&mut self, x: ValueId, axis: usize, index: ValueId) -> Result<ValueId, String> {
        let mut shape = self.shape(x);
        let data = self.reshape(x, vec![volume(&shape[..axis])?, shape[axis], volume(&shape[axis + 1..])?])?;
        let taken = self.one(Op::Take, &[data, index])?;
        shape[axis] = self.shape(index)[1];
        self.reshape(taken, shape)
    }
}

/// An axis in `-rank..rank`, counted from the front.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let a = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    match a.and_then(|a| usize::try_from(a).ok()) {
        Some(a) if a < rank => Ok(a),
        _ => Err(format!("has axis {axis}, which a tensor of rank {rank} does not have")),
    }
}

/// Axes in `-rank..rank`, sorted; no axis twice.
pub(super) fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut axes = list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    axes.sort_unstable();
    match axes.windows(2).any(|w| w[0] == w[1]) {
        true => Err("names an axis twice".into()),
        false => Ok(axes),
    }
}

/// Number of elements.
///
/// # Errors
/// When it overflows 63 bits.
pub(super) fn volume(shape: &[u64]) -> Result<u64, String> {
    let product = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= i64::MAX as u64);
    product.ok_or_else(|| format!("has an absurd shape {shape:?}"))
}

/// The storage format of ONNX's numeric code of an element type; half and double precision are stored as f32, as everywhere.
///
/// # Errors
/// For the formats that a tensor of the graph cannot have. Narrow integers are among them: a conversion to one wraps.
pub(super) fn dtype_of_code(code: i64) -> Result<DType, String> {
    let elem = Elem::from_onnx(i32::try_from(code).unwrap_or(0));
    let name = match elem {
        Elem::Other(code) => format!("with ONNX's number {code}"),
        other => other.name(),
    };
    let exact = elem.is_float() || matches!(elem, Elem::I64 | Elem::I32 | Elem::Bool);
    let dtype = elem.dtype().filter(|_| exact);
    dtype.ok_or_else(|| format!("uses the element type {name}; floats of 16 to 64 bits, int64, int32 and bool are accepted"))
}
