//! Rewritten sections put together again.

use crate::Error;
use crate::graph::edit::Rewrite;
use crate::graph::{Graph, NodeId, Op, ValueId};
use crate::sections::Part;
use std::collections::HashMap;
use std::sync::Arc;

/// Puts rewritten sections together to a graph that computes what the old one did.
pub struct Joiner<'a> {
    rewrite: Rewrite<'a>,
    /// Equal nodes are one: each section has its own copy of what is not carried.
    seen: HashMap<(Op, Vec<ValueId>), Vec<ValueId>>,
}

impl<'a> Joiner<'a> {
    /// # Errors
    /// As [`Rewrite::copy`].
    pub fn new(old: &'a Graph) -> Result<Self, Error> {
        let (mut rewrite, mut seen) = (Rewrite::new(old), HashMap::new());
        for (n, node) in (0..).map(NodeId).zip(&old.nodes).filter(|(_, n)| n.op.is_source()) {
            rewrite.copy(n)?;
            let new = rewrite.get(node.results[0])?;
            seen.entry((node.op.clone(), vec![])).or_insert(vec![new]);
        }
        Ok(Joiner { rewrite, seen })
    }

    /// Appends the rewriting of a section. It may be that of an equal section, `kind`, whose names are replaced.
    ///
    /// # Errors
    /// [`Error::Graph`] when a node does not type.
    pub fn append(&mut self, section: &Part, kind: &Part, rewritten: &Graph) -> Result<(), Error> {
        let sites = kind.graph.nodes.iter().zip(&section.graph.nodes).map(|(k, s)| (&k.site, &s.site));
        let mut site_of: HashMap<&Arc<str>, &Arc<str>> = HashMap::new();
        sites.for_each(|(k, s)| {
            site_of.entry(k).or_insert(s);
        });
        let mut new: HashMap<ValueId, ValueId> = HashMap::new();
        let mut inputs = section.inputs.iter();
        for node in &rewritten.nodes {
            // Inputs and parameters keep their order and are all there.
            let outside = match &node.op {
                Op::Input { .. } => inputs.next(),
                Op::Parameter(p) => section.parameters.get(*p),
                _ => None,
            };
            if let Some(v) = outside {
                new.insert(node.results[0], self.rewrite.get(*v)?);
                continue;
            }
            let operands: Vec<ValueId> = node.inputs.iter().map(|v| new[v]).collect();
            let key = (node.op.clone(), operands);
            let results = match self.seen.get(&key) {
                Some(results) => results.clone(),
                None => {
                    let site = site_of.get(&node.site).copied().unwrap_or(&node.site);
                    let results = self.rewrite.add_forward(key.0.clone(), &key.1, site)?;
                    self.seen.insert(key, results.clone());
                    results
                }
            };
            new.extend(node.results.iter().copied().zip(results));
        }
        section.gives.iter().zip(&rewritten.outputs).for_each(|(v, o)| self.rewrite.set(*v, new[&o.value]));
        Ok(())
    }

    /// The whole graph.
    ///
    /// # Errors
    /// As [`Graph::without_dead_code`].
    pub fn finish(self) -> Result<Graph, Error> {
        self.rewrite.finish()?.0.without_dead_code().map(|(graph, _)| graph)
    }
}
