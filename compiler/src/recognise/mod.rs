//! Recovers composites from what exporters take apart.
//!
//! The forward graph goes into an e-graph ([`encode`]), named families of directional rules add equal forms ([`rules`]), and the
//! cheapest form comes out ([`decode`]). Rules state equalities of real arithmetic; where one holds only under a condition (a mask
//! that is causal, an epsilon that is constant), the condition is a fact of the e-class ([`term::Fact`]), never an assumption.

mod decode;
mod encode;
mod rules;
mod term;

use crate::Error;
use crate::graph::Graph;
use egg::{Extractor, Runner};
use term::{Cost, TermAnalysis};

/// How far saturation may go; both bounds are far above what models with repeated layers need.
const ITERATIONS: usize = 24;
const NODES: usize = 400_000;

/// Rewrites a forward graph into its cheapest equal form.
///
/// # Errors
/// [`Error::Graph`] when the extracted form does not type, which is a fault of a rule.
pub fn recognise(graph: Graph) -> Result<Graph, Error> {
    let encoded = encode::encode(&graph)?;
    let rules = rules::all();
    let runner: Runner<_, TermAnalysis> = Runner::default()
        .with_egraph(encoded.egraph)
        .with_iter_limit(ITERATIONS)
        .with_node_limit(NODES)
        .with_time_limit(std::time::Duration::from_secs(60))
        .run(&rules);
    let extractor = Extractor::new(&runner.egraph, Cost { egraph: &runner.egraph });
    decode::decode(&graph, &runner.egraph, &extractor, &encoded.roots, &encoded.sites)
}
