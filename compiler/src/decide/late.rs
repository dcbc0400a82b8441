//! The ways to obtain forward values in the backward pass, as an e-graph with epochs.
//!
//! Terms: `(buffer b units..)` is a forward value with the units that make it, `(unit u inputs..)` a launch in the forward epoch,
//! `(again u inputs..)` the same launch in the backward epoch (a name of its own, so that it is not hash-consed with the original),
//! `(persistent b)` what is always there. `(late x)` reads *x, available in the backward pass*. All rules are equalities:
//!
//! ```text
//! late(persistent b)          = persistent b
//! late(x)                     = keep(x)
//! late(buffer b (unit u x..)) = buffer b (again u late(x)..)
//! ```

use crate::Error;
use crate::graph::Epoch;
use crate::plan::schedule::{Decisions, Facts};
use crate::units::{BufferId, Program};
use egg::{
    Applier, EGraph, FromOp, FromOpError, Id, Language, Pattern, PatternAst, Rewrite, Runner, SimpleScheduler, StopReason, Subst, Symbol,
    Var,
};
use std::time::Duration;

/// A term of the epochs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Late {
    Persistent(BufferId),
    /// A value and the launches that write it.
    Buffer(BufferId, Vec<Id>),
    Unit(u32, Vec<Id>),
    Again(u32, Vec<Id>),
    Late([Id; 1]),
    Keep([Id; 1]),
}

impl Language for Late {
    type Discriminant = (u8, u32);

    fn discriminant(&self) -> (u8, u32) {
        match self {
            Late::Persistent(b) => (0, b.0),
            Late::Buffer(b, _) => (1, b.0),
            Late::Unit(u, _) => (2, *u),
            Late::Again(u, _) => (3, *u),
            Late::Late(_) => (4, 0),
            Late::Keep(_) => (5, 0),
        }
    }

    fn matches(&self, other: &Self) -> bool {
        self.discriminant() == other.discriminant() && self.children().len() == other.children().len()
    }

    fn children(&self) -> &[Id] {
        match self {
            Late::Persistent(_) => &[],
            Late::Buffer(_, c) | Late::Unit(_, c) | Late::Again(_, c) => c,
            Late::Late(c) | Late::Keep(c) => c,
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Late::Persistent(_) => &mut [],
            Late::Buffer(_, c) | Late::Unit(_, c) | Late::Again(_, c) => c,
            Late::Late(c) | Late::Keep(c) => c,
        }
    }
}

impl FromOp for Late {
    type Error = FromOpError;

    fn from_op(op: &str, children: Vec<Id>) -> Result<Self, FromOpError> {
        match (op, children.as_slice()) {
            ("late", [x]) => Ok(Late::Late([*x])),
            ("keep", [x]) => Ok(Late::Keep([*x])),
            _ => Err(FromOpError::new(op, children)),
        }
    }
}

type Terms = EGraph<Late, ()>;

/// A way to have a value late, beside keeping it: launches to run again, and the values they need late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recompute {
    pub units: Vec<u32>,
    /// Transient forward buffers that must be late too.
    pub needs: Vec<BufferId>,
}

/// Everything that may have to be late, with its ways.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// Values that a backward or update unit reads directly.
    pub roots: Vec<BufferId>,
    /// For each buffer that a root can depend on: how to compute it again. Every one of them can also be kept.
    pub recompute: Vec<(BufferId, Recompute)>,
    /// Size of the saturated e-graph, for reports: classes and nodes.
    pub size: (usize, usize),
}

impl Ways {
    /// Nothing kept, or everything that can be.
    pub fn uniform(&self, program: &Program, keep: bool) -> Decisions {
        let mut decisions = Decisions { keep: vec![false; program.buffers.len()] };
        self.recompute.iter().for_each(|(b, _)| decisions.keep[b.0 as usize] = keep);
        decisions
    }
}

/// Saturates the e-graph of a program and reads off the ways. The rules reach every class once, so that saturation ends by itself.
///
/// # Errors
/// [`Error::Verify`] when it did not: some ways would be missing.
pub fn ways(program: &Program, facts: &Facts) -> Result<Ways, Error> {
    let (egraph, class) = forward_terms(program, facts);
    let mut egraph = egraph;
    let roots = facts.late_reads(program);
    let late_roots: Vec<Id> = roots.iter().filter_map(|b| class[b.0 as usize]).map(|x| egraph.add(Late::Late([x]))).collect();
    let runner = Runner::default()
        .with_egraph(egraph)
        .with_iter_limit(program.units.len() + 4)
        .with_node_limit(usize::MAX)
        .with_time_limit(Duration::MAX)
        .with_scheduler(SimpleScheduler)
        .run(&rules());
    match &runner.stop_reason {
        Some(StopReason::Saturated) => {}
        other => return Err(Error::Verify { pass: "late", reason: format!("the ways were not all found ({other:?})") }),
    }
    let recompute = read_off(&runner.egraph, &late_roots);
    Ok(Ways { roots, recompute, size: (runner.egraph.number_of_classes(), runner.egraph.total_number_of_nodes()) })
}

