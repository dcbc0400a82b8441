//! Which cross-entropies are loss heads: of logits that a product with a weight gives and nothing else reads.

use super::Extents;
use crate::graph::*;

/// A cross-entropy whose rows are independent of each other back to a product with a weight.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub loss: NodeId,
    /// The product of rows with a weight.
    pub product: NodeId,
    /// Expressions between the product and the loss, in order.
    pub maps: Vec<NodeId>,
    /// Reshapes of rows and slices of them between the product and the loss, the last first.
    pub views: Vec<NodeId>,
    pub extents: Extents,
}

/// Finds the loss heads of a forward graph. Where logits are a result of the graph, they are whole anyway: that is left as it is unless
/// gradients will be wanted.
pub(super) fn heads(graph: &Graph, side: &[bool], trains: bool) -> Vec<Head> {
    let users = graph.users();
    let scalars = only_scalars_behind(graph);
    let finder = Finder { graph, side, users: &users };
    let found = (0..graph.nodes.len() as u32).map(NodeId).filter_map(|n| finder.head(n));
    let kept = |h: &Head| scalars[h.loss.index()] && (trains || !h.values(graph).any(|v| is_output(graph, v)));
    found.filter(kept).collect()
}

impl Head {
    /// The nodes from the product to the loss.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        [self.product].into_iter().chain(self.maps.iter().copied()).chain(self.views.iter().copied()).chain([self.loss])
    }

    /// The logits, and what they were before.
    pub fn values<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = ValueId> + 'a {
        self.nodes().filter(|&n| n != self.loss).map(|n| graph.node(n).results[0])
    }
}

pub(super) fn is_output(graph: &Graph, v: ValueId) -> bool {
    graph.outputs.iter().any(|o| o.value == v)
}

/// For each node: whether all that depends on it, but its own results, is of one element.
fn only_scalars_behind(graph: &Graph) -> Vec<bool> {
    let users = graph.users();
    let mut out = vec![true; graph.nodes.len()];
    for n in (0..graph.nodes.len()).rev() {
        let readers = graph.nodes[n].results.iter().flat_map(|v| &users[v.index()]);
        let scalar = |r: &NodeId| out[r.index()] && graph.node(*r).results.iter().all(|&v| graph.ty(v).elements() == 1);
        out[n] = readers.into_iter().all(scalar);
    }
    out
}

struct Finder<'a> {
    graph: &'a Graph,
    /// By value: no input reaches it.
    side: &'a [bool],
    users: &'a [Vec<NodeId>],
}

impl Finder<'_> {
    fn head(&self, loss: NodeId) -> Option<Head> {
        let graph = self.graph;
        let node = graph.node(loss);
        let Op::CrossEntropy(_) = node.op else { return None };
        if !self.users[node.results[1].index()].is_empty() || is_output(graph, node.results[1]) {
            return None;
        }
        let classes = *graph.ty(node.inputs[0]).shape.last()?;
        let (mut maps, mut views) = (vec![], vec![]);
        let (mut v, mut reader) = (node.inputs[0], loss);
        loop {
            let n = graph.values[v.index()].node;
            let def = graph.node(n);
            if self.users[v.index()] != [reader] || graph.loss == Some(v) {
                return None;
            }
            v = match &def.op {
                Op::Reshape(_) if graph.ty(def.inputs[0]).shape.last() == Some(&classes) => {
                    views.push(n);
                    def.inputs[0]
                }
                Op::Slice { starts, steps, sizes } => {
                    let whole = starts.last() == Some(&0) && sizes.last() == graph.ty(def.inputs[0]).shape.last();
                    if !whole || steps.iter().any(|&s| s != 1) {
                        return None;
                    }
                    views.push(n);
                    def.inputs[0]
                }
                Op::Map(_, dtype) if dtype.is_float() => {
                    maps.push(n);
                    rows_of(graph, def, classes)?
                }
                Op::Matmul { trans_a: false, .. } => {
                    maps.reverse();
                    let extents = self.extents(def, classes)?;
                    let head = Head { loss, product: n, maps, views, extents };
                    let all_rows = |v: ValueId| graph.ty(v).elements() == extents.rows * classes;
                    let fits = head.values(graph).filter(|&v| is_output(graph, v)).all(all_rows);
                    return fits.then_some(head);
                }
                _ => return None,
            };
            reader = n;
        }
    }

    /// The extents of a product of rows with one weight.
    fn extents(&self, product: &Node, classes: u64) -> Option<Extents> {
        let (x, w) = (self.graph.ty(product.inputs[0]), self.graph.ty(product.inputs[1]));
        let one_weight = w.shape[..w.rank() - 2].iter().all(|&d| d == 1) && self.side[product.inputs[1].index()];
        let result = self.graph.ty(product.results[0]);
        let depth = *x.shape.last()?;
        (one_weight && classes > 0 && depth > 0).then(|| Extents {
            rows: result.elements() / classes,
            classes,
            depth,
            bytes: result.dtype.size(),
        })
    }
}

/// The one operand of an expression that has its rows; the others must be the same for every row.
fn rows_of(graph: &Graph, map: &Node, classes: u64) -> Option<ValueId> {
    let shape = &graph.ty(map.results[0]).shape;
    let full = |v: &&ValueId| graph.ty(**v).shape == *shape;
    let every_row = |v: &&ValueId| {
        let own = &graph.ty(**v).shape;
        own.iter().rev().skip(1).all(|&d| d == 1) && own.last().is_none_or(|&d| d == 1 || d == classes)
    };
    let rows = *map.inputs.iter().find(full)?;
    let fits = map.inputs.iter().filter(|v| **v != rows).all(|v| every_row(&v));
    (fits && shape.last() == Some(&classes)).then_some(rows)
}
