//! Packing: rectangles of time and bytes into the least height.
//!
//! [`pack`] places spans in a few orders, each span in the lowest gap that it fits, and improves the best order by a seeded local search. [`fit`]
//! decides whether a capacity can be met, by branch and bound. Ties break by birth, then by position.

mod exact;
mod occupied;
mod portfolio;
mod sections;
#[cfg(test)]
mod tests;

pub use exact::{Fit, fit};
pub use portfolio::pack;

use sections::Sections;

/// Bytes that are needed from event `first` to event `last`, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub first: u32,
    pub last: u32,
    pub bytes: u64,
}

impl Span {
    /// True where both are needed at one event.
    pub fn meets(&self, other: &Span) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn events(&self) -> u64 {
        (self.last - self.first) as u64 + 1
    }
}

/// A layout: an offset in bytes for each span, and the height reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    pub offsets: Vec<u64>,
    pub height: u64,
}

/// The largest number of bytes alive at once: no packing is lower.
pub fn lower_bound(spans: &[Span]) -> u64 {
    let sections = Sections::new(spans);
    sections.totals(spans).into_iter().max().unwrap_or(0)
}

/// Nodes that [`least`] spends on each height that it tries.
const NODES_A_HEIGHT: u64 = 400_000;

/// Heights that [`least`] tries.
const HEIGHTS: u32 = 12;

/// The lowest packing that a longer search finds: [`pack`], then branch and bound at heights between the lower bound and the best known.
pub fn least(spans: &[Span]) -> Packing {
    let mut low = lower_bound(spans);
    let mut best = pack(spans, low);
    let mut height = low;
    for _ in 0..HEIGHTS {
        if best.height <= low {
            break;
        }
        match fit(spans, height, NODES_A_HEIGHT) {
            Fit::Found(p) => best = p,
            Fit::Impossible => low = height + 1,
            // Unknown counts as impossible for what is tried next, not for what is claimed.
            Fit::Unknown => low = low.max(height + 1),
        }
        height = low + (best.height - low) / 2;
    }
    best
}
