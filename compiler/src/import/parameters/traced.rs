//! Parameters by PyTorch's metadata.
//!
//! Every ONNX node carries the traced node it comes from, and that names the parameters it reads (`%p_m_fc_weight`). Nodes of one
//! traced node form a group; the group's uses of initializers are matched with the names: first those whose initializer is known to
//! be that parameter, then by role (the second argument of `aten.linear` is what the MatMul reads, the third what the Add reads).

use super::{Binding, Form, Found, Use, listed, restore};
use crate::import::model::{Initializer, Model, ModelNode};
use crate::import::torch::{self, FxNode, Signature};
use std::collections::{BTreeSet, HashMap, HashSet};

/// A model under examination.
pub struct Trace<'a> {
    pub model: &'a mut Model,
    pub signature: &'a Signature,
    /// The traced node of each node.
    pub fx: Vec<Option<FxNode>>,
    /// The nodes of each traced node, in order.
    pub groups: Vec<Vec<usize>>,
    /// Position of each initializer by name.
    initializers: HashMap<String, usize>,
    /// Names of values that the graph has.
    pub values: HashSet<String>,
    pub found: Found,
}

/// Finds parameters; names are the targets of the signature. May add nodes and initializers that the exporter removed.
pub fn find(model: &mut Model, signature: &Signature) -> Found {
    let fx: Vec<Option<FxNode>> = model.nodes.iter().map(FxNode::of).collect();
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = vec![];
    for (n, fx) in fx.iter().enumerate().filter_map(|(n, fx)| Some((n, fx.as_ref()?))) {
        let group = *by_name.entry(&fx.result).or_insert_with(|| {
            groups.push(vec![]);
            groups.len() - 1
        });
        groups[group].push(n);
    }
    let names = signature.parameters.iter().map(|p| p.target.clone()).collect();
    let values = super::value_names(model);
    let initializers = model.initializers.iter().enumerate().map(|(i, init)| (init.name.clone(), i)).collect();
    let mut trace = Trace { model, signature, fx, groups, initializers, values, found: Found { names, ..Found::default() } };
    trace.bind_named();
    trace.bind_normalised();
    trace.bind_folded();
    trace.bind_exported();
    restore::biases(&mut trace);
    trace.bind_phantoms();
    restore::duplicates(&mut trace);
    trace.rename_tied();
    trace.report();
    trace.found
}

