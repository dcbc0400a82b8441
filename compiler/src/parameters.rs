//! How parameters are stored: the ones that are trained, and the ones that are not.
//!
//! A parameter stored in bf16 is read as it is by views and lookups, whose results are bf16 then, and widened for everything else, in the
//! register where the reader is fused. So `storage`, which comes next, finds bf16 where it wants bf16.
//!
//! Of what is not trained, only matrices are narrowed that nothing but products, lookups of rows and views of these read: statistics, tables of
//! positions and scales of norms keep every bit, and are small.

use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::*;
use fp8c_kernels::DType;
use std::collections::HashMap;
use std::sync::Arc;

/// Stores trained parameters in one format and others in another, each f32 or bf16.
///
/// # Errors
/// What [`Graph::add`] says of a node that does not fit the formats of its inputs.
pub fn parameters(graph: Graph, trained: DType, frozen: DType) -> Result<Graph, Error> {
    let mut stored = graph.clone();
    for (p, parameter) in stored.parameters.iter_mut().enumerate().filter(|(_, p)| p.ty.dtype == DType::F32) {
        let narrow = if parameter.trainable { trained } else { frozen } == DType::Bf16;
        if narrow && (parameter.trainable || is_weight(&graph, p)) {
            parameter.ty.dtype = DType::Bf16;
            if let Init::Data(data) = &parameter.init {
                parameter.init = Init::Data(Arc::new(rounded(data, &parameter.ty)?));
            }
        }
    }
    if stored.parameters.iter().zip(&graph.parameters).all(|(a, b)| a.ty == b.ty) {
        return Ok(graph);
    }
    let mut pass = Narrowing { from: &stored, rewrite: Rewrite::new(&stored), wide: HashMap::new() };
    (0..stored.nodes.len() as u32).try_for_each(|n| pass.node(NodeId(n)))?;
    pass.finish()
}

/// Data in bf16, rounded to nearest even.
fn rounded(data: &ConstData, ty: &TensorType) -> Result<ConstData, Error> {
    let all = eval::eval_node(&Op::Map(Expr::identity(), DType::Bf16), &[data], std::slice::from_ref(ty));
    Ok(all.map_err(|e| Error::graph("parameter", e))?.remove(0))
}

/// True for a matrix whose elements go into products, or whose rows are looked up, and that nothing else reads.
fn is_weight(graph: &Graph, parameter: usize) -> bool {
    let mut of = vec![false; graph.values.len()];
    let mut read = false;
    for node in &graph.nodes {
        if node.op == Op::Parameter(parameter) {
            of[node.results[0].index()] = graph.parameters[parameter].ty.rank() >= 2;
        }
        if !node.inputs.iter().any(|v| of[v.index()]) {
            continue;
        }
        match &node.op {
            op if op.is_view() => node.results.iter().for_each(|v| of[v.index()] = true),
            Op::Matmul { .. } | Op::Conv(_) => read = true,
            // Rows that an input of the model picks: of a table of positions, the rows are the same in every step.
            Op::Take if picks_inputs(graph, node.inputs[1]) => read = true,
            _ => return false,
        }
    }
    read && !graph.outputs.iter().any(|o| of[o.value.index()])
}

/// True for an index that an input of the graph goes into.
fn picks_inputs(graph: &Graph, v: ValueId) -> bool {
    let node = graph.def(v);
    matches!(node.op, Op::Input { .. }) || node.inputs.iter().any(|&v| picks_inputs(graph, v))
}

struct Narrowing<'a> {
    /// With the new types of parameters, which its values do not have yet.
    from: &'a Graph,
    rewrite: Rewrite<'a>,
    /// By value of the new graph that is bf16: the same in f32.
    wide: HashMap<ValueId, ValueId>,
}

