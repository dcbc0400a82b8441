//! Which bytes are taken when: a segment tree over time of merged intervals.
//!
//! A deep model's spans are long ones that lie in a stack and short ones above it. What a stretch of time has taken is then few intervals, however many
//! spans took them, and the lowest gap is found without a look at each of them.

/// Intervals of bytes, ascending, with gaps between them.
type Taken = Vec<(u64, u64)>;

/// What is taken in some sections.
#[derive(Clone, Default)]
struct Node {
    /// By spans that cover all of the node's sections, and not all of its parent's.
    throughout: Taken,
    /// By spans that are alive in some of the node's sections.
    sometime: Taken,
}

/// The bytes that placed spans take in each section.
pub(super) struct Occupied {
    /// The root is 1, the children of `n` are `2n` and `2n + 1`; the leaves are the sections.
    nodes: Vec<Node>,
    leaves: usize,
    /// Intervals looked at so far.
    pub work: u64,
}

impl Occupied {
    pub fn new(sections: usize) -> Self {
        let leaves = sections.next_power_of_two();
        Occupied { nodes: vec![Node::default(); 2 * leaves], leaves, work: 0 }
    }

    /// Frees everything.
    pub fn clear(&mut self) {
        for node in &mut self.nodes {
            node.throughout.clear();
            node.sometime.clear();
        }
    }

    /// The fewest nodes that make up the sections from `first` to `last`.
    fn cover(&self, first: usize, last: usize, mut visit: impl FnMut(usize)) {
        let (mut low, mut high) = (first + self.leaves, last + self.leaves + 1);
        while low < high {
            if low & 1 == 1 {
                visit(low);
                low += 1;
            }
            if high & 1 == 1 {
                high -= 1;
                visit(high);
            }
            low /= 2;
            high /= 2;
        }
    }

    /// The nodes above those of the cover: the ones that hold a border of the range and more than the range.
    fn above(&self, first: usize, last: usize, mut visit: impl FnMut(usize)) {
        let (low, high) = (first + self.leaves, last + self.leaves);
        for level in 1..=self.leaves.ilog2() {
            let (left, right) = (low >> level, high >> level);
            let inside = |n: usize| n << level >= low && ((n + 1) << level) - 1 <= high;
            if !inside(left) {
                visit(left);
            }
            if right != left && !inside(right) {
                visit(right);
            }
        }
    }

    /// The lowest offset where `bytes` are free in all sections from `first` to `last`.
    pub fn lowest(&mut self, first: usize, last: usize, bytes: u64) -> u64 {
        let mut lists: Vec<&[(u64, u64)]> = Vec::with_capacity(4 * self.leaves.ilog2() as usize + 2);
        self.cover(first, last, |node| lists.push(&self.nodes[node].sometime));
        self.above(first, last, |node| lists.push(&self.nodes[node].throughout));
        lists.retain(|l| !l.is_empty());
        let (mut at, mut quiet, mut turn) = (0, 0, 0);
        while quiet < lists.len() {
            let list = &mut lists[turn];
            let skip = list.partition_point(|&(_, end)| end <= at);
            *list = &list[skip..];
            self.work += 1;
            quiet += 1;
            while let Some(&(start, end)) = list.first().filter(|i| i.0 < at + bytes.max(1)) {
                debug_assert!(start < end);
                (at, quiet) = (end, 1);
                *list = &list[1..];
                self.work += 1;
            }
            turn = (turn + 1) % lists.len();
        }
        at
    }

    /// Takes `bytes` at an offset in all sections from `first` to `last`.
    pub fn take(&mut self, first: usize, last: usize, offset: u64, bytes: u64) {
        let mut above = Vec::with_capacity(2 * self.leaves.ilog2() as usize);
        let mut cover = Vec::with_capacity(2 * self.leaves.ilog2() as usize + 2);
        self.cover(first, last, |node| cover.push(node));
        self.above(first, last, |node| above.push(node));
        for &node in &cover {
            insert(&mut self.nodes[node].throughout, offset, offset + bytes);
        }
        for node in cover.into_iter().chain(above) {
            insert(&mut self.nodes[node].sometime, offset, offset + bytes);
        }
    }
}

/// Adds an interval, merging it with those that it meets or touches.
fn insert(taken: &mut Taken, start: u64, end: u64) {
    if start == end {
        return;
    }
    let from = taken.partition_point(|&(_, e)| e < start);
    let to = from + taken[from..].partition_point(|&(s, _)| s <= end);
    if from == to {
        taken.insert(from, (start, end));
        return;
    }
    let merged = (taken[from].0.min(start), taken[to - 1].1.max(end));
    taken[from] = merged;
    taken.drain(from + 1..to);
}
