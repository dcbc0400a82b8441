//! Numbers as users write them: parsers whose messages say what is accepted.

use fp8c_runtime::hyper::Span;
use std::ops::RangeInclusive;

/// Accepts a number of a span.
pub fn number(span: Span) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| span.parse(text)
}

/// Accepts a whole number of a range.
pub fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.trim().parse().ok().filter(|n| range.contains(n));
        number.and_then(|n| T::try_from(n).ok()).ok_or_else(|| format!("must be a whole number{}", bounds(&range)))
    }
}

fn bounds(range: &RangeInclusive<u64>) -> String {
    match (*range.start(), *range.end()) {
        (0, u64::MAX) => String::new(),
        (least, u64::MAX) => format!(", {least} or more"),
        (least, most) => format!(" from {least} to {most}"),
    }
}

/// Accepts what a type's own parser does.
pub fn named<T: std::str::FromStr<Err = String>>(text: &str) -> Result<T, String> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_answered_with_the_range() {
        let threads = whole::<usize>(1..=1024);
        assert_eq!(threads("1024"), Ok(1024));
        for bad in ["0", "1025", "-1", "1e3", "", "18446744073709551616", "x"] {
            assert_eq!(threads(bad), Err("must be a whole number from 1 to 1024".into()), "{bad}");
        }
        assert_eq!(whole::<u64>(1..=u64::MAX)("0"), Err("must be a whole number, 1 or more".into()));
        assert_eq!(whole::<u32>(0..=u64::MAX)("4294967296"), Err("must be a whole number".into()));
    }
}
