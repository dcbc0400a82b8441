//! What a plan says about itself.

use crate::Error;
use crate::decide::ladder::{Ladder, Rung};
use crate::decide::search::Costed;
use crate::decide::sites::{block_of, layer_of, sites};
use crate::graph::{Epoch, Graph, Op};
use crate::plan::assemble::persistent_bytes;
use crate::plan::schedule::Schedule;
use crate::quantity::Bytes;
use crate::units::{BufferId, Program};
use fp8c_kernels::DType;
use fp8c_runtime::plan::{Certificate, LayerReport, MatmulReport, Predicted, Report, Role, ValueReport};
use std::collections::BTreeMap;

/// Describes the chosen rung of a ladder.
///
/// # Errors
/// [`Error::Solver`] when no bound was found.
pub fn report(graph: &Graph, costed: &Costed, ladder: &Ladder, rung: &Rung, budget: Bytes, notes: &[String]) -> Result<Report, Error> {
    let program = costed.program;
    let (step, recompute) = rung.schedule.seconds(costed.unit_seconds);
    let lower_bound_seconds = ladder.lower_bound(costed, budget)?.0;
    let (step_seconds, recompute_seconds) = (step.0, recompute.0);
    let keeps = |b: &BufferId| rung.candidate.decisions.keep[b.0 as usize];
    let bytes = |b: &BufferId| program.buffers[b.0 as usize].bytes();
    let late = &ladder.ways.roots;
    let sum = |keep: bool| late.iter().filter(|b| keeps(b) == keep).map(bytes).sum::<Bytes>();
    let decisions = [("keep", sum(true)), ("keep_e4m3", kept_e4m3(program, rung, late)), ("offload", Bytes(0)), ("recompute", sum(false))]
        .map(|(k, v)| (k.to_string(), v.0));
    let everything = ladder.everything_kept(costed);
    Ok(Report {
        baseline_peak_bytes: baseline_peak(graph, program, &everything).0,
        saved_bytes: saved(program, &rung.schedule, |b| bytes(&b)).0,
        baseline_saved_bytes: saved(program, &everything, |b| mixed_bytes(program, b)).0,
        decisions: decisions.into(),
        by_layer: by_layer(program, ladder, rung),
        matmuls: matmuls(graph),
        predicted: Predicted { step_seconds, recompute_seconds, transfer_seconds: 0.0 },
        certificate: Certificate { lower_bound_seconds, step_seconds, gap: (step_seconds - lower_bound_seconds) / step_seconds.max(1e-12) },
        least_budget_bytes: ladder.least(costed).map_or(rung.arena_bytes, |r| r.arena_bytes).0,
        notes: notes.to_vec(),
    })
}

/// Bytes kept as E4M3 codes, a part of what is kept.
fn kept_e4m3(program: &Program, rung: &Rung, late: &[BufferId]) -> Bytes {
    let codes = late.iter().filter(|b| rung.candidate.decisions.keep[b.0 as usize]);
    codes.map(|b| &program.buffers[b.0 as usize]).filter(|b| b.ty.dtype == DType::E4m3).map(|b| b.bytes()).sum()
}

/// Bytes of a buffer in usual mixed precision: floats in bf16.
fn mixed_bytes(program: &Program, b: BufferId) -> Bytes {
    let buffer = &program.buffers[b.0 as usize];
    if buffer.ty.dtype.is_float() { Bytes(DType::Bf16.size()) * buffer.ty.elements() } else { buffer.bytes() }
}

/// Bytes made in the forward pass that are still there when the backward pass begins.
fn saved(program: &Program, schedule: &Schedule, bytes: impl Fn(BufferId) -> Bytes) -> Bytes {
    let is_late = |e: &crate::plan::schedule::Event| program.units[e.unit as usize].epoch != Epoch::Forward || e.recompute;
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

/// The layer that a site belongs to: its block, or its first two names.
fn layer(site: &str) -> &str {
    let path = layer_of(site);
    let two = path.match_indices('.').nth(1).map_or(path, |(end, _)| &path[..end]);
    block_of(site).unwrap_or(two)
}

fn by_layer(program: &Program, ladder: &Ladder, rung: &Rung) -> Vec<LayerReport> {
    let mut layers: Vec<LayerReport> = vec![];
    let mut position = BTreeMap::new();
    for b in &ladder.ways.roots {
        let maker = program.units.iter().find(|u| u.epoch == Epoch::Forward && u.args.contains(b) && u.args.last() == Some(b));
        let maker = maker.or_else(|| program.units.iter().find(|u| u.epoch == Epoch::Forward && u.args.contains(b)));
        let name = layer(maker.map_or("", |u| u.site.as_ref())).to_string();
        let at = *position.entry(name.clone()).or_insert_with(|| {
            layers.push(LayerReport { layer: name, values: vec![] });
            layers.len() - 1
        });
        let buffer = &program.buffers[b.0 as usize];
        let way = if rung.candidate.decisions.keep[b.0 as usize] { "keep" } else { "recompute" };
        layers[at].values.push(ValueReport { name: buffer.name.clone(), bytes: buffer.bytes().0, way: way.into() });
    }
    layers
}

/// Format of each product of a linear layer.
fn matmuls(graph: &Graph) -> Vec<MatmulReport> {
    let plain = sites(graph).into_iter().map(|s| {
        let format = match graph.ty(s.a.0).dtype {
            DType::Bf16 => "bf16",
            _ => "f32",
        };
        (s.node.0, graph.node(s.node).site.to_string(), s.pass.name(), format)
    });
    let scaled = graph.nodes.iter().enumerate().filter_map(|(n, node)| match &node.op {
        Op::ScaledMatmul { block_b, .. } => {
            let pass = match (node.epoch, block_b) {
                (Epoch::Forward, _) => "fprop",
                (_, true) => "dgrad",
                (_, false) => "wgrad",
            };
            Some((n as u32, node.site.to_string(), pass, "e4m3"))
        }
        _ => None,
    });
    let mut all: Vec<_> = plain.chain(scaled).collect();
    all.sort();
    all.into_iter().map(|(_, site, pass, format)| MatmulReport { site, pass: pass.into(), format: format.into() }).collect()
}
