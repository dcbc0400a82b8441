//! What the targets share.

use fp8c_tests::hostile::{Rng, Target};

/// Runs a target on an input.
pub fn run(target: &Target, data: &[u8]) {
    (target.run)(data);
}

/// libFuzzer's own mutation in one case of four, else the target's.
pub fn mutate(target: &Target, data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut rng = Rng::with_seed(seed.into());
    if rng.u8(0..4) == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let mutated = (target.mutate)(&data[..size], &mut rng);
    let size = mutated.len().min(max_size);
    data[..size].copy_from_slice(&mutated[..size]);
    size
}
