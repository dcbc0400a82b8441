//! A model as its file has it: ONNX operators by name, before any meaning is given to them. ONNX and JSON both become this.

use crate::graph::Init;
use std::collections::BTreeMap;

/// A model file's contents.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub name: String,
    /// Version of the default operator set.
    pub opset: i64,
    pub inputs: Vec<ModelInput>,
    pub initializers: Vec<Initializer>,
    /// In topological order (import sorts, and refuses cycles); functions inlined.
    pub nodes: Vec<ModelNode>,
    pub outputs: Vec<ModelOutput>,
    /// Graph metadata (`pkg.torch.export.ExportedProgram.graph_signature`, ...).
    pub metadata: BTreeMap<String, String>,
    /// Hash of the file's bytes, hexadecimal SHA-256.
    pub sha256: String,
}

/// A graph input.
#[derive(Clone, Debug)]
pub struct ModelInput {
    pub name: String,
    pub elem: Elem,
    /// Bound and symbolic extents.
    pub shape: Vec<Dim>,
}

/// A graph output; the declared type may be missing.
#[derive(Clone, Debug)]
pub struct ModelOutput {
    pub name: String,
    pub elem: Option<Elem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    Known(u64),
    Symbol(String),
}

/// ONNX element types; those beyond `fp8c_kernels::DType` are refused or converted where they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    F32,
    F16,
    Bf16,
    F64,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// Strings, complex numbers, 4- and 8-bit floats: ONNX's code.
    Other(i32),
}

/// A constant tensor of the file.
#[derive(Clone, Debug)]
pub struct Initializer {
    pub name: String,
    pub elem: Elem,
    pub shape: Vec<u64>,
    /// Data in memory, a range of a mapped file, or (JSON models) a recipe.
    pub init: Init,
    /// JSON `parameters` are trainable by declaration; for ONNX this is found out (see `parameters.rs`).
    pub declared_parameter: bool,
}

/// An operator application.
#[derive(Clone, Debug, Default)]
pub struct ModelNode {
    pub op: String,
    /// Empty for the default operator set.
    pub domain: String,
    pub name: String,
    /// Empty string: an optional input that is absent.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: BTreeMap<String, Attribute>,
    pub metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    String(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<String>),
    Tensor {
        elem: Elem,
        shape: Vec<u64>,
        bytes: Vec<u8>,
    },
    /// A subgraph or another kind that no accepted operator takes.
    Unsupported(&'static str),
}
