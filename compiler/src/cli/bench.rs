//! `fp8c bench`.

use super::args::{Bench, Pack, Remat};
use super::failure::Failure;
use super::text::{read, write, wrong};
use super::{Done, Output, print};
use crate::Error;
use crate::bench::buffers::Buffers;
use crate::bench::graph::Instance;
use fp8c_runtime::files::Replaces;
use fp8c_solve::pack::{Fit, Packing, fit, least, lower_bound, pack as quick};
use fp8c_solve::remat::{Failure as Missing, Limits, Schedule, solve};
use serde_json::json;

/// Placements that a search for a capacity may take.
const NODES: u64 = 40_000_000;

/// Runs a part of the planner on a bare problem.
pub fn bench(a: &Bench, output: Output) -> Done {
    match a {
        Bench::Pack(a) => pack(a, output),
        Bench::Remat(a) => remat(a, output),
    }
}

/// Packs buffers.
fn pack(a: &Pack, output: Output) -> Done {
    a.output.as_deref().map_or(Ok(()), |path| Replaces::Offsets.check(path))?;
    let hint = "write a line `id,lower,upper,size` and one such line for each buffer, alive in [lower, upper)";
    let buffers = Buffers::parse(&read(&a.buffers)?).map_err(|e| wrong(&a.buffers, e, hint))?;
    let bound = lower_bound(&buffers.spans);
    let packing = match a.capacity {
        Some(capacity) => within(&buffers, capacity.0, bound)?,
        None => least(&buffers.spans),
    };
    let excess = 100.0 * (packing.height - bound) as f64 / bound.max(1) as f64;
    output.say(format!("{} buffers, height {}, bound {bound}, excess {excess:.3}%", buffers.ids.len(), packing.height));
    let offsets = buffers.offsets(&packing.offsets);
    a.output.as_deref().map_or(Ok(()), |path| write(path, &offsets))?;
    match (output.json, &a.output) {
        (true, _) => print(json!({ "buffers": buffers.ids.len(), "height": packing.height, "bound": bound })),
        (false, None) => print(offsets.trim_end()),
        (false, Some(_)) => Ok(()),
    }
}

/// A packing into a capacity.
fn within(buffers: &Buffers, capacity: u64, bound: u64) -> Result<Packing, Failure> {
    let more = |m: String| Err(Failure::refused(m, "give more --capacity, or leave it out for the least that is found"));
    let count = buffers.ids.len();
    if bound > capacity {
        return more(format!("{count} buffers cannot be packed into {capacity} bytes, since {bound} are alive at once"));
    }
    match fit(&buffers.spans, capacity, NODES) {
        Fit::Found(packing) => Ok(packing),
        Fit::Impossible => more(format!("{count} buffers cannot be packed into {capacity} bytes: every way to place them was tried")),
        Fit::Unknown => match quick(&buffers.spans, capacity) {
            packing if packing.height <= capacity => Ok(packing),
            _ => more(format!("no packing of {count} buffers into {capacity} bytes was found in {NODES} placements")),
        },
    }
}

/// Computes values of a graph again until it fits a budget.
fn remat(a: &Remat, output: Output) -> Done {
    a.output.as_deref().map_or(Ok(()), |path| Replaces::Schedule.check(path))?;
    let hint =
        "write {\"nodes\": [{\"id\": 0, \"cost\": 1, \"bytes\": 8}, ..], \"edges\": [[0, 1], ..]}, ids in an order in which nodes can run";
    let instance = Instance::parse(&read(&a.graph)?).map_err(|e| wrong(&a.graph, e, hint))?;
    let graph = &instance.graph;
    let budget = a.budget.of(graph.plain_peak());
    let found = solve(graph, budget, Limits::default()).map_err(|e| missing(e, budget))?;
    let once = graph.once().max(1e-300);
    let again = found.order.len() - graph.len();
    output.say(format!(
        "{} nodes, {again} computed again; peak {} of {budget} bytes ({} in the plain order)",
        graph.len(),
        found.peak,
        graph.plain_peak()
    ));
    output.say(format!(
        "cost +{:.4}%, at least +{:.4}%: gap {:.4}%, over schedules that compute first, and again before each of these, in the order of ids",
        100.0 * (found.cost / once - 1.0),
        100.0 * (found.bound / once - 1.0),
        100.0 * (found.cost - found.bound) / found.cost.max(1e-300),
    ));
    let schedule = instance.schedule(&found);
    a.output.as_deref().map_or(Ok(()), |path| write(path, &schedule))?;
    match (output.json, &a.output) {
        (true, _) => print(summary(&found, budget, once)),
        (false, None) => print(schedule),
        (false, Some(_)) => Ok(()),
    }
}

fn summary(s: &Schedule, budget: u64, once: f64) -> serde_json::Value {
    json!({ "budget_bytes": budget, "peak_bytes": s.peak, "cost": s.cost, "lower_bound": s.bound, "cost_once": once, "steps": s.order.len() })
}

fn missing(e: Missing, budget: u64) -> Failure {
    match e {
        Missing::Infeasible => {
            let said = format!("no schedule that computes again in the order of ids is within {budget} bytes");
            Failure::refused(said, "give more --budget")
        }
        Missing::Limit => {
            Failure::refused("the search ended at its limits before it had a schedule", "give more --budget, or a smaller graph")
        }
        Missing::Solver(reason) => Error::Solver(reason).into(),
    }
}
