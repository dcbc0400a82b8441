//! A shortened run of the plan fuzzer: the long one is `fuzz/`'s.

use fp8c_tests::hostile::plan::{Outcome, bases, describe, outcome};

/// Inputs of the run; `HOSTILE_PLANS` in the environment asks for another number.
const INPUTS: u64 = 1500;

/// Bytes of an input: enough for every choice of four changes.
const BYTES: usize = 64;

#[test]
fn every_plan_that_the_verifier_accepts_keeps_to_its_own_bytes() {
    assert!(bases().iter().all(|b| fp8c_runtime::plan::verify(&b.plan).is_ok()));
    let inputs = std::env::var("HOSTILE_PLANS").ok().and_then(|n| n.parse().ok()).unwrap_or(INPUTS);
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let (mut counts, mut findings) = ([0u64; 3], vec![]);
    for _ in 0..inputs {
        let data: Vec<u8> = (0..BYTES).map(|_| next()).collect();
        match std::panic::catch_unwind(|| outcome(&data)) {
            Ok(found) => counts[found as usize] += 1,
            Err(_) => findings.push(format!("{data:?}\n{}", describe(&data))),
        }
    }
    let [refused, large, ran] = counts;
    println!("{inputs} plans: {refused} refused, {large} accepted and too large to run, {ran} accepted and run");
    assert!(findings.is_empty(), "{} findings, the first of which are\n{}", findings.len(), findings[..findings.len().min(5)].join("\n\n"));
    assert_eq!(Outcome::Ran as usize, 2);
    assert!(ran > inputs / 50, "the generator makes plans that are accepted");
}
