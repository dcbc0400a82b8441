//! Changes a kernel's fields one by one: extents, strides, offsets, guards, bounds, formats, modes, flags, statements.

use super::super::Random;
use crate::program::Kernel;
use serde_json::Value;

/// Operands and literals: another operator's operand says nothing about memory, and makes sums inexact.
const ARITHMETIC: [&str; 4] = ["x", "y", "c", "value"];
/// Words that stand for one another.
const WORDS: [&[&str]; 4] = [
    &["f32", "bf16", "e4m3", "i64", "i32", "bool"],
    &["read", "write", "update"],
    &["rows", "columns", "rows_and_columns", "blocks", "blocks_both"],
    &["fprop", "dgrad", "wgrad"],
];
const NUMBERS: [i64; 24] = [
    0,
    0,
    1,
    1,
    2,
    3,
    -1,
    -2,
    -3,
    5,
    7,
    63,
    65,
    129,
    1 << 16,
    1 << 31,
    (1 << 32) + 1,
    1 << 48,
    1 << 56,
    i64::MAX,
    i64::MIN,
    i64::MIN / 2 + 1,
    i64::MAX / 3,
    -(1 << 32),
];

/// The kernel with up to four of its fields changed, perhaps with more room in its arguments; `None` if that is not a kernel.
pub fn bent(kernel: &Kernel, random: &mut Random) -> Option<Kernel> {
    let mut value = serde_json::to_value(kernel).ok()?;
    if random.once_in(2) {
        roomier(&mut value, random);
    }
    for _ in 0..random.below(5) {
        let mut fields = Vec::new();
        collect("", &mut value, &mut fields);
        let at = random.below(fields.len() as u64) as usize;
        if let Some(field) = fields.get_mut(at) {
            change(field, random);
        }
    }
    serde_json::from_value(value).ok()
}

/// Adds elements to arguments, so that changed strides stay inside more often.
fn roomier(value: &mut Value, random: &mut Random) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(|v| roomier(v, random)),
        Value::Object(all) => {
            for (key, v) in all {
                match v.as_u64() {
                    Some(n) if key == "elements" => *v = (n + [0, 1, 64, 5000][random.below(4) as usize]).into(),
                    _ => roomier(v, random),
                }
            }
        }
        _ => {}
    }
}

/// Every field that may be changed.
fn collect<'a>(key: &str, value: &'a mut Value, out: &mut Vec<&'a mut Value>) {
    match value {
        Value::Object(all) => all.iter_mut().for_each(|(key, v)| collect(key, v, out)),
        Value::Array(all) => all.iter_mut().for_each(|v| collect(key, v, out)),
        Value::Number(_) if ARITHMETIC.contains(&key) => {}
        other => out.push(other),
    }
}

fn change(field: &mut Value, random: &mut Random) {
    match field {
        Value::Bool(flag) => *flag = !*flag,
        Value::Null => *field = NUMBERS[random.below(24) as usize].into(),
        Value::String(word) => {
            if let Some(words) = WORDS.iter().find(|words| words.contains(&word.as_str())) {
                *word = random.pick(words).to_string();
            }
        }
        Value::Number(n) => {
            let old = n.as_i64().unwrap_or(0);
            *field = match random.below(8) {
                0 => old.wrapping_add(1).into(),
                1 => old.wrapping_sub(1).into(),
                2 => old.wrapping_neg().into(),
                3 => old.wrapping_mul(2).into(),
                _ => NUMBERS[random.below(24) as usize].into(),
            };
        }
        Value::Array(_) | Value::Object(_) => {}
    }
}
