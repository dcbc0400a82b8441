//! Integers that an input may hold.

use crate::plan::Port;
use fp8c_kernels::DType;

/// An element of an input and its value.
pub(crate) type Odd = (u64, i64);

/// Checks that an integer input's values are in the range that the plan states.
///
/// # Errors
/// Position and value of the first that is not.
pub(crate) fn check_range(port: &Port, bytes: &[u8]) -> Result<(), Odd> {
    if port.bound.is_none() {
        return Ok(());
    }
    let found = match port.dtype {
        DType::I64 => first(bytes.as_chunks().0, |b| port.allows(i64::from_le_bytes(b))),
        DType::I32 => first(bytes.as_chunks().0, |b| port.allows(i32::from_le_bytes(b).into())),
        DType::F32 | DType::Bf16 | DType::E4m3 | DType::Bool => None,
    };
    let value = |at: usize| match port.dtype {
        DType::I64 => i64::from_le_bytes(bytes.as_chunks().0[at]),
        _ => i32::from_le_bytes(bytes.as_chunks().0[at]).into(),
    };
    found.map_or(Ok(()), |at| Err((at as u64, value(at))))
}

fn first<const N: usize>(values: &[[u8; N]], allowed: impl Fn([u8; N]) -> bool) -> Option<usize> {
    values.iter().position(|b| !allowed(*b))
}

/// What an input takes, as the end of a sentence about a value.
pub(super) fn takes(port: &Port) -> String {
    format!("but {} takes {}", port.name, port.allowed())
}
