//! Formats of the products.
//!
//! Rounding is no equality: a product runs in E4M3 where the policy permits it, and nowhere else. Operands that several products quantize
//! become one quantizer that makes every layout asked for in one pass over the value.

use super::policy::{Format, Policy};
use super::sites::{Site, layer_of, sites, weight_of};
use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::{Graph, NodeId, Op, ValueId, infer::as_matrix};
use fp8c_kernels::DType;
use fp8c_kernels::program::Layout;
use std::collections::HashMap;

/// How an operand is laid out for a product, K-major.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Demand {
    rows: bool,
    columns: bool,
    blocks: bool,
    blocks_transposed: bool,
}

/// Gives every product that the policy permits to E4M3 its quantized operands: they are half the bytes to read.
///
/// # Errors
/// [`Error::Usage`] for a policy that names a layer that is not there; [`Error::Graph`] when the rewritten graph does not type, which is
/// a fault of this pass.
pub fn formats(graph: &Graph, policy: &Policy, power_of_two: bool) -> Result<Graph, Error> {
    let e4m3 = |s: &Site| {
        let layer = layer_of(&graph.node(graph.node(s.node).origin).site);
        policy.format(layer, s.kind, s.first_block, graph.node(s.node).pass) == Format::E4m3
    };
    let all = sites(graph)?;
    policy.check(&all.iter().map(|s| layer_of(&graph.node(graph.node(s.node).origin).site)).collect::<Vec<_>>())?;
    let chosen: Vec<Site> = all.into_iter().filter(e4m3).collect();
    let mut demands: HashMap<ValueId, Demand> = HashMap::new();
    for site in &chosen {
        demands.entry(source(graph, site.a.0)).or_default().ask(site.a.1, false, true);
        demands.entry(source(graph, site.b.0)).or_default().ask(site.b.1, site.weight, false);
    }
    let by_node = chosen.iter().map(|s| (s.node, s)).collect();
    Quantizer { old: graph, by_node, demands, power_of_two, rewrite: Rewrite::new(graph), made: HashMap::new() }.run()
}

impl Demand {
    /// `left` operands are `[m, k]`, right ones `[k, n]` when not transposed; codes must be K-major.
    fn ask(&mut self, transposed: bool, weight: bool, left: bool) {
        match (weight, transposed == left) {
            (false, false) => self.rows = true,
            (false, true) => self.columns = true,
            (true, false) => self.blocks = true,
            (true, true) => self.blocks_transposed = true,
        }
    }

    fn layout(&self) -> Layout {
        match self {
            Demand { blocks_transposed: true, .. } => Layout::BlocksBoth,
            Demand { blocks: true, .. } => Layout::Blocks,
            Demand { rows: true, columns: true, .. } => Layout::RowsAndColumns,
            Demand { columns: true, .. } => Layout::Columns,
            _ => Layout::Rows,
        }
    }
}

/// What is quantized: the value itself; of a weight the master copy, not its bf16 rounding.
fn source(graph: &Graph, v: ValueId) -> ValueId {
    let node = graph.def(v);
    match weight_of(graph, v) {
        Some(_) if !matches!(node.op, Op::Parameter(_)) => source(graph, node.inputs[0]),
        _ => v,
    }
}

struct Quantizer<'a> {
    old: &'a Graph,
    by_node: HashMap<NodeId, &'a Site>,
    demands: HashMap<ValueId, Demand>,
    power_of_two: bool,
    rewrite: Rewrite<'a>,
    /// Codes and scales of what is quantized already.
    made: HashMap<ValueId, Vec<ValueId>>,
}

impl Quantizer<'_> {
    fn run(mut self) -> Result<Graph, Error> {
        for (n, node) in (0..).map(NodeId).zip(&self.old.nodes) {
            self.rewrite.begin(n);
            if let Some(site) = self.by_node.get(&n).copied() {
                let new = self.product(site)?;
                self.rewrite.set(node.results[0], new);
                continue;
            }
            self.rewrite.copy(n)?;
            // Activations are quantized where they are made, for every product that will read them; weights where first read.
            for v in node.results.iter().filter(|_| !node.op.is_source()) {
                if let Some(demand) = self.demands.get(v) {
                    let made = self.quantize(self.rewrite.get(*v)?, demand.layout())?;
                    self.made.insert(*v, made);
                }
            }
        }
        Ok(self.rewrite.finish()?.0)
    }

    fn quantize(&mut self, mut v: ValueId, layout: Layout) -> Result<Vec<ValueId>, Error> {
        let ty = self.rewrite.graph().ty(v);
        if ty.rank() != 2 {
            let matrix = as_matrix(&ty.shape);
            v = self.rewrite.add(Op::Reshape(matrix.to_vec()), &[v])?[0];
        }
        self.rewrite.add(Op::Quantize { layout, power_of_two: self.power_of_two }, &[v])
    }

    fn product(&mut self, site: &Site) -> Result<ValueId, Error> {
        let node = self.old.node(site.node);
        let mut inputs = vec![];
        for ((operand, transposed), weight, left) in [(site.a, false, true), (site.b, site.weight, false)] {
            let key = source(self.old, operand);
            let layout = self.demands.get(&key).map_or(Layout::Rows, |d| d.layout());
            if !self.made.contains_key(&key) {
                let made = self.quantize(self.rewrite.get(key)?, layout)?;
                self.made.insert(key, made);
            }
            let made = &self.made[&key];
            let second = match layout {
                Layout::RowsAndColumns => transposed == left,
                Layout::BlocksBoth => weight && transposed == left,
                _ => false,
            };
            let at = if second { 2 } else { 0 };
            inputs.extend([made[at], made[at + 1]]);
        }
        let Op::Matmul { dtype, .. } = node.op else { return Err(Error::graph(&node.site, "is no product")) };
        let shape = self.old.ty(node.results[0]).shape.clone();
        let dtype = if dtype == DType::Bf16 { DType::Bf16 } else { DType::F32 };
        let op = Op::ScaledMatmul { block_b: site.weight, shape, dtype };
        Ok(self.rewrite.add(op, &inputs)?[0])
    }
}