impl Trace<'_> {
    /// Matches the parameters that traced nodes name with the initializers that their ONNX nodes read.
    fn bind_named(&mut self) {
        for group in self.groups.clone() {
            let Some(fx) = self.fx[group[0]].clone() else { continue };
            let mut wanted: Vec<(usize, usize)> = vec![];
            for (arg, names) in fx.args.iter().enumerate() {
                wanted.extend(names.iter().filter_map(|n| Some((arg, self.signature.placeholder(n)?))));
            }
            let mut open = self.open_uses(&group);
            self.bind_where(&fx, &mut wanted, &mut open, |trace, u, (_, p)| trace.root(u) == Some(p));
            let known = roles(&fx.target).is_some();
            self.bind_where(&fx, &mut wanted, &mut open, |trace, u, (arg, _)| plays(&fx, arg, &trace.model.nodes[u.node], u.input));
            if !known {
                self.bind_where(&fx, &mut wanted, &mut open, |trace, u, _| trace.elements(u) > 1);
            }
        }
    }

    /// Weights that a batch normalisation was folded into keep their names.
    fn bind_normalised(&mut self) {
        let nodes: Vec<usize> = (0..self.model.nodes.len()).filter(|&n| is_normalised(&self.model.nodes[n])).collect();
        for u in self.open_uses(&nodes) {
            if let Some(parameter) = self.root(u) {
                self.found.uses.insert(u, Binding { parameter, form: Form::Same });
            }
        }
    }

    fn bind_where(
        &mut self,
        fx: &FxNode,
        wanted: &mut Vec<(usize, usize)>,
        open: &mut Vec<Use>,
        fits: impl Fn(&Self, Use, (usize, usize)) -> bool,
    ) {
        wanted.retain(|&w| {
            let Some(at) = open.iter().position(|&u| fits(self, u, w)) else { return true };
            let u = open.remove(at);
            let form = self.form(fx, w.0, u);
            self.found.uses.insert(u, Binding { parameter: w.1, form });
            false
        });
    }

    /// Initializers computed from one parameter, read by the name of the traced value that was folded (`%expand`).
    fn bind_folded(&mut self) {
        for group in self.groups.clone() {
            let Some(fx) = self.fx[group[0]].clone() else { continue };
            for u in self.open_uses(&group) {
                let name = self.name(u);
                let read = |r: &str| r == name && self.reference(&fx, &group, u).is_none_or(|own| own == r);
                let Some(parameter) = self.root(u).filter(|_| fx.reads().any(read)) else { continue };
                let form = self.folded_form(torch::base(&name), u);
                self.found.uses.insert(u, Binding { parameter, form });
            }
        }
    }

    /// Parameters that nodes without a trace read under their own names, as those do that `export` adds.
    fn bind_exported(&mut self) {
        for parameter in self.missing() {
            let target = &self.signature.parameters[parameter].target;
            let untraced = (0..self.model.nodes.len()).filter(|&n| self.fx[n].is_none());
            let uses = untraced.flat_map(|node| (0..self.model.nodes[node].inputs.len()).map(move |input| Use { node, input }));
            let own: Vec<Use> = uses.filter(|u| self.model.nodes[u.node].inputs[u.input] == *target).collect();
            let float = self.initializers.get(target).is_some_and(|&i| self.model.initializers[i].elem.is_float());
            for u in own.into_iter().filter(|_| float) {
                self.found.uses.insert(u, Binding { parameter, form: Form::Same });
            }
        }
    }

    /// Initializers that were computed from a parameter and then merged with an equal one: the traced name that the node reads is
    /// gone, but its module owns parameters that nothing else reads.
    fn bind_phantoms(&mut self) {
        for group in self.groups.clone() {
            let Some(fx) = self.fx[group[0]].clone() else { continue };
            let Some(module) = torch::module(&self.model.nodes[group[0]]) else { continue };
            let phantoms = self.phantoms(&fx);
            if phantoms.is_empty() {
                continue;
            }
            let open: Vec<(Use, usize)> = self.open_uses(&group).into_iter().filter_map(|u| Some((u, self.root(u)?))).collect();
            let missing = if open.is_empty() { vec![] } else { self.missing() };
            let mut lost: Vec<usize> = missing.into_iter().filter(|&p| self.signature.parameters[p].owner().0 == module).collect();
            let leaf = |p: usize| self.signature.parameters[p].owner().1;
            if let Some(&alike) = lost.iter().find(|&&p| open.iter().any(|&(_, root)| leaf(p) == leaf(root))) {
                lost.retain(|&p| leaf(p) == leaf(alike));
            }
            if lost.len() != open.len() {
                continue;
            }
            for ((u, _), parameter) in open.into_iter().zip(lost) {
                let name = self.name(u);
                let like = |p: &&String| torch::base(p) == torch::base(&name);
                let phantom = self.reference(&fx, &group, u).or_else(|| phantoms.iter().find(like).or(phantoms.first()).cloned());
                let form = self.folded_form(torch::base(&phantom.unwrap_or_default()), u);
                self.found.uses.insert(u, Binding { parameter, form });
            }
        }
    }

    /// The traced name of what a use reads, where the node takes just what its traced node does.
    fn reference(&self, fx: &FxNode, group: &[usize], u: Use) -> Option<String> {
        let alone = group.len() == 1 && fx.reads().count() == self.model.nodes[u.node].inputs.len();
        fx.reads().nth(u.input).filter(|_| alone).map(str::to_string)
    }

    /// Names that a traced node reads but the graph does not have.
    pub fn phantoms(&self, fx: &FxNode) -> Vec<String> {
        fx.reads().filter(|r| !self.values.contains(*r) && !self.signature.is_input(r)).map(str::to_string).collect()
    }

    /// Parameters of the signature that no use is bound to, in order.
    pub fn missing(&self) -> Vec<usize> {
        let bound: HashSet<usize> = self.found.uses.values().map(|b| b.parameter).collect();
        (0..self.signature.parameters.len()).filter(|p| !bound.contains(p)).collect()
    }

    /// Uses of float initializers by a group that are not bound. Single numbers count only if they are known to be parameters.
    pub fn open_uses(&self, group: &[usize]) -> Vec<Use> {
        let uses = group.iter().flat_map(|&node| (0..self.model.nodes[node].inputs.len()).map(move |input| Use { node, input }));
        let candidate = |u: &Use| {
            let float = self.initializer(*u).is_some_and(|i| i.elem.is_float());
            float && !self.found.uses.contains_key(u) && (self.elements(*u) > 1 || self.root(*u).is_some())
        };
        uses.filter(candidate).collect()
    }

    pub fn name(&self, u: Use) -> String {
        self.model.nodes[u.node].inputs[u.input].clone()
    }

    /// What a use reads; none where the node lacks that input.
    pub fn initializer(&self, u: Use) -> Option<&Initializer> {
        let name = self.model.nodes[u.node].inputs.get(u.input)?;
        self.initializers.get(name).map(|&i| &self.model.initializers[i])
    }

    pub fn add_initializer(&mut self, i: Initializer) {
        self.initializers.insert(i.name.clone(), self.model.initializers.len());
        self.model.initializers.push(i);
    }

    fn elements(&self, u: Use) -> u64 {
        self.initializer(u).map_or(0, Initializer::elements)
    }

    fn rank(&self, u: Use) -> usize {
        self.initializer(u).map_or(0, |i| i.shape.len())
    }

    fn root(&self, u: Use) -> Option<usize> {
        self.signature.root(self.model, &self.model.nodes[u.node].inputs[u.input])
    }

    /// How what a use reads is made from the parameter that argument `arg` of its traced node names.
    fn form(&self, fx: &FxNode, arg: usize, u: Use) -> Form {
        let n = &self.model.nodes[u.node];
        match (fx.target.as_str(), arg) {
            ("aten.linear", 1) if self.rank(u) == 2 && (n.op == "MatMul" || (n.op == "Gemm" && !flag(n, "transB"))) => Form::Transposed,
            (t, 1..) if t.ends_with("_norm") && self.rank(u) > 1 && !t.contains("layer") && !t.contains("rms") => Form::Reshaped,
            (t, 1) if t.contains("prelu") && self.rank(u) > 1 => Form::Reshaped,
            _ => Form::Same,
        }
    }

    /// How what a use reads is made from a parameter by a traced operator that was folded.
    fn folded_form(&self, operator: &str, u: Use) -> Form {
        match operator {
            "t" | "transpose" | "permute" | "numpy_t" | "mt" if self.rank(u) == 2 => Form::Transposed,
            "expand" | "repeat" | "expand_as" => Form::Repeated,
            // A vector for the channels of an image.
            "unsqueeze" if self.rank(u) == 3 && self.initializer(u).is_some_and(is_channels) => Form::Reshaped,
            "add" => Form::PlusOne,
            "embedding" if self.rank(u) >= 2 => Form::Rows,
            _ => Form::Same,
        }
    }

    /// Gives tied parameters the name under which `named_parameters` has them, the first.
    fn rename_tied(&mut self) {
        let mut readers: HashMap<(String, String), BTreeSet<usize>> = HashMap::new();
        for (u, b) in &self.found.uses {
            if let Some(module) = torch::module(&self.model.nodes[u.node]) {
                let leaf = self.signature.parameters[b.parameter].owner().1.to_string();
                readers.entry((module, leaf)).or_default().insert(b.parameter);
            }
        }
        // Where a module reads a parameter that belongs to another (an embedding, its LM head's weight), the two are one.
        let mut tied: HashSet<&str> = HashSet::new();
        let missing = self.missing();
        for &p in missing.iter().rev() {
            let (module, leaf) = self.signature.parameters[p].owner();
            let by = readers.get(&(module.to_string(), leaf.to_string()));
            if let Some(q) = by.filter(|by| by.len() == 1).and_then(|by| by.first().copied()).filter(|&q| q > p) {
                tied.insert(self.signature.parameters[q].owner().0);
                self.found.names[q] = self.signature.parameters[p].target.clone();
                self.found.names[p] = String::new();
            }
        }
        // A head whose weight is tied may have its bias under the name of the module around it (BERT's `predictions.bias`).
        for &p in missing.iter().rev().filter(|&&p| !self.found.names[p].is_empty()).collect::<Vec<_>>() {
            let (module, leaf) = self.signature.parameters[p].owner();
            let child = |q: &usize| {
                let (inner, same) = self.signature.parameters[*q].owner();
                let below = inner.strip_prefix(module).and_then(|rest| rest.strip_prefix('.'));
                same == leaf && tied.contains(inner) && below.is_some_and(|child| !child.contains('.'))
            };
            let mut bound = (p + 1..self.signature.parameters.len()).filter(|q| !missing.contains(q));
            if let Some(q) = bound.find(child) {
                self.found.names[q] = self.signature.parameters[p].target.clone();
                self.found.names[p] = String::new();
            }
        }
    }

    fn report(&mut self) {
        let lost: Vec<&str> = self.missing().into_iter().map(|p| self.found.names[p].as_str()).filter(|n| !n.is_empty()).collect();
        if !lost.is_empty() {
            let note = format!("not trained, because the graph does not show where they are read: {}", listed(&lost));
            self.found.notes.push(note);
        }
        let folded = self.model.nodes.iter().filter(|n| is_normalised(n)).count();
        if folded > 0 {
            let note =
                format!("{folded} batch normalisations were folded into weights by the exporter; those weights are trained as they are");
            self.found.notes.push(note);
        }
    }
}

