//! Parameters by how initializers are used, for models without PyTorch's metadata.

use super::{Binding, Form, Found, Use, elements, listed, scripted};
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
pub fn find(model: &mut Model, untie: &GlobSet, tie: &GlobSet, train: &GlobSet) -> Found {
    scripted::resolve_aliases(model);
    let model = &*model;
    let context = Context::new(model);
    let mut found = Found::default();
    let mut untied = vec![];
    let mut taken: HashSet<String> = model.initializers.iter().map(|i| i.name.clone()).collect();
    // In the order of the file, as PyTorch and others write them.
    for (i, readers) in context.readers(model) {
        let weights: Vec<Use> = readers.iter().copied().filter(|&u| context.is_weight(&model.nodes[u.node], u.input, i)).collect();
        if weights.is_empty() && !train.is_match(&i.name) {
            continue;
        }
        let shared = weights.len() > 1 && !tie.is_match(&i.name);
        let split = shared && (untie.is_match(&i.name) || (is_vector(i) && is_constant(i) && !context.is_named(i)));
        if split {
            untied.push(format!("{} ({} uses)", i.name, weights.len()));
        }
        for (k, &u) in if split { &weights } else { &readers }.iter().enumerate() {
            let n = &model.nodes[u.node];
            if k == 0 || split {
                found.names.push(name(model, n, (u.input, k), i, &mut taken));
            }
            found.uses.insert(u, Binding { parameter: found.names.len() - 1, form: context.form(n, u.input, i) });
        }
    }
    if !untied.is_empty() {
        let list = listed(&untied);
        found.notes.push(format!("shared initializers of one repeated value are separate parameters (--tie keeps them one): {list}"));
    }
    scripted::tie_transposes(model, &mut found);
    found
}

/// A name for use number `k` of an initializer: its own for the first, the module's where the node tells it, else a number.
fn name(model: &Model, n: &ModelNode, (input, k): (usize, usize), i: &Initializer, taken: &mut HashSet<String>) -> String {
    if k == 0 && !scripted::is_anonymous(&i.name) {
        return i.name.clone();
    }
    let leaf = match (n.op.as_str(), input) {
        ("LayerNormalization" | "BatchNormalization" | "Conv" | "Gemm" | "InstanceNormalization", 2) | ("Add", _) => "bias",
        _ => "weight",
    };
    let own = scripted::module_of_weight(model, n).map(|module| format!("{module}.{leaf}")).filter(|name| !taken.contains(name));
    let name = own.unwrap_or_else(|| if k == 0 { i.name.clone() } else { format!("{}.{k}", i.name) });
    taken.insert(name.clone());
    name
}

struct Context<'a> {
    producers: HashMap<&'a str, &'a ModelNode>,
    inputs: HashSet<&'a str>,
    /// What depends on a float input or initializer; the rest are shapes, indices and positions.
    data: HashSet<&'a str>,
    /// Modules that normalise groups.
    groups: HashSet<String>,
    /// The model comes from PyTorch's older exporter, so that names with dots are those of parameters and buffers.
    scripted: bool,
}

impl<'a> Context<'a> {
    fn new(model: &'a Model) -> Self {
        let producers: HashMap<&str, &ModelNode> =
            model.nodes.iter().flat_map(|n| n.outputs.iter().map(move |o| (o.as_str(), n))).collect();
        let instances = model.nodes.iter().filter(|n| n.op == "InstanceNormalization");
        let groups = instances.filter(|n| of_group(&producers, n)).filter_map(scripted::module).collect();
        let inputs = model.inputs.iter().map(|i| i.name.as_str()).collect();
        let data = data(model);
        Context { producers, inputs, data, groups, scripted: model.nodes.iter().any(|n| scripted::module(n).is_some()) }
    }

    /// The float initializers and what reads them.
    fn readers(&self, model: &'a Model) -> Vec<(&'a Initializer, Vec<Use>)> {
        let mut all: Vec<(&Initializer, Vec<Use>)> = model.initializers.iter().filter(|i| i.elem.is_float()).map(|i| (i, vec![])).collect();
        let at: HashMap<&str, usize> = all.iter().enumerate().map(|(n, (i, _))| (i.name.as_str(), n)).collect();
        for (u, name) in uses(model) {
            if let Some(&n) = at.get(name) {
                all[n].1.push(u);
            }
        }
        all
    }

    /// How a parameter is read here.
    fn form(&self, n: &ModelNode, input: usize, i: &Initializer) -> Form {
        let module = scripted::module(n).filter(|_| scripted::is_anonymous(&i.name));
        match n.op.as_str() {
            "MatMul" if input == 1 && i.shape.len() == 2 && module.is_some() => Form::Transposed,
            // The slopes of PReLU and the scale and bias of GroupNorm, in the image's shape.
            "PRelu" if i.shape.len() > 1 && module.is_some() => Form::Reshaped,
            "Mul" | "Add" if i.shape.len() > 1 && module.as_ref().is_some_and(|m| self.groups.contains(m)) => Form::Reshaped,
            _ => Form::Same,
        }
    }

