//! Chains of expressions as one expression, before formats are chosen.
//!
//! An expression that one other reads is written into it (`x * sigmoid(x)`, `gelu(x + b)`), so that what lies between is neither rounded
//! to a storage format nor kept for the backward pass, and the derivative is that of the whole. Reshapes that stand between two
//! expressions move in front of the first. Literals of one element join the expression, and `x * 1` and `x + 0` are `x`. Every other
//! scalar operation stays what it was, so in f32 no bit changes but the sign of a zero.
//!
//! An expression stays where it is when the whole would read more full-size values than the reader does now: `f(a + b)` needs `a` and
//! `b` for its derivative, where `f(c)` needs `c` alone.

use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::expr::{Builder, Term, kinds, renumbered};
use crate::graph::*;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Kind, Literal};
use std::collections::HashSet;

/// Largest expression that is made.
const NODES: usize = 64;

/// Writes expressions that have one reader into it.
///
/// # Errors
/// What [`Graph::add`] says, which is a fault of this pass.
pub fn compose(graph: &Graph) -> Result<Graph, Error> {
    let users = graph.users();
    let named = |v: ValueId| graph.loss == Some(v) || graph.outputs.iter().any(|o| o.value == v);
    let mut pass = Compose { rewrite: Rewrite::new(graph), lone: HashSet::new() };
    for n in (0..graph.nodes.len() as u32).map(NodeId) {
        let node = graph.node(n);
        pass.rewrite.begin(n);
        let before = pass.rewrite.graph().values.len();
        match &node.op {
            Op::Map(expr, dtype) => {
                let inputs = node.inputs.iter().map(|&v| pass.rewrite.get(v)).collect::<Result<Vec<_>, _>>()?;
                let result = pass.map(expr, inputs, *dtype, &graph.ty(node.results[0]).shape)?;
                pass.rewrite.set(node.results[0], result);
            }
            Op::Reshape(shape) => {
                let source = pass.rewrite.get(node.inputs[0])?;
                let result = pass.reshape(source, shape)?;
                pass.rewrite.set(node.results[0], result);
            }
            _ => pass.rewrite.copy(n)?,
        }
        for &v in &node.results {
            let made = pass.rewrite.get(v)?;
            let fresh = made.index() >= before;
            // A value that stands for its only reader has that one's readers.
            match users[v.index()].len() == 1 && !named(v) && (fresh || pass.lone.contains(&made)) {
                true => pass.lone.insert(made),
                false => pass.lone.remove(&made),
            };
        }
    }
    Ok(pass.rewrite.finish()?.0.without_dead_code()?.0)
}

struct Compose<'a> {
    rewrite: Rewrite<'a>,
    /// Values of the new graph that one node reads, and nothing else.
    lone: HashSet<ValueId>,
}

impl Compose<'_> {
    /// An expression with what it alone reads written into it.
    fn map(&mut self, expr: &Expr, inputs: Vec<ValueId>, dtype: DType, shape: &[u64]) -> Result<ValueId, Error> {
        let (mut expr, mut inputs) = normal(self.rewrite.graph(), expr.clone(), inputs, None, shape);
        loop {
            let to = self.rewrite.graph();
            let whole = inputs.iter().copied().find(|&v| {
                let fits = self.lone.contains(&v) && to.ty(v).shape == shape && matches!(to.def(v).op, Op::Map(..));
                fits && full_size(to, &joined(to, &inputs, v), shape) <= full_size(to, &inputs, shape)
            });
            let Some(v) = whole else { break };
            let (next, values) = normal(to, expr.clone(), inputs.clone(), Some(v), shape);
            if next.body.len() > NODES || values.contains(&v) {
                break;
            }
            (expr, inputs) = (next, values);
        }
        let same = |v: ValueId| self.rewrite.graph().ty(v).dtype == dtype && self.rewrite.graph().ty(v).shape == shape;
        if expr == Expr::identity() && same(inputs[0]) {
            return Ok(inputs[0]);
        }
        Ok(self.rewrite.add(Op::Map(expr, dtype), &inputs)?[0])
    }

    /// A reshape, in front of the expression that it follows if that has no other reader.
    fn reshape(&mut self, source: ValueId, shape: &[u64]) -> Result<ValueId, Error> {
        let to = self.rewrite.graph();
        if to.ty(source).shape == shape {
            return Ok(source);
        }
        let def = to.def(source).clone();
        match &def.op {
            Op::Reshape(_) => return self.reshape(def.inputs[0], shape),
            Op::Map(expr, dtype) if self.lone.contains(&source) => {
                let from = to.ty(source).shape.clone();
                if def.inputs.iter().all(|&v| carries(&to.ty(v).shape, &from, shape)) {
                    let inputs = def.inputs.iter().map(|&v| match self.rewrite.graph().ty(v).shape == from {
                        true => self.reshape(v, shape),
                        false => Ok(v),
                    });
                    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
                    return Ok(self.rewrite.add_beside(source, Op::Map(expr.clone(), *dtype), &inputs)?[0]);
                }
            }
            _ => {}
        }
        Ok(self.rewrite.add(Op::Reshape(shape.to_vec()), &[source])?[0])
    }
}

