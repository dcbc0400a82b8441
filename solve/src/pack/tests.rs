use super::*;

/// Numbers that repeat.
struct Numbers(u32);

impl Numbers {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1664525).wrapping_add(1013904223);
        (self.0 >> 8) % n
    }
}

fn overlapping(spans: &[Span], p: &Packing) -> bool {
    (0..spans.len()).any(|i| {
        (0..i).any(|j| {
            let (a, b) = (p.offsets[i], p.offsets[j]);
            spans[i].meets(&spans[j]) && a < b + spans[j].bytes && b < a + spans[i].bytes
        })
    })
}

fn random_spans(seed: u32, count: usize) -> Vec<Span> {
    let mut n = Numbers(seed);
    let mut span = || {
        let first = n.below(100);
        Span { first, last: first + n.below(20), bytes: 256 * (1 + n.below(64) as u64) }
    };
    (0..count).map(|_| span()).collect()
}

/// A rectangle of time and bytes, cut at random into spans that fill it.
fn perfect(seed: u32, cuts: usize) -> Vec<Span> {
    let mut n = Numbers(seed);
    let mut whole = vec![Span { first: 0, last: 999, bytes: 1 << 20 }];
    for _ in 0..cuts {
        let i = n.below(whole.len() as u32) as usize;
        let s = whole.swap_remove(i);
        if n.below(2) == 0 && s.last > s.first {
            let at = s.first + n.below(s.last - s.first);
            whole.extend([Span { last: at, ..s }, Span { first: at + 1, ..s }]);
        } else if s.bytes > 1 {
            let below = 1 + n.below(s.bytes as u32 - 1) as u64;
            whole.extend([Span { bytes: below, ..s }, Span { bytes: s.bytes - below, ..s }]);
        } else {
            whole.push(s);
        }
    }
    whole
}

#[test]
fn nested_lifetimes_pack_to_their_lower_bound() {
    let spans: Vec<Span> = (0..50).map(|i| Span { first: i, last: 199 - i, bytes: 256 * (1 + i as u64 % 7) }).collect();
    let p = pack(&spans, 0);
    assert!(!overlapping(&spans, &p));
    assert_eq!(p.height, lower_bound(&spans));
}

#[test]
fn random_lifetimes_never_overlap_and_repeat_exactly() {
    for seed in 0..20 {
        let spans = random_spans(seed, 200);
        let p = pack(&spans, 0);
        assert!(!overlapping(&spans, &p));
        assert!(p.height as f64 <= 1.1 * lower_bound(&spans) as f64, "{} over {}", p.height, lower_bound(&spans));
        assert_eq!(p, pack(&spans, 0));
    }
}

#[test]
fn a_span_goes_into_the_lowest_gap_that_it_fits() {
    for seed in 0..20 {
        let spans = random_spans(seed, 60);
        let order: Vec<u32> = (0..60).collect();
        let offsets = portfolio::placed(&spans, &order).offsets;
        for i in 0..spans.len() {
            let below: Vec<usize> = (0..i).filter(|&j| spans[i].meets(&spans[j])).collect();
            let free = |at: u64| below.iter().all(|&j| at >= offsets[j] + spans[j].bytes || offsets[j] >= at + spans[i].bytes);
            let ends = below.iter().map(|&j| offsets[j] + spans[j].bytes).chain([0]);
            assert_eq!(Some(offsets[i]), ends.filter(|&at| free(at)).min(), "span {i} of seed {seed}");
        }
    }
}

#[test]
fn what_was_cut_from_one_rectangle_packs_into_it_again() {
    for seed in 0..10 {
        let spans = perfect(seed, 40);
        assert_eq!(lower_bound(&spans), 1 << 20);
        let Fit::Found(p) = fit(&spans, 1 << 20, 1_000_000) else { panic!("seed {seed}: not found") };
        assert!(!overlapping(&spans, &p));
        assert_eq!(p.height, 1 << 20);
    }
}

#[test]
fn the_search_agrees_with_every_order_of_small_instances() {
    for seed in 0..40 {
        let mut n = Numbers(seed);
        let mut span = || {
            let first = n.below(6);
            Span { first, last: first + n.below(4), bytes: 1 + n.below(5) as u64 }
        };
        let spans: Vec<Span> = (0..7).map(|_| span()).collect();
        let best = permutations(7).iter().map(|order| portfolio::placed(&spans, order).height).min().unwrap();
        for height in lower_bound(&spans)..=best {
            match fit(&spans, height, 1_000_000) {
                Fit::Found(p) => assert!(height == best && p.height == best && !overlapping(&spans, &p), "seed {seed}"),
                Fit::Impossible => assert!(height < best, "seed {seed}"),
                Fit::Unknown => panic!("seed {seed}: seven spans need no million nodes"),
            }
        }
    }
}

#[test]
fn spans_without_bytes_are_in_nobodys_way() {
    let span = |first, last, bytes| Span { first, last, bytes };
    let spans = [span(0, 2, 0), span(0, 1, 4), span(1, 3, 4), span(2, 2, 0), span(3, 3, 4)];
    let Fit::Found(p) = fit(&spans, 8, 1000) else { panic!("eight bytes are enough") };
    assert!(!overlapping(&spans, &p) && p.height == 8);
    assert!(matches!(fit(&spans[..1], 0, 1000), Fit::Found(_)));
    assert_eq!(fit(&spans, 7, 1000), Fit::Impossible);
    assert_eq!(least(&[]), Packing::default());
}

#[test]
fn a_search_that_ends_at_its_limit_claims_nothing() {
    assert_eq!(fit(&random_spans(3, 200), lower_bound(&random_spans(3, 200)), 10), Fit::Unknown);
}

fn permutations(n: u32) -> Vec<Vec<u32>> {
    match n {
        0 => vec![vec![]],
        n => permutations(n - 1).into_iter().flat_map(|p| (0..n as usize).map(move |at| inserted(&p, at, n - 1))).collect(),
    }
}

fn inserted(p: &[u32], at: usize, x: u32) -> Vec<u32> {
    let mut p = p.to_vec();
    p.insert(at, x);
    p
}
