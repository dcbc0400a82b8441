//! The budget is a guarantee, and changes nothing but time.

use fp8c::Error;
use fp8c::cost::DeviceProfile;
use fp8c::decide::search::Costed;
use fp8c::plan::assemble::persistent_bytes;
use fp8c::plan::schedule::Facts;
use fp8c::precision::Precision;
use fp8c::quantity::Bytes;
use fp8c_kernels::program::ScratchFor;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::session::Batch;
use fp8c_tests::{THREADS, compiled, options, plan_file, session, text};

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

#[test]
fn no_plan_is_faster_than_the_bound_at_its_own_bytes() {
    for (case, precision) in [("gpt2", Precision::Fp8), ("bert", Precision::F32), ("llama23", Precision::Bf16)] {
        let c = compiled(case, &options(precision, Some(1 << 40))).expect("the model compiles");
        let facts = Facts::new(&c.program, ScratchFor::Cpu { threads: THREADS });
        let seconds = DeviceProfile::of("cpu").expect("the CPU has a profile").all(&c.program);
        let costed = Costed { program: &c.program, facts: &facts, unit_seconds: &seconds };
        assert!(c.ladder.plans.len() > 3, "{} plans", c.ladder.plans.len());
        for pair in c.ladder.plans.windows(2) {
            assert!(pair[0].peak < pair[1].peak && pair[0].seconds > pair[1].seconds, "each plan is the best for some budget");
        }
        for plan in &c.ladder.plans {
            let bound = c.ladder.lower_bound(&costed, persistent_bytes(&c.program) + plan.peak).expect("the program is solved").0;
            assert!(bound <= plan.seconds.0 * (1.0 + SOLVER), "{case}: bound {bound} above {:?} at {:?}", plan.seconds, plan.peak);
        }
    }
}
