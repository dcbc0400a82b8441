//! Time cut at the births of spans: who meets whom is decided there.

use super::Span;

/// The events at which spans are born, numbered: spans meet exactly where they share one.
pub(super) struct Sections {
    births: Vec<u32>,
}

impl Sections {
    pub fn new(spans: &[Span]) -> Self {
        let mut births: Vec<u32> = spans.iter().map(|s| s.first).collect();
        births.sort_unstable();
        births.dedup();
        Sections { births }
    }

    pub fn len(&self) -> usize {
        self.births.len()
    }

    /// The first and the last section of a span, inclusive.
    pub fn of(&self, span: &Span) -> (usize, usize) {
        let first = self.births.partition_point(|&b| b < span.first);
        (first, self.births.partition_point(|&b| b <= span.last) - 1)
    }

    /// The bytes alive in each.
    pub fn totals(&self, spans: &[Span]) -> Vec<u64> {
        let mut change = vec![(0u64, 0u64); self.len() + 1];
        for span in spans {
            let (first, last) = self.of(span);
            change[first].0 += span.bytes;
            change[last + 1].1 += span.bytes;
        }
        let mut live = 0;
        change.pop();
        let turn = |(born, died): (u64, u64)| {
            live = live + born - died;
            live
        };
        change.into_iter().map(turn).collect()
    }
}
