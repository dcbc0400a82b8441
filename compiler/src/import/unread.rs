//! Removes parameters that nothing reads, such as those of an output that was dropped for the loss.

use crate::graph::{Graph, NodeId, Op, Output, Value, ValueId};

/// The graph without the parameters that no node and no output reads.
pub fn drop_parameters(graph: Graph) -> Graph {
    let mut read = vec![false; graph.values.len()];
    for v in graph.nodes.iter().flat_map(|n| &n.inputs).chain(graph.outputs.iter().map(|o| &o.value)).chain(&graph.loss) {
        read[v.index()] = true;
    }
    let mut out = Graph::default();
    let mut to = vec![ValueId(0); graph.values.len()];
    let mut parameters: Vec<Option<usize>> = vec![None; graph.parameters.len()];
    for mut node in graph.nodes {
        if let Op::Parameter(p) = &mut node.op {
            if !node.results.iter().any(|v| read[v.index()]) {
                continue;
            }
            let kept = *parameters[*p].get_or_insert_with(|| {
                out.parameters.push(graph.parameters[*p].clone());
                out.parameters.len() - 1
            });
            *p = kept;
        }
        let id = NodeId(out.nodes.len() as u32);
        for v in &mut node.results {
            let new = ValueId(out.values.len() as u32);
            out.values.push(Value { node: id, ..graph.values[v.index()].clone() });
            to[v.index()] = new;
            *v = new;
        }
        node.inputs.iter_mut().for_each(|v| *v = to[v.index()]);
        out.nodes.push(node);
    }
    out.outputs = graph.outputs.into_iter().map(|o| Output { value: to[o.value.index()], ..o }).collect();
    out.loss = graph.loss.map(|v| to[v.index()]);
    out
}
