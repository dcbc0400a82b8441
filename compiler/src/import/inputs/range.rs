//! Ranges of integer inputs: what an index may be, followed back through views, casts and scalar arithmetic.

use crate::graph::{ConstData, ExprNode, Graph, Op, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Literal, Unary};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Most places that are looked at, so that a model made for it cannot take long.
const MAX_FOLLOWED: usize = 1 << 20;
/// Most elements of a constant that is added.
const MAX_ELEMENTS: u64 = 1 << 16;
/// Most terms of one expression.
const MAX_TERMS: u32 = 256;

/// Integers of `least..bound`, and `ignore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Negative where an index counts from the end, as ONNX lets it.
    pub least: i64,
    pub bound: i64,
    pub ignore: Option<i64>,
}

/// A place that needs an input's values in a range.
struct Need {
    input: ValueId,
    range: Range,
    /// Only some of the input's elements come there.
    partial: bool,
}

/// The range of each integer input whose elements all index something.
pub fn ranges(graph: &Graph) -> HashMap<ValueId, Range> {
    let mut open = vec![];
    for node in &graph.nodes {
        let up_to = |extent: u64, ignore| Range { least: 0, bound: i64::try_from(extent).unwrap_or(i64::MAX), ignore };
        let (index, range) = match &node.op {
            Op::Take => (node.inputs[1], up_to(graph.ty(node.inputs[0]).shape[1], None)),
            Op::PutAdd { extent, .. } => (node.inputs[1], up_to(*extent, None)),
            Op::CrossEntropy(c) => (node.inputs[1], up_to(graph.ty(node.inputs[0]).shape[1], c.ignore_index)),
            _ => continue,
        };
        open.push((index, range, false));
    }
    let needs = follow(graph, open);
    let mut found: HashMap<ValueId, Range> = HashMap::new();
    for need in needs.iter().filter(|n| !n.partial || is_only_index(graph, n.input)) {
        let both = found.get(&need.input).map_or(need.range, |other| both(*other, need.range));
        found.insert(need.input, both);
    }
    found.retain(|_, r| r.least < r.bound);
    found
}

fn both(a: Range, b: Range) -> Range {
    let allowed = |r: Range, v: i64| r.ignore == Some(v) || (r.least..r.bound).contains(&v);
    let ignore = [a, b].into_iter().filter_map(|r| r.ignore).find(|&v| allowed(a, v) && allowed(b, v));
    Range { least: a.least.max(b.least), bound: a.bound.min(b.bound), ignore }
}

/// Collects the inputs that indices are made of element by element. `open`: values, what they must be, and whether they are only part
/// of what they are taken from.
fn follow(graph: &Graph, mut open: Vec<(ValueId, Range, bool)>) -> Vec<Need> {
    let mut seen: HashSet<(ValueId, Range, bool)> = HashSet::new();
    let mut needs = vec![];
    while let Some(next) = open.pop() {
        if seen.len() >= MAX_FOLLOWED || !seen.insert(next) {
            continue;
        }
        let (v, range, partial) = next;
        let node = graph.def(v);
        if let Op::Map(..) = &node.op {
            let solver = Solver { graph, left: Cell::new(MAX_TERMS) };
            open.extend(solver.solve(solver.value(v), range).map(|(x, range)| (x, range, partial)));
            continue;
        }
        let mut from = |i: usize, range, partial| open.push((node.inputs[i], range, partial));
        match &node.op {
            Op::Input { .. } if is_integer(graph.ty(v).dtype) => needs.push(Need { input: v, range, partial }),
            Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Pad { .. } => from(0, range, partial),
            Op::Slice { sizes, .. } => from(0, range, partial || *sizes != graph.ty(node.inputs[0]).shape),
            Op::Take => from(0, range, true),
            Op::Concat { .. } => (0..node.inputs.len()).for_each(|i| from(i, range, partial)),
            _ => {}
        }
    }
    needs
}

