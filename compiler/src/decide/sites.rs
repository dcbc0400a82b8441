//! The products of linear layers in a joint graph: which node is which pass of which layer.

use super::policy::LayerKind;
use crate::Error;
use crate::graph::{Expr, Graph, Node, NodeId, Op, Pass, ValueId};
use crate::sections::sections;
use std::collections::HashMap;

/// A product with a weight, or of its gradient.
#[derive(Clone, Debug)]
pub struct Site {
    pub node: NodeId,
    pub kind: LayerKind,
    /// No linear layer comes before it, or it is in the first of several equal blocks.
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

/// Finds every product of a linear layer whose operands are matrices (leading axes of the left one flatten).
///
/// # Errors
/// As [`sections`].
pub fn sites(graph: &Graph) -> Result<Vec<Site>, Error> {
    let (users, sections) = (graph.users(), sections(graph)?);
    let mut layers: HashMap<NodeId, (LayerKind, bool)> = HashMap::new();
    // For each value: whether a linear layer went into it.
    let mut behind = vec![false; graph.values.len()];
    let mut out = vec![];
    for (n, node) in (0..).map(NodeId).zip(&graph.nodes) {
        let later = node.inputs.iter().any(|v| behind[v.index()]);
        node.results.iter().for_each(|r| behind[r.index()] = later);
        let Some((a, b)) = operands(graph, node) else { continue };
        let (wa, wb) = (weight_of(graph, a.0).is_some(), weight_of(graph, b.0));
        let weight = match (node.pass, wa, wb.is_some()) {
            (Pass::Fprop | Pass::Loss, false, true) => {
                let kind = kind(graph, &users, a.0, node.results[0], wb);
                layers.insert(n, (kind, !later || sections.in_first_block(n)));
                behind[node.results[0].index()] = true;
                true
            }
            (Pass::Dgrad, false, true) => true,
            (Pass::Wgrad, false, false) => false,
            _ => continue,
        };
        if let Some(&(kind, first_block)) = layers.get(&node.origin) {
            out.push(Site { node: n, kind, first_block, a, b, weight });
        }
    }
    Ok(out)
}

/// The operands of a product of matrices.
fn operands(graph: &Graph, node: &Node) -> Option<(Operand, Operand)> {
    let Op::Matmul { trans_a, trans_b, .. } = node.op else { return None };
    matrices(graph, node.inputs[0], trans_a, node.inputs[1], trans_b)
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

fn kind(graph: &Graph, users: &[Vec<NodeId>], input: ValueId, output: ValueId, weight: Option<usize>) -> LayerKind {
    let embeds = |n: &Node| n.op == Op::Take && weight_of(graph, n.inputs[0]) == weight && weight.is_some();
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
        for &u in users[v.index()].iter().filter(|u| graph.node(**u).pass.gives_values()) {
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