/// True for a product that the exporter folded a batch normalisation into.
fn is_normalised(n: &ModelNode) -> bool {
    n.metadata.get("pkg.onnxscript.rewriter.rule_name").is_some_and(|rules| rules.contains("FuseBatchNorm"))
}

fn flag(n: &ModelNode, name: &str) -> bool {
    matches!(n.attributes.get(name), Some(crate::import::model::Attribute::Int(1)))
}

/// Where the parameters among an ATen operator's arguments go: (argument, ONNX operator, input).
type Roles = &'static [(usize, &'static str, usize)];

/// An operand of a commutative operator, on either side.
const EITHER: usize = usize::MAX;

fn roles(target: &str) -> Option<Roles> {
    const LINEAR: Roles = &[(1, "MatMul", 1), (1, "Gemm", 1), (1, "Transpose", 0), (2, "Gemm", 2), (2, "Add", EITHER)];
    const ADDMM: Roles = &[(0, "Gemm", 2), (0, "Add", EITHER), (2, "Gemm", 1), (2, "MatMul", 1)];
    const LAYER_NORM: Roles =
        &[(2, "LayerNormalization", 1), (3, "LayerNormalization", 2), (2, "RMSNormalization", 1), (2, "Mul", EITHER), (3, "Add", EITHER)];
    const GROUP_NORM: Roles = &[(2, "GroupNormalization", 1), (3, "GroupNormalization", 2), (2, "Mul", EITHER), (3, "Add", EITHER)];
    // Folded into the product before it, only the bias is left: it has the same gradient.
    const BATCH_NORM: Roles =
        &[(1, "BatchNormalization", 1), (2, "BatchNormalization", 2), (2, "Conv", 2), (2, "ConvTranspose", 2), (2, "Gemm", 2)];
    const INSTANCE_NORM: Roles = &[(1, "InstanceNormalization", 1), (2, "InstanceNormalization", 2)];
    const CONV: Roles = &[(1, "Conv", 1), (2, "Conv", 2), (1, "ConvTranspose", 1), (2, "ConvTranspose", 2), (2, "Add", EITHER)];
    const EMBEDDING: Roles = &[(0, "Gather", 0)];
    const PRELU: Roles = &[(1, "PRelu", 1)];
    Some(match target {
        "aten.linear" => LINEAR,
        "aten.addmm" => ADDMM,
        "aten.layer_norm" | "aten.native_layer_norm" | "aten.rms_norm" => LAYER_NORM,
        "aten.group_norm" | "aten.native_group_norm" => GROUP_NORM,
        "aten.batch_norm" | "aten._native_batch_norm_legit_no_training" | "aten._native_batch_norm_legit" => BATCH_NORM,
        "aten.instance_norm" => INSTANCE_NORM,
        "aten.conv1d" | "aten.conv2d" | "aten.conv3d" | "aten.convolution" | "aten.conv_transpose2d" | "aten.conv_transpose1d" => CONV,
        "aten.embedding" => EMBEDDING,
        "aten.prelu" | "aten._prelu_kernel" => PRELU,
        _ => return None,
    })
}

/// True if argument `arg` of the traced node is what input `input` of the ONNX node reads.
pub fn plays(fx: &FxNode, arg: usize, n: &ModelNode, input: usize) -> bool {
    let fits = |&(a, op, i): &(usize, &str, usize)| a == arg && op == n.op && (i == input || i == EITHER);
    roles(&fx.target).is_some_and(|roles| roles.iter().any(fits))
}

/// True for the shape of a vector that scales or shifts the channels of an image.
fn is_channels(i: &Initializer) -> bool {
    matches!(i.shape[..], [n, 1, 1] if n > 1)
}
