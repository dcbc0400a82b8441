//! Offsets for lifetimes: packing rectangles of time and bytes into the least height.
//!
//! A portfolio of ordered best-fit placements, then a seeded local search over the best order. Ties break by birth, then by
//! position: the same lifetimes give the same offsets.

use crate::quantity::Bytes;

/// Bytes that are needed from event `first` to event `last`, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub first: u32,
    pub last: u32,
    pub bytes: Bytes,
}

impl Span {
    fn meets(&self, other: &Span) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A layout: an offset for each span, and the height reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    pub offsets: Vec<Bytes>,
    pub height: Bytes,
}

/// A key to place spans by, smallest first.
type Order = fn(&Span) -> (u64, u64);

/// The largest number of bytes alive at once: no packing is lower.
pub fn lower_bound(spans: &[Span]) -> Bytes {
    let mut events: Vec<(u32, bool, Bytes)> = spans.iter().flat_map(|s| [(s.first, true, s.bytes), (s.last + 1, false, s.bytes)]).collect();
    events.sort_unstable_by_key(|&(at, starts, _)| (at, starts));
    let (mut live, mut peak) = (Bytes(0), Bytes(0));
    for (_, starts, bytes) in events {
        live = if starts { live + bytes } else { live - bytes };
        peak = peak.max(live);
    }
    peak
}

/// Work of the local search: placements times pairs of neighbours.
const SEARCH_WORK: usize = 20_000_000;

/// Most placements of the local search.
const MAX_ROUNDS: usize = 200;

/// Packs spans; stops early when the height is `enough` or reaches the lower bound.
pub fn pack(spans: &[Span], enough: Bytes) -> Packing {
    let target = lower_bound(spans).max(enough);
    let neighbours = neighbours(spans);
    let pairs: usize = neighbours.iter().map(Vec::len).sum();
    let rounds = (SEARCH_WORK / pairs.max(1)).min(MAX_ROUNDS);
    let orders: [Order; 5] = [
        |s| (u64::MAX - s.bytes.0, u64::MAX - (s.last - s.first) as u64),
        |s| (u64::MAX - (s.last - s.first) as u64, u64::MAX - s.bytes.0),
        |s| (u64::MAX - (s.bytes * ((s.last - s.first) as u64 + 1)).0, 0),
        |s| (s.first as u64, u64::MAX - s.bytes.0),
        |s| (u64::MAX - s.last as u64, u64::MAX - s.bytes.0),
    ];
    let mut best: Option<(Vec<u32>, Packing)> = None;
    for key in orders {
        let mut order: Vec<u32> = (0..spans.len() as u32).collect();
        order.sort_by_key(|&i| (key(&spans[i as usize]), spans[i as usize].first, i));
        let packing = place(spans, &neighbours, &order);
        if best.as_ref().is_none_or(|(_, b)| packing.height < b.height) {
            best = Some((order, packing));
        }
        if best.as_ref().is_some_and(|(_, b)| b.height <= target) {
            break;
        }
    }
    let Some((order, packing)) = best else { return Packing { offsets: vec![], height: Bytes(0) } };
    search(spans, &neighbours, order, packing, target, rounds)
}

/// For each span, the spans it meets in time.
fn neighbours(spans: &[Span]) -> Vec<Vec<u32>> {
    let mut by_birth: Vec<u32> = (0..spans.len() as u32).collect();
    by_birth.sort_by_key(|&i| spans[i as usize].first);
    let mut out = vec![vec![]; spans.len()];
    let mut open: Vec<u32> = vec![];
    for i in by_birth {
        let s = spans[i as usize];
        open.retain(|&j| spans[j as usize].last >= s.first);
        for &j in &open {
            debug_assert!(s.meets(&spans[j as usize]));
            out[i as usize].push(j);
            out[j as usize].push(i);
        }
        open.push(i);
    }
    out
}

/// Places spans in order, each at the lowest gap that fits among the neighbours already placed.
fn place(spans: &[Span], neighbours: &[Vec<u32>], order: &[u32]) -> Packing {
    let mut offsets = vec![Bytes::MAX; spans.len()];
    let mut height = Bytes(0);
    let mut taken: Vec<(Bytes, Bytes)> = vec![];
    for &i in order {
        let bytes = spans[i as usize].bytes;
        taken.clear();
        let placed = neighbours[i as usize].iter().filter(|&&j| offsets[j as usize] != Bytes::MAX);
        taken.extend(placed.map(|&j| (offsets[j as usize], offsets[j as usize] + spans[j as usize].bytes)));
        taken.sort_unstable();
        let mut at = Bytes(0);
        for &(lo, hi) in &taken {
            if lo >= at + bytes {
                break;
            }
            at = at.max(hi);
        }
        offsets[i as usize] = at;
        height = height.max(at + bytes);
    }
    Packing { offsets, height }
}

/// Moves spans that touch the top earlier in the order, keeping what does not get worse.
fn search(spans: &[Span], neighbours: &[Vec<u32>], mut order: Vec<u32>, mut best: Packing, target: Bytes, rounds: usize) -> Packing {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n.max(1) as u64) as usize
    };
    for _ in 0..rounds {
        if best.height <= target || order.is_empty() {
            break;
        }
        let top: Vec<usize> =
            (0..order.len()).filter(|&p| best.offsets[order[p] as usize] + spans[order[p] as usize].bytes == best.height).collect();
        let from = top[random(top.len())];
        let mut tried = order.clone();
        let moved = tried.remove(from);
        tried.insert(random(from + 1), moved);
        let packing = place(spans, neighbours, &tried);
        if packing.height <= best.height {
            (order, best) = (tried, packing);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlapping(spans: &[Span], p: &Packing) -> bool {
        (0..spans.len()).any(|i| {
            (0..i).any(|j| {
                let (a, b) = (p.offsets[i], p.offsets[j]);
                spans[i].meets(&spans[j]) && a < b + spans[j].bytes && b < a + spans[i].bytes
            })
        })
    }

    #[test]
    fn nested_lifetimes_pack_to_their_lower_bound() {
        let spans: Vec<Span> = (0..50).map(|i| Span { first: i, last: 199 - i, bytes: Bytes(256) * (1 + i as u64 % 7) }).collect();
        let p = pack(&spans, Bytes(0));
        assert!(!overlapping(&spans, &p));
        assert_eq!(p.height, lower_bound(&spans));
    }

    #[test]
    fn random_lifetimes_never_overlap_and_repeat_exactly() {
        let mut seed = 7u32;
        let mut next = |n: u32| {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 8) % n
        };
        let spans: Vec<Span> = (0..200)
            .map(|_| {
                let first = next(100);
                Span { first, last: first + next(20), bytes: Bytes(256) * (1 + next(64) as u64) }
            })
            .collect();
        let p = pack(&spans, Bytes(0));
        assert!(!overlapping(&spans, &p));
        assert!(p.height.0 as f64 <= 1.1 * lower_bound(&spans).0 as f64, "{} over {}", p.height, lower_bound(&spans));
        assert_eq!(p, pack(&spans, Bytes(0)));
    }
}
