//! Brings a model into the form that the rest of import relies on: names unique and defined, nodes in topological order.

use super::model::{Attribute, Elem, Initializer, Model, ModelNode};
use super::onnx::constant;
use crate::graph::Init;
use petgraph::graph::DiGraph;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Most elements, and axes, of one initializer.
pub const MAX_ELEMENTS: u64 = 1 << 48;
pub const MAX_RANK: usize = 64;

/// Names anonymous nodes, turns `Constant` nodes into initializers, checks that every value is defined once and before use, and
/// sorts the nodes if they are not in order.
///
/// # Errors
/// A sentence without a subject: a value without a definition or with two, or a cycle.
pub fn normalise(model: &mut Model) -> Result<(), String> {
    for (i, n) in model.nodes.iter_mut().enumerate() {
        if n.name.is_empty() {
            n.name = format!("{}_{i}", n.op);
        }
        while n.outputs.last().is_some_and(String::is_empty) {
            n.outputs.pop();
        }
        while n.inputs.last().is_some_and(String::is_empty) {
            n.inputs.pop();
        }
    }
    lift_constants(model)?;
    if let Some(absurd) = model.initializers.iter().find(|i| i.elements() > MAX_ELEMENTS || i.shape.len() > MAX_RANK) {
        return Err(format!("has the initializer {:?} of the absurd shape {:?}", absurd.name, absurd.shape));
    }
    let defined = definitions(model)?;
    for o in &model.outputs {
        if !defined.contains_key(o.name.as_str()) {
            return Err(format!("has the output {:?}, which nothing computes", o.name));
        }
    }
    if let Some(order) = order(&model.nodes, &defined)? {
        let mut nodes: Vec<Option<ModelNode>> = std::mem::take(&mut model.nodes).into_iter().map(Some).collect();
        model.nodes = order.into_iter().filter_map(|i| nodes[i].take()).collect();
    }
    Ok(())
}

/// Drops the nodes that no output needs and the initializers that nothing reads. The nodes may be in any order.
pub fn prune(model: &mut Model) {
    let by: HashMap<&str, usize> =
        model.nodes.iter().enumerate().flat_map(|(i, n)| n.outputs.iter().map(move |o| (o.as_str(), i))).collect();
    let mut needed = vec![false; model.nodes.len()];
    let mut open: Vec<usize> = model.outputs.iter().filter_map(|o| by.get(o.name.as_str()).copied()).collect();
    while let Some(n) = open.pop() {
        if !std::mem::replace(&mut needed[n], true) {
            open.extend(model.nodes[n].inputs.iter().filter_map(|v| by.get(v.as_str()).copied()));
        }
    }
    let mut keep = needed.into_iter();
    model.nodes.retain(|_| keep.next().unwrap_or(false));
    let read: HashSet<&str> =
        model.nodes.iter().flat_map(|n| &n.inputs).chain(model.outputs.iter().map(|o| &o.name)).map(String::as_str).collect();
    model.initializers.retain(|i| read.contains(i.name.as_str()));
}

/// Where a value comes from: a source (`None`) or a node.
fn definitions(model: &Model) -> Result<HashMap<&str, Option<usize>>, String> {
    let mut defined = HashMap::new();
    let sources = model.inputs.iter().map(|i| i.name.as_str()).chain(model.initializers.iter().map(|i| i.name.as_str()));
    let results = model.nodes.iter().enumerate().flat_map(|(i, n)| n.outputs.iter().map(move |o| (o.as_str(), Some(i))));
    for (name, by) in sources.map(|s| (s, None)).chain(results) {
        if by.is_none() && name.is_empty() {
            return Err("has an input or initializer without a name".into());
        }
        if !name.is_empty() && defined.insert(name, by).is_some() {
            return Err(format!("defines the value {name:?} twice"));
        }
    }
    Ok(defined)
}

/// A topological order, or none if the nodes are in one.
fn order(nodes: &[ModelNode], defined: &HashMap<&str, Option<usize>>) -> Result<Option<Vec<usize>>, String> {
    let mut sorted = true;
    let mut edges = vec![];
    for (i, n) in nodes.iter().enumerate() {
        for input in n.inputs.iter().filter(|v| !v.is_empty()) {
            match defined.get(input.as_str()) {
                None => return Err(format!("has the node {:?} ({}) whose input {input:?} nothing defines", n.name, n.op)),
                Some(None) => {}
                Some(Some(by)) => {
                    sorted &= *by < i;
                    edges.push((*by as u32, i as u32));
                }
            }
        }
    }
    if sorted {
        return Ok(None);
    }
    let mut graph = DiGraph::<(), ()>::with_capacity(nodes.len(), edges.len());
    for _ in nodes {
        graph.add_node(());
    }
    graph.extend_with_edges(edges);
    match petgraph::algo::toposort(&graph, None) {
        Ok(order) => Ok(Some(order.into_iter().map(|n| n.index()).collect())),
        Err(cycle) => Err(format!("is cyclic: the node {:?} needs its own result", nodes[cycle.node_id().index()].name)),
    }
}

/// `Constant` nodes as initializers; those with values of other kinds stay and become a gap where they are lowered.
fn lift_constants(model: &mut Model) -> Result<(), String> {
    let taken: HashSet<String> = model.initializers.iter().map(|i| i.name.clone()).collect();
    let mut kept = Vec::with_capacity(model.nodes.len());
    for n in std::mem::take(&mut model.nodes) {
        match literal(&n)? {
            Some((elem, shape, bytes)) if n.outputs.len() == 1 && !taken.contains(&n.outputs[0]) => {
                let data = constant(elem, &shape, bytes).map_err(|e| format!("has the constant {:?} that {e}", n.name))?;
                let name = n.outputs.into_iter().next().unwrap_or_default();
                let init = Init::Data(Arc::new(data));
                model.initializers.push(Initializer { name, elem, shape, init, declared_parameter: false });
            }
            _ => kept.push(n),
        }
    }
    model.nodes = kept;
    Ok(())
}

type Literal = (Elem, Vec<u64>, Vec<u8>);

fn literal(n: &ModelNode) -> Result<Option<Literal>, String> {
    if n.op != "Constant" || !n.domain.is_empty() {
        return Ok(None);
    }
    Ok(n.attributes.iter().find_map(|(key, value)| {
        Some(match (key.as_str(), value) {
            ("value", Attribute::Tensor { elem, shape, bytes }) => (*elem, shape.clone(), bytes.clone()),
            ("value_float", Attribute::Float(x)) => (Elem::F32, vec![], x.to_le_bytes().to_vec()),
            ("value_int", Attribute::Int(x)) => (Elem::I64, vec![], x.to_le_bytes().to_vec()),
            ("value_floats", Attribute::Floats(x)) => (Elem::F32, vec![x.len() as u64], x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            ("value_ints", Attribute::Ints(x)) => (Elem::I64, vec![x.len() as u64], x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            _ => return None,
        })
    }))
}
