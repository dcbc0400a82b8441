//! A plan as one HTML file: memory over a step, decisions, formats, times, the loss. It loads nothing from anywhere.

mod losses;

pub use losses::Losses;

use fp8c_runtime::plan::{Plan, Role, Step, StepEpoch, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Numbers of the kinds of tensors that the page tells apart, as `KINDS` in `page.js` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Parameter,
    State,
    /// Inputs, outputs and constants.
    Port,
    Gradient,
    Kept,
    Recomputed,
    Temporary,
    Scratch,
}

/// The page of a plan, with the losses of a training of it.
pub fn page(plan: &Plan, losses: Option<&Losses>) -> String {
    // A script ends at `</script`, whatever it is part of.
    let data = document(plan, losses).to_string().replace('<', "\\u003c");
    let title = plan.model.replace('&', "&amp;").replace('<', "&lt;");
    let parts = [("@TITLE@", title.as_str()), ("@STYLE@", STYLE.trim_end()), ("@SCRIPT@", SCRIPT.trim_end()), ("@DATA@", data.as_str())];
    let mut rest = PAGE;
    let mut out = String::with_capacity(PAGE.len() + STYLE.len() + SCRIPT.len() + data.len());
    // In one pass: what is filled in may itself hold such a mark.
    while let Some((at, (mark, text))) = parts.iter().filter_map(|p| Some((rest.find(p.0)?, p))).min_by_key(|(at, _)| *at) {
        out.push_str(&rest[..at]);
        out.push_str(text);
        rest = &rest[at + mark.len()..];
    }
    out + rest
}

/// What the page draws.
fn document(plan: &Plan, losses: Option<&Losses>) -> Value {
    let r = &plan.report;
    json!({
        "model": plan.model,
        "purpose": plan.purpose,
        "target": plan.target,
        "precision": plan.precision,
        "optimizer": plan.optimizer,
        "compiler": plan.fingerprint.compiler,
        "arena": plan.arena_bytes,
        "budget": (plan.budget_bytes != u64::MAX).then_some(plan.budget_bytes),
        "least": r.least_budget_bytes,
        "baseline": r.baseline_peak_bytes,
        "predicted": r.predicted,
        "certificate": r.certificate,
        "ways": r.decisions,
        "layers": r.by_layer,
        "matmuls": r.matmuls,
        "notes": r.notes,
        "losses": losses.map(|l| &l.points),
        "each": losses.map_or(1, |l| l.each),
        "tensors": tensors(plan),
        "sites": numbers(all(plan).map(|s| s.site.as_str())).0,
        "families": numbers(all(plan).map(|s| family(plan, s))).0,
        "steps": steps(plan),
    })
}

/// The launches of a step, in order.
fn all(plan: &Plan) -> impl Iterator<Item = &Step> {
    plan.schedule.micro.iter().chain(&plan.schedule.update)
}

fn family<'p>(plan: &'p Plan, step: &Step) -> &'p str {
    plan.kernels[step.kernel as usize].kernel.family()
}

/// Distinct names, and the number of each one.
fn numbers<'t>(names: impl Iterator<Item = &'t str>) -> (Vec<&'t str>, Vec<usize>) {
    let (mut distinct, mut number_of) = (vec![], HashMap::new());
    let mut number = |name| {
        *number_of.entry(name).or_insert_with(|| {
            distinct.push(name);
            distinct.len() - 1
        })
    };
    let of = names.map(&mut number).collect();
    (distinct, of)
}

fn steps(plan: &Plan) -> Value {
    json!({
        "site": numbers(all(plan).map(|s| s.site.as_str())).1,
        "family": numbers(all(plan).map(|s| family(plan, s))).1,
        "epoch": all(plan).map(|s| s.epoch).collect::<Vec<_>>(),
        "seconds": all(plan).map(|s| s.seconds).collect::<Vec<_>>(),
    })
}

/// Columns, a place for each tensor.
fn tensors(plan: &Plan) -> Value {
    let epochs: Vec<StepEpoch> = all(plan).map(|s| s.epoch).collect();
    let backward = epochs.iter().position(|e| *e != StepEpoch::Forward).unwrap_or(epochs.len());
    let of = |f: &dyn Fn(&Tensor) -> Value| plan.tensors.iter().map(f).collect::<Vec<_>>();
    json!({
        "name": of(&|t| json!(t.name)),
        "type": of(&|t| json!(format!("{:?} {:?}", t.dtype, t.shape).to_lowercase())),
        "kind": of(&|t| json!(kind(t, &epochs, backward) as u8)),
        "offset": of(&|t| json!(t.offset)),
        "bytes": of(&|t| json!(t.bytes)),
        "first": of(&|t| json!(t.first)),
        "last": of(&|t| json!(t.last)),
    })
}

/// What a tensor is there for; the backward pass begins at step `backward`.
fn kind(t: &Tensor, epochs: &[StepEpoch], backward: usize) -> Kind {
    match t.role {
        Role::Parameter => Kind::Parameter,
        Role::State => Kind::State,
        Role::Input | Role::Output | Role::Constant | Role::Control => Kind::Port,
        Role::Gradient => Kind::Gradient,
        Role::Scratch => Kind::Scratch,
        Role::Activation if epochs.get(t.first as usize) == Some(&StepEpoch::Recompute) => Kind::Recomputed,
        Role::Activation if (t.first as usize) < backward && t.last as usize >= backward => Kind::Kept,
        Role::Activation => Kind::Temporary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp8c_kernels::DType;
    use fp8c_runtime::plan::Tier;

    fn tensor(role: Role, first: u32, last: u32) -> Tensor {
        let (name, shape, tier) = ("t".into(), vec![4], Tier::Device);
        Tensor { name, dtype: DType::F32, shape, role, tier, offset: 0, bytes: 16, first, last }
    }

    #[test]
    fn activations_are_told_apart_by_where_they_are_made_and_read() {
        let epochs = [StepEpoch::Forward, StepEpoch::Forward, StepEpoch::Recompute, StepEpoch::Backward];
        let of = |first, last| kind(&tensor(Role::Activation, first, last), &epochs, 2);
        assert_eq!([of(0, 1), of(1, 3), of(2, 3), of(3, 3)], [Kind::Temporary, Kind::Kept, Kind::Recomputed, Kind::Temporary]);
        assert_eq!(kind(&tensor(Role::Gradient, 3, 3), &epochs, 2), Kind::Gradient);
    }

    #[test]
    fn kinds_have_the_numbers_that_the_script_gives_them() {
        let names = ["parameter", "state", "input", "gradient", "kept", "recomputed", "temporary", "scratch"];
        let places = names.map(|n| SCRIPT.find(&format!("['{n}', '")).expect("the script has each kind"));
        assert!(places.is_sorted());
        assert_eq!(Kind::Scratch as usize, names.len() - 1);
    }

    #[test]
    fn nothing_on_the_page_is_loaded_from_elsewhere() {
        for part in [PAGE, STYLE, SCRIPT] {
            for mark in ["http:", "https:", "src=", "@import", "url(", "fetch(", "<link"] {
                assert!(!part.contains(mark), "{mark}");
            }
        }
    }
}
