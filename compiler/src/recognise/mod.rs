//! Recovers composites from what exporters take apart.
//!
//! The forward graph is cut into sections, of which equal ones are rewritten once ([`crate::sections`]): saturation grows faster than its
//! e-graph, and a term's cost counts shared operands at each use, so that over a hundred residual additions it would outgrow a float's
//! digits. A section goes into an e-graph ([`encode`]), named families of directional rules add equal forms ([`rules`]), and the cheapest
//! form comes out ([`decode`]). Rules state equalities of real arithmetic; where one holds only under a condition (a mask
//! that is causal, an epsilon that is constant), the condition is a fact of the e-class ([`term::Fact`]), never an assumption.

mod decode;
mod encode;
mod join;
mod rules;
mod term;

use crate::Error;
use crate::graph::Graph;
use crate::sections::{Part, Shape, parts};
use egg::{Extractor, Rewrite, Runner};
use join::Joiner;
use std::collections::HashMap;
use term::{Cost, Term, TermAnalysis};

/// How far saturation of a layer may go; both bounds are far above what one needs.
const ITERATIONS: usize = 24;
const NODES: usize = 400_000;

/// Rewrites a forward graph into its cheapest equal form.
///
/// # Errors
/// [`Error::Graph`] when the extracted form does not type, which is a fault of a rule.
pub fn recognise(graph: Graph) -> Result<Graph, Error> {
    let sections = parts(&graph)?;
    let rules = rules::all();
    let mut kinds: HashMap<&Shape, (&Part, Graph)> = HashMap::new();
    let mut joined = Joiner::new(&graph)?;
    for section in &sections {
        if !kinds.contains_key(&section.shape) {
            kinds.insert(&section.shape, (section, saturated(&section.graph, &rules)?));
        }
        let (kind, rewritten) = &kinds[&section.shape];
        joined.append(section, kind, rewritten)?;
    }
    joined.finish()
}

/// The cheapest form of a section that the rules reach.
fn saturated(section: &Graph, rules: &[Rewrite<Term, TermAnalysis>]) -> Result<Graph, Error> {
    let encoded = encode::encode(section)?;
    let runner: Runner<_, TermAnalysis> = Runner::default()
        .with_egraph(encoded.egraph)
        .with_iter_limit(ITERATIONS)
        .with_node_limit(NODES)
        .with_time_limit(std::time::Duration::from_secs(60))
        .run(rules);
    let extractor = Extractor::new(&runner.egraph, Cost { egraph: &runner.egraph });
    decode::decode(section, &runner.egraph, &extractor, &encoded.roots, &encoded.sites)
}
