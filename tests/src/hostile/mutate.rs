//! Mutations of bytes and of JSON trees.

use super::{MAX_BYTES, Rng};
use serde_json::Value;

/// Integers at the edges of what code expects.
pub const EDGES: [i64; 20] =
    [0, 1, 2, 3, 7, -1, -2, 127, 128, 255, 256, 65_535, 65_536, 1 << 31, -(1 << 31), 1 << 32, 1 << 53, 1 << 62, i64::MAX, i64::MIN];

/// One to four changes of single bytes, runs of bytes, or integers of 1 to 8 bytes.
pub fn bytes(data: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = data.to_vec();
    for _ in 0..rng.usize(1..=4) {
        change(&mut out, rng);
    }
    out.truncate(MAX_BYTES);
    out
}

fn change(out: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.usize(0..=out.len());
    let end = (at + 1 + rng.usize(0..32)).min(out.len());
    match rng.u8(0..8) {
        0 if at < out.len() => out[at] ^= 1 << rng.u8(0..8),
        1 if at < out.len() => out[at] = rng.u8(..),
        2 => out.insert(at, rng.u8(..)),
        3 => drop(out.drain(at..end)),
        4 => {
            let copy = out[at..end].to_vec();
            let to = rng.usize(0..=out.len());
            out.splice(to..to, copy);
        }
        5 => out.truncate(at),
        _ => {
            let number = edge(rng).to_le_bytes();
            let width = 1usize << rng.u8(0..4);
            let end = (at + width).min(out.len());
            out[at..end].copy_from_slice(&number[..end - at]);
        }
    }
}

/// A number at an edge, or beside one.
pub fn edge(rng: &mut Rng) -> i64 {
    EDGES[rng.usize(0..EDGES.len())].wrapping_add(rng.i64(-1..=1))
}

/// A JSON document with one to three changes of its tree; now and then of its bytes.
pub fn json(text: &[u8], rng: &mut Rng) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(text) else { return bytes(text, rng) };
    if rng.u8(0..16) == 0 {
        return bytes(text, rng);
    }
    for _ in 0..rng.usize(1..=3) {
        let donor = pick(&mut document, rng).clone();
        bend(pick(&mut document, rng), donor, rng);
    }
    let out = serde_json::to_vec(&document).unwrap_or_default();
    if out.len() > MAX_BYTES { text.to_vec() } else { out }
}

fn size(v: &Value) -> usize {
    1 + match v {
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(fields) => fields.values().map(size).sum(),
        _ => 0,
    }
}

/// Any value of a document.
fn pick<'a>(v: &'a mut Value, rng: &mut Rng) -> &'a mut Value {
    let mut left = rng.usize(0..size(v));
    let mut at = v;
    while left > 0 {
        left -= 1;
        let children: Vec<&mut Value> = match at {
            Value::Array(list) => list.iter_mut().collect(),
            Value::Object(fields) => fields.values_mut().collect(),
            leaf => return leaf,
        };
        let mut sized = children.into_iter().map(|c| (size(c), c));
        let inside = sized.find(|(n, _)| {
            let here = left < *n;
            left -= if here { 0 } else { *n };
            here
        });
        match inside {
            Some((_, child)) => at = child,
            None => unreachable!("the sizes of the children add up"),
        }
    }
    at
}

fn bend(v: &mut Value, donor: Value, rng: &mut Rng) {
    match v {
        Value::Array(list) if !list.is_empty() && rng.bool() => {
            let (i, j) = (rng.usize(0..list.len()), rng.usize(0..list.len()));
            match rng.u8(0..4) {
                0 => drop(list.remove(i)),
                1 => list.insert(j, list[i].clone()),
                2 => list.swap(i, j),
                _ => list[i] = donor,
            }
        }
        Value::Object(fields) if !fields.is_empty() && rng.bool() => {
            let key = fields.keys().nth(rng.usize(0..fields.len())).cloned().unwrap_or_default();
            match rng.bool() {
                true => drop(fields.remove(&key)),
                false => drop(fields.insert(key, donor)),
            }
        }
        leaf => {
            *leaf = match rng.u8(0..8) {
                0 => Value::from(edge(rng)),
                1 => Value::from(rng.i64(0..8)),
                2 => Value::from([0.0, -1.0, 0.5, 1e-40, 1e39, 1e308][rng.usize(0..6)]),
                3 => Value::from(["", "x", "nan", "-inf", "float32", "int64", "bool", "../x"][rng.usize(0..8)]),
                4 => Value::from(vec![rng.i64(-2..5), edge(rng)]),
                5 => Value::Null,
                _ => donor,
            }
        }
    }
}
