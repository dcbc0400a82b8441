//! The e-graph's language: operators by name, attributes as leaves.
//!
//! A graph node becomes `(name operand.. @n)`, where leaf `@n` numbers the operator with its attributes in a table that the analysis
//! owns; scalar expressions are taken apart into one term an operation. Rules can thus match by name and compute new attributes.

use crate::graph::{AttentionOp, ConstData, Op, TensorType};
use egg::{Analysis, CostFunction, DidMerge, EGraph, FromOp, FromOpError, Id, Language, Symbol};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, FloatBits, Named, Unary};
use std::collections::HashMap;
use std::sync::Arc;

/// A term: a leaf, or a named operator applied to terms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Term {
    /// A value of the original graph that has no inputs.
    Source(u32),
    /// Entry of [`TermAnalysis::attributes`].
    Attribute(u32),
    /// A float literal.
    Scalar(FloatBits),
    /// An integer or bool literal.
    Integer(i64, bool),
    Apply(Symbol, Vec<Id>),
}

impl Language for Term {
    type Discriminant = Term;

    fn discriminant(&self) -> Term {
        match self {
            Term::Apply(name, _) => Term::Apply(*name, vec![]),
            leaf => leaf.clone(),
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Term::Apply(a, x), Term::Apply(b, y)) => a == b && x.len() == y.len(),
            (a, b) => a == b,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            Term::Apply(_, children) => children,
            _ => &[],
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Term::Apply(_, children) => children,
            _ => &mut [],
        }
    }
}

impl FromOp for Term {
    type Error = FromOpError;

    fn from_op(op: &str, children: Vec<Id>) -> Result<Self, FromOpError> {
        match op.parse::<f32>() {
            Ok(x) if children.is_empty() => Ok(Term::Scalar(FloatBits(x.to_bits()))),
            _ => Ok(Term::Apply(op.into(), children)),
        }
    }
}

/// What is known of an e-class.
#[derive(Clone, Debug, Default)]
pub struct Fact {
    /// Absent for attributes and for terms that do not type.
    pub ty: Option<TensorType>,
    /// The one value that every element has, for float constants.
    pub scalar: Option<f32>,
    /// The elements, for constants of the graph.
    pub data: Option<Arc<ConstData>>,
    /// For attribute leaves.
    pub attribute: Option<u32>,
}

/// Computes [`Fact`]s, and owns the tables that leaves refer to.
#[derive(Clone, Default)]
pub struct TermAnalysis {
    pub attributes: Vec<Op>,
    numbers: HashMap<Op, u32>,
    /// Types and data of the sources, by value number.
    pub sources: HashMap<u32, Fact>,
}

pub type Terms = EGraph<Term, TermAnalysis>;

impl TermAnalysis {
    /// The number of an attribute-carrying operator.
    pub fn number(&mut self, op: Op) -> u32 {
        let next = self.attributes.len() as u32;
        let n = *self.numbers.entry(op.clone()).or_insert(next);
        if n == next {
            self.attributes.push(op);
        }
        n
    }
}

/// Adds an attribute leaf.
pub fn attribute(egraph: &mut Terms, op: Op) -> Id {
    let n = egraph.analysis.number(op);
    egraph.add(Term::Attribute(n))
}

/// Adds a named operator.
pub fn apply(egraph: &mut Terms, name: &str, children: Vec<Id>) -> Id {
    egraph.add(Term::Apply(name.into(), children))
}

/// The operator behind an attribute leaf's class.
pub fn op_of(egraph: &Terms, id: Id) -> Option<&Op> {
    egraph[id].data.attribute.map(|n| &egraph.analysis.attributes[n as usize])
}

/// True for the name of a scalar function.
pub fn is_scalar(name: &str) -> bool {
    Unary::named(name).is_some() || Binary::named(name).is_some() || name == "select"
}

