#![no_main]

use fp8c_fuzz::{mutate, run};
use fp8c_tests::hostile::json::TARGET;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| run(&TARGET, data));
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { mutate(&TARGET, data, size, max_size, seed) });
