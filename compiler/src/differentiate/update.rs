//! The update epoch: gradient norm, clipping, optimizer.

use super::*;
use fp8c_kernels::program::{Kind, Literal};
use fp8c_runtime::plan::Control;

/// State slot of the buffer that gradients of several micro-batches are summed in. It is zero when a step begins.
pub const GRADIENT_SLOT: u32 = 9;

/// Appends norm and optimizer for every gradient of the graph.
pub(super) fn append(graph: &mut Graph, options: &TrainOptions) -> Result<(), Error> {
    if !matches!(options.state_dtype, DType::F32 | DType::Bf16) {
        return Err(Error::Usage(format!("optimizer state cannot be stored as {}", options.state_dtype)));
    }
    if options.accumulation == 0 {
        return Err(Error::Usage("a step needs at least one micro-batch".into()));
    }
    keep_outputs(graph)?;
    let control = loss::control(graph);
    let whole = Provenance { pass: Pass::Update, origin: None, site: "update".into() };
    let one = graph.add(loss::control_slice(Control::LOSS_SCALE), &[control], &whole)?[0];
    // A zero that is computed, since the sums that follow replace it in place.
    let zero = Expr { body: vec![ExprNode::Operand(0), ExprNode::Const { kind: Kind::Float, value: Literal::float(0.0) }] };
    let mut sum = graph.add(Op::Map(zero, DType::F32), &[one], &whole)?[0];
    for g in graph.gradients.clone() {
        let of = provenance(graph, g.parameter)?.1;
        sum = graph.add(Op::SumSquares, &[g.value, sum], &of)?[0];
    }
    let control = graph.add(Op::FinishNorm { accumulation: options.accumulation }, &[control, sum], &whole)?[0];
    for g in graph.gradients.clone() {
        optimize(graph, &g, control, options)?;
    }
    Ok(())
}

/// Copies outputs that are parameters themselves, since the update replaces parameters in place.
fn keep_outputs(graph: &mut Graph) -> Result<(), Error> {
    for i in 0..graph.outputs.len() {
        let value = graph.outputs[i].value;
        if let Op::Parameter(p) = graph.def(value).op {
            let (dtype, of) = (graph.ty(value).dtype, provenance(graph, p)?.1);
            graph.outputs[i].value = graph.add(Op::Map(Expr::identity(), dtype), &[value], &of)?[0];
        }
    }
    Ok(())
}

/// The value of a parameter, and what its update's nodes come from.
fn provenance(graph: &Graph, parameter: usize) -> Result<(ValueId, Provenance), Error> {
    let site: std::sync::Arc<str> = graph.parameters[parameter].name.as_str().into();
    let source = graph.nodes.iter().position(|n| n.op == Op::Parameter(parameter));
    let n = source.ok_or_else(|| Error::graph(&site, "is updated but is not in the graph"))?;
    Ok((graph.nodes[n].results[0], Provenance { pass: Pass::Update, origin: Some(NodeId(n as u32)), site }))
}

/// A persistent tensor like a parameter.
pub(super) fn state(graph: &mut Graph, parameter: usize, slot: u32, dtype: DType) -> ValueId {
    let site = graph.parameters[parameter].name.as_str().into();
    let ty = TensorType::new(dtype, graph.parameters[parameter].ty.shape.clone());
    graph.add_source(Op::State { parameter, slot, dtype }, ty, &site)
}

fn optimize(graph: &mut Graph, g: &Gradient, control: ValueId, options: &TrainOptions) -> Result<(), Error> {
    let (p, of) = provenance(graph, g.parameter)?;
    let decay = graph.add_source(Op::DecayOf(g.parameter), TensorType::new(DType::F32, [1]), &of.site);
    let m = state(graph, g.parameter, 0, options.state_dtype);
    let (op, inputs) = match options.optimizer {
        Optimizer::AdamW => {
            let v = state(graph, g.parameter, 1, options.state_dtype);
            (Op::AdamW, vec![p, g.value, m, v, control, decay])
        }
        Optimizer::Sgd => (Op::Sgd, vec![p, g.value, m, control, decay]),
        Optimizer::Lion => (Op::Lion, vec![p, g.value, m, control, decay]),
    };
    graph.add(op, &inputs, &of)?;
    Ok(())
}
