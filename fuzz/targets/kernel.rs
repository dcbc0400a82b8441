#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fp8c_tests::hostile::kernel::kernel(data));
