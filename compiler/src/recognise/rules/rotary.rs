//! Rotary embedding from its halves: `x cos + concat(-x[half..], x[..half]) sin`.

use super::{Match, Rule, family};
use crate::graph::Op;
use egg::Id;

pub fn rules() -> Vec<Rule> {
    let from = ["(add (mul ?x ?cos) (mul (concat (neg (slice ?x ?high)) (slice ?x ?low) ?axis) ?sin))"];
    family("rotary", &from, rotary)
}

fn rotary(m: &mut Match) -> Option<Id> {
    let shape = m.shape("?x")?;
    let last = shape.len().checked_sub(1)?;
    let half = shape[last] / 2;
    let takes = |op: &Op, from: u64| match op {
        Op::Slice { starts, steps, sizes } => {
            let along = starts[last] == from as i64 && sizes[last] == half;
            let rest = (0..last).all(|d| starts[d] == 0 && sizes[d] == shape[d]);
            along && rest && steps.iter().all(|&s| s == 1)
        }
        _ => false,
    };
    let halves = takes(&m.op("?high")?, half) && takes(&m.op("?low")?, 0) && shape[last].is_multiple_of(2);
    let table = |var: &str, m: &Match| {
        m.shape(var).filter(|t| t.len() == shape.len() && t[last] == shape[last] && t.iter().zip(&shape).all(|(a, b)| *a == 1 || a == b))
    };
    if shape.len() != 4 || !halves || m.op("?axis")? != (Op::Concat { axis: last }) {
        return None;
    }
    table("?cos", m)?;
    table("?sin", m)?;
    let (x, cos, sin) = (m.id("?x")?, m.id("?cos")?, m.id("?sin")?);
    Some(m.add("rotary", &[x, cos, sin], Op::Rotary { rotated: shape[last], interleaved: false, inverse: false }))
}
