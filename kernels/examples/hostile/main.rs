//! Runs hostile kernels between forbidden pages: `hostile FIRST COUNT` for that many seeds, `hostile SEED` to see one kernel.
//!
//! A kernel that touches a byte outside its arguments ends the process with its seed; so does one that disagrees with the reference.

use fp8c_kernels::cpu::reference::hostile::{Outcome, check, describe};
use std::sync::atomic::{AtomicU64, Ordering};

/// The seed at hand, for the handler of faults.
static SEED: AtomicU64 = AtomicU64::new(0);

/// Bytes of a seed: few for some, so that many kernels are plain.
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let len = next() % 400;
    (0..len).map(|_| next() as u8).collect()
}

extern "C" fn fault(_: libc::c_int) {
    // Only what a signal handler may do: digits into a buffer, one write.
    let mut text = *b"a kernel touched a forbidden page: seed                     \n";
    let mut at = text.len() - 2;
    let mut seed = SEED.load(Ordering::Relaxed);
    loop {
        text[at] = b'0' + (seed % 10) as u8;
        (at, seed) = (at - 1, seed / 10);
        if seed == 0 {
            break;
        }
    }
    // SAFETY: the buffer is valid; `_exit` does not return.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(1);
    }
}

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let [first, count] = numbers[..] else {
        match numbers[..] {
            [seed] => println!("{}", describe(&bytes(seed)).unwrap_or_else(|| "not a kernel".into())),
            _ => eprintln!("usage: hostile FIRST COUNT | hostile SEED"),
        }
        return;
    };
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the handler does nothing that a handler may not.
        unsafe { libc::signal(signal, fault as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("seed {}:", SEED.load(Ordering::Relaxed));
        hook(info);
    }));
    let mut counts = [0u64; 5];
    for seed in first..first.saturating_add(count) {
        SEED.store(seed, Ordering::Relaxed);
        counts[match std::panic::catch_unwind(|| check(&bytes(seed))) {
            Ok(Outcome::Refused) => 0,
            Ok(Outcome::Large) => 1,
            Ok(Outcome::Failed) => 2,
            Ok(Outcome::Ran) => 3,
            Err(_) => 4,
        }] += 1;
    }
    let [refused, large, failed, ran, wrong] = counts;
    println!(
        "{count} kernels: {refused} refused, {large} verified but too large to run, {failed} with indices out of range, {ran} ran and \
         agreed, {wrong} did not"
    );
    std::process::exit(i32::from(wrong > 0));
}