impl Narrowing<'_> {
    fn node(&mut self, n: NodeId) -> Result<(), Error> {
        let node = self.from.node(n);
        self.rewrite.begin(n);
        if let Op::Parameter(p) = node.op {
            let v = self.rewrite.add_source(node.op.clone(), self.from.parameters[p].ty.clone());
            self.rewrite.set(node.results[0], v);
            return Ok(());
        }
        if node.op.is_source() {
            return self.rewrite.copy(n);
        }
        let mut inputs = node.inputs.iter().map(|&v| self.rewrite.get(v)).collect::<Result<Vec<_>, _>>()?;
        let as_it_is = node.op.is_view() || node.op == Op::Take;
        for (new, old) in inputs.iter_mut().zip(&node.inputs).filter(|_| !as_it_is) {
            *new = self.widened(*new, *old)?;
        }
        let results = self.rewrite.add(node.op.clone(), &inputs)?;
        for (&old, new) in node.results.iter().zip(results) {
            self.rewrite.set(old, new);
        }
        Ok(())
    }

    /// The value in the format that the old graph has it in.
    fn widened(&mut self, new: ValueId, old: ValueId) -> Result<ValueId, Error> {
        if self.rewrite.graph().ty(new).dtype != DType::Bf16 || self.from.ty(old).dtype != DType::F32 {
            return Ok(new);
        }
        if let Some(&wide) = self.wide.get(&new) {
            return Ok(wide);
        }
        let wide = self.rewrite.add_beside(new, Op::Map(Expr::identity(), DType::F32), &[new])?[0];
        self.wide.insert(new, wide);
        Ok(wide)
    }

    fn finish(mut self) -> Result<Graph, Error> {
        for v in self.from.outputs.iter().map(|o| o.value).chain(self.from.loss) {
            let stored = self.rewrite.get(v)?;
            let wide = self.widened(stored, v)?;
            self.rewrite.set(v, wide);
        }
        Ok(self.rewrite.finish()?.0.without_dead_code()?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::parse::parse;

    /// A lookup, a sum with a scaled row, and a product with the looked-up table.
    const MODEL: &str = r#"
parameter 0 "wte" f32[11, 8] trainable=true source="wte" perm=none init=normal 0.02
parameter 1 "fc" f32[8, 8] trainable=false source="fc" perm=none init=normal 0.02
parameter 2 "scale" f32[8] trainable=false source="scale" perm=none init=ones
forward
  %0: i64[4] = input "ids" () @"ids"
  %1: f32[11, 8] = parameter 0 () @"wte"
  %2: f32[8, 8] = parameter 1 () @"fc"
  %3: f32[8] = parameter 2 () @"scale"
  %4: f32[1, 11, 8] = reshape [1, 11, 8] (%1) @"wte"
  %5: i64[1, 4, 1] = reshape [1, 4, 1] (%0) @"wte"
  %6: f32[1, 4, 8] = take (%4, %5) @"wte"
  %7: f32[4, 8] = reshape [4, 8] (%6) @"wte"
  %8: f32[4, 8] = map f32 {x0; x1; mul 0 1} (%7, %3) @"scaled"
  %9: f32[4, 8] = matmul trans_a=false trans_b=false dtype=f32 (%8, %2) @"fc"
  %10: f32[4, 11] = matmul trans_a=false trans_b=true dtype=f32 (%9, %1) @"head"
output "logits" %10
"#;

    fn narrowed(trained: DType, frozen: DType) -> Graph {
        let graph = parameters(parse(MODEL, &[]).unwrap(), trained, frozen).unwrap();
        graph.verify().unwrap();
        graph
    }

    fn formats(graph: &Graph) -> Vec<DType> {
        graph.parameters.iter().map(|p| p.ty.dtype).collect()
    }

    #[test]
    fn masters_and_frozen_weights_are_narrowed_each_by_its_own_option_and_vectors_are_not() {
        use DType::{Bf16, F32};
        assert_eq!(narrowed(F32, F32).to_string(), parse(MODEL, &[]).unwrap().to_string());
        assert_eq!(formats(&narrowed(Bf16, F32)), [Bf16, F32, F32]);
        assert_eq!(formats(&narrowed(F32, Bf16)), [F32, Bf16, F32]);
    }

    #[test]
    fn rows_are_looked_up_in_bf16_and_widened_behind_the_lookup() {
        let graph = narrowed(DType::Bf16, DType::Bf16);
        let take = graph.nodes.iter().find(|n| n.op == Op::Take).unwrap();
        assert_eq!(graph.ty(take.results[0]).dtype, DType::Bf16);
        // The looked-up rows, and both weights for the products, which `storage` takes in bf16 again.
        assert_eq!(graph.nodes.iter().filter(|n| n.op == Op::Map(Expr::identity(), DType::F32)).count(), 3);
    }
}