    /// True if reading the initializer here makes it a parameter.
    fn is_weight(&self, n: &ModelNode, input: usize, i: &Initializer) -> bool {
        let rank = i.shape.len();
        match (n.op.as_str(), input) {
            _ if self.scripted && scripted::is_literal(&i.name) => false,
            ("MatMul", _) | ("Gemm", 0 | 1) | ("Gather", 0) => rank >= 2,
            ("Conv" | "ConvTranspose" | "Gemm" | "PRelu", 1 | 2) | ("RMSNormalization" | "SimplifiedLayerNormalization", 1) => true,
            ("LayerNormalization" | "GroupNormalization" | "BatchNormalization", 1 | 2) => true,
            ("InstanceNormalization", 1 | 2) => !of_group(&self.producers, n),
            ("Transpose", 0) => rank == 2,
            ("Add", _) => self.operand_of_trained(n, input, i) && !is_mask(i),
            ("Mul", _) => self.operand_of_trained(n, input, i) && (is_vector(i) || i.elements() == 1),
            ("Expand" | "Concat" | "Sub" | "Div" | "Einsum" | "Where" | "Exp" | "Neg" | "Sigmoid" | "Softplus" | "Softmax" | "Tanh", _) => {
                self.is_named(i)
            }
            _ => false,
        }
    }

    /// True for a parameter's own name. Whoever reads one such initializer shares it, since merged ones were told apart before.
    fn is_named(&self, i: &Initializer) -> bool {
        self.scripted && scripted::is_parameter(&i.name)
    }

    /// Not a single number without a parameter's name, and not applied to a graph input, as normalisations of images are, or to positions, as frequencies are.
    fn operand_of_trained(&self, n: &ModelNode, input: usize, i: &Initializer) -> bool {
        let other = n.inputs.get(1 - input.min(1)).map(String::as_str).unwrap_or_default();
        (i.elements() > 1 || self.is_named(i))
            && !self.inputs.contains(other)
            && self.producers.contains_key(other)
            && self.data.contains(other)
    }
}

/// The names of the values that depend on a float input or on a float initializer of more than one element.
fn data(model: &Model) -> HashSet<&str> {
    let mut readers: HashMap<&str, Vec<&ModelNode>> = HashMap::new();
    for n in model.nodes.iter().filter(|n| !matches!(n.op.as_str(), "Shape" | "Size")) {
        n.inputs.iter().for_each(|x| readers.entry(x).or_default().push(n));
    }
    let inputs = model.inputs.iter().filter(|i| i.elem.is_float()).map(|i| i.name.as_str());
    let weights = model.initializers.iter().filter(|i| i.elem.is_float() && i.elements() > 1).map(|i| i.name.as_str());
    let mut open: Vec<&str> = inputs.chain(weights).collect();
    let mut found: HashSet<&str> = open.iter().copied().collect();
    while let Some(name) = open.pop() {
        let results = readers.get(name).into_iter().flatten().flat_map(|n| &n.outputs);
        results.for_each(|r| {
            if found.insert(r) {
                open.push(r)
            }
        });
    }
    found
}

/// True where GroupNorm was written as Reshape, InstanceNormalization of unit scale, Reshape, Mul, Add.
fn of_group(producers: &HashMap<&str, &ModelNode>, n: &ModelNode) -> bool {
    n.inputs.first().and_then(|x| producers.get(x.as_str())).is_some_and(|p| p.op == "Reshape")
}

/// A vector, however many axes of extent 1 it has.
fn is_vector(i: &Initializer) -> bool {
    i.shape.iter().filter(|&&d| d != 1).count() == 1
}

fn is_mask(i: &Initializer) -> bool {
    let values = || elements(i).map(|d| d.to_f32()).unwrap_or_default();
    let small = i.elem == Elem::F32 || i.elem == Elem::F16 || i.elem == Elem::Bf16;
    small && { values().iter().any(|&x| x <= MASKED) && values().iter().all(|&x| x == 0.0 || x <= MASKED) }
}

