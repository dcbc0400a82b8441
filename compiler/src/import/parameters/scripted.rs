//! Names in the files of PyTorch's older exporter (TorchScript): parameters keep theirs, weights whose transpose it folded are
//! `onnx::MatMul_123`, and nodes are called after their modules, `/model/fc/MatMul`.

use super::{Form, Found, Use, elements, plain};
use crate::graph::ConstData;
use crate::import::model::{Initializer, Model, ModelNode};
use std::collections::HashMap;

/// Buffers of PyTorch's modules.
const BUFFERS: [&str; 5] = ["running_mean", "running_var", "inv_freq", "original_inv_freq", "embed_scale"];

/// The module of a node: `blocks.0.fc` of `/blocks/blocks.0/fc/MatMul` (a child of a Sequential repeats its parent's name).
pub fn module(n: &ModelNode) -> Option<String> {
    let (path, _) = n.name.strip_prefix('/')?.rsplit_once('/')?;
    let mut parts: Vec<&str> = vec![];
    for part in path.split('/') {
        if parts.last().is_some_and(|last| part.strip_prefix(last).is_some_and(|rest| rest.starts_with('.'))) {
            parts.pop();
        }
        parts.push(part);
    }
    Some(parts.join("."))
}

/// The module whose weight a node reads. A model that calls a grandchild directly leaves its child out of the node's path; the bias that
/// is added next keeps the whole name.
pub fn module_of_weight(model: &Model, n: &ModelNode) -> Option<String> {
    let module = module(n)?;
    let next = |a: &&ModelNode| a.op == "Add" && a.inputs.iter().any(|x| n.outputs.contains(x));
    let added = model.nodes.iter().filter(|_| n.op == "MatMul").find(next);
    let named = model.initializers.iter().filter(|i| added.is_some_and(|a| a.inputs.contains(&i.name)));
    let owners = named.filter_map(|i| i.name.strip_suffix(".bias"));
    let leaf = |path: &str| path.rsplit('.').next().map(str::to_string);
    let whole = owners.filter(|o| leaf(o) == leaf(&module)).map(str::to_string).next();
    Some(whole.unwrap_or(module))
}

/// True for names that the exporter made up.
pub fn is_anonymous(name: &str) -> bool {
    name.starts_with("onnx::")
}

/// True for values of `Constant` nodes: what the module's code says, no parameter.
pub fn is_literal(name: &str) -> bool {
    name.starts_with('/') && name.rsplit('/').next().is_some_and(|leaf| leaf.starts_with("Constant"))
}

/// True for names that only a parameter has.
pub fn is_parameter(name: &str) -> bool {
    let leaf = name.rsplit('.').next().unwrap_or_default();
    !is_anonymous(name) && !name.starts_with('/') && name.contains('.') && !BUFFERS.contains(&leaf)
}

/// The exporter merges initializers of equal value and leaves an `Identity` under each name that is gone. Vectors of one repeated
/// value get their initializer back; anything else is equal because it is tied.
pub fn resolve_aliases(model: &mut Model) {
    let at: HashMap<String, usize> = model.initializers.iter().enumerate().map(|(n, i)| (i.name.clone(), n)).collect();
    let mut tied: HashMap<String, String> = HashMap::new();
    let mut kept = Vec::with_capacity(model.nodes.len());
    for n in std::mem::take(&mut model.nodes) {
        let source = n.inputs.first().and_then(|x| at.get(x)).filter(|_| n.op == "Identity" && n.outputs.len() == 1);
        let result = n.outputs.first().cloned().unwrap_or_default();
        let Some(&source) = source.filter(|_| !model.outputs.iter().any(|o| o.name == result)) else {
            kept.push(n);
            continue;
        };
        let original = &model.initializers[source];
        if plain::is_constant(original) {
            model.initializers.push(Initializer { name: result, ..original.clone() });
        } else {
            tied.insert(result, original.name.clone());
        }
    }
    for input in kept.iter_mut().flat_map(|n| &mut n.inputs) {
        if let Some(name) = tied.get(input) {
            *input = name.clone();
        }
    }
    model.nodes = kept;
}

/// Weights that are another parameter transposed, to the bit, are that parameter: an LM head tied to its embedding.
pub fn tie_transposes(model: &Model, found: &mut Found) {
    let by_name: HashMap<&str, &Initializer> = model.initializers.iter().map(|i| (i.name.as_str(), i)).collect();
    let read = |u: &Use| by_name.get(model.nodes[u.node].inputs[u.input].as_str()).copied();
    let of = |form: Form| -> Vec<(usize, &Initializer)> {
        let mut list: Vec<_> =
            found.uses.iter().filter(|(_, b)| b.form == form).filter_map(|(u, b)| Some((b.parameter, read(u)?))).collect();
        list.dedup_by_key(|(p, _)| *p);
        list
    };
    let (folded, plain) = (of(Form::Transposed), of(Form::Same));
    let mut to: HashMap<usize, usize> = HashMap::new();
    for (p, i) in folded {
        let mirrored = |j: &&(usize, &Initializer)| j.1.shape.len() == 2 && j.1.shape[0] == i.shape[1] && j.1.shape[1] == i.shape[0];
        let equal = plain.iter().filter(mirrored).find(|(_, j)| is_transpose(i, j).unwrap_or(false));
        if let Some(&(q, _)) = equal {
            to.insert(p, q);
        }
    }
    for b in found.uses.values_mut() {
        b.parameter = to.get(&b.parameter).copied().unwrap_or(b.parameter);
    }
}

fn is_transpose(a: &Initializer, b: &Initializer) -> Result<bool, String> {
    let (x, y): (&ConstData, &ConstData) = (&*elements(a)?, &*elements(b)?);
    let (rows, cols, size) = (a.shape[0] as usize, a.shape[1] as usize, x.ty.dtype.size() as usize);
    let element = |at: usize| at * size..(at + 1) * size;
    let same = |r: usize, c: usize| x.bytes[element(r * cols + c)] == y.bytes[element(c * rows + r)];
    Ok(x.ty.dtype == y.ty.dtype && !plain::is_constant(a) && (0..rows).all(|r| (0..cols).all(|c| same(r, c))))
}
