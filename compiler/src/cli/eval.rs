//! `fp8c eval`.

use super::args::Eval;
use super::failure::Failure;
use super::train::labels;
use super::{Done, Output, print};
use fp8c_runtime::checkpoint;
use fp8c_runtime::data::{DataOptions, Loader, Order};
use fp8c_runtime::device::DeviceChoice;
use fp8c_runtime::evaluation::{Evaluation, evaluate, judged};
use fp8c_runtime::plan::{Plan, PlanFile};
use fp8c_runtime::session::{Session, SessionOptions};
use std::sync::atomic::AtomicBool;

/// Takes the loss of a plan over data.
pub fn eval(a: &Eval, output: Output) -> Done {
    let file = PlanFile::open(&a.plan)?;
    let device: DeviceChoice = a.on.device.parse()?;
    let classes = if file.plan().loss.is_none() { Some(judged(file.plan())?) } else { None };
    let fed = classes.as_ref().map_or(file.plan(), |c| &c.plan);
    let options = DataOptions { order: Order::Sequential, labels: labels(a.labels), width: a.token_width };
    let loader = Loader::open(fed, &a.data, options)?;
    loader.notes().iter().for_each(|note| output.say(format!("note: {note}")));
    let mut session = Session::new(&file, SessionOptions { device, threads: a.on.threads, seed: a.seed })?;
    match &a.checkpoint {
        Some(folder) => checkpoint::load_parameters(&mut session, folder, &mut |note| output.say(format!("note: {note}")))?,
        None => output.say("note: these are the plan's first weights; --checkpoint DIR evaluates trained ones"),
    }
    let result = evaluate(&mut session, &loader, a.batches, &AtomicBool::new(false))?;
    let result = result.ok_or_else(|| Failure::refused("the evaluation was stopped", "run it again"))?;
    print_result(&result, is_language_model(fed), output)
}

/// A perplexity is one of tokens.
fn is_language_model(plan: &Plan) -> bool {
    plan.inputs.iter().any(|p| p.name == "input_ids") && plan.inputs.iter().any(|p| p.labels.is_some())
}

fn print_result(e: &Evaluation, language: bool, output: Output) -> Done {
    let perplexity = language.then(|| e.loss.exp());
    if output.json {
        return print(serde_json::json!({
            "loss": e.loss, "perplexity": perplexity, "accuracy": e.accuracy, "samples": e.samples, "labels": e.labels,
            "left_out": e.left_out, "seconds": e.seconds,
        }));
    }
    let mut lines = vec![format!("loss        {:.4}", e.loss)];
    lines.extend(perplexity.map(|p| format!("perplexity  {p:.3}")));
    lines.extend(e.accuracy.map(|share| format!("accuracy    {:.2}%", 100.0 * share)));
    let labels = e.labels.map_or(String::new(), |n| format!(", {n} labels"));
    lines.push(format!("over        {} samples{labels}", e.samples));
    if e.left_out > 0 {
        output.say(format!("note: the last {} samples do not fill a batch and were left out", e.left_out));
    }
    print(lines.join("\n"))
}
