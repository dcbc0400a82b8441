//! Printed forms of the planning stages, for `--emit`.

use crate::compile::Compiled;
use fp8c_runtime::plan::{Plan, Step, StepEpoch};
use std::fmt::Write;

/// The ways to have each late value, and the ladder of plans they give.
pub fn egraph(c: &Compiled) -> String {
    let name = |b: &crate::units::BufferId| c.program.buffers[b.0 as usize].name.as_str();
    let ways = &c.ladder.ways;
    let mut out = format!("e-graph: {} classes, {} nodes, {} values read late\n", ways.size.0, ways.size.1, ways.roots.len());
    for (b, way) in &ways.recompute {
        let needs: Vec<&str> = way.needs.iter().map(name).collect();
        let sites: Vec<&str> = way.units.iter().map(|u| c.program.units[*u as usize].site.as_ref()).collect();
        let _ = writeln!(out, "late({}) = keep | again {} from [{}]", name(b), sites.join(", "), needs.join(", "));
    }
    let _ = writeln!(out, "ladder: {} plans", c.ladder.plans.len());
    for p in &c.ladder.plans {
        let kept = p.decisions.keep.iter().filter(|k| **k).count();
        let _ = writeln!(out, "plan: {} transient bytes, {:.6} s, {kept} kept", p.peak.0, p.seconds.0);
    }
    out
}

/// One line a launch, with where each argument lies.
pub fn schedule(plan: &Plan) -> String {
    let mut out = format!("arena {} bytes\n", plan.arena_bytes);
    let mut section = |name: &str, steps: &[Step]| {
        let _ = writeln!(out, "{name}:");
        for s in steps {
            let arg = |id: &fp8c_runtime::plan::TensorId| {
                let t = &plan.tensors[id.0 as usize];
                format!("{}@{:#x}", t.name, t.offset)
            };
            let epoch = match s.epoch {
                StepEpoch::Forward => "forward",
                StepEpoch::Backward => "backward",
                StepEpoch::Recompute => "again",
                StepEpoch::Update => "update",
            };
            let args: Vec<String> = s.args.iter().chain(&s.scratch).map(arg).collect();
            let _ = writeln!(out, "  {epoch:<8} {} {}  # {}", plan.kernels[s.kernel as usize].name, args.join(" "), s.site);
        }
    };
    section("micro", &plan.schedule.micro);
    section("update", &plan.schedule.update);
    out
}
