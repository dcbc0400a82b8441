//! The update epoch: gradient norm, clipping, optimizer.

use super::*;
use crate::sections::sections;
use fp8c_kernels::program::{Kind, Literal, groups};
use fp8c_runtime::plan::{Clip, Control};

/// State slot of the buffer that gradients of several micro-batches are summed in. It is zero when a step begins.
pub const GRADIENT_SLOT: u32 = 9;

/// Appends norm and optimizer for every gradient of the graph.
pub(super) fn append(graph: &mut Graph, options: &TrainOptions) -> Result<(), Error> {
    if !matches!(options.state_dtype, DType::F32 | DType::Bf16 | DType::E4m3) {
        return Err(Error::Usage(format!("optimizer state cannot be stored as {}", options.state_dtype)));
    }
    if options.accumulation == 0 {
        return Err(Error::Usage("a step needs at least one micro-batch".into()));
    }
    if options.accumulation > 1 && options.clip == Clip::Previous {
        return Err(Error::Usage("gradients that are summed over micro-batches are there as a whole, so their own norm clips them".into()));
    }
    keep_outputs(graph)?;
    let control = loss::control(graph);
    let whole = Provenance { pass: Pass::Update, origin: None, site: "update".into() };
    let one = graph.add(loss::control_slice(Control::LOSS_SCALE), &[control], &whole)?[0];
    // A zero that is computed, since the sums that follow replace it in place.
    let zero = Expr { body: vec![ExprNode::Operand(0), ExprNode::Const { kind: Kind::Float, value: Literal::float(0.0) }] };
    let mut sum = graph.add(Op::Map(zero, DType::F32), &[one], &whole)?[0];
    let early = options.clip == Clip::Previous;
    for g in in_order_of_update(graph, early)? {
        let of = provenance(graph, g.parameter)?.1;
        sum = graph.add(Op::SumSquares, &[g.value, sum], &of)?[0];
        // The sum so far is finite where every gradient so far is.
        if early {
            optimize(graph, &g, control, Some(sum), options)?;
        }
    }
    let control = graph.add(Op::FinishNorm { accumulation: options.accumulation }, &[control, sum], &whole)?[0];
    for g in graph.gradients.clone().iter().filter(|_| !early) {
        optimize(graph, g, control, None, options)?;
    }
    Ok(())
}

/// The gradients; those that are applied early in the order in which the backward pass is through with their parameters.
fn in_order_of_update(graph: &Graph, early: bool) -> Result<Vec<Gradient>, Error> {
    let mut all = graph.gradients.clone();
    if early {
        let sections = sections(graph)?;
        let mut last = vec![0; all.len()];
        for (last, g) in last.iter_mut().zip(&all) {
            *last = sections.first_use(graph, provenance(graph, g.parameter)?.0);
        }
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(last[i]));
        all = order.into_iter().map(|i| all[i].clone()).collect();
    }
    Ok(all)
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
    let shape = graph.parameters[parameter].ty.shape.clone();
    source(graph, Op::State { parameter, slot, dtype, grouped: false }, TensorType::new(dtype, shape), parameter)
}

/// A persistent word for each group of a parameter's elements.
fn words(graph: &mut Graph, parameter: usize, slot: u32) -> ValueId {
    let count = groups(graph.parameters[parameter].ty.elements());
    source(graph, Op::State { parameter, slot, dtype: DType::F32, grouped: true }, TensorType::new(DType::F32, [count]), parameter)
}

fn source(graph: &mut Graph, op: Op, ty: TensorType, parameter: usize) -> ValueId {
    let site = graph.parameters[parameter].name.as_str().into();
    graph.add_source(op, ty, &site)
}

/// The parameter's number, which keys its random numbers.
fn site(graph: &mut Graph, parameter: usize) -> ValueId {
    let ty = TensorType::new(DType::I32, [1]);
    let bytes = (parameter as u32).to_le_bytes().to_vec();
    source(graph, Op::Constant(std::sync::Arc::new(ConstData { ty: ty.clone(), bytes })), ty, parameter)
}

/// Appends the step of one parameter; `sum` guards it where gradients are applied before all are there.
fn optimize(graph: &mut Graph, g: &Gradient, control: ValueId, sum: Option<ValueId>, options: &TrainOptions) -> Result<(), Error> {
    let (p, of) = provenance(graph, g.parameter)?;
    let decay = graph.add_source(Op::DecayOf(g.parameter), TensorType::new(DType::F32, [1]), &of.site);
    let op = OptimizeOp { rule: options.optimizer, moments: options.state_dtype, guarded: sum.is_some() };
    let mut inputs = vec![p, g.value];
    for slot in 0..op.states() as u32 {
        inputs.push(match options.state_dtype == DType::E4m3 && slot % 2 == 1 {
            true => words(graph, g.parameter, slot),
            false => state(graph, g.parameter, slot, options.state_dtype),
        });
    }
    inputs.extend([control, decay]);
    if graph.ty(p).dtype == DType::Bf16 {
        inputs.push(site(graph, g.parameter));
    }
    inputs.extend(sum);
    graph.add(Op::Optimize(op), &inputs, &of)?;
    Ok(())
}
