//! Names are for the reader: they decide nothing.

use fp8c::compile::{Compiled, compile_imported};
use fp8c::import::import;
use fp8c::precision::Precision;
use fp8c_runtime::plan::{Plan, Step};
use fp8c_tests::{folder, options};

/// A model compiled, with all its modules renamed or not.
fn compiled(case: &str, precision: Precision, budget: u64, rename: bool) -> Compiled {
    let (path, options) = (folder(case).join("model.onnx"), options(precision, Some(budget)));
    let mut imported = import(&path, &options.import).expect("the model is there");
    if rename {
        let names = (0u64..).map(|i| format!("node{}", i * 7919 % 10007));
        imported.graph.nodes.iter_mut().zip(names).for_each(|(node, name)| node.site = name.as_str().into());
    }
    compile_imported(imported, &path, &options).expect("the budget can be met")
}

/// What is left of a plan without names.
fn nameless(plan: &Plan) -> String {
    let step = |s: &Step| format!("{} {:?} {:?} {:?} {}", s.kernel, s.args, s.scratch, s.epoch, s.seconds);
    let steps: Vec<String> = plan.schedule.micro.iter().chain(&plan.schedule.update).map(step).collect();
    let tensors: Vec<_> = plan.tensors.iter().map(|t| (t.dtype, &t.shape, t.offset, t.bytes, t.first, t.last)).collect();
    let kernels: Vec<String> = plan.kernels.iter().map(|k| k.kernel.to_string()).collect();
    let products: Vec<_> = plan.report.matmuls.iter().map(|m| (&m.pass, &m.format)).collect();
    format!("{}\n{steps:#?}\n{tensors:?}\n{kernels:?}\n{products:?}\n{:?}", plan.arena_bytes, plan.report.decisions)
}

#[test]
fn renaming_every_module_changes_no_kernel_and_no_decision() {
    for case in ["gpt2", "llama18", "llama23"] {
        for precision in [Precision::F32, Precision::Fp8] {
            let all = compiled(case, precision, 1 << 40, false).plan;
            for budget in [1 << 40, (all.report.least_budget_bytes + all.arena_bytes) / 2] {
                let [plain, renamed] = [false, true].map(|rename| compiled(case, precision, budget, rename).plan);
                assert!(plain.tensors != renamed.tensors, "the names did change");
                assert_eq!(nameless(&plain), nameless(&renamed), "{case} {precision:?} {budget}");
            }
        }
    }
}
