//! Which elements of a tensor hold what a step has written.

use fp8c_kernels::program::Region;

/// Parts that are remembered of one tensor; more are forgotten, which refuses a plan at worst.
const MAX_PARTS: usize = 256;

/// The elements of a tensor that are defined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    elements: u64,
    all: bool,
    parts: Vec<Region>,
}

impl Held {
    /// A tensor of which nothing, or everything, is defined.
    pub fn new(elements: u64, all: bool) -> Self {
        Held { elements, all: all || elements == 0, parts: vec![] }
    }

    /// True if every element is defined.
    pub fn is_whole(&self) -> bool {
        self.all
    }

    /// True if every element of `region` is shown to be defined.
    pub fn holds(&self, region: &Region) -> bool {
        let inside = region.bounds().1 < self.elements;
        inside && (self.all || self.parts.iter().any(|p| contains(p, region)))
    }

    /// Adds what has been written.
    pub fn write(&mut self, region: &Region) {
        if self.all || self.parts.iter().any(|p| contains(p, region)) {
            return;
        }
        let mut whole = region.clone();
        while let Some((at, joined)) = self.parts.iter().enumerate().find_map(|(i, p)| Some((i, joined(p, &whole)?))) {
            self.parts.swap_remove(at);
            whole = joined;
        }
        self.all = whole.offset == 0 && contains(&whole, &Region { offset: 0, dims: vec![(1, self.elements)] }.normal());
        if self.all {
            self.parts.clear();
        } else if self.parts.len() < MAX_PARTS {
            self.parts.push(whole);
        }
    }
}

/// True if `whole` is shown to hold every element of `part`.
fn contains(whole: &Region, part: &Region) -> bool {
    let Some(at) = part.offset.checked_sub(whole.offset) else { return false };
    match whole.dims[..] {
        // The common case, without a copy.
        [(1, extent)] => part.bounds().1 - whole.offset < extent,
        _ => inside(&whole.dims, &mut part.dims.clone(), at),
    }
}

/// Writes the elements `at + sum(part)` in the strides of `whole`, outermost first.
fn inside(whole: &[(u64, u64)], part: &mut Vec<(u64, u64)>, at: u64) -> bool {
    let reach = |part: &[(u64, u64)]| part.iter().fold(0u64, |r, &(s, e)| r.saturating_add(s.saturating_mul(e - 1)));
    match whole {
        [] => at == 0 && part.is_empty(),
        [(1, extent)] => at.saturating_add(reach(part)) < *extent,
        [(stride, extent), rest @ ..] => {
            let steps = part.extract_if(.., |&mut (s, _)| s % stride == 0).map(|(s, e)| (s / stride, e)).collect::<Vec<_>>();
            let fits = (at / stride).saturating_add(reach(&steps)) < *extent && (at % stride).saturating_add(reach(part)) < *stride;
            fits && inside(rest, part, at % stride)
        }
    }
}

/// The union of two regions, where it is one: they differ along one dimension at most and touch there.
fn joined(a: &Region, b: &Region) -> Option<Region> {
    let (a, b) = if a.offset <= b.offset { (a, b) } else { (b, a) };
    let apart = b.offset - a.offset;
    let along = |stride: u64| {
        let of = |r: &Region| r.dims.iter().find(|d| d.0 == stride).map_or(1, |d| d.1);
        let rest = |r: &Region| r.dims.iter().copied().filter(|d| d.0 != stride).collect::<Vec<_>>();
        let (mut dims, others) = (rest(a), rest(b));
        let touches = apart % stride == 0 && apart / stride <= of(a) && dims == others;
        let unique = dims.len() + 1 >= a.dims.len() && others.len() + 1 >= b.dims.len();
        touches.then_some(()).filter(|()| unique)?;
        dims.push((stride, of(a).max((apart / stride).saturating_add(of(b)))));
        Some(Region { offset: a.offset, dims }.normal())
    };
    // Single columns side by side have no dimension in common yet.
    let strides = a.dims.iter().chain(&b.dims).map(|d| d.0).chain([1]);
    strides.into_iter().find_map(along)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn elements(r: &Region) -> BTreeSet<u64> {
        r.dims.iter().fold(BTreeSet::from([r.offset]), |all, &(s, e)| all.iter().flat_map(|&at| (0..e).map(move |i| at + s * i)).collect())
    }

    fn regions() -> impl Strategy<Value = Region> {
        let dims = prop::collection::vec((1u64..13, 1u64..5), 0..4);
        (0u64..20, dims).prop_map(|(offset, dims)| Region { offset, dims }.normal())
    }

    #[test]
    fn a_concatenation_of_concatenations_is_whole_when_its_last_part_is_written() {
        let mut held = Held::new(2 * 9 * 4, false);
        let channels = |first: u64, n: u64| Region { offset: first * 4, dims: vec![(36, 2), (1, n * 4)] }.normal();
        for (first, n) in [(0, 3), (3, 1), (7, 2)] {
            held.write(&channels(first, n));
            assert!(!held.is_whole());
        }
        assert!(held.holds(&channels(0, 4)) && held.holds(&channels(1, 2)) && !held.holds(&channels(0, 5)));
        held.write(&channels(4, 3));
        assert!(held.is_whole());
    }

    #[test]
    fn interleaved_columns_make_a_whole() {
        let mut held = Held::new(30, false);
        for at in [1, 0, 2] {
            held.write(&Region { offset: at, dims: vec![(3, 10)] });
        }
        assert!(held.is_whole());
    }

    #[test]
    fn one_element_is_not_a_tensor() {
        let mut held = Held::new(4096, false);
        held.write(&Region { offset: 0, dims: vec![] });
        assert!(!held.is_whole() && !held.holds(&Region { offset: 0, dims: vec![(1, 2)] }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_shown_to_be_held_was_written(writes in prop::collection::vec(regions(), 1..6), read in regions(), size in 1u64..60) {
            let mut held = Held::new(size, false);
            let mut have = BTreeSet::new();
            for w in writes.iter().filter(|w| w.bounds().1 < size) {
                held.write(w);
                have.extend(elements(w));
            }
            prop_assert!(!held.is_whole() || have.len() as u64 == size);
            prop_assert!(!held.holds(&read) || elements(&read).is_subset(&have));
        }
    }
}