/// True where all elements are equal.
pub fn is_constant(i: &Initializer) -> bool {
    match &i.init {
        Init::Zeros | Init::Ones => true,
        _ => elements(i).is_ok_and(|d| {
            let size = d.ty.dtype.size() as usize;
            d.bytes.chunks_exact(size).all(|c| c == &d.bytes[..size])
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ConstData;
    use crate::import::model::{Dim, ModelInput};
    use std::sync::Arc;

    fn vector(name: &str) -> Initializer {
        let data = ConstData::f32([4], &[1.0, 0.1, 0.01, 0.001]);
        Initializer { name: name.into(), elem: Elem::F32, shape: vec![4], init: Init::Data(Arc::new(data)), declared_parameter: false }
    }

    fn node(op: &str, inputs: &[&str], output: &str) -> ModelNode {
        let inputs = inputs.iter().map(|s| s.to_string()).collect();
        ModelNode { op: op.into(), name: output.into(), inputs, outputs: vec![output.into()], ..Default::default() }
    }

    #[test]
    fn a_folded_weight_is_named_after_the_bias_added_next() {
        let weight = |name: &str| Initializer { shape: vec![2, 2], ..vector(name) };
        let mut model = Model {
            initializers: vec![weight("onnx::MatMul_7"), vector("m.m.fc.bias"), weight("onnx::MatMul_8")],
            nodes: vec![
                node("MatMul", &["x", "onnx::MatMul_7"], "/m/fc/MatMul"),
                node("Add", &["m.m.fc.bias", "/m/fc/MatMul"], "/m/fc/Add"),
                node("MatMul", &["/m/fc/Add", "onnx::MatMul_8"], "/m/head/MatMul"),
            ],
            ..Default::default()
        };
        let none = GlobSet::empty();
        assert_eq!(find(&mut model, &none, &none, &none).names, ["m.m.fc.weight", "m.m.fc.bias", "m.head.weight"]);
    }

    #[test]
    fn a_named_number_is_a_parameter_an_unnamed_one_is_not_and_slopes_are_a_vector() {
        let shaped = |name: &str, shape: &[u64]| Initializer { shape: shape.to_vec(), ..vector(name) };
        let mut model = Model {
            inputs: vec![ModelInput { name: "x".into(), elem: Elem::F32, shape: vec![] }],
            initializers: vec![
                shaped("onnx::PRelu_3", &[4, 1, 1]),
                shaped("m.temperature", &[]),
                shaped("m.embed_scale", &[]),
                shaped("half", &[]),
            ],
            nodes: vec![
                node("Tanh", &["x"], "/m/Tanh"),
                node("PRelu", &["/m/Tanh", "onnx::PRelu_3"], "/m/act/PRelu"),
                node("Mul", &["/m/act/PRelu", "m.temperature"], "/m/Mul"),
                node("Mul", &["/m/Mul", "m.embed_scale"], "/m/Mul_1"),
                node("Mul", &["/m/Mul_1", "half"], "/m/Mul_2"),
            ],
            ..Default::default()
        };
        let none = GlobSet::empty();
        let found = find(&mut model, &none, &none, &none);
        assert_eq!(found.names, ["m.act.weight", "m.temperature"]);
        assert_eq!(found.uses[&Use { node: 1, input: 1 }].form, Form::Reshaped);
    }

    #[test]
    fn ones_that_a_module_called_twice_reads_are_one_parameter_and_a_literal_bias_is_none() {
        let ones = |name: &str| Initializer { init: Init::Ones, ..vector(name) };
        let norm = |input: &str, name: &str| node("LayerNormalization", &[input, "m.norm.weight", "/m/norm/Constant_output_0"], name);
        let mut model = Model {
            inputs: vec![ModelInput { name: "x".into(), elem: Elem::F32, shape: vec![] }],
            initializers: vec![ones("m.norm.weight"), vector("/m/norm/Constant_output_0")],
            nodes: vec![norm("x", "/m/norm/LayerNormalization"), norm("/m/norm/LayerNormalization", "/m/norm_1/LayerNormalization")],
            ..Default::default()
        };
        let none = GlobSet::empty();
        let found = find(&mut model, &none, &none, &none);
        assert_eq!((found.names, found.uses.len()), (vec!["m.norm.weight".to_string()], 2));
    }

    #[test]
    fn what_scales_positions_is_no_parameter_and_what_scales_data_is() {
        let input = |name: &str, elem| ModelInput { name: name.into(), elem, shape: vec![Dim::Known(2), Dim::Known(1)] };
        let nodes = vec![
            node("Shape", &["x"], "shape"),
            node("Range", &["zero", "shape", "one"], "range"),
            node("Cast", &["range"], "positions"),
            node("Mul", &["positions", "frequencies"], "angles"),
            node("Cast", &["position_ids"], "ids"),
            node("Mul", &["ids", "other_frequencies"], "other_angles"),
            node("Cos", &["angles"], "table"),
            node("Tanh", &["x"], "h"),
            node("Mul", &["h", "scale"], "scaled"),
            node("Mul", &["scaled", "table"], "turned"),
            node("Add", &["turned", "shift"], "y"),
        ];
        let mut model = Model {
            inputs: vec![input("x", Elem::F32), input("position_ids", Elem::I64)],
            initializers: ["frequencies", "other_frequencies", "scale", "shift"].map(vector).into(),
            nodes,
            ..Default::default()
        };
        let none = GlobSet::empty();
        assert_eq!(find(&mut model, &none, &none, &none).names, ["scale", "shift"]);
    }
}
