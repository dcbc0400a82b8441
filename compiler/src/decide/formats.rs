//! Formats of the products, through `approx`.
//!
//! Rounding is no equality. A product that the policy lets run in E4M3 stands under `(approx x)`, which equals `x`, and only there do
//! the rules offer `(e4m3 (quantize a) (quantize b))`. The cheapest form by bytes read is taken; operands that several
//! products quantize are one e-class, and become one quantizer that makes every layout asked for in one pass over the value.

use super::policy::{Format, Policy};
use super::sites::{Site, layer_of, sites, weight_of};
use crate::Error;
use crate::graph::{Epoch, Graph, Node, Op, ValueId, infer::as_matrix};
use egg::{CostFunction, EGraph, Extractor, Id, Language, Rewrite, Runner, SimpleScheduler, StopReason, define_language, rewrite};
use fp8c_kernels::DType;
use fp8c_kernels::program::Layout;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

define_language! {
    enum Formats {
        "approx" = Approx([Id; 1]),
        "matmul" = Matmul([Id; 2]),
        "e4m3" = E4m3([Id; 2]),
        "quantize" = Quantize([Id; 1]),
        Value(u32),
    }
}

/// Bytes that a form reads.
struct Bytes<'a> {
    graph: &'a Graph,
}

impl CostFunction<Formats> for Bytes<'_> {
    type Cost = f64;

    fn cost<C: FnMut(Id) -> f64>(&mut self, term: &Formats, mut below: C) -> f64 {
        let operands: f64 = term.children().iter().map(|&c| below(c)).sum();
        match term {
            Formats::Value(v) => self.graph.ty(ValueId(*v)).elements() as f64 * 2.0,
            // One byte an element and four for each group of 128.
            Formats::Quantize(_) => operands / 2.0 * (1.0 + 4.0 / 128.0),
            // Every form of a product writes the same; approx itself is no form.
            Formats::Approx(_) => operands + 1.0,
            Formats::Matmul(_) | Formats::E4m3(_) => operands,
        }
    }
}

/// How an operand is laid out for a product, K-major.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Demand {
    rows: bool,
    columns: bool,
    blocks: bool,
    blocks_transposed: bool,
}

/// Gives every product that the policy permits to E4M3 and that reads fewer bytes so, its quantized operands.
///
/// # Errors
/// [`Error::Usage`] for a policy that names a layer that is not there; [`Error::Graph`] when the rewritten graph does not type, which is
/// a fault of this pass.
pub fn formats(graph: Graph, policy: &Policy, power_of_two: bool) -> Result<Graph, Error> {
    let all = sites(&graph);
    policy.check(&all.iter().map(|s| layer_of(&graph.node(s.node).site)).collect::<Vec<_>>())?;
    let chosen = choose(&graph, policy, all)?;
    let mut demands: HashMap<ValueId, Demand> = HashMap::new();
    for site in &chosen {
        demands.entry(source(&graph, site.a.0)).or_default().ask(site.a.1, false, true);
        demands.entry(source(&graph, site.b.0)).or_default().ask(site.b.1, site.weight, false);
    }
    Rewriter { old: &graph, by_node: chosen.iter().map(|s| (s.node.0, s)).collect(), demands, power_of_two, out: Graph::default() }.run()
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

/// The sites whose extracted form is E4M3.
fn choose(graph: &Graph, policy: &Policy, all: Vec<Site>) -> Result<Vec<Site>, Error> {
    let mut egraph: EGraph<Formats, ()> = EGraph::default();
    let roots: Vec<Id> = all
        .iter()
        .map(|s| {
            let a = egraph.add(Formats::Value(s.a.0.0));
            let b = egraph.add(Formats::Value(s.b.0.0));
            let product = egraph.add(Formats::Matmul([a, b]));
            let permitted = policy.format(layer_of(&graph.node(s.node).site), s.kind, s.first_block, s.pass) == Format::E4m3;
            if permitted { egraph.add(Formats::Approx([product])) } else { product }
        })
        .collect();
    // `approx` marks one product of a pair of operands; two sites never share a pair, so the mark cannot leak to another site.
    let rules: [Rewrite<Formats, ()>; 1] =
        [rewrite!("approx-e4m3"; "(approx (matmul ?a ?b))" => "(approx (e4m3 (quantize ?a) (quantize ?b)))")];
    // One round rewrites every mark, the next finds nothing. No clock and no share of matches stops it earlier.
    let runner = Runner::default().with_egraph(egraph).with_iter_limit(4).with_node_limit(usize::MAX).with_time_limit(Duration::MAX);
    let runner = runner.with_scheduler(SimpleScheduler).run(&rules);
    match &runner.stop_reason {
        Some(StopReason::Saturated) => {}
        other => return Err(Error::Verify { pass: "formats", reason: format!("the forms were not all found ({other:?})") }),
    }
    let extractor = Extractor::new(&runner.egraph, Bytes { graph });
    let is_e4m3 = |root: Id| match extractor.find_best_node(root) {
        Formats::Approx([x]) => matches!(extractor.find_best_node(*x), Formats::E4m3(_)),
        node => matches!(node, Formats::E4m3(_)),
    };
    Ok(all.into_iter().zip(roots).filter(|(_, root)| is_e4m3(*root)).map(|(site, _)| site).collect())
}

struct Rewriter<'a> {
    old: &'a Graph,
    by_node: HashMap<u32, &'a Site>,
    demands: HashMap<ValueId, Demand>,
    power_of_two: bool,
    out: Graph,
}