/// True where an operand of a result of shape `from` can be one of a result reshaped to `to`: whole, one element, or a last axis.
fn carries(operand: &[u64], from: &[u64], to: &[u64]) -> bool {
    let last = |s: &[u64]| s.last().copied();
    operand == from || operand.is_empty() || (operand.len() == 1 && last(operand) == last(from) && last(operand) == last(to))
}

/// The inputs with those of `v`'s definition in its place.
fn joined(to: &Graph, inputs: &[ValueId], v: ValueId) -> Vec<ValueId> {
    inputs.iter().copied().filter(|&i| i != v).chain(to.def(v).inputs.iter().copied()).collect()
}

/// How many different values have as many elements as the result.
fn full_size(to: &Graph, inputs: &[ValueId], shape: &[u64]) -> usize {
    let size = shape.iter().fold(1u64, |n, &d| n.saturating_mul(d));
    let mut full: Vec<ValueId> = inputs.iter().copied().filter(|&v| to.ty(v).elements() == size).collect();
    full.sort_unstable();
    full.dedup();
    full.len()
}

/// The expression without trivial operations and with literals for constants of one element; every use of the value `inline`, if there
/// is one, replaced by the expression that defines it. Unchanged where that would change the shape.
fn normal(to: &Graph, expr: Expr, inputs: Vec<ValueId>, inline: Option<ValueId>, shape: &[u64]) -> (Expr, Vec<ValueId>) {
    let mut scope = Scope { to, b: Builder::default(), values: vec![] };
    let mut outer = vec![];
    for part in &expr.body {
        let term = match part {
            ExprNode::Operand(i) if Some(inputs[*i as usize]) == inline => scope.definition(inputs[*i as usize]),
            ExprNode::Operand(i) => scope.read(inputs[*i as usize]),
            part => scope.apply(part, &outer),
        };
        outer.push(term);
    }
    // An expression has at least one node.
    let Some(&root) = outer.last() else { return (expr, inputs) };
    let (made, used) = scope.b.extract(root);
    let values: Vec<ValueId> = used.iter().map(|&i| scope.values[i as usize]).collect();
    // An operand that is of no use may have given the result its shape.
    match infer::broadcast(values.iter().map(|&v| to.ty(v).shape.as_slice())) {
        Ok(s) if s == shape => (made, values),
        _ => (expr, inputs),
    }
}

/// An expression under construction over values of a graph.
struct Scope<'a> {
    to: &'a Graph,
    b: Builder,
    values: Vec<ValueId>,
}

impl Scope<'_> {
    fn read(&mut self, v: ValueId) -> Term {
        if let Some(node) = self.to.constant(v).and_then(|c| literal(c)) {
            return self.b.push(node);
        }
        let i = self.values.iter().position(|&have| have == v).unwrap_or(self.values.len());
        if i == self.values.len() {
            self.values.push(v);
        }
        self.b.operand(i as u32)
    }

    fn apply(&mut self, part: &ExprNode, terms: &[Term]) -> Term {
        match renumbered(part, terms) {
            ExprNode::Binary(op, x, y) => self.b.binary(op, x, y),
            ExprNode::Select(c, x, y) => self.b.select(c, x, y),
            other => self.b.push(other),
        }
    }

    /// The value of an expression's node, computed here.
    fn definition(&mut self, v: ValueId) -> Term {
        let node = self.to.def(v);
        let Op::Map(inner, dtype) = &node.op else { return self.read(v) };
        let mut terms = vec![];
        for part in &inner.body {
            let term = match part {
                ExprNode::Operand(i) => self.read(node.inputs[*i as usize]),
                part => self.apply(part, &terms),
            };
            terms.push(term);
        }
        let dtypes: Vec<DType> = node.inputs.iter().map(|&v| self.to.ty(v).dtype).collect();
        match (kinds(inner, &dtypes).last(), terms.last()) {
            (Some(Kind::Float), Some(&t)) if *dtype == DType::F32 => t,
            (Some(Kind::Int), Some(&t)) if *dtype == DType::I64 => t,
            (Some(Kind::Bool), Some(&t)) if *dtype == DType::Bool => t,
            (_, Some(&t)) => self.b.push(ExprNode::Cast(t, *dtype)),
            (_, None) => self.read(v),
        }
    }
}

