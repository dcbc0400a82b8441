//! A short run of what `fuzz/` runs for long: mutated files of every kind are read or refused, quickly, and nothing panics.

use fp8c_tests::hostile::{Rng, TARGETS, Target};
use std::time::Duration;

/// Mutated inputs of each target.
const INPUTS: u64 = 4000;
/// Longest time that an input of this size may take.
const SLOW: Duration = Duration::from_secs(1);

/// Time that this thread has had a processor; zero where the system does not say.
fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

fn survives(target: &Target) {
    let seeds = (target.seeds)();
    for seed in &seeds {
        (target.run)(seed);
    }
    let mut rng = Rng::with_seed(20_261_124);
    for n in 0..INPUTS {
        // Changes add up over a few rounds, then it begins again at a seed.
        let mut input = seeds[rng.usize(0..seeds.len())].clone();
        for _ in 0..rng.usize(1..=3) {
            input = (target.mutate)(&input, &mut rng);
        }
        let before = busy();
        let outcome = std::panic::catch_unwind(|| (target.run)(&input));
        let name = std::env::temp_dir().join(format!("fp8c-{}-{n}", target.name));
        let keep = || std::fs::write(&name, &input).map(|()| name.display().to_string());
        assert!(outcome.is_ok(), "{}: input {n} panics: {:?}", target.name, keep());
        let took = busy() - before;
        assert!(took < SLOW, "{}: input {n} takes {took:?}: {:?}", target.name, keep());
    }
}

#[test]
fn mutated_files_of_every_kind_are_read_or_refused() {
    for target in &TARGETS {
        survives(target);
    }
}
