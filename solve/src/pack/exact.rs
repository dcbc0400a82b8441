//! Branch and bound: can spans be packed into a capacity?
//!
//! The search is that of MiniMalloc (Moffitt, ASPLOS 2023): spans are placed at the lowest offset that those below permit, in an order of rising
//! offsets, so that each packing is met once. A branch ends where a section's floor and what is still to come there exceed the capacity,
//! where another span would fit below the one that is placed, and where no span is left above it. Whenever what is placed cuts time in two,
//! each side is searched by itself. A few orders of preference take turns, each with twice the nodes of the turn before.

use super::sections::Sections;
use super::{Packing, Span};

/// What a search at a capacity says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    Found(Packing),
    /// There is no such packing.
    Impossible,
    /// The search ended at its limit of nodes.
    Unknown,
}

/// Most spans that are searched: the search is as deep as there are spans.
const MAX_SPANS: usize = 4000;

/// Stack of the search, a node of which takes less than 1 KiB.
const STACK: usize = 16 << 20;

/// By what spans are preferred, most first.
#[derive(Clone, Copy)]
enum Measure {
    Area,
    /// The most bytes alive at once while the span is.
    Crowd,
    Width,
}

const PREFERENCES: [[Measure; 3]; 3] = [
    [Measure::Width, Measure::Area, Measure::Crowd],
    [Measure::Crowd, Measure::Area, Measure::Width],
    [Measure::Crowd, Measure::Width, Measure::Area],
];

/// Searches for a packing no higher than `capacity`, over at most `nodes` placements.
pub fn fit(spans: &[Span], capacity: u64, nodes: u64) -> Fit {
    if spans.len() > MAX_SPANS {
        return Fit::Unknown;
    }
    // A thread that cannot be had is a search that found nothing.
    on_own_stack(|| turns(spans, capacity, nodes)).unwrap_or(Fit::Unknown)
}

/// Runs a search where its depth has room.
fn on_own_stack(search: impl FnOnce() -> Fit + Send) -> Option<Fit> {
    std::thread::scope(|scope| std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, search).ok()?.join().ok())
}

/// Lets the preferences take turns.
fn turns(spans: &[Span], capacity: u64, nodes: u64) -> Fit {
    let mut search = Search::new(spans, capacity);
    let mut each = spans.len().max(1) as u64;
    loop {
        each *= 2;
        for preference in PREFERENCES {
            search.limit = nodes.min(search.visited + each);
            match search.all(preference) {
                End::Found => return Fit::Found(packing(spans, search.found)),
                End::None => return Fit::Impossible,
                End::Limit if search.visited >= nodes => return Fit::Unknown,
                End::Limit => {}
            }
        }
    }
}

fn packing(spans: &[Span], offsets: Vec<u64>) -> Packing {
    let height = spans.iter().zip(&offsets).map(|(s, o)| s.bytes + o).max().unwrap_or(0);
    Packing { offsets, height }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Found,
    None,
    Limit,
}

/// A span with its place among those that are preferred.
#[derive(Clone, Copy)]
struct Candidate {
    least: u64,
    rank: u32,
    span: u32,
}

/// What placing a span says at once.
enum Put {
    /// Nothing that is open meets the span.
    Hatless,
    Below,
    /// Some section has no room for what is still to come.
    Crowded,
}

/// Not placed.
const NOWHERE: u64 = u64::MAX;

struct Search<'a> {
    spans: &'a [Span],
    capacity: u64,
    /// Nodes visited at which the search ends.
    limit: u64,
    visited: u64,
    /// First and last section of each span.
    alive: Vec<(u32, u32)>,
    /// The spans that each one meets.
    meets: Vec<Vec<u32>>,
    /// The spans alive in each section.
    members: Vec<Vec<u32>>,
    /// Below this nothing more is placed in a section.
    floor: Vec<u64>,
    /// What is still to be placed in a section.
    left: Vec<u64>,
    /// Unplaced spans that are alive in a section and in the next one.
    across: Vec<u32>,
    /// The lowest offset of each span above those that are placed.
    least: Vec<u64>,
    offsets: Vec<u64>,
    found: Vec<u64>,
    /// Sections whose floors may rise.
    touched: Vec<bool>,
    /// What placements changed, to be undone: spans' least offsets and sections' floors before.
    least_before: Vec<(u32, u64)>,
    floor_before: Vec<(u32, u64)>,
}

