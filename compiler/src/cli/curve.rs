//! `fp8c curve`.

use super::args::Curve as Arguments;
use super::text::write;
use super::{Done, Output, print};
use crate::curve::{Curve, curve, svg};
use crate::quantity::Bytes;
use fp8c_runtime::files::Replaces;
use serde_json::{Value, json};

/// Predicts a step's time at budgets from the least to the one that keeps everything.
pub fn run(a: &Arguments, output: Output) -> Done {
    a.output.as_deref().map_or(Ok(()), |path| Replaces::Curve.check(path))?;
    let mut curves = vec![];
    for target in &a.target {
        let options = super::compile::options(&a.at(target))?;
        curves.push(curve(&a.model.model, &options)?);
    }
    match output.json {
        true => print(Value::from(curves.iter().map(document).collect::<Vec<_>>()))?,
        false => print(table(&curves))?,
    }
    let Some(path) = &a.output else { return Ok(()) };
    let model = a.model.model.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    write(path, &svg(&model, &curves))?;
    output.say(format!("{model} -> {}", path.display()));
    Ok(())
}

fn document(curve: &Curve) -> Value {
    let point = |p: &crate::curve::Point| {
        json!({
            "budget_bytes": p.budget.0,
            "planned_bytes": p.planned.0,
            "step_seconds": p.step.0,
            "recompute_seconds": p.again.0,
            "lower_bound_seconds": p.bound.0,
        })
    };
    json!({ "target": curve.target, "points": curve.points.iter().map(point).collect::<Vec<_>>() })
}

fn table(curves: &[Curve]) -> String {
    let mut lines = vec![format!("{:<8} {:>14} {:>10} {:>12} {:>12} {:>8}", "target", "budget, bytes", "", "s a step", "again", "gap")];
    for (curve, p) in curves.iter().flat_map(|c| c.points.iter().map(move |p| (c, p))) {
        let share = |s: f64| format!("{:.2}%", 100.0 * s / p.step.0.max(1e-12));
        let budget = Bytes(p.budget.0).to_string();
        let (again, gap) = (share(p.again.0), share(p.step.0 - p.bound.0));
        lines.push(format!("{:<8} {:>14} {budget:>10} {:>12.6} {again:>12} {gap:>8}", curve.target, p.budget.0, p.step.0));
    }
    lines.join("\n")
}
