//! Rewrites a model so that each parameter is one initializer, in PyTorch's shape where that is known.

use super::{Form, Found, ParameterSpec, Use, elements, fresh, value_names};
use crate::graph::{ConstData, Init, TensorType};
use crate::import::model::{Elem, Initializer, Model, ModelNode};
use fp8c_kernels::DType;
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
    notes: &'a mut Vec<String>,
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
    let mut rewriter = Rewriter { model, taken, by_name, readers, derived: vec![], notes };
    let mut specs = vec![];
    for (parameter, readers) in parameters {
        specs.push(rewriter.parameter(&found.names[parameter], readers)?);
    }
    let Rewriter { mut derived, model, .. } = rewriter;
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
        let original = self.model.initializers[self.by_name[&source]].clone();
        let own = if transposed { Form::Same } else { form };
        let (initializer, own) = self.outside(name, original, own)?;
        for ((read, _), uses) in &readers {
            let as_held = transposed || (own == Form::Same && *read == form);
            let value = self.derive(&initializer, if as_held { Form::Same } else { *read }, uses)?;
            for u in uses {
                self.model.nodes[u.node].inputs[u.input] = value.clone();
            }
        }
        let outside_perm = transposed.then(|| vec![1, 0]);
        Ok(ParameterSpec { name: name.to_string(), initializer, outside_perm, trainable: true })
    }

    /// The initializer that holds the parameter as PyTorch has it, made from one that a node reads in some form, and the form that
    /// was undone.
    fn outside(&mut self, name: &str, i: Initializer, form: Form) -> Result<(String, Form), String> {
        let undone = match form {
            Form::Same => None,
            Form::Transposed => Some(transposed(&i)?),
            Form::Reshaped => Some(flat(&i)?),
            Form::Repeated => repeated(&i)?,
            Form::PlusOne => Some(minus_one(&i)?),
        };
        let Some((shape, init)) = undone else {
            if self.readers.get(&i.name).is_some_and(|&n| n <= 1) {
                return Ok((i.name, Form::Same));
            }
            return Ok((self.add(Initializer { name: name.to_string(), ..i }), Form::Same));
        };
        if form == Form::PlusOne {
            self.notes.push(format!("{name} was stored with one added to it; one is taken off and added again in the graph"));
        }
        Ok((self.add(Initializer { name: name.to_string(), shape, init, ..i }), form))
    }

    fn add(&mut self, mut i: Initializer) -> String {
        i.name = fresh(&mut self.taken, &i.name);
        self.by_name.insert(i.name.clone(), self.model.initializers.len());
        self.model.initializers.push(i);
        self.model.initializers[self.model.initializers.len() - 1].name.clone()
    }

    /// The value that reads the parameter in a form, computed by a new node unless that is the initializer itself.
    fn derive(&mut self, initializer: &str, form: Form, uses: &[Use]) -> Result<String, String> {
        let read = uses.first().map(|u| self.model.nodes[u.node].inputs[u.input].clone()).unwrap_or_default();
        let shape: Vec<i64> =
            self.by_name.get(&read).map(|&i| self.model.initializers[i].shape.iter().map(|&d| d as i64).collect()).unwrap_or_default();
        let (op, operand) = match form {
            Form::Same => return Ok(initializer.to_string()),
            Form::Transposed => ("Transpose", None),
            Form::Reshaped => ("Reshape", Some(ConstData::i64([shape.len() as u64], &shape))),
            Form::Repeated => ("Expand", Some(ConstData::i64([shape.len() as u64], &shape))),
            Form::PlusOne => ("Add", Some(ConstData::f32([], &[1.0]))),
        };
        let name = fresh(&mut self.taken, &format!("{initializer}.{}", op.to_lowercase()));
        let mut inputs = vec![initializer.to_string()];
        if let Some(data) = operand {
            let elem = if data.ty.dtype == DType::I64 { Elem::I64 } else { Elem::F32 };
            let shape = data.ty.shape.clone();
            let constant =
                Initializer { name: format!("{name}.operand"), elem, shape, init: Init::Data(Arc::new(data)), declared_parameter: false };
            inputs.push(self.add(constant));
        }
        self.derived.push(ModelNode { op: op.into(), name: name.clone(), inputs, outputs: vec![name.clone()], ..Default::default() });
        Ok(name)
    }
}

type Undone = (Vec<u64>, Init);

fn data(shape: Vec<u64>, dtype: DType, bytes: Vec<u8>) -> Undone {
    (shape.clone(), Init::Data(Arc::new(ConstData { ty: TensorType::new(dtype, shape), bytes })))
}

fn transposed(i: &Initializer) -> Result<Undone, String> {
    let d = elements(i)?;
    let (rows, cols, size) = (i.shape[0] as usize, i.shape[1] as usize, d.ty.dtype.size() as usize);
    let mut bytes = Vec::with_capacity(d.bytes.len());
    for c in 0..cols {
        for r in 0..rows {
            let at = (r * cols + c) * size;
            bytes.extend_from_slice(&d.bytes[at..at + size]);
        }
    }
    Ok(data(vec![i.shape[1], i.shape[0]], d.ty.dtype, bytes))
}

fn flat(i: &Initializer) -> Result<Undone, String> {
    let d = elements(i)?;
    Ok(data(vec![d.ty.elements()], d.ty.dtype, d.bytes.clone()))
}

/// The first of the equal slices along the first axis; none if they are not equal.
fn repeated(i: &Initializer) -> Result<Option<Undone>, String> {
    let d = elements(i)?;
    let Some(&n) = i.shape.first().filter(|&&n| n > 1) else { return Ok(None) };
    let slice = d.bytes.len() / n as usize;
    if slice == 0 || !d.bytes.chunks_exact(slice).all(|c| c == &d.bytes[..slice]) {
        return Ok(None);
    }
    let shape = std::iter::once(1).chain(i.shape[1..].iter().copied()).collect();
    Ok(Some(data(shape, d.ty.dtype, d.bytes[..slice].to_vec())))
}

fn minus_one(i: &Initializer) -> Result<Undone, String> {
    let d = elements(i)?;
    let values = d.to_f32().into_iter().map(|x| x - 1.0);
    let bytes = match d.ty.dtype {
        DType::Bf16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    };
    Ok(data(i.shape.clone(), d.ty.dtype, bytes))
}
