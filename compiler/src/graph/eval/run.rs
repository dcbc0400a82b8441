//! Evaluating a whole graph.

use super::*;

/// Values of the nodes that have none of their own: inputs, parameters, states, control and decay multipliers.
pub type Sources<'a> = dyn Fn(&Node, &TensorType) -> Option<Tensor> + 'a;

/// Evaluates every value of a graph, in order.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) naming the node: a source without a value, or what [`eval`] says.
pub fn run(graph: &Graph, sources: &Sources, rounding: Rounding) -> Result<Vec<Tensor>, crate::Error> {
    let mut values: Vec<Option<Tensor>> = vec![None; graph.values.len()];
    for node in &graph.nodes {
        let fail = |reason: String| crate::Error::graph(&node.site, reason);
        let types: Vec<TensorType> = node.results.iter().map(|&v| graph.ty(v).clone()).collect();
        let results = if node.op.is_source() && !matches!(node.op, Op::Constant(_)) {
            vec![sources(node, &types[0]).ok_or_else(|| fail("has no value".into()))?]
        } else {
            let inputs = node.inputs.iter().map(|v| values[v.index()].as_ref());
            let inputs = inputs.collect::<Option<Vec<_>>>().ok_or_else(|| fail("reads a value before it is there".into()))?;
            eval(&node.op, &inputs, &types, rounding).map_err(fail)?
        };
        for (&id, t) in node.results.iter().zip(results) {
            values[id.index()] = Some(t);
        }
    }
    let all = values.into_iter().collect::<Option<Vec<_>>>();
    all.ok_or_else(|| crate::Error::Verify { pass: "evaluation", reason: "a value has no node".into() })
}
