//! `fp8c inspect`.

use super::args::Inspect;
use super::{Done, Output, print};
use crate::quantity::Bytes;
use fp8c_runtime::plan::{Clip, Labels, Plan, PlanFile};
use serde_json::{Value, json};

/// Shows a plan file.
pub fn inspect(a: &Inspect, output: Output) -> Done {
    let file = PlanFile::open(&a.plan)?;
    match output.json {
        true => print(document(file.plan())),
        false => print(text(file.plan())),
    }
}

/// The plan as its file has it.
pub fn plan_json(plan: &Plan) -> String {
    serde_json::to_string_pretty(plan).unwrap_or_default()
}

/// The JSON that scripts rely on (`docs/guide.md`).
pub fn document(plan: &Plan) -> Value {
    let r = &plan.report;
    let parameters = plan.parameters.iter().map(|p| {
        let t = &plan.tensors[p.tensor.0 as usize];
        json!({ "name": p.name, "shape": p.shape, "dtype": t.dtype, "trainable": p.trainable, "tier": t.tier })
    });
    let kernels =
        plan.kernels.iter().map(|k| json!({ "name": k.name, "family": k.kernel.family(), "archs": k.launches.keys().collect::<Vec<_>>() }));
    let port = |p: &fp8c_runtime::plan::Port| {
        let mut fields = json!({ "name": p.name, "dtype": p.dtype, "shape": p.shape });
        let known = [("bound", json!(p.bound)), ("ignore", json!(p.ignore)), ("labels", json!(p.labels))];
        known.into_iter().filter(|(_, v)| !v.is_null()).for_each(|(key, v)| fields[key] = v);
        fields
    };
    json!({
        "schema": plan.schema,
        "model": plan.model,
        "target": plan.target,
        "precision": plan.precision,
        "optimizer": plan.optimizer,
        "accumulation": plan.accumulation,
        "clip": plan.clip,
        "budget_bytes": plan.budget_bytes,
        "least_budget_bytes": r.least_budget_bytes,
        "peak_bytes": { "device": plan.arena_bytes, "host": 0, "disk": 0 },
        "baseline_peak_bytes": r.baseline_peak_bytes,
        "saved_bytes": r.saved_bytes,
        "baseline_saved_bytes": r.baseline_saved_bytes,
        "inputs": plan.inputs.iter().map(port).collect::<Vec<_>>(),
        "outputs": plan.outputs.iter().map(port).collect::<Vec<_>>(),
        "parameters": parameters.collect::<Vec<_>>(),
        "decisions": r.decisions,
        "by_layer": r.by_layer,
        "matmuls": r.matmuls,
        "predicted": r.predicted,
        "certificate": r.certificate,
        "kernels": kernels.collect::<Vec<_>>(),
        "launches": { "micro": plan.schedule.micro.len(), "update": plan.schedule.update.len() },
        "notes": r.notes,
    })
}

fn text(plan: &Plan) -> String {
    let r = &plan.report;
    let mut out = vec![format!("{} for {}, {}", plan.model, plan.target, plan.precision)];
    let budget = if plan.budget_bytes == u64::MAX { "none".into() } else { Bytes(plan.budget_bytes).to_string() };
    out.push(format!("memory      {} planned, budget {budget}, least {}", Bytes(plan.arena_bytes), Bytes(r.least_budget_bytes)));
    for p in &plan.inputs {
        let range = p.bound.map_or(String::new(), |_| format!(", {}", p.allowed()));
        let labels = p.labels.map_or("", |l| if l == Labels::Next { ", the next tokens" } else { ", the tokens themselves" });
        out.push(format!("input       {} {}{:?}{range}{labels}", p.name, p.dtype, p.shape));
    }
    for p in &plan.outputs {
        out.push(format!("output      {} {}{:?}", p.name, p.dtype, p.shape));
    }
    let elements =
        |trained: bool| -> u64 { plan.parameters.iter().filter(|p| p.trainable == trained).map(|p| p.shape.iter().product::<u64>()).sum() };
    out.push(format!("parameters  {} trained, {} not", elements(true), elements(false)));
    if plan.loss.is_some() {
        out.push(format!(
            "update      {}, gradients clipped by the {} norm",
            if plan.clip == Clip::Previous { "within the backward pass" } else { "when all gradients are there" },
            if plan.clip == Clip::Previous { "previous step's" } else { "step's own" },
        ));
        out.push(format!(
            "saved       {} from forward to backward, {} in usual mixed precision",
            Bytes(r.saved_bytes),
            Bytes(r.baseline_saved_bytes)
        ));
        for layer in &r.by_layer {
            let sum = |way: &str| layer.values.iter().filter(|v| v.way == way).map(|v| Bytes(v.bytes)).sum::<Bytes>();
            out.push(format!("  {:<40} keep {:>10}  recompute {:>10}", layer.layer, sum("keep"), sum("recompute")));
        }
        out.push(format!(
            "predicted   {:.4} s a step, {:.4} s of it recomputation; at least {:.4} s (gap {:.2}%)",
            r.predicted.step_seconds,
            r.predicted.recompute_seconds,
            r.certificate.lower_bound_seconds,
            100.0 * r.certificate.gap
        ));
    }
    let count = |f: &str| r.matmuls.iter().filter(|m| m.format == f).count();
    out.push(format!("products    {} e4m3, {} bf16, {} f32", count("e4m3"), count("bf16"), count("f32")));
    out.push(format!("kernels     {} distinct, {} launches", plan.kernels.len(), plan.schedule.micro.len() + plan.schedule.update.len()));
    out.extend(r.notes.iter().map(|n| format!("note        {n}")));
    out.join("\n")
}
