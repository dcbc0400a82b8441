//! What a plan says about itself.

use crate::Error;
use crate::decide::chain::Costed;
use crate::decide::planner::{Planner, Rung};
use crate::decide::sites::{layer_of, sites};
use crate::graph::{Epoch, Graph, NodeId, Op, Pass};
use crate::plan::assemble::persistent_bytes;
use crate::plan::schedule::Schedule;
use crate::quantity::Bytes;
use crate::sections::{Sections, sections};
use crate::units::{BufferId, Program};
use fp8c_kernels::DType;
use fp8c_runtime::plan::{Certificate, LayerReport, MatmulReport, Predicted, Report, Role, ValueReport};
use std::collections::{BTreeMap, HashSet};

/// Describes a chosen plan.
///
/// # Errors
/// As [`sites`] and [`Planner::lower_bound`].
pub fn report(graph: &Graph, costed: &Costed, planner: &Planner, rung: &Rung, budget: Bytes, notes: &[String]) -> Result<Report, Error> {
    let program = costed.program;
    let (step, recompute) = rung.schedule.seconds(costed.unit_seconds);
    let lower_bound_seconds = planner.lower_bound(budget)?.0;
    let (step_seconds, recompute_seconds) = (step.0, recompute.0);
    let keeps = |b: &BufferId| rung.decisions.keep[b.0 as usize];
    let bytes = |b: &BufferId| program.buffers[b.0 as usize].bytes();
    let late = &costed.facts.late_reads(program);
    let sum = |keep: bool| late.iter().filter(|b| keeps(b) == keep).map(bytes).sum::<Bytes>();
    let decisions = [("keep", sum(true)), ("keep_e4m3", kept_e4m3(program, rung, late)), ("offload", Bytes(0)), ("recompute", sum(false))]
        .map(|(k, v)| (k.to_string(), v.0));
    let everything = planner.everything_kept();
    let sections = sections(graph)?;
    Ok(Report {
        baseline_peak_bytes: baseline_peak(graph, program, &everything).0,
        saved_bytes: saved(program, &rung.schedule, |b| bytes(&b)).0,
        baseline_saved_bytes: saved(program, &everything, |b| mixed_bytes(program, b)).0,
        decisions: decisions.into(),
        by_layer: by_layer(graph, &sections, program, late, rung),
        matmuls: matmuls(graph)?,
        predicted: Predicted { step_seconds, recompute_seconds, transfer_seconds: 0.0 },
        certificate: Certificate { lower_bound_seconds, step_seconds, gap: (step_seconds - lower_bound_seconds) / step_seconds.max(1e-12) },
        least_budget_bytes: planner.least()?.map_or(rung.arena_bytes, |r| r.arena_bytes).0,
        notes: notes.to_vec(),
    })
}

/// Bytes kept as E4M3 codes, a part of what is kept.
fn kept_e4m3(program: &Program, rung: &Rung, late: &[BufferId]) -> Bytes {
    let codes = late.iter().filter(|b| rung.decisions.keep[b.0 as usize]);
    codes.map(|b| &program.buffers[b.0 as usize]).filter(|b| b.ty.dtype == DType::E4m3).map(|b| b.bytes()).sum()
}

/// Bytes of a buffer in usual mixed precision: floats in bf16.
fn mixed_bytes(program: &Program, b: BufferId) -> Bytes {
    let buffer = &program.buffers[b.0 as usize];
    if buffer.ty.dtype.is_float() { Bytes(DType::Bf16.size()) * buffer.ty.elements() } else { buffer.bytes() }
}

/// Bytes made in the forward pass that are still there when the backward pass begins.
fn saved(program: &Program, schedule: &Schedule, bytes: impl Fn(BufferId) -> Bytes) -> Bytes {
    let is_late = |e: &crate::plan::schedule::Event| program.unit(e.unit).epoch != Epoch::Forward || e.recompute;
    let Some(start) = schedule.events.iter().position(is_late) else { return Bytes(0) };
    let crossing = schedule.instances.iter().filter(|i| (i.first as usize) < start && (i.last as usize) >= start);
    crossing.filter_map(|i| i.buffer).map(bytes).sum()
}

