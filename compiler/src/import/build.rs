//! Models made node by node.

use super::model::{Attribute, Elem, Initializer, Model, ModelNode};
use crate::graph::{ConstData, Init};
use std::sync::Arc;

/// Attributes of a node.
pub type Attributes<'a> = &'a [(&'a str, Attribute)];

/// Adds one part after the other to a model.
#[derive(Default)]
pub struct ModelBuilder {
    pub model: Model,
}

impl ModelBuilder {
    fn initializer(&mut self, name: &str, elem: Elem, shape: &[u64], init: Init, declared_parameter: bool) -> String {
        self.model.initializers.push(Initializer { name: name.into(), elem, shape: shape.to_vec(), init, declared_parameter });
        name.into()
    }

    /// Adds an f32 parameter; one that is there already is read again.
    pub fn parameter(&mut self, name: &str, shape: &[u64], init: Init) -> String {
        match self.has(name) {
            true => name.into(),
            false => self.initializer(name, Elem::F32, shape, init, true),
        }
    }

    /// Adds a vector of integers.
    pub fn ints(&mut self, name: &str, data: &[i64]) -> String {
        let data = ConstData::i64([data.len() as u64], data);
        self.initializer(name, Elem::I64, &data.ty.shape.clone(), Init::Data(Arc::new(data)), false)
    }

    /// Adds an integer without axes.
    pub fn int(&mut self, name: &str, n: i64) -> String {
        self.initializer(name, Elem::I64, &[], Init::Data(Arc::new(ConstData::i64([], &[n]))), false)
    }

    /// Adds a vector of floats.
    pub fn floats(&mut self, name: &str, data: &[f32]) -> String {
        let shape = [data.len() as u64];
        self.initializer(name, Elem::F32, &shape, Init::Data(Arc::new(ConstData::f32(shape, data))), false)
    }

    /// Adds a float without axes.
    pub fn float(&mut self, name: &str, x: f32) -> String {
        self.initializer(name, Elem::F32, &[], Init::Data(Arc::new(ConstData::f32([], &[x]))), false)
    }

    /// Whether an initializer has this name.
    pub fn has(&self, name: &str) -> bool {
        self.model.initializers.iter().any(|i| i.name == name)
    }

    /// Adds a node named after its first output.
    pub fn node(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: Attributes) -> String {
        let owned = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let attributes = attributes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
        let (inputs, outputs, name) = (owned(inputs), owned(outputs), outputs[0].to_string());
        self.model.nodes.push(ModelNode { op: op.into(), name: name.clone(), inputs, outputs, attributes, ..Default::default() });
        name
    }
}
