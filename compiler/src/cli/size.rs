//! Sizes as users write them.

use crate::quantity::Bytes;

/// Parses `24G`, `24GiB` (24 * 2^30 bytes), `24GB` (24 * 10^9) or a bare number of bytes.
///
/// # Errors
/// A sentence without a subject that shows the accepted forms.
pub fn parse(text: &str) -> Result<Bytes, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let power = |c: char| "KMGT".find(c.to_ascii_uppercase()).map(|i| i as u32 + 1);
    let scale: Option<u64> = match unit.len() {
        0 => Some(1),
        _ if unit.eq_ignore_ascii_case("b") => Some(1),
        1 => unit.chars().next().and_then(power).map(|p| 1 << (10 * p)),
        2 if unit.ends_with(['B', 'b']) => unit.chars().next().and_then(power).map(|p| 1000u64.pow(p)),
        3 if unit[1..].eq_ignore_ascii_case("ib") => unit.chars().next().and_then(power).map(|p| 1 << (10 * p)),
        _ => None,
    };
    let value = number.parse::<f64>().ok().zip(scale).map(|(n, s)| n * s as f64);
    match value {
        Some(v) if v.is_finite() && v >= 0.0 && v < u64::MAX as f64 => Ok(Bytes(v as u64)),
        _ => Err("must be a size: 24G or 24GiB (2^30), 24GB (10^9), 512M, or a number of bytes".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_and_decimal_units_differ() {
        assert_eq!(parse("24G"), Ok(Bytes(24 << 30)));
        assert_eq!(parse("24GiB"), Ok(Bytes(24 << 30)));
        assert_eq!(parse("24GB"), Ok(Bytes(24_000_000_000)));
        assert_eq!(parse("1.5m"), Ok(Bytes(3 << 19)));
        assert_eq!(parse("4096"), Ok(Bytes(4096)));
        assert_eq!(parse("7 KB"), Ok(Bytes(7000)));
    }

    #[test]
    fn nonsense_is_refused_with_the_accepted_forms() {
        for bad in ["", "G", "12X", "-3G", "1e400", "12GiBs", "é"] {
            assert!(parse(bad).unwrap_err().contains("24GiB"), "{bad}");
        }
    }
}