/// Peak of usual mixed precision with everything kept: 16 bytes a trained parameter, bf16 activations.
fn baseline_peak(graph: &Graph, program: &Program, kept: &Schedule) -> Bytes {
    let trained: Bytes = graph.gradients.iter().map(|g| Bytes(16) * graph.parameters[g.parameter].ty.elements()).sum();
    let is_weight_gradient = |b: BufferId| program.gradients.iter().any(|(_, g)| *g == b);
    let mut change = vec![0i128; kept.events.len() + 1];
    for i in kept.instances.iter() {
        let Some(b) = i.buffer.filter(|b| !is_weight_gradient(*b)) else { continue };
        let bytes = mixed_bytes(program, b).0 as i128;
        change[i.first as usize] += bytes;
        change[i.last as usize + 1] -= bytes;
    }
    let (mut live, mut peak) = (0i128, 0i128);
    for c in change {
        live += c;
        peak = peak.max(live);
    }
    let inputs: Bytes = program.buffers.iter().filter(|b| b.role == Role::Input).map(|b| b.bytes()).sum();
    let peak = Bytes(u64::try_from(peak).unwrap_or(u64::MAX));
    match graph.gradients.is_empty() {
        true => persistent_bytes(program) + peak,
        false => trained + inputs + peak,
    }
}

/// What of the values read late is kept, by block of the model in order.
fn by_layer(graph: &Graph, sections: &Sections, program: &Program, late: &[BufferId], rung: &Rung) -> Vec<LayerReport> {
    let mut layers: BTreeMap<usize, Vec<ValueReport>> = BTreeMap::new();
    for b in late {
        let forward = || program.units.iter().filter(|u| u.epoch == Epoch::Forward && u.args.contains(b));
        let maker = forward().find(|u| u.args.last() == Some(b)).or_else(|| forward().next());
        let section = maker.and_then(|u| u.nodes.last()).map_or(0, |&n| sections.of(n));
        let buffer = &program.buffers[b.0 as usize];
        let way = if rung.decisions.keep[b.0 as usize] { "keep" } else { "recompute" };
        let value = ValueReport { name: buffer.name.clone(), bytes: buffer.bytes().0, way: way.into() };
        layers.entry(sections.block(section)).or_default().push(value);
    }
    layers.into_iter().map(|(block, values)| LayerReport { layer: block_name(graph, sections, block), values }).collect()
}

/// The module path that all forward nodes of a block have in common, for the reader, behind the block's number.
fn block_name(graph: &Graph, sections: &Sections, block: usize) -> String {
    let inside = (0..).map(NodeId).zip(&graph.nodes).filter(|(n, node)| {
        let forward = node.pass == Pass::Fprop && !node.op.is_source();
        forward && sections.block(sections.of(*n)) == block
    });
    let mut paths = inside.map(|(_, node)| layer_of(&node.site).split(['.', '/']).collect::<Vec<_>>());
    let first = paths.next().unwrap_or_default();
    let common = paths.fold(first, |common, path| common.into_iter().zip(path).take_while(|(a, b)| a == b).map(|(a, _)| a).collect());
    format!("{block} {}", common.join(".")).trim_end().into()
}

/// Format of each product of a linear layer; the slices of a loss head's are one.
fn matmuls(graph: &Graph) -> Result<Vec<MatmulReport>, Error> {
    let mut all: Vec<(NodeId, &str)> = sites(graph)?
        .into_iter()
        .map(|s| (s.node, if graph.ty(s.a.0).dtype == DType::Bf16 { "bf16" } else { "f32" }))
        .chain((0..).map(NodeId).zip(&graph.nodes).filter(|(_, n)| matches!(n.op, Op::ScaledMatmul { .. })).map(|(n, _)| (n, "e4m3")))
        .collect();
    all.sort();
    let report = |(n, format): (NodeId, &str)| {
        let node = graph.node(n);
        let pass = if node.pass == Pass::Loss { Pass::Fprop } else { node.pass };
        MatmulReport { site: node.site.to_string(), pass: pass.name().into(), format: format.into() }
    };
    let mut sliced = HashSet::new();
    let once = |(n, _): &(NodeId, &str)| {
        let node = graph.node(*n);
        let of_head = node.pass == Pass::Loss || graph.node(node.origin).pass == Pass::Loss;
        !of_head || sliced.insert((node.site.clone(), node.pass))
    };
    Ok(all.into_iter().filter(once).map(report).collect())
}
