//! Parameters that the exporter removed because of the value that they start from.

use super::traced::{Trace, plays};
use super::{Binding, Form, Use, fresh, listed};
use crate::graph::Init;
use crate::import::model::{Attribute, Elem, Initializer, ModelNode};
use crate::import::torch;
use std::collections::BTreeMap;

/// Adds the biases back that were deleted because they are zero: the traced node still names them.
pub fn biases(trace: &mut Trace) {
    let mut restored = vec![];
    for p in trace.missing() {
        let placeholder = &trace.signature.parameters[p].placeholder;
        let place = trace.groups.iter().flatten().copied().find(|&n| {
            let node = &trace.model.nodes[n];
            let arg = trace.fx[n].as_ref().and_then(|fx| Some((fx, fx.args.iter().position(|a| a.contains(placeholder))?)));
            let absent = node.inputs.get(2).is_none_or(String::is_empty);
            absent && matches!(node.op.as_str(), "Gemm" | "Conv" | "ConvTranspose") && arg.is_some_and(|(fx, arg)| plays(fx, arg, node, 2))
        });
        let Some((n, (elem, extent))) = place.and_then(|n| Some((n, bias_type(trace, n)?))) else { continue };
        let name = fresh(&mut trace.values, &trace.signature.parameters[p].target);
        let zeros = Initializer { name: name.clone(), elem, shape: vec![extent], init: Init::Zeros, declared_parameter: false };
        trace.add_initializer(zeros);
        let inputs = &mut trace.model.nodes[n].inputs;
        inputs.resize(3, String::new());
        inputs[2] = name;
        trace.found.uses.insert(Use { node: n, input: 2 }, Binding { parameter: p, form: Form::Same });
        restored.push(trace.signature.parameters[p].target.clone());
    }
    if !restored.is_empty() {
        let note = format!("removed by the exporter because they start at zero, and trained again: {}", listed(&restored));
        trace.found.notes.push(note);
    }
}

/// Element type and extent of the bias that a node lacks.
fn bias_type(trace: &Trace, n: usize) -> Option<(Elem, u64)> {
    let node = &trace.model.nodes[n];
    let weight = trace.initializer(Use { node: n, input: 1 })?;
    let int = |name: &str, default: i64| if let Some(Attribute::Int(i)) = node.attributes.get(name) { *i } else { default };
    let axis = match node.op.as_str() {
        "Gemm" if int("transB", 0) == 0 => 1,
        "ConvTranspose" => 1,
        _ => 0,
    };
    let groups = if node.op == "ConvTranspose" { u64::try_from(int("group", 1)).ok()? } else { 1 };
    Some((weight.elem, weight.shape.get(axis)?.checked_mul(groups)?))
}

/// Splits nodes that were merged because their parameters start equal (two LayerNorms of one input, as in parallel residual blocks).
///
/// A reader's traced node still names the value of the node that is gone; the modules that have lost all their parameters tell whose
/// it was.
pub fn duplicates(trace: &mut Trace) {
    let mut separated = vec![];
    for group in trace.groups.clone() {
        let Some(fx) = group.last().and_then(|&n| trace.fx[n].clone()) else { continue };
        let bound: Vec<(Use, Binding)> = trace.found.uses.iter().filter(|(u, _)| group.contains(&u.node)).map(|(u, b)| (*u, *b)).collect();
        let Some((_, first)) = bound.first() else { continue };
        let owner = trace.signature.parameters[first.parameter].owner().0.to_string();
        if bound.iter().any(|(_, b)| trace.signature.parameters[b.parameter].owner().0 != owner) {
            continue;
        }
        // Readers of the group's result that name another, lost value of the same kind.
        let Some(result) = group.last().and_then(|&n| trace.model.nodes[n].outputs.first().cloned()) else { continue };
        let mut lost: BTreeMap<(usize, String), Vec<Use>> = BTreeMap::new();
        for (node, n) in trace.model.nodes.iter().enumerate() {
            let Some(reader) = &trace.fx.get(node).and_then(Option::as_ref).filter(|_| n.inputs.contains(&result)) else { continue };
            if reader.reads().any(|r| r == fx.result) {
                continue;
            }
            let name = trace.phantoms(reader).into_iter().find(|p| torch::base(p) == torch::base(&fx.result));
            for input in (0..n.inputs.len()).filter(|&i| n.inputs[i] == result) {
                if let Some(name) = name.clone() {
                    lost.entry((name.len(), name)).or_default().push(Use { node, input });
                }
            }
        }
        for ((_, name), readers) in lost {
            let Some(parameters) = sibling(trace, &owner, &bound) else { break };
            split(trace, &group, &name, &readers, &bound, &parameters);
            separated.push(trace.signature.parameters[parameters[0]].owner().0);
        }
    }
    if !separated.is_empty() {
        let note = format!("merged with equal modules by the exporter, and separate again: {}", listed(&separated));
        trace.found.notes.push(note);
    }
}

/// The missing parameters of the first module beside `owner` that lacks just those that `owner` has in `bound`.
fn sibling(trace: &Trace, owner: &str, bound: &[(Use, Binding)]) -> Option<Vec<usize>> {
    let missing = trace.missing();
    let parent = |module: &str| module.rsplit_once('.').map_or(String::new(), |(p, _)| p.to_string());
    let leaf = |p: usize| trace.signature.parameters[p].owner().1;
    let candidates = missing.iter().map(|&p| trace.signature.parameters[p].owner().0).filter(|m| *m != owner && parent(m) == parent(owner));
    candidates.into_iter().find_map(|module| {
        let same_leaf = |&(_, b): &(Use, Binding)| {
            missing.iter().copied().find(|&p| trace.signature.parameters[p].owner() == (module, leaf(b.parameter)))
        };
        bound.iter().map(same_leaf).collect()
    })
}

/// Copies a group's nodes for the readers of a lost value.
fn split(trace: &mut Trace, group: &[usize], name: &str, readers: &[Use], bound: &[(Use, Binding)], parameters: &[usize]) {
    let mut renamed: BTreeMap<String, String> = BTreeMap::new();
    let last = group.last().copied().unwrap_or_default();
    for &n in group {
        let copy = trace.model.nodes.len();
        let original = &trace.model.nodes[n];
        let inputs = original.inputs.iter().map(|i| renamed.get(i).unwrap_or(i).clone()).collect();
        let label = format!("{}#{name}", original.name);
        let mut outputs = vec![];
        for (i, o) in original.outputs.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
            let wish = if n == last && i == 0 { name.to_string() } else { format!("{o}#{name}") };
            outputs.push(fresh(&mut trace.values, &wish));
            renamed.insert(o.clone(), outputs[outputs.len() - 1].clone());
        }
        let node = ModelNode { name: label, inputs, outputs, ..original.clone() };
        trace.model.nodes.push(node);
        trace.fx.push(trace.fx[n].clone());
        for ((u, b), &parameter) in bound.iter().zip(parameters).filter(|((u, _), _)| u.node == n) {
            trace.found.uses.insert(Use { node: copy, input: u.input }, Binding { parameter, form: b.form });
        }
    }
    for u in readers {
        let input = &mut trace.model.nodes[u.node].inputs[u.input];
        if let Some(to) = renamed.get(input.as_str()) {
            *input = to.clone();
        }
    }
}
