//! The best path, found by following every beginning that is not too far from the bound.

use super::relaxation::Prices;
use super::{Choice, Master};
use crate::quantity::Bytes;

/// Beginnings of paths that are followed at one section.
const BEAM: usize = 20_000;

/// A beginning of a path.
#[derive(Clone, Copy)]
struct Beginning {
    kept: Bytes,
    seconds: f64,
    /// The section it comes from, the beginning there, and the choice that was made.
    from: (u32, u32, Choice),
}

impl Master {
    /// The fastest path within a budget whose distance from the bound is at most `near`, its time, and whether none was passed over.
    pub(super) fn follow(&self, budget: Bytes, prices: &Prices, bound: f64, near: f64) -> Option<(Vec<Choice>, f64, bool)> {
        if self.floor > budget {
            return None;
        }
        let limit = bound + near;
        let start = Beginning { kept: Bytes(0), seconds: 0.0, from: (0, 0, Choice { steps: 0, form: 0 }) };
        let mut reached: Vec<Vec<Beginning>> = vec![vec![]; self.sections + 1];
        reached[0].push(start);
        let mut exact = true;
        for s in 0..self.sections {
            let all = std::mem::take(&mut reached[s]);
            let (all, whole) = undominated(all, |b| b.seconds + prices.tail[s] * b.kept.0 as f64);
            exact &= whole;
            let near_enough = |c: &Choice| {
                let end = self.steps[c.steps as usize].end();
                self.length(*c, &prices.price, &prices.tail) + prices.rest[end] - prices.rest[s] <= near
            };
            for c in self.choices_from(s).filter(near_enough) {
                let (steps, form) = (&self.steps[c.steps as usize], self.form(c));
                let (end, worst) = (steps.end(), steps.worst(form));
                for (i, b) in all.iter().enumerate().take_while(|(_, b)| b.kept + worst <= budget) {
                    let (kept, seconds) = (b.kept + form.kept, b.seconds + form.seconds.0);
                    let at_best = seconds + prices.tail[end] * (kept.0 as f64 - budget.0 as f64) + prices.rest[end];
                    if at_best <= limit {
                        reached[end].push(Beginning { kept, seconds, from: (s as u32, i as u32, c) });
                    }
                }
            }
            reached[s] = all;
        }
        let ends = std::mem::take(&mut reached[self.sections]);
        let best = ends.into_iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.kept.cmp(&b.kept)))?;
        let (mut at, mut choices) = (best, vec![]);
        loop {
            let (section, beginning, c) = at.from;
            choices.push(c);
            if section == 0 {
                break;
            }
            at = reached[section as usize][beginning as usize];
        }
        choices.reverse();
        Some((choices, best.seconds, exact))
    }
}

/// Beginnings that no other beats in both bytes and seconds, fewest bytes first; where they are too many, the most promising.
fn undominated(mut all: Vec<Beginning>, promise: impl Fn(&Beginning) -> f64) -> (Vec<Beginning>, bool) {
    all.sort_by(|a, b| a.kept.cmp(&b.kept).then(a.seconds.total_cmp(&b.seconds)).then(a.from.cmp(&b.from)));
    let mut least = f64::INFINITY;
    all.retain(|b| {
        let better = b.seconds < least;
        least = least.min(b.seconds);
        better
    });
    let whole = all.len() <= BEAM;
    if !whole {
        all.sort_by(|a, b| promise(a).total_cmp(&promise(b)).then(a.kept.cmp(&b.kept)));
        all.truncate(BEAM);
        all.sort_by_key(|b| b.kept);
    }
    (all, whole)
}
