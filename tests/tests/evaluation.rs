//! The loss over data that fills no whole batch.

use fp8c::precision::Precision;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::evaluation::evaluate;
use fp8c_tests::{options, plan_file, session, text};
use std::sync::atomic::AtomicBool;

#[test]
fn a_language_models_loss_counts_each_token_once_whatever_fills_the_last_batch() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for case in ["gpt2", "llama23"] {
        let file = plan_file(case, &options(Precision::F32, None), dir.path()).expect("the model compiles");
        let length = file.plan().inputs[0].shape[1] as usize;
        let rows = file.plan().inputs[0].shape[0] as usize;
        let whole = std::fs::read(text()).expect("the text");
        let mut session = session(&file);
        let mut loss = |first: usize, windows: usize| {
            let path = dir.path().join("part.txt");
            std::fs::write(&path, &whole[first * length..(first + windows) * length + 1]).expect("a file");
            let loader = Loader::open(file.plan(), &[path.display().to_string()], Order::Sequential).expect("the data fits");
            let e = evaluate(&mut session, &loader, None, &AtomicBool::new(false)).expect("it runs").expect("nobody stopped it");
            assert_eq!((e.samples, e.left_out), (windows as u64, 0), "{case}");
            e
        };
        let windows = rows + rows / 2 + 1;
        let together = loss(0, windows);
        let labels: Vec<_> = (0..windows).map(|w| loss(w, 1)).collect();
        let apart = labels.iter().map(|e| e.loss).sum::<f64>() / windows as f64;
        assert!((together.loss - apart).abs() < 1e-6, "{case}: {} together, {apart} one by one", together.loss);
        assert_eq!(together.labels, labels.iter().map(|e| e.labels).sum(), "{case}");
    }
}
