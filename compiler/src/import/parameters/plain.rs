//! Parameters by how initializers are used, for models without PyTorch's metadata.

use super::{Binding, Form, Found, Use, elements, listed};
use crate::graph::Init;
use crate::import::model::{Elem, Initializer, Model, ModelNode};
use globset::GlobSet;
use std::collections::{HashMap, HashSet};

/// Masks hold nothing but zero and numbers at least this negative.
const MASKED: f32 = -1e4;

/// JSON models declare their parameters.
pub fn declared(model: &Model) -> Found {
    let declared: HashSet<&str> = model.initializers.iter().filter(|i| i.declared_parameter).map(|i| i.name.as_str()).collect();
    let mut found = Found::default();
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for (u, name) in uses(model).filter(|(_, name)| declared.contains(name)) {
        let parameter = *ids.entry(name).or_insert_with(|| {
            found.names.push(name.to_string());
            found.names.len() - 1
        });
        found.uses.insert(u, Binding { parameter, form: Form::Same });
    }
    found
}

fn uses(model: &Model) -> impl Iterator<Item = (Use, &str)> {
    let all = model.nodes.iter().enumerate();
    all.flat_map(|(node, n)| n.inputs.iter().enumerate().map(move |(input, name)| (Use { node, input }, name.as_str())))
}

/// Float initializers that are used as weights are parameters; vectors of one repeated value that several nodes read are untied.
pub fn find(model: &Model, untie: &GlobSet, tie: &GlobSet, train: &GlobSet) -> Found {
    let by_name: HashMap<&str, &Initializer> = model.initializers.iter().map(|i| (i.name.as_str(), i)).collect();
    let producers: HashMap<&str, &ModelNode> = model.nodes.iter().flat_map(|n| n.outputs.iter().map(move |o| (o.as_str(), n))).collect();
    let inputs: HashSet<&str> = model.inputs.iter().map(|i| i.name.as_str()).collect();
    let context = Context { producers, inputs };
    let is_weight = |u: Use, i: &Initializer| context.is_weight(&model.nodes[u.node], u.input, i) || train.is_match(&i.name);
    let floats = || uses(model).filter_map(|(u, name)| Some((u, *by_name.get(name).filter(|i| i.elem.is_float())?)));
    let mut weights: HashMap<&str, Vec<Use>> = floats().filter(|&(u, i)| is_weight(u, i)).map(|(_, i)| (i.name.as_str(), vec![])).collect();
    for (u, i) in floats() {
        if let Some(uses) = weights.get_mut(i.name.as_str()) {
            uses.push(u);
        }
    }
    let mut found = Found::default();
    let mut untied = vec![];
    // In the order of the file, as PyTorch and others write them.
    for i in &model.initializers {
        let Some(uses) = weights.get(i.name.as_str()) else { continue };
        let split = uses.len() > 1 && !tie.is_match(&i.name) && (untie.is_match(&i.name) || (i.shape.len() == 1 && is_constant(i)));
        if split {
            untied.push(format!("{} ({} uses)", i.name, uses.len()));
        }
        for (k, &u) in uses.iter().enumerate() {
            if k == 0 || split {
                let name = name(&model.nodes[u.node], u.input, i, k);
                let clash = found.names.contains(&name);
                found.names.push(if clash { format!("{}.{k}", i.name) } else { name });
            }
            let form = if transposed_linear(&model.nodes[u.node], u.input, i) { Form::Transposed } else { Form::Same };
            found.uses.insert(u, Binding { parameter: found.names.len() - 1, form });
        }
    }
    if !untied.is_empty() {
        let list = listed(&untied);
        found.notes.push(format!("shared initializers of one repeated value are separate parameters (--tie keeps them one): {list}"));
    }
    found
}

/// The older exporter of PyTorch names weights whose transpose it folded `onnx::MatMul_123`.
fn transposed_linear(n: &ModelNode, input: usize, i: &Initializer) -> bool {
    n.op == "MatMul" && input == 1 && i.shape.len() == 2 && i.name.starts_with("onnx::") && path(n).is_some()
}

/// The module path in the node names of PyTorch's older exporter: `model.fc` of `/model/fc/MatMul`.
fn path(n: &ModelNode) -> Option<String> {
    let (path, _) = n.name.strip_prefix('/')?.rsplit_once('/')?;
    Some(path.replace('/', "."))
}

/// A name for use number `k` of an initializer.
fn name(n: &ModelNode, input: usize, i: &Initializer, k: usize) -> String {
    let leaf = match (n.op.as_str(), input) {
        ("LayerNormalization" | "BatchNormalization" | "Conv" | "Gemm" | "InstanceNormalization", 2) | ("Add", _) => "bias",
        _ => "weight",
    };
    match path(n) {
        Some(path) if k > 0 || i.name.starts_with("onnx::") => format!("{path}.{leaf}"),
        _ if k > 0 => format!("{}.{k}", i.name),
        _ => i.name.clone(),
    }
}

struct Context<'a> {
    producers: HashMap<&'a str, &'a ModelNode>,
    inputs: HashSet<&'a str>,
}

impl Context<'_> {
    /// True if reading the initializer here makes it a parameter.
    fn is_weight(&self, n: &ModelNode, input: usize, i: &Initializer) -> bool {
        let rank = i.shape.len();
        match (n.op.as_str(), input) {
            ("MatMul", _) | ("Gemm", 0 | 1) | ("Gather", 0) => rank >= 2,
            ("Conv" | "ConvTranspose" | "Gemm" | "PRelu", 1 | 2) | ("RMSNormalization" | "SimplifiedLayerNormalization", 1) => true,
            ("LayerNormalization" | "GroupNormalization" | "BatchNormalization", 1 | 2) => true,
            // The exporter writes GroupNorm as Reshape, InstanceNormalization with unit scale, Reshape, Mul, Add.
            ("InstanceNormalization", 1 | 2) => self.producers.get(n.inputs[0].as_str()).is_none_or(|p| p.op != "Reshape"),
            ("Transpose", 0) => rank == 2,
            ("Add", _) => self.operand_of_trained(n, input, i) && !is_mask(i),
            ("Mul", _) => self.operand_of_trained(n, input, i) && i.shape.iter().filter(|&&d| d != 1).count() == 1,
            _ => false,
        }
    }

    /// Not a single number, and not applied to a graph input, as normalisations of images are.
    fn operand_of_trained(&self, n: &ModelNode, input: usize, i: &Initializer) -> bool {
        let other = n.inputs.get(1 - input.min(1)).map(String::as_str).unwrap_or_default();
        i.shape.iter().product::<u64>() > 1 && !self.inputs.contains(other) && (self.producers.contains_key(other))
    }
}

fn is_mask(i: &Initializer) -> bool {
    let values = || elements(i).map(|d| d.to_f32()).unwrap_or_default();
    let small = i.elem == Elem::F32 || i.elem == Elem::F16 || i.elem == Elem::Bf16;
    small && { values().iter().any(|&x| x <= MASKED) && values().iter().all(|&x| x == 0.0 || x <= MASKED) }
}

fn is_constant(i: &Initializer) -> bool {
    match &i.init {
        Init::Zeros | Init::Ones => true,
        _ => elements(i).is_ok_and(|d| {
            let size = d.ty.dtype.size() as usize;
            d.bytes.chunks_exact(size).all(|c| c == &d.bytes[..size])
        }),
    }
}