impl<'a> Search<'a> {
    fn new(spans: &'a [Span], capacity: u64) -> Self {
        let sections = Sections::new(spans);
        let alive: Vec<(u32, u32)> = spans.iter().map(|s| sections.of(s)).map(|(a, b)| (a as u32, b as u32)).collect();
        let mut members = vec![vec![]; sections.len()];
        let mut across = vec![0; sections.len()];
        let mut meets = vec![vec![]; spans.len()];
        for (i, &(first, last)) in (0u32..).zip(&alive) {
            (first..=last).for_each(|s| members[s as usize].push(i));
            let open = u32::from(spans[i as usize].bytes > 0);
            (first..last).for_each(|s| across[s as usize] += open);
            let others = (0u32..).zip(spans).filter(|&(j, other)| j != i && spans[i as usize].meets(other));
            meets[i as usize] = others.map(|(j, _)| j).collect();
        }
        Search {
            spans,
            capacity,
            limit: 0,
            visited: 0,
            alive,
            meets,
            members,
            floor: vec![0; sections.len()],
            left: sections.totals(spans),
            across,
            least: vec![0; spans.len()],
            // Spans without bytes lie anywhere, and would fit below any other.
            offsets: spans.iter().map(|s| if s.bytes == 0 { 0 } else { NOWHERE }).collect(),
            found: spans.iter().map(|s| if s.bytes == 0 { 0 } else { NOWHERE }).collect(),
            touched: vec![false; sections.len()],
            least_before: vec![],
            floor_before: vec![],
        }
    }

    /// Searches each stretch of time that no span crosses.
    fn all(&mut self, preference: [Measure; 3]) -> End {
        let cuts: Vec<usize> = (0..self.across.len()).filter(|&s| self.across[s] == 0).map(|s| s + 1).collect();
        let spans: Vec<u32> = (0..self.spans.len() as u32).collect();
        self.parts(0, &cuts, &spans, preference)
    }

    /// Searches the sections up to each cut, one part after another.
    fn parts(&mut self, from: usize, cuts: &[usize], spans: &[u32], preference: [Measure; 3]) -> End {
        let mut start = from;
        for &cut in cuts {
            let inside = |&i: &u32| self.offsets[i as usize] == NOWHERE && (start..cut).contains(&(self.alive[i as usize].0 as usize));
            let part: Vec<u32> = spans.iter().copied().filter(inside).collect();
            if !part.is_empty() {
                let ranked = self.ranked(part, preference);
                let end = self.place(&ranked, (start, cut), (0, 0), preference);
                if end != End::Found {
                    return end;
                }
            }
            start = cut;
        }
        End::Found
    }

    fn measure(&self, i: u32, measure: Measure) -> u64 {
        let span = &self.spans[i as usize];
        match measure {
            Measure::Area => span.bytes.saturating_mul(span.events()),
            Measure::Width => span.events(),
            Measure::Crowd => {
                let (first, last) = self.alive[i as usize];
                self.left[first as usize..=last as usize].iter().copied().max().unwrap_or(0)
            }
        }
    }

    /// Spans in the order of preference.
    fn ranked(&self, mut spans: Vec<u32>, preference: [Measure; 3]) -> Vec<Candidate> {
        spans.sort_by_cached_key(|&i| (preference.map(|m| std::cmp::Reverse(self.measure(i, m))), i));
        (0..).zip(spans).map(|(rank, span)| Candidate { least: 0, rank, span }).collect()
    }

    /// Places one of the candidates, and then the rest, at offsets from `from` on; what lies at the same offset is placed by rank.
    fn place(&mut self, before: &[Candidate], range: (usize, usize), from: (u64, u32), preference: [Measure; 3]) -> End {
        if self.visited >= self.limit {
            return End::Limit;
        }
        self.visited += 1;
        let open = before.iter().filter(|c| self.offsets[c.span as usize] == NOWHERE);
        let open: Vec<Candidate> = open.map(|c| Candidate { least: self.least[c.span as usize], ..*c }).collect();
        // What is placed this high leaves a gap that an open span fits into.
        let Some(gap) = open.iter().map(|c| c.least + self.spans[c.span as usize].bytes).min() else {
            self.keep(before);
            return End::Found;
        };
        let mut next: Vec<Candidate> = open.iter().copied().filter(|c| c.least < gap && (c.least, c.rank) >= from).collect();
        next.sort_unstable_by_key(|c| (c.least, c.rank));
        for c in next {
            if !self.has_room(range, c) {
                continue;
            }
            let marks = (self.least_before.len(), self.floor_before.len());
            let put = self.put(c);
            let end = if let Put::Crowded = put { End::None } else { self.go_on(&open, range, c, preference) };
            self.take_back(c, marks);
            if end != End::None {
                return end;
            }
            if let Put::Hatless = put {
                break;
            }
        }
        End::None
    }

