//! A model as its file has it: ONNX operators by name, before any meaning is given to them. ONNX and JSON both become this.

use crate::graph::Init;
use fp8c_kernels::DType;
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
    /// Metadata of values, initializers among them, by name (`pkg.onnxscript.optimizer.folded_from`, ...).
    pub value_metadata: BTreeMap<String, BTreeMap<String, String>>,
    /// Hash of the file's bytes, hexadecimal SHA-256.
    pub sha256: String,
}

impl Elem {
    /// The type that names a storage of the graph.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::I64 => Elem::I64,
            DType::I32 => Elem::I32,
            DType::Bool => Elem::Bool,
            DType::Bf16 => Elem::Bf16,
            DType::F32 | DType::E4m3 => Elem::F32,
        }
    }

    /// The type of an ONNX `TensorProto.DataType` code.
    pub fn from_onnx(code: i32) -> Self {
        use Elem::*;
        match code {
            1 => F32,
            2 => U8,
            3 => I8,
            4 => U16,
            5 => I16,
            6 => I32,
            7 => I64,
            9 => Bool,
            10 => F16,
            11 => F64,
            12 => U32,
            13 => U64,
            16 => Bf16,
            other => Other(other),
        }
    }

    /// Inverse of [`Elem::from_onnx`].
    pub fn to_onnx(self) -> i32 {
        match self {
            Elem::Other(code) => code,
            known => (1..=16).find(|&code| Elem::from_onnx(code) == known).unwrap_or_default(),
        }
    }

    /// The name used by JSON models and in messages.
    pub fn name(self) -> String {
        match NAMES.iter().find(|(e, _)| *e == self) {
            Some((_, name)) => (*name).to_string(),
            None => format!("{self:?}"),
        }
    }

    /// Inverse of [`Elem::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n)| *n == name).map(|(e, _)| *e)
    }

    /// Bytes of one element; none for types that are not stored in whole bytes here.
    pub fn size(self) -> Option<u64> {
        use Elem::*;
        Some(match self {
            F64 | I64 | U64 => 8,
            F32 | I32 | U32 => 4,
            F16 | Bf16 | I16 | U16 => 2,
            I8 | U8 | Bool => 1,
            Other(_) => return None,
        })
    }

    pub fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F16 | Elem::Bf16 | Elem::F64)
    }

    /// The storage that the graph gives to elements of this type: the narrowest that holds every value, f32 for f16 and (rounded) f64.
    pub fn dtype(self) -> Option<DType> {
        use Elem::*;
        Some(match self {
            F32 | F16 | F64 => DType::F32,
            Bf16 => DType::Bf16,
            I64 | U64 | U32 => DType::I64,
            I32 | I16 | I8 | U16 | U8 => DType::I32,
            Bool => DType::Bool,
            Other(_) => return None,
        })
    }
}

const NAMES: [(Elem, &str); 13] = [
    (Elem::F32, "float32"),
    (Elem::F16, "float16"),
    (Elem::Bf16, "bfloat16"),
    (Elem::F64, "float64"),
    (Elem::I64, "int64"),
    (Elem::I32, "int32"),
    (Elem::I16, "int16"),
    (Elem::I8, "int8"),
    (Elem::U64, "uint64"),
    (Elem::U32, "uint32"),
    (Elem::U16, "uint16"),
    (Elem::U8, "uint8"),
    (Elem::Bool, "bool"),
];

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

impl Initializer {
    /// Number of elements, saturating.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d))
    }
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
    /// Little-endian elements, stored as `elem` says (two bytes for F16, ...).
    Tensor {
        elem: Elem,
        shape: Vec<u64>,
        bytes: Vec<u8>,
    },
    /// A subgraph or another kind that no accepted operator takes.
    Unsupported(&'static str),
}
