//! Faults planted in finished plans: the compiler's replay and the runtime's verifier find them, each in its own way.
//!
//! Every fault is applied to the plan of every model, at several places, with the rest of the plan made to fit it as well as can be:
//! lifetimes as the bent steps need them, an arena of the size that its tensors need. What the verifier cannot see are plans in which
//! every byte is defined and every rule kept, and that compute something else: it does not know the model.

mod bend;
mod memory;
mod operands;
mod order;
mod training;

use bend::{Bent, Subject};
use fp8c::check::replay;
use fp8c::compile::CompileOptions;
use fp8c::import::json;
use fp8c::import::new::{Family, Request, Sizes, new};
use fp8c::precision::Precision;
use fp8c_kernels::DType;
use fp8c_runtime::plan::{Clip, verify};
use fp8c_tests::{compiled, options};

/// Who finds a fault.
#[derive(Clone, Copy, PartialEq)]
enum Found {
    /// The replay and the verifier.
    Both,
    /// The replay: the plan is sound, but of another program.
    Replay,
}
use Found::{Both, Replay};

type Fault = (&'static str, Found, fn(&Subject) -> Vec<Bent>);

const FAULTS: [Fault; 48] = [
    ("a tensor is freed before its last use", Both, memory::freed_early),
    ("a tensor lives only after its first use", Both, memory::born_late),
    ("a tensor lies on one that is still read", Both, memory::overlap),
    ("a tensor reaches into the next one", Both, memory::partial_overlap),
    ("a tensor lies on a parameter", Both, memory::on_a_parameter),
    ("scratch memory lies on an argument", Both, memory::scratch_on_an_argument),
    ("a tensor lies outside the arena", Both, memory::outside),
    ("an offset is not aligned", Both, memory::misaligned),
    ("a tensor is too small", Both, memory::too_small),
    ("a tensor has another dtype", Both, memory::other_dtype),
    ("the arena is larger than its tensors", Both, memory::large_arena),
    ("the arena is larger than the budget", Both, memory::over_budget),
    ("scratch memory is too small", Both, memory::small_scratch),
    ("scratch memory is missing", Both, memory::no_scratch),
    ("scratch memory is read as data", Both, memory::scratch_as_data),
    ("scratch memory is written as data", Both, memory::data_as_scratch),
    ("a reader runs before its writer", Both, order::swapped),
    ("a forward step is missing", Both, order::missing_forward),
    ("a backward step is missing", Both, order::missing_backward),
    ("a recomputation is missing", Both, order::missing_recomputation),
    ("a step of the micro-batch runs in the update", Both, order::late),
    ("an update runs in the micro-batch", Both, order::early_update),
    ("a step does not exist", Both, order::no_kernel),
    ("a kernel writes a part of its result", Both, operands::partial_write),
    ("an argument is missing", Both, operands::missing),
    ("an argument is bound twice", Both, operands::alias),
    ("an input is overwritten", Both, operands::onto_an_input),
    ("a parameter is overwritten", Both, operands::onto_a_parameter),
    ("an operand is another tensor of its kind", Replay, operands::other),
    ("a result goes to another tensor", Both, operands::other_result),
    ("a kernel is another of its kind", Replay, operands::other_kernel),
    ("a number in a kernel is another", Replay, operands::other_number),
    ("a parameter is not updated", Both, training::missing_update),
    ("a parameter is updated twice", Both, training::double_update),
    ("a parameter is read after its update", Both, training::read_after_update),
    ("a parameter is updated before the backward pass is through with it", Both, training::hasty_update),
    ("an update looks at no sum of squares", Both, training::unguarded),
    ("the norm is computed after an update", Both, training::late_norm),
    ("an update reads the gradient of another parameter", Both, training::other_gradient),
    ("an update changes the state of another parameter", Both, training::other_state),
    ("an update reads the decay of another parameter", Both, training::other_decay),
    ("two states are one", Both, training::shared_state),
    ("a gradient is not zeroed", Both, training::not_zeroed),
    ("a gradient is summed twice", Both, training::summed_twice),
    ("a parameter is its own gradient", Both, training::own_gradient),
    ("a state is a gradient", Both, training::state_as_gradient),
    ("two inputs are exchanged", Both, training::exchanged_inputs),
    ("a trained parameter is left out", Both, training::unlisted),
];

/// A GPT-2 in fp8 that recomputes, a CNN with everything kept, and a Llama made to measure that sums two micro-batches.
fn subjects() -> Vec<Subject> {
    let all = compiled("gpt2", &options(Precision::Fp8, Some(1 << 40))).expect("the model compiles");
    let tight = options(Precision::Fp8, Some(all.plan.report.least_budget_bytes));
    let gpt2 = compiled("gpt2", &tight).expect("its least budget can be met");
    let cnn = compiled("cnn", &options(Precision::F32, Some(1 << 40))).expect("the model compiles");
    let early = CompileOptions { clip: Clip::Previous, state: DType::E4m3, master: DType::Bf16, ..options(Precision::Fp8, Some(1 << 40)) };
    let early = compiled("gpt2", &early).expect("the model compiles");
    vec![Subject::new("gpt2", gpt2), Subject::new("gpt2 early", early), Subject::new("cnn", cnn), Subject::new("llama", llama())]
}

fn llama() -> fp8c::compile::Compiled {
    let [layers, dim, heads, ffn, vocab, seq, batch] = [2, 32, 2, 48, 64, 16, 2].map(Some);
    let request = Request { layers, dim, heads, kv_heads: Some(1), ffn, vocab, seq, batch, ..Request::default() };
    let sizes = Sizes::of(Family::Llama, &request).expect("the sizes fit");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("llama.json");
    std::fs::write(&path, json::write(&new(Family::Llama, &sizes)).expect("the model has a JSON form")).expect("the file is written");
    let mut options = options(Precision::Bf16, Some(1 << 40));
    options.accumulation = 2;
    fp8c::compile::compile(&path, &options).expect("the model compiles")
}

#[test]
fn every_planted_fault_is_found() {
    let subjects = subjects();
    let mut missed = vec![];
    for s in &subjects {
        replay(&s.graph, &s.program, &s.plan, &s.units).expect("the plan is sound");
        verify(&s.plan).expect("the plan is sound");
    }
    for (name, found, fault) in FAULTS {
        let mut planted = 0;
        for s in &subjects {
            let bent = fault(s);
            planted += bent.len();
            let replayed = bent.iter().filter(|b| replay(&s.graph, &s.program, &b.plan, &b.units).is_err()).count();
            let verified: Vec<Result<(), String>> = bent.iter().map(|b| verify(&b.plan)).collect();
            let seen = verified.iter().filter(|v| v.is_err()).count();
            println!("{name:50} {:10} planted {:2}, replay {replayed:2}, verifier {seen:2}", s.case, bent.len());
            verified.iter().filter_map(|v| v.as_ref().err()).take(1).for_each(|e| println!("    {e}"));
            if replayed < bent.len() || found == Both && seen < bent.len() {
                missed.push(format!("{name}, {}", s.case));
            }
        }
        if planted == 0 {
            missed.push(format!("{name}: planted nowhere"));
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
