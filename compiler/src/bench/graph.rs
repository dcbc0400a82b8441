//! Graphs to compute again in, as JSON: `{"nodes": [{"id", "cost", "bytes"}], "edges": [[from, to]]}`.

use fp8c_solve::remat::{Graph, Schedule};
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;

/// A graph of a file. Its ids, ascending, are an order in which the nodes can run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    /// Of each node.
    pub ids: Vec<u64>,
    pub graph: Graph,
}

#[derive(Deserialize)]
struct File {
    nodes: Vec<Node>,
    edges: Vec<(u64, u64)>,
}

#[derive(Deserialize)]
struct Node {
    id: u64,
    cost: f64,
    bytes: u64,
}

/// Most bytes of a node: sums of as many as fit a file do not overflow.
const MAX_BYTES: u64 = 1 << 50;

/// Most a node may cost.
const MAX_COST: f64 = 1e18;

impl Instance {
    /// Reads a file's text.
    ///
    /// # Errors
    /// One sentence on the first that is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
        file.nodes.sort_by_key(|n| n.id);
        if let Some(twice) = file.nodes.windows(2).find(|w| w[0].id == w[1].id) {
            return Err(format!("two nodes have the id {}", twice[0].id));
        }
        if let Some(odd) = file.nodes.iter().find(|n| !(0.0..=MAX_COST).contains(&n.cost) || n.bytes > MAX_BYTES) {
            return Err(format!(
                "node {} costs {} and has {} bytes; at most {MAX_COST:e} and {MAX_BYTES} are possible",
                odd.id, odd.cost, odd.bytes
            ));
        }
        let place: HashMap<u64, usize> = file.nodes.iter().map(|n| n.id).zip(0..).collect();
        let at = |id: u64| place.get(&id).copied().ok_or_else(|| format!("there is an edge at node {id}, which is not there"));
        let mut inputs = vec![vec![]; file.nodes.len()];
        for &(from, to) in &file.edges {
            let (a, b) = (at(from)?, at(to)?);
            if a >= b {
                return Err(format!("the edge from {from} to {to} goes back: ids must be an order in which the nodes can run"));
            }
            inputs[b].push(a);
        }
        for i in &mut inputs {
            i.sort_unstable();
            i.dedup();
        }
        let (cost, bytes) = (file.nodes.iter().map(|n| n.cost).collect(), file.nodes.iter().map(|n| n.bytes).collect());
        Ok(Instance { ids: file.nodes.iter().map(|n| n.id).collect(), graph: Graph { cost, bytes, inputs } })
    }

    /// The text of a file of a schedule.
    pub fn schedule(&self, s: &Schedule) -> String {
        let order: Vec<u64> = s.order.iter().map(|&i| self.ids[i]).collect();
        json!({ "schedule": order, "peak_bytes": s.peak, "cost": s.cost, "lower_bound": s.bound }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_an_order_whatever_the_lines_are() {
        let text = r#"{"nodes": [{"id": 7, "cost": 2, "bytes": 8, "backward": true}, {"id": 3, "cost": 1, "bytes": 4}], "edges": [[3, 7], [3, 7]]}"#;
        let i = Instance::parse(text).unwrap();
        assert_eq!(i.ids, [3, 7]);
        assert_eq!(i.graph, Graph { cost: vec![1.0, 2.0], bytes: vec![4, 8], inputs: vec![vec![], vec![0]] });
        let s = Schedule { order: vec![0, 1], peak: 12, cost: 3.0, bound: 3.0 };
        assert_eq!(i.schedule(&s), r#"{"cost":3.0,"lower_bound":3.0,"peak_bytes":12,"schedule":[3,7]}"#);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let said = |nodes: &str, edges: &str| Instance::parse(&format!(r#"{{"nodes": [{nodes}], "edges": [{edges}]}}"#)).unwrap_err();
        let two = r#"{"id": 0, "cost": 1, "bytes": 1}, {"id": 1, "cost": 1, "bytes": 1}"#;
        assert_eq!(said(two, "[0, 2]"), "there is an edge at node 2, which is not there");
        assert_eq!(said(two, "[1, 0]"), "the edge from 1 to 0 goes back: ids must be an order in which the nodes can run");
        assert_eq!(said(&format!("{two}, {two}"), ""), "two nodes have the id 0");
        assert!(said(r#"{"id": 0, "cost": -1, "bytes": 1}"#, "").starts_with("node 0 costs -1 and has 1 bytes"));
        assert!(said(r#"{"id": 0, "cost": 1}"#, "").contains("bytes"));
    }
}
