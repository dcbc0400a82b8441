//! No two tensors that live at the same time share a byte.

use crate::plan::Plan;
use std::collections::BTreeMap;

/// Sweeps over the schedule with the live tensors ordered by offset; each newcomer is compared with its two neighbours.
pub(super) fn check(plan: &Plan) -> Result<(), String> {
    let sized = || plan.tensors.iter().enumerate().filter(|(_, t)| t.bytes > 0);
    // At one position, what dies after the position before it leaves first.
    let mut events: Vec<(u64, bool, usize)> =
        sized().flat_map(|(i, t)| [(u64::from(t.first), true, i), (u64::from(t.last) + 1, false, i)]).collect();
    events.sort_unstable();
    let mut live: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    for (_, begins, i) in events {
        let t = &plan.tensors[i];
        if !begins {
            live.remove(&t.offset);
            continue;
        }
        let end = t.offset + t.bytes;
        let below = live.range(..=t.offset).next_back().filter(|(_, (e, _))| *e > t.offset);
        let above = live.range(t.offset..end).next();
        if let Some((_, (_, other))) = below.or(above) {
            return Err(format!("tensors {} and {} share memory while both are alive", plan.tensors[*other].name, t.name));
        }
        live.insert(t.offset, (end, i));
    }
    Ok(())
}
