//! Chains of expressions as one expression, before formats are chosen.
//!
//! An expression that one other reads is written into it (`x * sigmoid(x)`, `gelu(x + b)`), so that what lies between is neither rounded
//! to a storage format nor kept for the backward pass, and the derivative is that of the whole. Every scalar operation stays what it
//! was, so in f32 no bit changes.
//!
//! An expression stays where it is when the whole would read more full-size values than the reader does now: `f(a + b)` needs `a` and
//! `b` for its derivative, where `f(c)` needs `c` alone.

use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::expr::{Builder, kinds, renumbered};
use crate::graph::*;
use fp8c_kernels::DType;
use fp8c_kernels::program::Kind;

/// Largest expression that is made.
const NODES: usize = 64;

/// Writes expressions that have one reader into it.
///
/// # Errors
/// What [`Graph::add`] says, which is a fault of this pass.
pub fn compose(graph: &Graph) -> Result<Graph, Error> {
    let users = graph.users();
    let named = |v: ValueId| graph.loss == Some(v) || graph.outputs.iter().any(|o| o.value == v);
    let mut rewrite = Rewrite::new(graph);
    // By value of the new graph: one expression reads it, and nothing else.
    let mut lone: Vec<bool> = vec![];
    for n in (0..graph.nodes.len() as u32).map(NodeId) {
        let node = graph.node(n);
        match &node.op {
            Op::Map(expr, dtype) => {
                let inputs = node.inputs.iter().map(|&v| rewrite.get(v)).collect::<Result<Vec<_>, _>>()?;
                let (expr, inputs) = composed(&rewrite.to, expr, inputs, &graph.ty(node.results[0]).shape, &lone);
                let result = rewrite.to.add(Op::Map(expr, *dtype), &inputs, node.epoch, &node.site)?[0];
                rewrite.set(node.results[0], result);
            }
            _ => rewrite.copy(n)?,
        }
        for &v in &node.results {
            let made = rewrite.get(v)?.index();
            lone.resize(lone.len().max(made + 1), false);
            lone[made] = users[v.index()].len() == 1 && !named(v);
        }
    }
    Ok(rewrite.finish()?.0.without_dead_code()?.0)
}

/// The expression with what it alone reads written into it, and the values that it reads then.
fn composed(to: &Graph, expr: &Expr, mut inputs: Vec<ValueId>, shape: &[u64], lone: &[bool]) -> (Expr, Vec<ValueId>) {
    let mut expr = expr.clone();
    loop {
        let whole = inputs.iter().position(|&v| {
            let fits = lone[v.index()] && to.ty(v).shape == shape && matches!(to.def(v).op, Op::Map(..));
            fits && full_size(to, &joined(to, &inputs, v), shape) <= full_size(to, &inputs, shape)
        });
        let Some(at) = whole else { return (expr, inputs) };
        let (next, values) = inlined(to, &expr, &inputs, inputs[at]);
        // An operand that turns out to be of no use may have given the result its shape.
        let still = infer::broadcast(values.iter().map(|&v| to.ty(v).shape.as_slice()));
        if next.body.len() > NODES || still.is_ok_and(|s| s != shape) {
            return (expr, inputs);
        }
        (expr, inputs) = (next, values);
    }
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

/// The expression with every use of the value `v` replaced by the expression that defines it.
fn inlined(to: &Graph, expr: &Expr, inputs: &[ValueId], v: ValueId) -> (Expr, Vec<ValueId>) {
    let node = to.def(v);
    let Op::Map(inner, dtype) = &node.op else { return (expr.clone(), inputs.to_vec()) };
    let mut values: Vec<ValueId> = vec![];
    let mut b = Builder::default();
    let mut slot = |b: &mut Builder, v: ValueId| {
        let i = values.iter().position(|&have| have == v).unwrap_or(values.len());
        if i == values.len() {
            values.push(v);
        }
        b.operand(i as u32)
    };
    let mut terms = vec![];
    for part in &inner.body {
        let term = match part {
            ExprNode::Operand(i) => slot(&mut b, node.inputs[*i as usize]),
            part => b.push(renumbered(part, &terms)),
        };
        terms.push(term);
    }
    let dtypes: Vec<DType> = node.inputs.iter().map(|&v| to.ty(v).dtype).collect();
    let result = match (kinds(inner, &dtypes).last(), terms.last()) {
        (Some(Kind::Float), Some(&t)) if *dtype == DType::F32 => t,
        (Some(Kind::Int), Some(&t)) if *dtype == DType::I64 => t,
        (Some(Kind::Bool), Some(&t)) if *dtype == DType::Bool => t,
        (_, Some(&t)) => b.push(ExprNode::Cast(t, *dtype)),
        // An expression has at least one node.
        (_, None) => return (expr.clone(), inputs.to_vec()),
    };
    let mut outer = vec![];
    for part in &expr.body {
        let term = match part {
            ExprNode::Operand(i) if inputs[*i as usize] == v => result,
            ExprNode::Operand(i) => slot(&mut b, inputs[*i as usize]),
            part => b.push(renumbered(part, &outer)),
        };
        outer.push(term);
    }
    let root = outer.last().copied().unwrap_or(result);
    let (expr, used) = b.extract(root);
    (expr, used.iter().map(|&i| values[i as usize]).collect())
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
        assert_eq!(value(&before), value(&after), "no bit changes in f32");
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
}