/// The forward epoch as terms, and the class of each of its values.
fn forward_terms(program: &Program, facts: &Facts) -> (Terms, Vec<Option<Id>>) {
    let mut egraph = Terms::default();
    let mut class: Vec<Option<Id>> = vec![None; program.buffers.len()];
    let mut unit_class: Vec<Option<Id>> = vec![None; program.units.len()];
    for (u, _) in program.units.iter().enumerate().filter(|(_, unit)| unit.epoch == Epoch::Forward) {
        let mut inputs = vec![];
        for t in facts.touches(u as u32).iter().filter(|t| t.reads) {
            let b = t.buffer.0 as usize;
            // What a unit updates in place is an input only through the units that wrote it before.
            let id = match class[b] {
                _ if program.buffers[b].persistent => egraph.add(Late::Persistent(t.buffer)),
                Some(id) => id,
                None => continue,
            };
            inputs.push(id);
        }
        unit_class[u] = Some(egraph.add(Late::Unit(u as u32, inputs)));
        for t in facts.touches(u as u32).iter().filter(|t| t.writes) {
            let b = t.buffer.0 as usize;
            let writers = &facts.forward_writers[b];
            let done: Vec<Id> = writers.iter().filter_map(|&w| unit_class[w as usize]).collect();
            if !program.buffers[b].persistent && done.len() == writers.len() {
                class[b] = Some(egraph.add(Late::Buffer(t.buffer, done)));
            }
        }
    }
    egraph.rebuild();
    (egraph, class)
}

fn rules() -> Vec<Rewrite<Late, ()>> {
    let late = || "(late ?x)".parse::<Pattern<Late>>();
    let keep = "(keep ?x)".parse::<Pattern<Late>>();
    let kept = late().ok().zip(keep.ok()).and_then(|(l, k)| Rewrite::new("late-keep", l, k).ok());
    let again = late().ok().and_then(|l| Rewrite::new("late-again", l, Again).ok());
    let there = late().ok().and_then(|l| Rewrite::new("late-persistent", l, Persistent).ok());
    [there, kept, again].into_iter().flatten().collect()
}

fn bound(subst: &Subst) -> Option<Id> {
    let x: Var = "?x".parse().ok()?;
    subst.get(x).copied()
}

/// `late` distributes over every operator.
struct Again;

impl Applier<Late, ()> for Again {
    fn apply_one(&self, egraph: &mut Terms, class: Id, subst: &Subst, _: Option<&PatternAst<Late>>, _: Symbol) -> Vec<Id> {
        let Some(x) = bound(subst) else { return vec![] };
        let made: Vec<(BufferId, Vec<Id>)> =
            egraph[x].nodes.iter().filter_map(|n| if let Late::Buffer(b, units) = n { Some((*b, units.clone())) } else { None }).collect();
        let mut changed = vec![];
        for (b, units) in made {
            let again: Vec<Id> = units.iter().filter_map(|&u| run_again(egraph, u)).collect();
            // A value that a launch of the backward epoch makes is of that epoch already.
            if again.len() == units.len() {
                let late = egraph.add(Late::Buffer(b, again));
                changed.extend(egraph.union(class, late).then_some(late));
            }
        }
        changed
    }
}

fn run_again(egraph: &mut Terms, unit: Id) -> Option<Id> {
    let found = egraph[unit].nodes.iter().find_map(|n| if let Late::Unit(u, inputs) = n { Some((*u, inputs.clone())) } else { None });
    let (u, inputs) = found?;
    let late: Vec<Id> = inputs.into_iter().map(|i| egraph.add(Late::Late([i]))).collect();
    Some(egraph.add(Late::Again(u, late)))
}

struct Persistent;

impl Applier<Late, ()> for Persistent {
    fn apply_one(&self, egraph: &mut Terms, class: Id, subst: &Subst, _: Option<&PatternAst<Late>>, _: Symbol) -> Vec<Id> {
        let there = bound(subst).filter(|&x| egraph[x].nodes.iter().any(|n| matches!(n, Late::Persistent(_))));
        match there {
            Some(x) if egraph.union(class, x) => vec![x],
            _ => vec![],
        }
    }
}

/// Walks the classes that the roots reach and lists, for each, the launches that make it late.
fn read_off(egraph: &Terms, roots: &[Id]) -> Vec<(BufferId, Recompute)> {
    let mut out = std::collections::BTreeMap::new();
    let mut open: Vec<Id> = roots.to_vec();
    while let Some(class) = open.pop() {
        let node = egraph[class].nodes.iter().find_map(|n| if let Late::Buffer(b, again) = n { Some((*b, again.clone())) } else { None });
        let Some((buffer, again)) = node else { continue };
        if out.contains_key(&buffer) {
            continue;
        }
        let mut way = Recompute { units: vec![], needs: vec![] };
        for id in again {
            for n in &egraph[id].nodes {
                if let Late::Again(u, inputs) = n {
                    way.units.push(*u);
                    open.extend(inputs);
                    way.needs.extend(inputs.iter().filter_map(|&i| buffer_of(egraph, i)));
                }
            }
        }
        way.needs.retain(|b| *b != buffer);
        way.needs.sort();
        way.needs.dedup();
        out.insert(buffer, way);
    }
    out.into_iter().collect()
}

fn buffer_of(egraph: &Terms, class: Id) -> Option<BufferId> {
    let nodes = &egraph[class].nodes;
    if nodes.iter().any(|n| matches!(n, Late::Persistent(_))) {
        return None;
    }
    nodes.iter().find_map(|n| if let Late::Buffer(b, _) = n { Some(*b) } else { None })
}