/// True for the name of a scalar function that gives a bool.
pub fn is_test(name: &str) -> bool {
    matches!(name, "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "and" | "or" | "xor" | "not" | "is_nan" | "is_inf")
}

/// Type of an applied term from the facts of its operands, if it types.
fn type_of(egraph: &Terms, name: &str, children: &[Id]) -> Option<TensorType> {
    let ty = |id: &Id| egraph[*id].data.ty.as_ref();
    if is_scalar(name) {
        let types: Vec<&TensorType> = children.iter().map(ty).collect::<Option<_>>()?;
        let shape = crate::graph::infer::broadcast(types.iter().map(|t| t.shape.as_slice())).ok()?;
        let dtype = if is_test(name) { DType::Bool } else { types.last()?.dtype };
        return Some(TensorType::new(dtype, shape));
    }
    let (last, operands) = children.split_last()?;
    if matches!(name, "scores" | "probs") {
        let (q, k) = (ty(&operands[0])?, ty(&operands[1])?);
        return Some(TensorType::new(q.dtype, [q.shape[0], q.shape[1], q.shape[2], k.shape[2]]));
    }
    let op = op_of(egraph, *last)?;
    let types: Vec<&TensorType> = operands.iter().map(ty).collect::<Option<_>>()?;
    match name {
        // A later result of a node: its class is known by the attribute alone.
        "result" => match op {
            Op::Reshape(shape) => Some(TensorType::new(DType::F32, shape.clone())),
            _ => None,
        },
        _ => op.infer(&types, &[]).ok()?.into_iter().next(),
    }
}

impl Analysis<Term> for TermAnalysis {
    type Data = Fact;

    fn make(egraph: &mut Terms, term: &Term, _: Id) -> Fact {
        match term {
            Term::Source(v) => egraph.analysis.sources.get(v).cloned().unwrap_or_default(),
            Term::Attribute(n) => Fact { attribute: Some(*n), ..Fact::default() },
            Term::Scalar(x) => Fact { ty: Some(TensorType::new(DType::F32, [])), scalar: Some(f32::from_bits(x.0)), ..Fact::default() },
            Term::Integer(_, bool) => {
                let dtype = if *bool { DType::Bool } else { DType::I64 };
                Fact { ty: Some(TensorType::new(dtype, [])), ..Fact::default() }
            }
            Term::Apply(name, children) => {
                let ty = type_of(egraph, name.as_str(), children);
                // Views of a uniform constant are uniform.
                let view = matches!(name.as_str(), "reshape" | "broadcast" | "transpose");
                Fact { ty, scalar: children.first().filter(|_| view).and_then(|c| egraph[*c].data.scalar), ..Fact::default() }
            }
        }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        let gains = |x: bool, y: bool| (!x && y, x && !y);
        let all = [
            gains(a.ty.is_some(), b.ty.is_some()),
            gains(a.scalar.is_some(), b.scalar.is_some()),
            gains(a.data.is_some(), b.data.is_some()),
            gains(a.attribute.is_some(), b.attribute.is_some()),
        ];
        a.ty = a.ty.take().or(b.ty);
        a.scalar = a.scalar.or(b.scalar);
        a.data = a.data.take().or(b.data);
        a.attribute = a.attribute.or(b.attribute);
        DidMerge(all.iter().any(|g| g.0), all.iter().any(|g| g.1))
    }
}

/// Cost of a term with its operands: bytes touched, and products at a fraction of their work.
///
/// Shared operands count at each use. That is on purpose: a composite that reads `x` once beats the chain that reads it four
/// times, whatever stands below `x`.
pub struct Cost<'a> {
    pub egraph: &'a Terms,
}

impl CostFunction<Term> for Cost<'_> {
    type Cost = f64;

    fn cost<C: FnMut(Id) -> f64>(&mut self, term: &Term, mut costs: C) -> f64 {
        let below: f64 = term.children().iter().map(|&c| costs(c)).sum();
        below + self.own(term)
    }
}

impl Cost<'_> {
    fn own(&self, term: &Term) -> f64 {
        let Term::Apply(name, children) = term else { return 1.0 };
        let bytes = |id: &Id| self.egraph[*id].data.ty.as_ref().map_or(0.0, |t| t.bytes() as f64);
        let typed = type_of(self.egraph, name.as_str(), children);
        let traffic: f64 = children.iter().map(bytes).sum::<f64>() + typed.as_ref().map_or(0.0, |t| t.bytes() as f64);
        match name.as_str() {
            // Only ways to say part of an attention: never extracted.
            "scores" | "probs" => f64::INFINITY,
            _ if typed.is_none() => f64::INFINITY,
            "reshape" => 2.0,
            // Most transposes, slices and broadcasts become strides of their reader.
            "transpose" | "broadcast" | "slice" => 4.0 + traffic / 8.0,
            "matmul" => 16.0 + traffic * 4.0,
            _ => 8.0 + traffic,
        }
    }
}

/// The attributes of a half-built attention, from its attribute leaf.
pub fn attention_of(egraph: &Terms, id: Id) -> Option<AttentionOp> {
    match op_of(egraph, id)? {
        Op::Attention(a) => Some(a.clone()),
        _ => None,
    }
}
