//! Checks a protobuf file's wire format before the parser sees it.
//!
//! The parser in use skips group fields by unbounded recursion (RUSTSEC-2024-0437) and builds a structure for every empty message,
//! so a small file can exhaust stack or memory. This walk knows which fields of ONNX hold messages, visits exactly those, without
//! recursion, and refuses group tags, nesting deeper than [`MAX_DEPTH`], lengths past the end and absurd numbers of messages.

/// Deepest nesting of messages; ONNX files of real models have about eight levels.
pub const MAX_DEPTH: usize = 64;
/// Most messages in one file: a few hundred bytes each once parsed.
pub const MAX_MESSAGES: usize = 4_000_000;

/// The message types of `onnx.proto` that contain others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    ValueInfo,
    Type,
    TypeOfElement,
    Map,
    TensorType,
    Shape,
    Function,
    Training,
    Annotation,
    /// One without messages inside.
    Leaf,
}

/// The type of the message in a field, if it holds one (numbers from `onnx.proto`).
fn message_in(of: Message, field: u64) -> Option<Message> {
    use Message::*;
    Some(match (of, field) {
        (Model, 7) => Graph,
        (Model, 8 | 14) => Leaf,
        (Model, 20) => Training,
        (Model, 25) => Function,
        (Graph, 1) => Node,
        (Graph, 5) => Tensor,
        (Graph, 11..=13) => ValueInfo,
        (Graph, 14) => Annotation,
        (Graph, 15) => SparseTensor,
        (Graph, 16) => Leaf,
        (Node, 5) => Attribute,
        (Node, 9) => Leaf,
        (Attribute, 5 | 10) => Tensor,
        (Attribute, 6 | 11) => Graph,
        (Attribute, 14 | 15) => Type,
        (Attribute, 22 | 23) => SparseTensor,
        (Tensor, 3 | 13 | 16) => Leaf,
        (SparseTensor, 1 | 2) => Tensor,
        (ValueInfo, 2) => Type,
        (ValueInfo, 4) => Leaf,
        (Type, 1 | 8) => TensorType,
        (Type, 4 | 9) => TypeOfElement,
        (Type, 5) => Map,
        (TypeOfElement, 1) => Type,
        (Map, 2) => Type,
        (TensorType, 2) => Shape,
        (Shape, 1) => Leaf,
        (Function, 7) => Node,
        (Function, 9 | 14) => Leaf,
        (Function, 11) => Attribute,
        (Function, 12) => ValueInfo,
        (Training, 1 | 2) => Graph,
        (Training, 3 | 4) => Leaf,
        (Annotation, 2) => Leaf,
        _ => return None,
    })
}

/// Checks that `bytes` can be given to the parser.
///
/// # Errors
/// A sentence without a subject that says what is wrong and at which byte.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    // (message type, end of the message)
    let mut open = vec![(Message::Model, bytes.len())];
    let (mut at, mut messages) = (0usize, 0usize);
    while let Some(&(kind, end)) = open.last() {
        if at == end {
            open.pop();
            continue;
        }
        let start = at;
        let tag = varint(bytes, &mut at, end)?;
        if tag >> 3 == 0 || tag > u64::from(u32::MAX) {
            return Err(format!("is not an ONNX file: byte {start} is no field tag"));
        }
        match tag & 7 {
            0 => drop(varint(bytes, &mut at, end)?),
            1 => at = advance(at, 8, end)?,
            5 => at = advance(at, 4, end)?,
            2 => {
                let length = varint(bytes, &mut at, end)?;
                let inner_end = advance(at, length, end)?;
                match message_in(kind, tag >> 3) {
                    None => at = inner_end,
                    Some(_) if open.len() >= MAX_DEPTH => {
                        return Err(format!("is nested deeper than {MAX_DEPTH} messages at byte {start}"));
                    }
                    Some(_) if messages >= MAX_MESSAGES => return Err(format!("holds more than {MAX_MESSAGES} messages")),
                    Some(inner) => {
                        messages += 1;
                        open.push((inner, inner_end));
                    }
                }
            }
            3 | 4 => return Err(format!("uses a protobuf group at byte {start}, which ONNX has none of")),
            _ => return Err(format!("is not an ONNX file: byte {start} has an unknown wire type")),
        }
    }
    Ok(())
}

fn advance(at: usize, by: u64, end: usize) -> Result<usize, String> {
    usize::try_from(by)
        .ok()
        .and_then(|by| at.checked_add(by))
        .filter(|&to| to <= end)
        .ok_or_else(|| format!("is damaged: a field at byte {at} is {by} bytes long, but only {} are left", end - at))
}

fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Result<u64, String> {
    let start = *at;
    let mut value = 0u64;
    for shift in 0..10 {
        let &b = bytes[..end].get(*at).ok_or_else(|| format!("is truncated at byte {}", *at))?;
        *at += 1;
        value |= u64::from(b & 0x7f).checked_shl(7 * shift).unwrap_or(0);
        if b & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(format!("is damaged: the number at byte {start} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field.
    fn field(number: u8, inner: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut n = inner.len();
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out.extend_from_slice(inner);
        out
    }

    #[test]
    fn group_tags_are_refused_where_the_parser_would_look() {
        let in_node = field(7, &field(1, &[0x1b, 0x1c]));
        assert!(check(&in_node).unwrap_err().contains("group"));
        // inside a string the same bytes are only text
        assert_eq!(check(&field(7, &field(1, &field(4, &[0x1b, 0x1c])))), Ok(()));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut graph = vec![];
        for _ in 0..60 {
            graph = field(1, &field(5, &field(6, &graph)));
        }
        assert!(check(&field(7, &graph)).unwrap_err().contains("nested deeper"));
    }

    #[test]
    fn lengths_past_the_end_are_refused() {
        assert!(check(&[0x3a, 0x05, 0x00]).unwrap_err().contains("only 1 are left"));
        assert!(check(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).is_err());
        // an inner length may not leave its message either
        assert!(check(&[0x3a, 0x02, 0x0a, 0x03, 0x00, 0x00, 0x00]).is_err());
    }

    #[test]
    fn a_flood_of_empty_messages_is_refused() {
        let nodes: Vec<u8> = [0x0a, 0x00].repeat(MAX_MESSAGES + 1);
        assert!(check(&field(7, &nodes)).unwrap_err().contains("more than"));
    }
}
