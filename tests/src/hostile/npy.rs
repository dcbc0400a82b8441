//! Numpy arrays as training data.

use super::place::{LENGTH, file, with_model};
use super::{Rng, Target, mutate};
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::session::Batch;

pub const TARGET: Target = Target { name: "npy", run: npy, seeds, mutate };

/// Feeds an array to both inputs of a language model.
pub fn npy(data: &[u8]) {
    let at = file("x.npy", data);
    let specs = ["input_ids", "labels"].map(|name| format!("{name}={}", at.display()));
    with_model(|m| {
        let mut batch = Batch::new(m.plan());
        for order in [Order::Sequential, Order::Shuffled { seed: 1 }] {
            if let Ok(loader) = Loader::open(m.plan(), &specs, order) {
                // What was searched when it was opened holds no value out of range.
                [0, 2, 1 << 40].iter().for_each(|&position| loader.fill(position, &mut batch).expect("every value is in range"));
            }
        }
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let ints: Vec<u8> = (0..2 * LENGTH).flat_map(|i| (i as i64).to_le_bytes()).collect();
    let narrow: Vec<u8> = (0..2 * LENGTH).flat_map(|i| (i as u16).to_le_bytes()).collect();
    vec![array("<i8", false, &ints), array("<u2", false, &narrow), array("|u1", false, &[7; 16]), array("<f4", true, &[0; 64])]
}

fn array(descr: &str, fortran: bool, data: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': (2, {LENGTH}), }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Changes the header, and the length before it with it; or the bytes.
fn mutate(data: &[u8], rng: &mut Rng) -> Vec<u8> {
    let length = data.get(8..10).map_or(0, |b| u16::from_le_bytes([b[0], b[1]])) as usize;
    let Some((header, rest)) = data.get(10..).and_then(|d| d.split_at_checked(length)).filter(|_| rng.u8(0..4) > 0) else {
        return mutate::bytes(data, rng);
    };
    const PIECES: [&str; 14] =
        ["(", ")", "{", "'shape'", "(2, 8)", "(0, 8)", "(4294967296, 8)", "8,", "-1", "'<f8'", "'|b1'", "'>i8'", "True", "[('a', '<i4')]"];
    let mut header = mutate::bytes(header, rng);
    if rng.bool() {
        let at = rng.usize(0..=header.len());
        header.splice(at..at, PIECES[rng.usize(0..PIECES.len())].bytes());
    }
    [&data[..8], &(header.len() as u16).to_le_bytes(), &header, rest].concat()
}
