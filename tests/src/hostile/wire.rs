//! Protobuf messages as trees without a schema, so that a mutated file is still a protobuf.

use super::mutate::{self, edge};
use super::{MAX_BYTES, Rng};

/// Deepest message that is looked into.
const MAX_DEPTH: usize = 12;

/// A field's number and value.
pub type Field = (u64, Value);

/// A field's value, by wire type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    /// Bytes that read as a message.
    Message(Vec<Field>),
}

/// A text as a field.
pub fn text(number: u64, s: &str) -> Field {
    (number, Value::Bytes(s.as_bytes().to_vec()))
}

/// An integer as a field.
pub fn int(number: u64, i: i64) -> Field {
    (number, Value::Varint(i as u64))
}

/// A message as a field.
pub fn message(number: u64, fields: Vec<Field>) -> Field {
    (number, Value::Message(fields))
}

/// The fields of a message; `None` for what is none.
pub fn parse(data: &[u8]) -> Option<Vec<Field>> {
    parse_at(data, 0)
}

fn parse_at(mut data: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = vec![];
    while !data.is_empty() {
        let tag = varint(&mut data)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut data)?),
            1 => Value::Fixed64(take(&mut data, 8)?.try_into().ok()?),
            5 => Value::Fixed32(take(&mut data, 4)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(varint(&mut data)?).ok()?;
                let inside = take(&mut data, length)?;
                let message = if depth < MAX_DEPTH && !is_text(inside) { parse_at(inside, depth + 1) } else { None };
                message.map_or_else(|| Value::Bytes(inside.to_vec()), Value::Message)
            }
            _ => return None,
        };
        fields.push((tag >> 3, value));
    }
    Some(fields)
}

/// Texts may read as messages; names are never those.
fn is_text(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_graphic() || *b == b' ')
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in 0..10 {
        let (&b, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(b & 0x7f).checked_shl(7 * shift)?;
        if b < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(data: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = data.split_at_checked(n)?;
    *data = rest;
    Some(head)
}

/// The bytes of a message.
pub fn bytes(fields: &[Field]) -> Vec<u8> {
    let mut out = vec![];
    for (number, value) in fields {
        let (kind, inside) = match value {
            Value::Varint(n) => {
                put(&mut out, number << 3);
                put(&mut out, *n);
                continue;
            }
            Value::Fixed64(b) => (1, b.to_vec()),
            Value::Fixed32(b) => (5, b.to_vec()),
            Value::Bytes(b) => (2, b.clone()),
            Value::Message(fields) => (2, bytes(fields)),
        };
        put(&mut out, number << 3 | kind);
        if kind == 2 {
            put(&mut out, inside.len() as u64);
        }
        out.extend(inside);
    }
    out
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A protobuf with one to four changes of its tree; `words` are texts to put in. Now and then its bytes are changed instead.
pub fn mutate(data: &[u8], words: &[&str], rng: &mut Rng) -> Vec<u8> {
    let Some(mut fields) = parse(data).filter(|f| !f.is_empty()) else { return mutate::bytes(data, rng) };
    if rng.u8(0..16) == 0 {
        return mutate::bytes(data, rng);
    }
    for _ in 0..rng.usize(1..=4) {
        let (list, at) = pick(&mut fields, rng);
        let donor = list[at].clone();
        let (list, at) = pick_like(&mut fields, donor.0, rng);
        bend(list, at, donor, words, rng);
    }
    let out = bytes(&fields);
    if out.len() > MAX_BYTES { data.to_vec() } else { out }
}

fn size(fields: &[Field]) -> usize {
    fields.iter().map(|(_, v)| 1 + if let Value::Message(inside) = v { size(inside) } else { 0 }).sum()
}

/// Any field: the message that holds it and its place there.
fn pick<'a>(fields: &'a mut Vec<Field>, rng: &mut Rng) -> (&'a mut Vec<Field>, usize) {
    let mut left = rng.usize(0..size(fields).max(1));
    let mut list = fields;
    loop {
        let mut next = None;
        for (i, (_, v)) in list.iter().enumerate() {
            let inside = if let Value::Message(inside) = v { size(inside) } else { 0 };
            if left <= inside {
                next = Some(i);
                break;
            }
            left -= 1 + inside;
        }
        let at = next.unwrap_or(0);
        if left == 0 {
            return (list, at);
        }
        left -= 1;
        match &mut list[at].1 {
            Value::Message(inside) => list = inside,
            _ => unreachable!("only messages hold more than themselves"),
        }
    }
}

/// Like [`pick`], mostly a field of this number: a name where a name was, a shape where a shape was.
fn pick_like<'a>(fields: &'a mut Vec<Field>, number: u64, rng: &mut Rng) -> (&'a mut Vec<Field>, usize) {
    for _ in 0..8 {
        let mut ahead = rng.clone();
        let (list, at) = pick(fields, &mut ahead);
        if list[at].0 == number {
            break;
        }
        rng.u64(..);
    }
    pick(fields, rng)
}

fn bend(list: &mut Vec<Field>, at: usize, donor: Field, words: &[&str], rng: &mut Rng) {
    let other = rng.usize(0..list.len());
    match rng.u8(0..8) {
        0 if list.len() > 1 => drop(list.remove(at)),
        1 => list.insert(other, list[at].clone()),
        2 => list.swap(at, other),
        3 => list.push(donor),
        4 => list[at].0 = donor.0,
        5 => list[at].1 = donor.1,
        _ => match &mut list[at].1 {
            Value::Varint(n) => *n = if rng.bool() { edge(rng) as u64 } else { rng.u64(0..32) },
            Value::Fixed64(b) => *b = edge(rng).to_le_bytes(),
            Value::Fixed32(b) => *b = [f32::NAN, f32::INFINITY, -1.0, 0.0, 1e-40, 3.5][rng.usize(0..6)].to_le_bytes(),
            Value::Bytes(b) if is_text(b) && rng.bool() => *b = words[rng.usize(0..words.len())].into(),
            Value::Bytes(b) => *b = mutate::bytes(b, rng),
            Value::Message(inside) if inside.is_empty() => inside.push(donor),
            Value::Message(inside) => drop(inside.remove(rng.usize(0..inside.len()))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_file_reads_and_writes_to_the_same_bytes() {
        let model = std::fs::read(crate::folder("cnn").join("model.onnx")).expect("a test model");
        let fields = parse(&model).expect("a protobuf");
        assert!(size(&fields) > 200 && bytes(&fields) == model);
    }

    #[test]
    fn most_mutated_models_are_still_protobufs() {
        let model = std::fs::read(crate::folder("cnn").join("model.onnx")).expect("a test model");
        let mut rng = Rng::with_seed(1);
        let whole = (0..100).filter(|_| parse(&mutate(&model, &["Relu"], &mut rng)).is_some()).count();
        assert!(whole > 80, "{whole}");
    }
}