/// A place in the scalar expression of a node, with the expressions of its operands below it.
#[derive(Clone, Copy, PartialEq)]
enum Term {
    /// A value that no expression gives.
    Leaf(ValueId),
    /// The value of a `Map`, and a position in its expression.
    Inside(ValueId, u32),
}

/// Turns a range of an expression into one of the single value that it is a function of.
struct Solver<'a> {
    graph: &'a Graph,
    /// Terms that may still be looked at.
    left: Cell<u32>,
}

impl Solver<'_> {
    fn value(&self, v: ValueId) -> Term {
        match &self.graph.def(v).op {
            Op::Map(expr, _) => Term::Inside(v, expr.body.len() as u32 - 1),
            _ => Term::Leaf(v),
        }
    }

    /// The operation at a term, and a way to its operands; none at a leaf, or when too much has been looked at.
    fn at(&self, t: Term) -> Option<(&ExprNode, impl Fn(u32) -> Term)> {
        self.left.set(self.left.get().checked_sub(1)?);
        let Term::Inside(v, at) = t else { return None };
        let Op::Map(expr, _) = &self.graph.def(v).op else { return None };
        let below = move |i: u32| match expr.body[i as usize] {
            ExprNode::Operand(o) => self.value(self.graph.def(v).inputs[o as usize]),
            _ => Term::Inside(v, i),
        };
        Some((&expr.body[at as usize], below))
    }

    fn solve(&self, t: Term, range: Range) -> Option<(ValueId, Range)> {
        if let Term::Leaf(v) = t {
            return Some((v, range));
        }
        let (node, below) = self.at(t)?;
        match *node {
            ExprNode::Operand(o) => {
                let Term::Inside(v, _) = t else { return None };
                self.solve(self.value(self.graph.def(v).inputs[o as usize]), range)
            }
            ExprNode::Cast(x, to) if is_integer(to) => self.solve(below(x), range),
            ExprNode::Binary(Binary::Add, x, y) => match (self.constant(below(x)), self.constant(below(y))) {
                (None, Some(c)) => self.solve(below(x), shifted(range, c)),
                (Some(c), None) => self.solve(below(y), shifted(range, c)),
                _ => None,
            },
            ExprNode::Binary(Binary::Sub, x, y) => {
                let (least, most) = self.constant(below(y)).filter(|_| self.constant(below(x)).is_none())?;
                self.solve(below(x), shifted(range, (most.checked_neg()?, least.checked_neg()?)))
            }
            ExprNode::Select(c, yes, no) if self.is_known(below(c)) => match (self.constant(below(yes)), self.constant(below(no))) {
                (None, Some(_)) => self.solve(below(yes), range),
                (Some(_), None) => self.solve(below(no), range),
                _ => None,
            },
            ExprNode::Select(c, yes, no) => match self.test(below(c))? {
                (Binary::Eq, x, y) => self.masked(range, (x, y), below(yes), below(no)),
                (Binary::Ne, x, y) => self.masked(range, (x, y), below(no), below(yes)),
                (Binary::Lt, x, y) => self.counted_from_end(range, (x, y), below(yes), below(no)),
                _ => None,
            },
            _ => None,
        }
    }

    /// True for a condition that is constant, such as where a padded tensor is filled.
    fn is_known(&self, t: Term) -> bool {
        if let Term::Leaf(v) = t {
            return self.graph.constant(v).is_some();
        }
        let Some((node, below)) = self.at(t) else { return false };
        matches!(*node, ExprNode::Binary(Binary::And, x, y) if self.is_known(below(x)) && self.is_known(below(y)))
    }

    /// A comparison, or the negation of one.
    fn test(&self, t: Term) -> Option<(Binary, Term, Term)> {
        let (node, below) = self.at(t)?;
        match *node {
            ExprNode::Binary(op, x, y) => Some((op, below(x), below(y))),
            ExprNode::Unary(Unary::Not, x) => match self.test(below(x))? {
                (Binary::Eq, x, y) => Some((Binary::Ne, x, y)),
                (Binary::Ne, x, y) => Some((Binary::Eq, x, y)),
                _ => None,
            },
            _ => None,
        }
    }

    /// `if x == mark { safe } else { other }`, x what `other` is: the mark is allowed too.
    fn masked(&self, range: Range, (x, y): (Term, Term), safe: Term, other: Term) -> Option<(ValueId, Range)> {
        let (x, mark) = if self.constant(x).is_some() { (y, self.single(x)?) } else { (x, self.single(y)?) };
        let safe = self.single(safe)?;
        let (v, inner) = self.solve(other, range)?;
        let plain = self.same(x, other) && inner == range;
        (plain && (range.least..range.bound).contains(&safe)).then_some((v, Range { ignore: Some(mark), ..inner }))
    }

    /// `if x < 0 { x + n } else { x }`: an index that may count from the end.
    fn counted_from_end(&self, range: Range, (x, zero): (Term, Term), wrapped: Term, other: Term) -> Option<(ValueId, Range)> {
        let (node, below) = self.at(wrapped)?;
        let ExprNode::Binary(Binary::Add, a, b) = *node else { return None };
        let (a, b) = (below(a), below(b));
        let n = if self.same(a, x) { self.single(b)? } else { self.single(a).filter(|_| self.same(b, x))? };
        let fits = self.single(zero)? == 0 && self.same(x, other) && range.least == 0 && range.bound == n;
        if fits { self.solve(other, Range { least: n.checked_neg()?, ..range }) } else { None }
    }

    /// The least and the largest element of an integer constant.
    fn constant(&self, t: Term) -> Option<(i64, i64)> {
        if let Term::Leaf(v) = t {
            let small = |c: &&Arc<ConstData>| is_integer(c.ty.dtype) && c.ty.elements() <= MAX_ELEMENTS;
            let data = self.graph.constant(v).filter(small)?.to_i64();
            return Some((*data.iter().min()?, *data.iter().max()?));
        }
        let (node, below) = self.at(t)?;
        match *node {
            ExprNode::Const { value: Literal::Int(i), .. } => Some((i, i)),
            ExprNode::Cast(x, to) if is_integer(to) => self.constant(below(x)),
            _ => None,
        }
    }

    fn single(&self, t: Term) -> Option<i64> {
        self.constant(t).filter(|(least, most)| least == most).map(|(c, _)| c)
    }

    /// True for two places where the same is read, or cast alike.
    fn same(&self, a: Term, b: Term) -> bool {
        if a == b {
            return true;
        }
        let (Some((p, below_a)), Some((q, below_b))) = (self.at(a), self.at(b)) else { return false };
        match (p, q) {
            (ExprNode::Cast(x, s), ExprNode::Cast(y, t)) => s == t && self.same(below_a(*x), below_b(*y)),
            _ => false,
        }
    }
}

