//! Inlining of model-local functions.

use super::external::ExternalFiles;
use super::{attribute, is_default, node};
use crate::import::model::{Attribute, ModelNode};
use onnx_protobuf::{FunctionProto, NodeProto};
use std::collections::{BTreeMap, HashMap};

/// Most nodes after inlining: functions that call functions can multiply without bound.
const MAX_NODES: usize = 1_000_000;
/// Most calls of functions, and the deepest chain of them.
const MAX_CALLS: usize = 100_000;
const MAX_CALL_DEPTH: usize = 32;

/// The functions of a model by domain and name.
pub struct Functions {
    by_name: HashMap<(String, String), FunctionProto>,
}

/// An inlining under way.
struct Inliner<'a> {
    functions: &'a Functions,
    files: &'a mut ExternalFiles,
    out: Vec<ModelNode>,
    calls: usize,
}

impl Functions {
    /// # Errors
    /// When a function uses another version of the operator set than the model, or is defined twice.
    pub fn new(list: Vec<FunctionProto>, opset: i64) -> Result<Self, String> {
        let mut by_name = HashMap::new();
        for f in list {
            if let Some(other) = f.opset_import.iter().find(|o| is_default(&o.domain) && o.version != opset) {
                return Err(format!("has the function {:?} of operator set {}, while the model is of {opset}", f.name, other.version));
            }
            let key = (f.domain.clone(), f.name.clone());
            if by_name.insert(key, f).is_some() {
                return Err("defines a function twice (overloads are not supported)".into());
            }
        }
        Ok(Functions { by_name })
    }

    /// Replaces calls of functions by their bodies.
    ///
    /// # Errors
    /// Recursion, bodies that multiply beyond [`MAX_NODES`], calls that do not fit.
    pub fn inline(&self, nodes: Vec<ModelNode>, files: &mut ExternalFiles) -> Result<Vec<ModelNode>, String> {
        if self.by_name.is_empty() {
            return Ok(nodes);
        }
        let mut inliner = Inliner { functions: self, files, out: vec![], calls: 0 };
        for n in nodes {
            inliner.add(n, 0)?;
        }
        Ok(inliner.out)
    }
}

impl Inliner<'_> {
    fn add(&mut self, n: ModelNode, depth: usize) -> Result<(), String> {
        if self.out.len() >= MAX_NODES {
            return Err(format!("has functions that expand to more than {MAX_NODES} nodes"));
        }
        match self.functions.by_name.get(&(n.domain.clone(), n.op.clone())) {
            None => self.out.push(n),
            Some(_) if depth >= MAX_CALL_DEPTH => {
                return Err(format!("has functions that call {MAX_CALL_DEPTH} deep or in a circle, at {:?}", n.op));
            }
            Some(f) => self.call(f, n, depth)?,
        }
        Ok(())
    }

    fn call(&mut self, f: &FunctionProto, call: ModelNode, depth: usize) -> Result<(), String> {
        if call.inputs.len() > f.input.len() || call.outputs.len() > f.output.len() {
            return Err(format!("calls the function {:?} with more inputs or outputs than it has", f.name));
        }
        self.calls += 1;
        // Functions without nodes of their own multiply too.
        if self.calls > MAX_CALLS {
            return Err(format!("has functions that are called more than {MAX_CALLS} times"));
        }
        let prefix = format!("{}#{}/", if call.name.is_empty() { &f.name } else { &call.name }, self.calls);
        let mut names: HashMap<String, String> = HashMap::new();
        let padded = |given: &[String], i: usize| given.get(i).cloned().unwrap_or_default();
        for (i, formal) in f.input.iter().enumerate() {
            names.insert(formal.clone(), padded(&call.inputs, i));
        }
        // An output that is also an input passes through and needs a node of its own.
        let mut passed = vec![];
        for (i, formal) in f.output.iter().enumerate() {
            let actual = padded(&call.outputs, i);
            match names.get(formal) {
                Some(source) if !actual.is_empty() => passed.push((source.clone(), actual)),
                _ if !actual.is_empty() => drop(names.insert(formal.clone(), actual)),
                _ => {}
            }
        }
        let mut attributes = BTreeMap::new();
        for a in &f.attribute_proto {
            attributes.insert(a.name.clone(), attribute(a.clone(), self.files)?);
        }
        attributes.extend(call.attributes);
        for proto in &f.node {
            let mut inner = resolved(proto.clone(), &attributes, self.files)?;
            for name in inner.inputs.iter_mut().chain(&mut inner.outputs).filter(|n| !n.is_empty()) {
                *name = names.entry(name.clone()).or_insert_with(|| format!("{prefix}{name}")).clone();
            }
            inner.name = format!("{prefix}{}", inner.name);
            if inner.metadata.is_empty() {
                inner.metadata = call.metadata.clone();
            }
            self.add(inner, depth + 1)?;
        }
        for (source, actual) in passed {
            let (inputs, outputs, name) = (vec![source], vec![actual], format!("{prefix}pass"));
            self.out.push(ModelNode { op: "Identity".into(), name, inputs, outputs, ..Default::default() });
        }
        Ok(())
    }
}

/// A body's node with references to the function's attributes replaced; a reference to one that is not given vanishes.
fn resolved(mut proto: NodeProto, given: &BTreeMap<String, Attribute>, files: &mut ExternalFiles) -> Result<ModelNode, String> {
    let (references, own) = std::mem::take(&mut proto.attribute).into_iter().partition(|a| !a.ref_attr_name.is_empty());
    proto.attribute = own;
    let mut out = node(proto, files)?;
    for reference in references {
        if let Some(value) = given.get(&reference.ref_attr_name) {
            out.attributes.insert(reference.name, value.clone());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_without_nodes_that_call_each_other_twice_are_refused_soon() {
        let call = |n: usize| NodeProto { op_type: format!("f{n}"), domain: "d".into(), ..Default::default() };
        let function = |n: usize| FunctionProto {
            name: format!("f{n}"),
            domain: "d".into(),
            node: if n < 30 { vec![call(n + 1), call(n + 1)] } else { vec![] },
            ..Default::default()
        };
        let functions = Functions::new((0..=30).map(function).collect(), 18).unwrap();
        let first = ModelNode { op: "f0".into(), domain: "d".into(), ..Default::default() };
        let refused = functions.inline(vec![first], &mut ExternalFiles::none()).unwrap_err();
        assert!(refused.contains("called more than"), "{refused}");
    }
}
