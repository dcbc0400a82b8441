use super::*;

/// A network's forward and backward pass: `layers` nodes, a loss, and as many nodes that read the one before and the mirrored two.
fn mirrored(layers: usize) -> Graph {
    let mut g = Graph::default();
    for i in 0..layers {
        g.cost.push(1.0 + (i % 3) as f64);
        g.bytes.push(100);
        g.inputs.push(if i == 0 { vec![] } else { vec![i - 1] });
    }
    for i in (0..layers).rev() {
        g.cost.push(2.0);
        g.bytes.push(100);
        let before = g.inputs.len() - 1;
        let mut inputs = if i == 0 { vec![i, before] } else { vec![i - 1, i, before] };
        inputs.sort_unstable();
        inputs.dedup();
        g.inputs.push(inputs);
    }
    g
}

/// The least cost over every schedule of the form, by following all states: what is held before each stage.
fn exhaustive(g: &Graph, budget: u64) -> Option<f64> {
    use std::collections::BTreeMap;
    let n = g.len();
    let mut states: BTreeMap<u32, f64> = BTreeMap::from([(0, 0.0)]);
    for t in 0..n {
        let mut next: BTreeMap<u32, f64> = BTreeMap::new();
        for (&held, &cost) in &states {
            for again in 0u32..1 << t {
                let stage: Vec<usize> = (0..t).filter(|i| again >> i & 1 == 1).chain([t]).collect();
                let there = held | again | 1 << t;
                let mut seen = held;
                let runs = stage.iter().all(|&k| {
                    let ok = g.inputs[k].iter().all(|i| seen >> i & 1 == 1);
                    seen |= 1 << k;
                    ok
                });
                if again & held != 0 || !runs {
                    continue;
                }
                let sum = cost + stage.iter().map(|&k| g.cost[k]).sum::<f64>();
                // Every part of what is there may be held.
                let mut kept = there;
                loop {
                    let live = |at: usize| {
                        let later = |i: usize| stage[at..].iter().any(|k| g.inputs[*k].contains(&i)) || kept >> i & 1 == 1;
                        let present = |i: usize| held >> i & 1 == 1 || stage[..at].contains(&i);
                        g.bytes[stage[at]] + (0..n).filter(|&i| i != stage[at] && present(i) && later(i)).map(|i| g.bytes[i]).sum::<u64>()
                    };
                    if (0..stage.len()).all(|at| live(at) <= budget) {
                        let best = next.entry(kept).or_insert(f64::INFINITY);
                        *best = best.min(sum);
                    }
                    if kept == 0 {
                        break;
                    }
                    kept = (kept - 1) & there;
                }
            }
        }
        states = next;
    }
    states.into_values().min_by(f64::total_cmp)
}

#[test]
fn with_room_nothing_is_computed_again() {
    let g = mirrored(10);
    let s = solve(&g, g.plain_peak(), Limits::default()).unwrap();
    assert_eq!(s.order, (0..20).collect::<Vec<_>>());
    assert_eq!((s.cost, s.bound), (g.once(), g.once()));
    assert_eq!(solve(&Graph::default(), 0, Limits::default()).unwrap().order, []);
}

#[test]
fn a_node_that_nothing_reads_fits_or_does_not() {
    let g = Graph { cost: vec![1.0], bytes: vec![8], inputs: vec![vec![]] };
    assert_eq!(solve(&g, 8, Limits::default()).unwrap().order, [0]);
    assert_eq!(solve(&g, 7, Limits::default()), Err(Failure::Infeasible));
}

#[test]
fn the_cheapest_schedule_is_the_one_that_following_every_state_finds() {
    let g = mirrored(4);
    let mut refused = 0;
    for budget in (200..=g.plain_peak()).step_by(100) {
        match (solve(&g, budget, Limits::default()), exhaustive(&g, budget)) {
            (Ok(s), Some(cost)) => {
                let live = g.replay(&s.order).unwrap();
                assert!(live.iter().all(|&bytes| bytes <= budget), "{budget}");
                assert!((s.cost - cost).abs() < 1e-9 && s.bound <= cost + 1e-9, "{budget}: {} and {cost}", s.cost);
            }
            (Err(Failure::Infeasible), None) => refused += 1,
            (found, known) => panic!("{budget}: {found:?}, {known:?}"),
        }
    }
    assert!(refused > 0, "the least budget is among those tried");
}

#[test]
fn less_memory_never_costs_less_and_the_replay_stays_within_it() {
    let g = mirrored(12);
    let mut before = g.once();
    for percent in [90, 70, 50, 40] {
        let budget = g.plain_peak() * percent / 100;
        let s = solve(&g, budget, Limits::default()).unwrap();
        assert!(s.peak <= budget && s.cost >= before && s.bound <= s.cost);
        assert!(s.cost - s.bound <= 1e-4 * s.cost, "{percent}: {} over {}", s.cost, s.bound);
        before = s.cost;
    }
}

#[test]
fn what_costs_nothing_is_computed_again_only_where_that_saves_memory() {
    let mut g = mirrored(12);
    g.cost.fill(0.0);
    let roomy = solve(&g, g.plain_peak(), Limits::default()).unwrap();
    assert_eq!(roomy.order.len(), g.len());
    let tight = solve(&g, g.plain_peak() * 6 / 10, Limits::default()).unwrap();
    for at in 0..tight.order.len() {
        let mut without = tight.order.clone();
        let node = without.remove(at);
        let is_first = !without[..at].contains(&node);
        let fits = g.replay(&without).is_some_and(|live| live.iter().all(|&bytes| bytes <= g.plain_peak() * 6 / 10));
        assert!(is_first || !fits, "step {at} is for nothing");
    }
}

#[test]
fn an_order_that_reads_what_is_not_there_has_no_replay() {
    assert_eq!(mirrored(3).replay(&[1, 0, 2]), None);
    assert_eq!(mirrored(1).replay(&[0, 1, 0]), Some(vec![100, 200, 100]));
}
