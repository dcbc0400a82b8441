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
use egg::{EGraph, Extractor, Rewrite, Runner};
use join::Joiner;
use std::collections::HashMap;
use std::time::Duration;
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
    let runner = saturate(encoded.egraph, rules);
    let extractor = Extractor::new(&runner.egraph, Cost { egraph: &runner.egraph });
    decode::decode(section, &runner.egraph, &extractor, &encoded.roots, &encoded.sites)
}

/// Applies the rules until they add nothing, or a count is reached; never by the clock, so that every machine finds the same.
fn saturate(egraph: EGraph<Term, TermAnalysis>, rules: &[Rewrite<Term, TermAnalysis>]) -> Runner<Term, TermAnalysis> {
    let runner = Runner::default().with_egraph(egraph).with_iter_limit(ITERATIONS).with_node_limit(NODES);
    runner.with_time_limit(Duration::MAX).run(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::{ImportOptions, import};
    use egg::StopReason;
    use std::collections::HashSet;
    use std::path::Path;

    #[test]
    fn every_layer_of_the_test_models_saturates() {
        let rules = rules::all();
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        for case in ["bert", "cnn", "gpt2", "llama18", "llama23", "vit"] {
            let graph = import(&models.join(case).join("model.onnx"), &ImportOptions::default()).expect("the model imports").graph;
            let sections = parts(&graph).expect("the graph has sections");
            let mut kinds = HashSet::new();
            for section in &sections {
                if kinds.insert(&section.shape) {
                    let runner = saturate(encode::encode(&section.graph).expect("the section encodes").egraph, &rules);
                    assert!(matches!(runner.stop_reason, Some(StopReason::Saturated)), "{case}: {:?}", runner.stop_reason);
                }
            }
        }
    }
}
