use super::*;
use std::sync::Arc;

/// Numbers that look random and are the same each time.
struct Noise(u64);

impl Noise {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn random(noise: &mut Noise, sections: usize) -> Master {
    let mut steps = vec![];
    for len in 1..=2 {
        for start in 0..=sections - len {
            let form = |noise: &mut Noise| Form {
                keep: vec![],
                kept: Bytes(noise.below(40)),
                forward: Bytes(noise.below(20)),
                backward: Bytes(40 + noise.below(40)),
                // Sections that run as one compute something again.
                seconds: Seconds((noise.below(1000) + 2000 * (len as u64 - 1)) as f64 * 1e-6),
            };
            let forms = (0..1 + noise.below(4)).map(|_| form(noise)).collect();
            let around = (Bytes(noise.below(5)), Bytes(noise.below(5)));
            steps.push(Steps { start, sections: len, forms: Arc::new(forms), around });
        }
    }
    Master::new(steps, sections, Bytes(30), Seconds(1e-3))
}

/// Every path, by trying all.
fn all(m: &Master, from: usize, path: &mut Vec<Choice>, found: &mut Vec<(Bytes, f64)>) {
    if from == m.sections {
        found.push((m.peak(path), path.iter().map(|&c| m.form(c).seconds.0).sum()));
        return;
    }
    for c in m.choices_from(from).collect::<Vec<_>>() {
        path.push(c);
        all(m, m.steps[c.steps as usize].end(), path, found);
        path.pop();
    }
}

#[test]
fn the_best_path_is_found_at_every_budget_and_refused_only_where_none_fits() {
    let mut noise = Noise(7);
    for _ in 0..60 {
        let m = random(&mut noise, 5);
        let mut paths = vec![];
        all(&m, 0, &mut vec![], &mut paths);
        assert_eq!(m.least(), paths.iter().map(|p| p.0).min().unwrap());
        for budget in (30..260).step_by(5).map(Bytes) {
            let best = paths.iter().filter(|p| p.0 <= budget).map(|p| p.1).fold(f64::INFINITY, f64::min);
            match m.solve(budget).unwrap() {
                None => assert_eq!(best, f64::INFINITY),
                Some(path) => {
                    assert!((path.again.0 - best).abs() < 1e-12, "{path:?}, but {best} is possible");
                    assert!(path.peak <= budget && path.bound.0 <= path.again.0 + 1e-12);
                }
            }
        }
    }
}

#[test]
fn the_relaxation_bounds_every_path() {
    let mut noise = Noise(11);
    for _ in 0..40 {
        let m = random(&mut noise, 4);
        let mut paths = vec![];
        all(&m, 0, &mut vec![], &mut paths);
        for budget in (60..200).step_by(10).map(Bytes) {
            let Some(lean) = m.leanest(budget) else { continue };
            let (_, bound) = m.relaxed(budget, &lean).unwrap();
            let best = paths.iter().filter(|p| p.0 <= budget).map(|p| p.1).fold(f64::INFINITY, f64::min);
            assert!(bound <= best + 1e-9, "{bound} over {best}");
        }
    }
}
