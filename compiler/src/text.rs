//! Printed forms of the planning stages, for `--emit`.

use fp8c_runtime::plan::{Plan, Step, StepEpoch};
use std::fmt::Write;

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
