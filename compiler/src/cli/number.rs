//! Numbers as users write them: parsers whose messages say what is accepted.

use fp8c_runtime::hyper::Span;
use fp8c_runtime::trainer::Every;
use std::ops::RangeInclusive;
use std::time::Duration;

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

/// Accepts a number of steps, or a time: `500`, `90s`, `10min`, `2h`.
pub fn pace(text: &str) -> Result<Every, String> {
    const UNITS: [(&str, u64); 5] = [("min", 60), ("m", 60), ("h", 3600), ("s", 1), ("", 0)];
    let text = text.trim();
    let parsed = UNITS.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?.trim().parse::<u64>().ok()?, *seconds)));
    match parsed {
        Some((n, 0)) => Ok(Every::Steps(n)),
        Some((n, seconds)) if n > 0 => Ok(Every::Time(Duration::from_secs(n.saturating_mul(seconds)))),
        _ => Err("must be a number of steps, or a time such as 90s, 10min or 2h".into()),
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
    fn a_pace_is_steps_or_a_time() {
        let time = |seconds| Ok(Every::Time(Duration::from_secs(seconds)));
        assert_eq!(
            ["500", "0", "90s", "10min", "10 m", "2h"].map(pace),
            [Ok(Every::Steps(500)), Ok(Every::Steps(0)), time(90), time(600), time(600), time(7200)]
        );
        assert!(["", "min", "0min", "1.5h", "-1", "3d"].iter().all(|bad| pace(bad).is_err()));
    }

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
