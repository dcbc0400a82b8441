//! The products of linear layers in a joint graph: which node is which pass of which layer.

use super::policy::{LayerKind, Pass};
use crate::graph::{Epoch, Expr, Graph, NodeId, Op, ValueId};
use std::collections::{HashMap, HashSet};

/// A product with a weight, or of its gradient.
#[derive(Clone, Debug)]
pub struct Site {
    pub node: NodeId,
    pub pass: Pass,
    pub kind: LayerKind,
    /// In the block that reads the embeddings: no linear layer comes before it, or one of its block has none before it.
    pub first_block: bool,
    /// The left operand, and whether it is read transposed: `[m, k]` when not.
    pub a: (ValueId, bool),
    /// The right operand: `[k, n]` when not read transposed.
    pub b: (ValueId, bool),
    /// The right operand is a weight.
    pub weight: bool,
}

/// The module path of a node's site (without the node's own name).
pub fn layer_of(site: &str) -> &str {
    site.rsplit_once('/').map_or(site, |(path, _)| path)
}

/// The block that a site belongs to, where its path has a number: the path up to the first one.
pub fn block_of(site: &str) -> Option<&str> {
    let path = layer_of(site);
    let mut end = 0;
    for part in path.split_inclusive(['.', '/']) {
        end += part.len();
        let name = part.trim_end_matches(['.', '/']);
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
            return Some(path[..end].trim_end_matches(['.', '/']));
        }
    }
    None
}

/// Finds every product of a linear layer whose operands are matrices (leading axes of the left one flatten).
pub fn sites(graph: &Graph) -> Vec<Site> {
    let users = users(graph);
    let mut kinds: HashMap<&str, (LayerKind, bool)> = HashMap::new();
    let mut first_block: HashSet<&str> = HashSet::new();
    // For each value: whether a linear layer went into it.
    let mut behind = vec![false; graph.values.len()];
    let mut out = vec![];
    for (n, node) in graph.nodes.iter().enumerate() {
        let later = node.inputs.iter().any(|v| behind[v.index()]);
        node.results.iter().for_each(|r| behind[r.index()] = later);
        let Op::Matmul { trans_a, trans_b, .. } = node.op else { continue };
        let Some((a, b)) = matrices(graph, node.inputs[0], trans_a, node.inputs[1], trans_b) else { continue };
        let (wa, wb) = (weight_of(graph, a.0).is_some(), weight_of(graph, b.0));
        let (pass, weight) = match (node.epoch, wa, wb.is_some()) {
            (Epoch::Forward, false, true) => {
                let kind = kind(graph, &users, a.0, node.results[0], wb);
                let block = block_of(&node.site).filter(|_| kind != LayerKind::Head);
                if !later {
                    first_block.extend(block);
                }
                kinds.insert(&node.site, (kind, !later || block.is_some_and(|b| first_block.contains(b))));
                behind[node.results[0].index()] = true;
                (Pass::Fprop, true)
            }
            (Epoch::Backward, false, true) => (Pass::Dgrad, true),
            (Epoch::Backward, false, false) => (Pass::Wgrad, false),
            _ => continue,
        };
        if let Some(&(kind, first_block)) = kinds.get(node.site.as_ref()) {
            out.push(Site { node: NodeId(n as u32), pass, kind, first_block, a, b, weight });
        }
    }
    out
}

type Operand = (ValueId, bool);

/// The operands as matrices, if they are: a product with batch axes is one where only the left operand has them, untransposed.
fn matrices(graph: &Graph, a: ValueId, trans_a: bool, b: ValueId, trans_b: bool) -> Option<(Operand, Operand)> {
    let (sa, sb) = (&graph.ty(a).shape, &graph.ty(b).shape);
    let flat = |s: &[u64]| s[..s.len() - 2].iter().all(|&d| d == 1);
    let fits = flat(sb) && (flat(sa) || !trans_a);
    fits.then(|| (untransposed(graph, a, trans_a), untransposed(graph, b, trans_b)))
}

/// Looks through a transpose of a matrix.
fn untransposed(graph: &Graph, v: ValueId, trans: bool) -> Operand {
    match &graph.def(v).op {
        Op::Transpose(p) if *p == [1, 0] => (graph.def(v).inputs[0], !trans),
        _ => (v, trans),
    }
}

/// The parameter that a value is, up to casts and reshapes that keep its matrix.
pub fn weight_of(graph: &Graph, v: ValueId) -> Option<usize> {
    let node = graph.def(v);
    match &node.op {
        Op::Parameter(p) => Some(*p),
        Op::Map(e, _) if *e == Expr::identity() => weight_of(graph, node.inputs[0]),
        Op::Reshape(shape) if shape.last() == graph.ty(node.inputs[0]).shape.last() => weight_of(graph, node.inputs[0]),
        _ => None,
    }
}

fn users(graph: &Graph) -> Vec<Vec<NodeId>> {
    let mut users = vec![vec![]; graph.values.len()];
    for (n, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|v| users[v.index()].push(NodeId(n as u32)));
    }
    users
}

fn kind(graph: &Graph, users: &[Vec<NodeId>], input: ValueId, output: ValueId, weight: Option<usize>) -> LayerKind {
    let embeds = |n: &crate::graph::Node| n.op == Op::Take && weight_of(graph, n.inputs[0]) == weight && weight.is_some();
    if graph.nodes.iter().any(embeds) || leads_to_loss(graph, users, output) {
        return LayerKind::Head;
    }
    let mut v = input;
    loop {
        let node = graph.def(v);
        match &node.op {
            Op::Attention(_) => return LayerKind::AttentionOutput,
            Op::Reshape(_) | Op::Transpose(_) => v = node.inputs[0],
            Op::Map(e, _) if *e == Expr::identity() => v = node.inputs[0],
            _ => return LayerKind::Other,
        }
    }
}

/// True if, through views and scalar functions alone, a value is the logits of a cross-entropy or a softmax outside attention.
fn leads_to_loss(graph: &Graph, users: &[Vec<NodeId>], from: ValueId) -> bool {
    let mut open = vec![from];
    let mut seen = std::collections::HashSet::new();
    while let Some(v) = open.pop() {
        for &u in users[v.index()].iter().filter(|u| graph.node(**u).epoch == Epoch::Forward) {
            let node = graph.node(u);
            match &node.op {
                Op::CrossEntropy(_) | Op::Softmax { log: true } => return true,
                Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } => open.extend(node.results.iter().filter(|r| seen.insert(**r))),
                Op::Map(..) if node.inputs.len() == 1 => open.extend(node.results.iter().filter(|r| seen.insert(**r))),
                _ => {}
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::block_of;

    #[test]
    fn a_block_is_the_path_up_to_its_number() {
        assert_eq!(block_of("m.model.layers.0.self_attn.q_proj/node_linear"), Some("m.model.layers.0"));
        assert_eq!(block_of("/h.11/mlp/c_fc/MatMul"), Some("/h.11"));
        assert_eq!(block_of("lm_head/node_7"), None, "a node's own number is no block's");
        assert_eq!(block_of("node_7"), None);
    }
}
