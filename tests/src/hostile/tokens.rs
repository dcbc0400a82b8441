//! Files of tokens.

use super::place::{LENGTH, file, with_model};
use super::{Rng, Target, mutate};
use fp8c_runtime::data::{DataOptions, Loader, Order, TokenWidth};
use fp8c_runtime::plan::Labels;
use fp8c_runtime::session::Batch;

pub const TARGET: Target = Target { name: "tokens", run: tokens, seeds, mutate };

/// Reads bytes as a text and as tokens of either width, in and out of order.
pub fn tokens(data: &[u8]) {
    let readings = [
        ("x.txt", DataOptions::from(Order::Sequential)),
        ("x.bin", Order::Shuffled { seed: 1 }.into()),
        ("x.bin", DataOptions { width: Some(TokenWidth::Narrow), labels: Some(Labels::Same), order: Order::Sequential }),
        ("x.bin", DataOptions { width: Some(TokenWidth::Wide), ..Order::Shuffled { seed: 2 }.into() }),
    ];
    for (name, options) in readings {
        let at = file(name, data).display().to_string();
        with_model(|m| {
            let mut batch = Batch::new(m.plan());
            if let Ok(loader) = Loader::open(m.plan(), &[at], options) {
                // What was searched when it was opened holds no value out of range.
                [0, 2, 1 << 40].iter().for_each(|&position| loader.fill(position, &mut batch).expect("every token is in the vocabulary"));
            }
        });
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let header = |magic: u32, version: u32| -> Vec<u8> {
        let words = [magic, version, 2 * LENGTH as u32];
        words.into_iter().chain(std::iter::repeat_n(0, 253)).flat_map(u32::to_le_bytes).collect()
    };
    let narrow: Vec<u8> = (0..2 * LENGTH as u16).flat_map(u16::to_le_bytes).collect();
    let wide: Vec<u8> = (0..2 * LENGTH as u32).flat_map(u32::to_le_bytes).collect();
    vec![
        b"as the deer panteth after the water brooks".to_vec(),
        [header(20_240_520, 1), narrow.clone()].concat(),
        [header(20_240_801, 7), wide.clone()].concat(),
        narrow,
        wide,
    ]
}

/// Mostly changes the header's first numbers.
fn mutate(data: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = data.to_vec();
    if out.len() < 12 || rng.bool() {
        return mutate::bytes(data, rng);
    }
    let at = 4 * rng.usize(0..3);
    let old = u32::from_le_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
    let new = if rng.bool() { old.wrapping_add(rng.u32(0..3)).wrapping_sub(1) } else { mutate::edge(rng) as u32 };
    out[at..at + 4].copy_from_slice(&new.to_le_bytes());
    out
}
