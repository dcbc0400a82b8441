//! Ordered placements and the local search over the best of them.

use super::occupied::Occupied;
use super::sections::Sections;
use super::{Fit, Packing, Span, fit, lower_bound};

/// A key to place spans by, smallest first.
type Order = fn(&Span) -> (u64, u64);

const ORDERS: [Order; 5] = [
    |s| (u64::MAX - s.bytes, u64::MAX - s.events()),
    |s| (u64::MAX - s.events(), u64::MAX - s.bytes),
    |s| (u64::MAX - s.bytes.saturating_mul(s.events()), 0),
    |s| (s.first as u64, u64::MAX - s.bytes),
    |s| (u64::MAX - s.last as u64, u64::MAX - s.bytes),
];

/// Most spans for which branch and bound is tried, and its nodes for each of them.
const DIVE_SPANS: usize = 2000;
const DIVE_NODES: u64 = 10;

/// Intervals that the local search looks at.
const SEARCH_WORK: u64 = 5_000_000;

/// Most placements of the local search.
const MAX_ROUNDS: usize = 200;

/// Packs spans as low as a few orders and a short dive of branch and bound do; where that is not `enough`, searches until it is.
pub fn pack(spans: &[Span], enough: u64) -> Packing {
    let bound = lower_bound(spans);
    let mut placer = Placer::new(spans);
    let (order, packing) = placer.ordered(bound);
    if packing.height <= bound {
        return packing;
    }
    let target = bound.max(enough);
    // What is enough may be found where the least is not.
    let heights = if packing.height > target && target > bound { vec![bound, target] } else { vec![bound] };
    let dive = |height| match fit(spans, height, DIVE_NODES * spans.len() as u64) {
        Fit::Found(packing) => Some(packing),
        Fit::Impossible | Fit::Unknown => None,
    };
    let dived = if spans.len() <= DIVE_SPANS { heights.into_iter().find_map(dive) } else { None };
    dived.unwrap_or_else(|| placer.search(order, packing, target))
}

/// Places spans one by one.
struct Placer<'a> {
    spans: &'a [Span],
    /// The first and the last section of each span.
    alive: Vec<(usize, usize)>,
    occupied: Occupied,
}

impl<'a> Placer<'a> {
    fn new(spans: &'a [Span]) -> Self {
        let sections = Sections::new(spans);
        let alive = spans.iter().map(|s| sections.of(s)).collect();
        Placer { spans, alive, occupied: Occupied::new(sections.len()) }
    }

    /// The best of the orders, and what it gives; none is tried behind one that reaches `bound`.
    fn ordered(&mut self, bound: u64) -> (Vec<u32>, Packing) {
        let mut best: Option<(Vec<u32>, Packing)> = None;
        for key in ORDERS {
            let mut order: Vec<u32> = (0..self.spans.len() as u32).collect();
            order.sort_by_key(|&i| (key(&self.spans[i as usize]), self.spans[i as usize].first, i));
            let packing = self.place(&order);
            if best.as_ref().is_none_or(|(_, b)| packing.height < b.height) {
                best = Some((order, packing));
            }
            if best.as_ref().is_some_and(|(_, b)| b.height <= bound) {
                break;
            }
        }
        best.unwrap_or_default()
    }

    /// Places spans in order, each in the lowest gap that it fits.
    fn place(&mut self, order: &[u32]) -> Packing {
        let mut packing = Packing { offsets: vec![0; self.spans.len()], height: 0 };
        self.occupied.clear();
        for &i in order {
            let (first, last) = self.alive[i as usize];
            let bytes = self.spans[i as usize].bytes;
            let at = self.occupied.lowest(first, last, bytes);
            self.occupied.take(first, last, at, bytes);
            packing.offsets[i as usize] = at;
            packing.height = packing.height.max(at + bytes);
        }
        packing
    }

    /// Moves spans that touch the top earlier in the order, keeping what does not get worse.
    fn search(&mut self, mut order: Vec<u32>, mut best: Packing, target: u64) -> Packing {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let end = self.occupied.work + SEARCH_WORK;
        for _ in 0..MAX_ROUNDS {
            if best.height <= target || order.is_empty() || self.occupied.work >= end {
                break;
            }
            let touches = |i: u32| best.offsets[i as usize] + self.spans[i as usize].bytes == best.height;
            let top: Vec<usize> = (0..order.len()).filter(|&p| touches(order[p])).collect();
            let from = top[random.below(top.len())];
            let mut tried = order.clone();
            let moved = tried.remove(from);
            tried.insert(random.below(from + 1), moved);
            let packing = self.place(&tried);
            if packing.height <= best.height {
                (order, best) = (tried, packing);
            }
        }
        best
    }
}

/// Repeatable numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// The spans placed in an order.
#[cfg(test)]
pub(super) fn placed(spans: &[Span], order: &[u32]) -> Packing {
    Placer::new(spans).place(order)
}
