//! Every IR that is emitted, pinned for the test models; PTX by its digest.

use fp8c::compile::stages;
use fp8c::precision::Precision;
use fp8c_tests::{CASES, compiled, folder, options};
use sha2::{Digest, Sha256};

/// A budget that makes the planner recompute.
fn tight(case: &str) -> u64 {
    let all = compiled(case, &options(Precision::Fp8, Some(1 << 40))).expect("the model compiles").plan;
    (all.report.least_budget_bytes + all.arena_bytes) / 2
}

#[test]
fn graphs_of_every_stage() {
    for case in CASES {
        let s = stages(&folder(case).join("model.onnx"), &options(Precision::F32, None)).expect("the model compiles");
        insta::assert_snapshot!(format!("{case}.graph"), s.imported.graph.to_string());
        insta::assert_snapshot!(format!("{case}.recognised"), s.recognised.to_string());
        let s = stages(&folder(case).join("model.onnx"), &options(Precision::Fp8, None)).expect("the model compiles");
        insta::assert_snapshot!(format!("{case}.joint.fp8"), s.joint.to_string());
        insta::assert_snapshot!(format!("{case}.sections"), fp8c::sections::sections(&s.joint).expect("it types").print(&s.joint));
    }
}

#[test]
fn forms_schedules_and_units() {
    for case in ["gpt2", "llama23", "cnn"] {
        let c = compiled(case, &options(Precision::Fp8, Some(tight(case)))).expect("the budget can be met");
        let o = options(Precision::Fp8, Some(tight(case)));
        insta::assert_snapshot!(format!("{case}.forms"), fp8c::compile::forms(&folder(case).join("model.onnx"), &o).expect("it has forms"));
        insta::assert_snapshot!(format!("{case}.schedule"), fp8c::text::schedule(&c.plan));
    }
    let c = compiled("cnn", &options(Precision::Fp8, Some(1 << 30))).expect("the model compiles");
    insta::assert_snapshot!("cnn.kernels", fp8c::lower::print(&c.program));
}

#[test]
fn ptx_of_every_kernel_by_digest() {
    for case in CASES {
        let mut o = options(Precision::Fp8, Some(1 << 30));
        o.archs = vec!["sm_89".into(), "sm_90a".into()];
        let c = compiled(case, &o).expect("the model compiles");
        let digest = |text: &String| Sha256::digest(text.as_bytes())[..8].iter().map(|b| format!("{b:02x}")).collect::<String>();
        let lines: Vec<String> =
            c.ptx.iter().map(|((k, a), text)| format!("{k}.{a} {} lines {}", text.lines().count(), digest(text))).collect();
        insta::assert_snapshot!(format!("{case}.ptx"), lines.join("\n"));
    }
}