impl Rewriter<'_> {
    fn run(mut self) -> Result<Graph, Error> {
        let mut map: Vec<Option<ValueId>> = vec![None; self.old.values.len()];
        let mut quantized: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
        self.out.parameters = self.old.parameters.clone();
        for (n, node) in self.old.nodes.iter().enumerate() {
            if let Some(site) = self.by_node.get(&(n as u32)) {
                let new = self.product(site, node, &map, &mut quantized)?;
                map[node.results[0].index()] = Some(new);
                continue;
            }
            let inputs: Vec<ValueId> = node.inputs.iter().filter_map(|v| map[v.index()]).collect();
            let results = match node.op.is_source() {
                true => vec![self.out.add_source(node.op.clone(), self.old.ty(node.results[0]).clone(), &node.site)],
                false => self.out.add(node.op.clone(), &inputs, node.epoch, &node.site)?,
            };
            node.results.iter().zip(&results).for_each(|(old, new)| map[old.index()] = Some(*new));
            // Activations are quantized where they are made, for every product that will read them; weights where first read.
            for (old, new) in node.results.iter().zip(results).filter(|_| !node.op.is_source()) {
                if let Some(demand) = self.demands.get(old) {
                    let made = self.quantize(new, demand.layout(), node.epoch, &node.site)?;
                    quantized.insert(*old, made);
                }
            }
        }
        let moved = |v: ValueId| map[v.index()].unwrap_or(v);
        let outputs = self.old.outputs.iter();
        self.out.outputs = outputs.map(|o| crate::graph::Output { name: o.name.clone(), value: moved(o.value) }).collect();
        self.out.loss = self.old.loss.map(moved);
        let gradients = self.old.gradients.iter();
        self.out.gradients = gradients.map(|g| crate::graph::Gradient { parameter: g.parameter, value: moved(g.value) }).collect();
        Ok(self.out)
    }

    fn quantize(&mut self, v: ValueId, layout: Layout, epoch: Epoch, site: &Arc<str>) -> Result<Vec<ValueId>, Error> {
        let mut v = v;
        if self.out.ty(v).rank() != 2 {
            let matrix = as_matrix(&self.out.ty(v).shape);
            v = self.out.add(Op::Reshape(matrix.to_vec()), &[v], epoch, site)?[0];
        }
        self.out.add(Op::Quantize { layout, power_of_two: self.power_of_two }, &[v], epoch, site)
    }

    fn product(
        &mut self,
        site: &Site,
        node: &Node,
        map: &[Option<ValueId>],
        quantized: &mut HashMap<ValueId, Vec<ValueId>>,
    ) -> Result<ValueId, Error> {
        let mut inputs = vec![];
        for ((operand, transposed), weight, left) in [(site.a, false, true), (site.b, site.weight, false)] {
            let key = source(self.old, operand);
            let layout = self.demands.get(&key).map_or(Layout::Rows, |d| d.layout());
            if let std::collections::hash_map::Entry::Vacant(e) = quantized.entry(key) {
                let v = map[key.index()].ok_or_else(|| Error::graph(&node.site, "reads a value before it is made"))?;
                let made = self.quantize(v, layout, node.epoch, &node.site)?;
                e.insert(made);
            }
            let made = &quantized[&key];
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
        Ok(self.out.add(op, &inputs, node.epoch, &node.site)?[0])
    }
}
