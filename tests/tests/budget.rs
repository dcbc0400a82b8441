//! The budget is a guarantee, and changes nothing but time.

use fp8c::Error;
use fp8c::compile::{Lowered, stages};
use fp8c::precision::Precision;
use fp8c::quantity::Bytes;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::session::Batch;
use fp8c_tests::{compiled, folder, options, plan_file, session, text};

const CASE: &str = "gpt2";
const BUDGETS: u64 = 6;

/// The solver's tolerance, nothing more: a bound that is none would be above by whole launches.
const SOLVER: f64 = 1e-6;

/// Budgets from the least feasible to everything kept.
fn budgets(precision: Precision) -> Vec<u64> {
    let all = compiled(CASE, &options(precision, Some(1 << 40))).expect("the model compiles").plan;
    let (low, high) = (all.report.least_budget_bytes, all.arena_bytes);
    assert!(low < high, "recomputation saves memory");
    (0..BUDGETS).map(|i| low + (high - low) * i / (BUDGETS - 1)).collect()
}

#[test]
fn every_budget_is_kept_to_the_byte_with_the_same_losses() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for precision in [Precision::F32, Precision::Fp8] {
        let mut losses: Option<Vec<f64>> = None;
        let mut seconds = f64::INFINITY;
        for budget in budgets(precision) {
            let file = plan_file(CASE, &options(precision, Some(budget)), dir.path()).expect("the budget can be met");
            let plan = file.plan();
            assert!(plan.arena_bytes <= budget);
            assert!(plan.report.predicted.step_seconds <= seconds, "more memory never costs time");
            let (bound, predicted) = (plan.report.certificate.lower_bound_seconds, plan.report.predicted.step_seconds);
            assert!(bound <= predicted * (1.0 + SOLVER), "bound {bound} above {predicted}");
            seconds = plan.report.predicted.step_seconds;
            let loader = Loader::open(plan, &[text().display().to_string()], Order::Shuffled { seed: 3 }).expect("the data fits");
            let (mut session, mut batch) = (session(&file), Batch::new(plan));
            let run: Vec<f64> = (0..3)
                .map(|i| {
                    loader.fill(i * loader.samples_per_step(), &mut batch).expect("the data is in range");
                    session.step(&batch, &Hyper::default()).expect("a step runs").loss
                })
                .collect();
            assert_eq!(session.arena_peak_bytes(), plan.arena_bytes, "executed peak is planned peak");
            assert_eq!(losses.get_or_insert(run.clone()), &run, "recomputation changes no bit");
        }
    }
}

#[test]
fn one_byte_below_the_least_budget_is_refused_with_its_size() {
    let least = budgets(Precision::F32)[0];
    let refused = compiled(CASE, &options(Precision::F32, Some(least - 1))).err();
    match refused {
        Some(Error::Infeasible { least: told, event, live, .. }) => {
            assert_eq!(told, Bytes(least));
            assert!(!event.is_empty() && live.len() > 1, "the binding event and what is alive there are named");
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Models and precisions whose plans are looked at closely.
const CLOSELY: [(&str, Precision); 5] =
    [("gpt2", Precision::Fp8), ("gpt2", Precision::F32), ("bert", Precision::F32), ("llama23", Precision::Bf16), ("cnn", Precision::Fp8)];

fn lowered(case: &str, precision: Precision) -> Lowered {
    let options = options(precision, None);
    let joint = stages(&folder(case).join("model.onnx"), &options).expect("the model compiles").joint;
    Lowered::new(joint, &options).expect("the model lowers")
}

#[test]
fn what_the_master_program_counts_is_what_the_schedule_takes() {
    for (case, precision) in CLOSELY {
        let l = lowered(case, precision);
        let planner = l.planner().expect("the model has sections");
        let (low, full) = (planner.master.least(), planner.master.full());
        for i in 0..=8 {
            let room = low + Bytes((full - low).0 * i / 8);
            let path = planner.master.solve(room).expect("the solver works").expect("the budget can be met");
            let schedule = fp8c::plan::schedule::build(&l.facts, &planner.decisions(&path));
            let (peak, again) = (schedule.peak().0, schedule.seconds(&l.seconds).1);
            assert!(peak <= path.peak, "{case} {precision:?}: {peak:?} is above {:?}", path.peak);
            assert!((again.0 - path.again.0).abs() < 1e-9, "{case} {precision:?}: {again:?} is not {:?}", path.again);
        }
    }
}

#[test]
fn more_memory_never_costs_time_and_less_never_needs_more_of_it() {
    for (case, precision) in CLOSELY {
        let l = lowered(case, precision);
        let planner = l.planner().expect("the model has sections");
        let least = planner.least().expect("the solver works").expect("there is a plan").arena_bytes;
        let most = planner.choose(Bytes::MAX).expect("everything can be kept").arena_bytes;
        let mut before = (Bytes(0), f64::INFINITY);
        for i in 0..=24 {
            let budget = least + Bytes((most - least).0 * i / 24);
            let rung = planner.choose(budget).expect("the budget can be met");
            let seconds = rung.schedule.seconds(&l.seconds).0.0;
            assert!(rung.arena_bytes <= budget);
            assert!(seconds <= before.1 && rung.arena_bytes >= before.0, "{case} {precision:?} at {budget:?}: {before:?}");
            let bound = planner.lower_bound(budget).expect("the solver works").0;
            assert!(bound <= seconds * (1.0 + 1e-9), "{case} {precision:?} at {budget:?}: bound {bound} above {seconds}");
            before = (rung.arena_bytes, seconds);
        }
    }
}