fn is_integer(dtype: DType) -> bool {
    matches!(dtype, DType::I64 | DType::I32)
}

/// What x may be where x plus a constant of these extremes must be in the range, for some element at least.
fn shifted(range: Range, (least, most): (i64, i64)) -> Range {
    let ignore = range.ignore.filter(|_| least == most).and_then(|v| v.checked_sub(least));
    Range { least: range.least.saturating_sub(most), bound: range.bound.saturating_sub(least), ignore }
}

/// True where an input is used for nothing but as an index and in comparisons, so that its elements mean nothing else.
fn is_only_index(graph: &Graph, input: ValueId) -> bool {
    let mut open = vec![input];
    let mut seen: HashSet<ValueId> = open.iter().copied().collect();
    let users = graph.users();
    while let Some(v) = open.pop() {
        for &n in &users[v.index()] {
            let node = graph.node(n);
            let result = node.results[0];
            match &node.op {
                Op::Take | Op::PutAdd { .. } | Op::CrossEntropy(_) if node.inputs[1] == v => {}
                Op::Map(..) if graph.ty(result).dtype == DType::Bool => {}
                _ if is_integer(graph.ty(result).dtype) => {
                    if seen.insert(result) {
                        open.push(result);
                    }
                }
                _ => return false,
            }
        }
    }
    !graph.outputs.iter().any(|o| seen.contains(&o.value))
}