    /// Goes on behind a placement, in parts where it cut time.
    fn go_on(&mut self, open: &[Candidate], range: (usize, usize), placed: Candidate, preference: [Measure; 3]) -> End {
        let (first, last) = self.alive[placed.span as usize];
        let mut cuts: Vec<usize> = vec![];
        for s in first as usize..last as usize {
            self.across[s] -= 1;
            if self.across[s] == 0 {
                cuts.push(s + 1);
            }
        }
        let end = if cuts.is_empty() {
            self.place(open, range, (placed.least, placed.rank), preference)
        } else {
            cuts.push(range.1);
            let rest: Vec<u32> = open.iter().map(|c| c.span).collect();
            self.parts(range.0, &cuts, &rest, preference)
        };
        if end == End::Found {
            self.found[placed.span as usize] = self.offsets[placed.span as usize];
        }
        (first as usize..last as usize).for_each(|s| self.across[s] += 1);
        end
    }

    /// Writes down where spans are; those of other parts were before.
    fn keep(&mut self, spans: &[Candidate]) {
        for c in spans {
            self.found[c.span as usize] = self.offsets[c.span as usize];
        }
    }

    /// True where every section has room for what is still to come when a span is placed: nothing is placed below it any more.
    fn has_room(&self, (start, end): (usize, usize), c: Candidate) -> bool {
        let (first, last) = (self.alive[c.span as usize].0 as usize, self.alive[c.span as usize].1 as usize);
        let fits = |s: std::ops::Range<usize>| {
            let mut sections = self.floor[s.clone()].iter().zip(&self.left[s]);
            sections.all(|(&floor, &left)| floor.max(c.least).saturating_add(left) <= self.capacity)
        };
        let covered = self.left[first..=last].iter().all(|&left| c.least.saturating_add(left) <= self.capacity);
        covered && fits(start..first) && fits(last + 1..end)
    }

    /// Puts a span at its lowest offset.
    fn put(&mut self, c: Candidate) -> Put {
        let (i, top) = (c.span as usize, c.least + self.spans[c.span as usize].bytes);
        self.offsets[i] = c.least;
        let (first, last) = self.alive[i];
        for s in first as usize..=last as usize {
            self.floor_before.push((s as u32, self.floor[s]));
            self.floor[s] = top;
            self.left[s] -= self.spans[i].bytes;
        }
        let mut put = Put::Hatless;
        let (mut low, mut high) = (usize::MAX, 0);
        for &j in &self.meets[i] {
            if self.offsets[j as usize] != NOWHERE {
                continue;
            }
            put = Put::Below;
            let least = &mut self.least[j as usize];
            if *least < top {
                self.least_before.push((j, *least));
                *least = top;
                let (first, last) = self.alive[j as usize];
                self.touched[first as usize..=last as usize].fill(true);
                (low, high) = (low.min(first as usize), high.max(last as usize));
            }
        }
        for s in low..=high {
            if std::mem::take(&mut self.touched[s]) && !matches!(put, Put::Crowded) && !self.raise(s) {
                put = Put::Crowded;
            }
        }
        put
    }

    /// Raises a section's floor to what is open there; false where there is no room left.
    fn raise(&mut self, s: usize) -> bool {
        let floor = self.floor[s];
        let mut lowest = u64::MAX;
        for &j in &self.members[s] {
            if self.offsets[j as usize] == NOWHERE {
                lowest = lowest.min(self.least[j as usize]);
                if lowest <= floor {
                    return true;
                }
            }
        }
        if lowest == u64::MAX {
            return true;
        }
        self.floor_before.push((s as u32, floor));
        self.floor[s] = lowest;
        lowest.saturating_add(self.left[s]) <= self.capacity
    }

    fn take_back(&mut self, c: Candidate, (least, floor): (usize, usize)) {
        for (s, before) in self.floor_before.drain(floor..).rev() {
            self.floor[s as usize] = before;
        }
        for (j, before) in self.least_before.drain(least..).rev() {
            self.least[j as usize] = before;
        }
        let (first, last) = self.alive[c.span as usize];
        for left in &mut self.left[first as usize..=last as usize] {
            *left += self.spans[c.span as usize].bytes;
        }
        self.offsets[c.span as usize] = NOWHERE;
    }
}