/// A constant of one element as a literal.
fn literal(c: &ConstData) -> Option<ExprNode> {
    if c.ty.elements() != 1 || c.ty.dtype == DType::E4m3 {
        return None;
    }
    let kind = Kind::from(c.ty.dtype);
    let value = match kind {
        Kind::Float => Literal::float(c.to_f32()[0]),
        _ => Literal::Int(c.to_i64()[0]),
    };
    Some(ExprNode::Const { kind, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::eval::{Rounding, Tensor, run};
    use crate::graph::parse::parse;

    fn composed(nodes: &str, last: u32) -> Graph {
        let head = "forward\n  %0: f32[3, 4] = input \"a\" () @\"a\"\n  %1: f32[3, 4] = input \"b\" () @\"b\"\n  %2: f32[4] = input \"c\" () @\"c\"\n";
        let before = parse(&format!("{head}{nodes}\noutput \"y\" %{last}\n"), &[]).unwrap();
        before.verify().unwrap();
        let after = compose(&before).unwrap();
        after.verify().unwrap();
        let sources = |_: &Node, ty: &TensorType| {
            let values = (0..ty.elements()).map(|i| (i as f64 * 0.37 - 1.9).sin() as f32 as f64).collect();
            Some(Tensor::float(ty.shape.clone(), values))
        };
        let value = |g: &Graph| run(g, &sources, Rounding::Stored).unwrap()[g.outputs[0].value.index()].clone();
        assert_eq!(value(&before), value(&after));
        after
    }

    fn maps(g: &Graph) -> Vec<String> {
        let text = g.to_string();
        let lines = text.lines().filter(|l| l.contains("= map"));
        lines.map(|l| l[l.find("= ").map_or(0, |i| i + 2)..l.find(" @").unwrap_or(l.len())].to_string()).collect()
    }

    #[test]
    fn a_gated_activation_becomes_one_expression_of_its_two_inputs() {
        let nodes = r#"
  %3: f32[3, 4] = map f32 {x0; sigmoid 0} (%0) @"m"
  %4: f32[3, 4] = map f32 {x0; x1; mul 0 1} (%0, %3) @"m"
  %5: f32[3, 4] = map f32 {x0; x1; mul 0 1} (%4, %1) @"m""#;
        assert_eq!(maps(&composed(nodes, 5)), ["map f32 {x0; sigmoid 0; mul 0 1; x1; mul 2 3} (%0, %1)"]);
    }

    #[test]
    fn a_broadcast_bias_joins_what_follows() {
        let nodes = r#"
  %3: f32[3, 4] = map f32 {x0; x1; add 0 1} (%0, %2) @"m"
  %4: f32[3, 4] = map f32 {x0; gelu_erf 0} (%3) @"m""#;
        assert_eq!(maps(&composed(nodes, 4)), ["map f32 {x0; x1; add 0 1; gelu_erf 2} (%0, %2)"]);
    }

    #[test]
    fn a_value_that_is_read_twice_or_named_stays() {
        let nodes = r#"
  %3: f32[3, 4] = map f32 {x0; exp 0} (%0) @"m"
  %4: f32[3, 4] = map f32 {x0; neg 0} (%3) @"m"
  %5: f32[1, 4] = reduce sum axes=[0] dtype=f32 (%3) @"m"
  %6: f32[3, 4] = map f32 {x0; x1; mul 0 1} (%4, %5) @"m""#;
        assert_eq!(maps(&composed(nodes, 6)).len(), 2);
        assert_eq!(maps(&composed(nodes, 4)).len(), 2);
    }

    #[test]
    fn a_sum_of_two_values_is_not_read_twice_over() {
        let nodes = r#"
  %3: f32[3, 4] = map f32 {x0; x1; add 0 1} (%0, %1) @"m"
  %4: f32[3, 4] = map f32 {x0; gelu_erf 0} (%3) @"m""#;
        assert_eq!(maps(&composed(nodes, 4)).len(), 2);
    }

    #[test]
    fn conversions_between_kinds_stay_in_the_expression() {
        let nodes = r#"
  %3: bf16[3, 4] = map bf16 {x0; 3.0; mul 0 1} (%0) @"m"
  %4: i64[3, 4] = map i64 {x0} (%3) @"m"
  %5: f32[3, 4] = map f32 {x0} (%4) @"m""#;
        assert_eq!(maps(&composed(nodes, 5)), ["map f32 {x0; 3.0; mul 0 1; cast 2 bf16; cast 3 i64} (%0)"]);
    }

    #[test]
    fn an_operand_that_only_gives_the_shape_is_not_lost() {
        let nodes = r#"
  %3: f32[3, 4] = map f32 {x0; neg 0} (%0) @"m"
  %4: f32[3, 4] = map f32 {x0; x1; exp 1} (%3, %2) @"m""#;
        assert_eq!(maps(&composed(nodes, 4)).len(), 2);
    }

    #[test]
    fn a_reshape_between_expressions_moves_in_front_of_them() {
        let nodes = r#"
  %3: f32[3, 4] = map f32 {x0; x1; add 0 1} (%0, %2) @"m"
  %4: f32[1, 3, 4] = reshape [1, 3, 4] (%3) @"m"
  %5: f32[1, 3, 4] = map f32 {x0; gelu_erf 0} (%4) @"m"
  %6: f32[3, 4] = reshape [3, 4] (%5) @"m""#;
        let after = composed(nodes, 6);
        assert_eq!(maps(&after), ["map f32 {x0; x1; add 0 1; gelu_erf 2} (%0, %2)"]);
        assert!(after.nodes.iter().all(|n| !matches!(n.op, Op::Reshape(_))));
    }

    #[test]
    fn a_reshape_that_splits_a_broadcast_axis_stays() {
        let nodes = r#"
  %3: f32[3, 4] = map f32 {x0; x1; add 0 1} (%0, %2) @"m"
  %4: f32[3, 2, 2] = reshape [3, 2, 2] (%3) @"m"
  %5: f32[3, 2, 2] = map f32 {x0; gelu_erf 0} (%4) @"m""#;
        assert_eq!(maps(&composed(nodes, 5)).len(), 2);
    }

    #[test]
    fn literals_join_and_trivial_operations_go() {
        let nodes = r#"
  %3: f32[1] = constant [1.0] () @"one"
  %4: f32[] = constant [0.0] () @"zero"
  %5: f32[3, 4] = map f32 {x0; x1; mul 0 1; x2; add 2 3} (%0, %3, %4) @"m"
  %6: f32[3, 4] = map f32 {x0; x1; mul 0 1} (%5, %1) @"m""#;
        let after = composed(nodes, 6);
        assert_eq!(maps(&after), ["map f32 {x0; x1; mul 0 1} (%0, %1)"]);
        assert!(after.nodes.iter().all(|n| !matches!(n.op, Op::Constant(_))));
    }

    #[test]
    fn a_value_that_stands_for_a_trivial_one_keeps_its_other_readers() {
        let nodes = r#"
  %3: f32[3, 4] = map f32 {x0; exp 0} (%0) @"m"
  %4: f32[3, 4] = map f32 {x0; 1.0; mul 0 1} (%3) @"m"
  %5: f32[3, 4] = map f32 {x0; neg 0} (%4) @"m"
  %6: f32[1, 4] = reduce sum axes=[0] dtype=f32 (%3) @"m"
  %7: f32[3, 4] = map f32 {x0; x1; mul 0 1} (%5, %6) @"m""#;
        assert_eq!(maps(&composed(nodes, 7)), ["map f32 {x0; exp 0} (%0)", "map f32 {x0; neg 0; x1; mul 1 2} (%3, %4)"]);
    }
}
