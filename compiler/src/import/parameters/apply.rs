//! Rewrites a model so that each parameter is one initializer, in PyTorch's shape where that is known.

use super::{Form, Found, ParameterSpec, Use, forms, fresh, listed, value_names};
use crate::graph::{ConstData, Init};
use crate::import::model::{Elem, Initializer, Model, ModelNode};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// The uses of a parameter that read one initializer in one form.
type Readers = BTreeMap<(Form, String), Vec<Use>>;

struct Rewriter<'a> {
    model: &'a mut Model,
    taken: HashSet<String>,
    by_name: HashMap<String, usize>,
    /// How many different parameters, plus one for uses that are none, read each initializer.
    readers: HashMap<String, usize>,
    /// Nodes that compute what other nodes read from the parameters.
    derived: Vec<ModelNode>,
    /// Parameters that were found with one added, and those found as rows of a table.
    plus_one: Vec<String>,
    looked_up: Vec<String>,
}

/// Gives each parameter of `found` its initializer.
///
/// # Errors
/// A sentence, when a weight file cannot be read.
pub fn apply(model: &mut Model, found: &Found, notes: &mut Vec<String>) -> Result<Vec<ParameterSpec>, String> {
    let mut parameters: BTreeMap<usize, Readers> = BTreeMap::new();
    for (&u, b) in &found.uses {
        let initializer = model.nodes[u.node].inputs[u.input].clone();
        parameters.entry(b.parameter).or_default().entry((b.form, initializer)).or_default().push(u);
    }
    let taken = value_names(model);
    let by_name = model.initializers.iter().enumerate().map(|(i, init)| (init.name.clone(), i)).collect();
    let readers = readers(model, found);
    let mut rewriter = Rewriter { model, taken, by_name, readers, derived: vec![], plus_one: vec![], looked_up: vec![] };
    let mut specs = vec![];
    for (parameter, readers) in parameters {
        specs.push(rewriter.parameter(&found.names[parameter], readers)?);
    }
    let Rewriter { mut derived, model, plus_one, looked_up, .. } = rewriter;
    if !plus_one.is_empty() {
        notes.push(format!("stored with one added, which is taken off and added in the graph: {}", listed(&plus_one)));
    }
    if !looked_up.is_empty() {
        let list = listed(&looked_up);
        notes.push(format!("of these tables the file holds only the rows that the graph reads, and only those are trained: {list}"));
    }
    derived.append(&mut model.nodes);
    model.nodes = derived;
    Ok(specs)
}

fn readers(model: &Model, found: &Found) -> HashMap<String, usize> {
    let mut by: HashMap<&str, HashSet<Option<usize>>> = HashMap::new();
    for (node, n) in model.nodes.iter().enumerate() {
        for (input, name) in n.inputs.iter().enumerate() {
            by.entry(name).or_default().insert(found.uses.get(&Use { node, input }).map(|b| b.parameter));
        }
    }
    for o in &model.outputs {
        by.entry(&o.name).or_default().insert(None);
    }
    by.into_iter().map(|(name, who)| (name.to_string(), who.len())).collect()
}

impl Rewriter<'_> {
    fn parameter(&mut self, name: &str, readers: Readers) -> Result<ParameterSpec, String> {
        // `Same` sorts first: a use in PyTorch's own orientation decides it for all.
        let (form, source) = readers.keys().next().cloned().unwrap_or((Form::Same, name.to_string()));
        let transposed = readers.keys().all(|(form, _)| *form == Form::Transposed);
        let held = if transposed { Form::Same } else { form };
        let alike: Vec<&String> = readers.keys().filter(|(f, _)| *f == form).map(|(_, source)| source).collect();
        let (initializer, own) = self.outside(name, &source, &alike, held)?;
        for ((read, source), uses) in &readers {
            let as_held = transposed || (own == Form::Same && *read == form);
            let value = self.derive(&initializer, source, if as_held { Form::Same } else { *read })?;
            for u in uses {
                self.model.nodes[u.node].inputs[u.input] = value.clone();
            }
        }
        let outside_perm = transposed.then(|| vec![1, 0]);
        Ok(ParameterSpec { name: name.to_string(), initializer, outside_perm, trainable: true })
    }

    /// The initializer that holds the parameter as PyTorch has it, made from what nodes read in one form, and the form that was undone.
    fn outside(&mut self, name: &str, source: &str, alike: &[&String], form: Form) -> Result<(String, Form), String> {
        let read: Vec<&Initializer> = alike.iter().map(|s| &self.model.initializers[self.by_name[*s]]).collect();
        let i = self.model.initializers[self.by_name[source]].clone();
        let Some((shape, init)) = forms::undo(&i, &read, form)? else {
            if self.readers.get(&i.name).is_some_and(|&n| n <= 1) {
                return Ok((i.name, Form::Same));
            }
            return Ok((self.add(Initializer { name: name.to_string(), ..i }), Form::Same));
        };
        match form {
            Form::PlusOne => self.plus_one.push(name.to_string()),
            Form::Rows => self.looked_up.push(name.to_string()),
            _ => {}
        }
        Ok((self.add(Initializer { name: name.to_string(), shape, init, ..i }), form))
    }

    fn add(&mut self, mut i: Initializer) -> String {
        i.name = fresh(&mut self.taken, &i.name);
        self.by_name.insert(i.name.clone(), self.model.initializers.len());
        self.model.initializers.push(i);
        self.model.initializers[self.model.initializers.len() - 1].name.clone()
    }

    /// The value that stands for `source`, which was made from the parameter; computed by a new node unless it is the parameter itself.
    fn derive(&mut self, initializer: &str, source: &str, form: Form) -> Result<String, String> {
        let (held, read) = (&self.model.initializers[self.by_name[initializer]], &self.model.initializers[self.by_name[source]]);
        let shape: Vec<i64> = read.shape.iter().map(|&d| d as i64).collect();
        let (op, operand) = match form {
            Form::Same => return Ok(initializer.to_string()),
            Form::Transposed => ("Transpose", None),
            Form::Reshaped => ("Reshape", Some((Elem::I64, ConstData::i64([shape.len() as u64], &shape)))),
            Form::Repeated => ("Expand", Some((Elem::I64, ConstData::i64([shape.len() as u64], &shape)))),
            Form::Rows => ("Gather", Some((Elem::I64, forms::index(read, held)?))),
            Form::PlusOne => ("Add", Some((held.elem, forms::one(held)?))),
        };
        let name = fresh(&mut self.taken, &format!("{initializer}.{}", op.to_lowercase()));
        let mut inputs = vec![initializer.to_string()];
        if let Some((elem, data)) = operand {
            let shape = data.ty.shape.clone();
            let constant =
                Initializer { name: format!("{name}.operand"), elem, shape, init: Init::Data(Arc::new(data)), declared_parameter: false };
            inputs.push(self.add(constant));
        }
        self.derived.push(ModelNode { op: op.into(), name: name.clone(), inputs, outputs: vec![name.clone()], ..Default::default() });
        Ok(name)
    }
}
