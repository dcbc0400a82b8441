//! The JSON form of a model: ONNX operators and attributes, parameters with recipes for their initial values.
//!
//! ```json
//! {"format": "fp8c-graph", "version": 1, "opset": 23,
//!  "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
//!  "parameters": [{"name": "w", "dtype": "float32", "shape": [4, 2], "init": {"normal": {"std": 0.02}}}],
//!  "constants": [{"name": "axes", "dtype": "int64", "shape": [1], "data": [-1]}],
//!  "nodes": [{"op": "MatMul", "inputs": ["x", "w"], "outputs": ["y"], "attributes": {"axis": 0}}],
//!  "outputs": ["y"]}
//! ```
//!
//! An attribute is a number, a text, or a list of either; a whole number is an ONNX `int` unless written with a point. A tensor is
//! `{"dtype": .., "shape": .., "data": ..}`. `file` recipes name a safetensors file relative to the model's.

use super::model::{Attribute, Dim, Elem, Initializer, Model, ModelInput, ModelNode, ModelOutput};
use super::onnx::external::ExternalFiles;
use super::{onnx, sort};
use crate::Error;
use crate::graph::{ConstData, Init, SourceDType};
use fp8c_kernels::DType;
use fp8c_runtime::files;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const FORMAT: &str = "fp8c-graph";
const VERSION: u32 = 1;
/// Longest header of a safetensors file, as its own library has it.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    opset: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    inputs: Vec<Input>,
    #[serde(default)]
    parameters: Vec<Parameter>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    constants: Vec<Constant>,
    nodes: Vec<Node>,
    outputs: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    name: String,
    dtype: String,
    shape: Vec<Extent>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Extent {
    Known(u64),
    Symbol(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameter {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    init: Recipe,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Recipe {
    Zeros,
    Ones,
    Normal {
        std: f32,
    },
    Uniform {
        low: f32,
        high: f32,
    },
    File {
        path: String,
        tensor: String,
    },
    /// The elements themselves; for small tensors.
    Data(Json),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Constant {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    data: Json,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    op: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    domain: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<String, Json>,
}

/// Reads a JSON model; weight files are relative to its folder.
///
/// # Errors
/// [`Error::Runtime`] when it cannot be read, [`Error::Model`] when it is not such a model.
pub fn read(path: &Path) -> Result<Model, Error> {
    let text = files::Input::open(path)?.read_all()?;
    let folder = path.parent().unwrap_or(Path::new("."));
    parse(&text, &mut ExternalFiles::new(folder)).map_err(|reason| Error::Model { path: path.display().to_string(), reason })
}

/// Reads a JSON model from memory.
///
/// # Errors
/// A sentence without a subject.
pub fn parse(text: &[u8], files: &mut ExternalFiles) -> Result<Model, String> {
    let file: File = serde_json::from_slice(text).map_err(|e| format!("is not a JSON model: {e}"))?;
    if file.format != FORMAT || file.version != VERSION {
        return Err(format!("is {:?} version {}, but {FORMAT:?} version {VERSION} is supported", file.format, file.version));
    }
    if !onnx::OPSETS.contains(&file.opset) {
        return Err(format!("uses ONNX operator set {}; {} to {} are supported", file.opset, onnx::OPSETS.start(), onnx::OPSETS.end()));
    }
    let mut model = Model { name: file.name, opset: file.opset, sha256: onnx::hex(&Sha256::digest(text)), ..Model::default() };
    for i in file.inputs {
        let shape = i.shape.into_iter().map(|d| match d {
            Extent::Known(n) => Dim::Known(n),
            Extent::Symbol(name) => Dim::Symbol(name),
        });
        model.inputs.push(ModelInput { elem: elem(&i.name, &i.dtype)?, shape: shape.collect(), name: i.name });
    }
    for p in file.parameters {
        model.initializers.push(parameter(p, files)?);
    }
    for c in file.constants {
        let elem = elem(&c.name, &c.dtype)?;
        let init = literal(elem, &c.shape, &c.data).map_err(|e| format!("has the constant {:?} that {e}", c.name))?;
        model.initializers.push(Initializer { name: c.name, elem, shape: c.shape, init, declared_parameter: false });
    }
    for n in file.nodes {
        let attributes =
            n.attributes.iter().map(|(k, v)| Ok((k.clone(), attribute(v).map_err(|e| format!("has the attribute {k:?} that {e}"))?)));
        let attributes = attributes.collect::<Result<_, String>>()?;
        let metadata = BTreeMap::new();
        model.nodes.push(ModelNode {
            op: n.op,
            domain: n.domain,
            name: n.name,
            inputs: n.inputs,
            outputs: n.outputs,
            attributes,
            metadata,
        });
    }
    model.outputs = file.outputs.into_iter().map(|name| ModelOutput { name, elem: None }).collect();
    sort::normalise(&mut model)?;
    Ok(model)
}

fn elem(of: &str, name: &str) -> Result<Elem, String> {
    Elem::from_name(name).ok_or_else(|| format!("has {of:?} of the unknown dtype {name:?}"))
}

fn parameter(p: Parameter, files: &mut ExternalFiles) -> Result<Initializer, String> {
    let elem = elem(&p.name, &p.dtype)?;
    let fail = |e: String| format!("has the parameter {:?} that {e}", p.name);
    let init = match p.init {
        Recipe::Zeros => Init::Zeros,
        Recipe::Ones => Init::Ones,
        Recipe::Normal { std } => Init::Normal { std },
        Recipe::Uniform { low, high } => Init::Uniform { low, high },
        Recipe::Data(data) => literal(elem, &p.shape, &data).map_err(fail)?,
        Recipe::File { path, tensor } => safetensor(&path, &tensor, &p.shape, files).map_err(fail)?,
    };
    Ok(Initializer { name: p.name, elem, shape: p.shape, init, declared_parameter: true })
}

/// A tensor of a safetensors file as a range of that file.
///
/// # Errors
/// A sentence without a subject.
pub(crate) fn safetensor(path: &str, tensor: &str, shape: &[u64], files: &mut ExternalFiles) -> Result<Init, String> {
    let (file, size) = files.whole(path)?;
    let unreadable = |e: fp8c_runtime::Error| format!("lies in {path}, which cannot be read: {e}");
    let input = files::Input::open(&file).map_err(unreadable)?;
    let mut length = [0; 8];
    input.read_at(0, &mut length).map_err(unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER.min(size) {
        return Err(format!("lies in {path}, which is not a safetensors file"));
    }
    let header = input.read(8..8 + length).map_err(unreadable)?;
    let header: Json = serde_json::from_slice(&header).map_err(|e| format!("lies in {path}, which is not a safetensors file: {e}"))?;
    let about = header.get(tensor).ok_or_else(|| format!("is {tensor:?} in {path}, which has no such tensor"))?;
    let (dtype, width) = match about["dtype"].as_str() {
        Some("F32") => (SourceDType::F32, 4),
        Some("F16") => (SourceDType::F16, 2),
        Some("BF16") => (SourceDType::Bf16, 2),
        Some("F64") => (SourceDType::F64, 8),
        other => return Err(format!("is stored as {other:?} in {path}, which is no float format that can be read")),
    };
    let have: Option<Vec<u64>> = about["shape"].as_array().map(|a| a.iter().filter_map(Json::as_u64).collect());
    if have.as_deref() != Some(shape) {
        return Err(format!("has the shape {shape:?}, but {:?} in {path}", have.unwrap_or_default()));
    }
    let at = |i: usize| about["data_offsets"][i].as_u64().and_then(|o| o.checked_add(8 + length)).filter(|&o| o <= size);
    let need = shape.iter().try_fold(width, |n: u64, &d| n.checked_mul(d));
    match (at(0), at(1)) {
        (Some(from), Some(to)) if to.checked_sub(from) == need && need.is_some() => {
            Ok(Init::File { path: file, offset: from, bytes: to - from, dtype })
        }
        _ => Err(format!("has data offsets in {path} that do not fit its shape")),
    }
}

/// Elements written out, in a flat list (or one number for a scalar).
fn literal(elem: Elem, shape: &[u64], data: &Json) -> Result<Init, String> {
    let list = match data {
        Json::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let need = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    if need != Some(list.len() as u64) {
        return Err(format!("has the shape {shape:?}, but {} elements", list.len()));
    }
    let mut bytes = Vec::with_capacity(list.len() * elem.size().unwrap_or(0) as usize);
    for x in list {
        match elem {
            Elem::F32 => bytes.extend((float(x)? as f32).to_le_bytes()),
            Elem::F64 => bytes.extend(float(x)?.to_le_bytes()),
            Elem::F16 => bytes.extend(half::f16::from_f64(float(x)?).to_le_bytes()),
            Elem::Bf16 => bytes.extend(half::bf16::from_f64(float(x)?).to_le_bytes()),
            Elem::Bool => bytes.push(x.as_bool().ok_or("holds something else than true and false")? as u8),
            _ => {
                let whole = x.as_i64().ok_or("holds something else than whole numbers")?;
                let width = elem.size().unwrap_or(8) as usize;
                bytes.extend_from_slice(&whole.to_le_bytes()[..width]);
            }
        }
    }
    Ok(Init::Data(Arc::new(onnx::constant(elem, shape, bytes)?)))
}

/// JSON has no infinities: they are texts.
fn float(x: &Json) -> Result<f64, String> {
    let special = || match x.as_str()? {
        "inf" => Some(f64::INFINITY),
        "-inf" => Some(f64::NEG_INFINITY),
        "nan" => Some(f64::NAN),
        _ => None,
    };
    x.as_f64().or_else(special).ok_or_else(|| format!("holds {x}, which is no number"))
}

fn attribute(v: &Json) -> Result<Attribute, String> {
    let unknown = || format!("is {v}, which is no ONNX attribute");
    Ok(match v {
        Json::Number(n) if n.is_f64() => Attribute::Float(n.as_f64().unwrap_or_default() as f32),
        Json::Number(n) => Attribute::Int(n.as_i64().ok_or_else(unknown)?),
        Json::Bool(b) => Attribute::Int(i64::from(*b)),
        Json::String(s) => Attribute::String(s.clone()),
        Json::Array(list) if list.iter().all(Json::is_i64) => Attribute::Ints(list.iter().filter_map(Json::as_i64).collect()),
        Json::Array(list) if list.iter().all(Json::is_number) => {
            Attribute::Floats(list.iter().filter_map(Json::as_f64).map(|x| x as f32).collect())
        }
        Json::Array(list) => {
            Attribute::Strings(list.iter().map(|s| s.as_str().map(str::to_string)).collect::<Option<_>>().ok_or_else(unknown)?)
        }
        Json::Object(fields) => {
            let elem = fields.get("dtype").and_then(Json::as_str).and_then(Elem::from_name).ok_or_else(unknown)?;
            let shape = fields.get("shape").and_then(Json::as_array).ok_or_else(unknown)?;
            let shape: Vec<u64> = shape.iter().map(Json::as_u64).collect::<Option<_>>().ok_or_else(unknown)?;
            match literal(elem, &shape, fields.get("data").unwrap_or(&Json::Null))? {
                Init::Data(d) if elem.dtype() == Some(d.ty.dtype) => {
                    Attribute::Tensor { elem: Elem::of(d.ty.dtype), shape, bytes: d.bytes.clone() }
                }
                _ => return Err(unknown()),
            }
        }
        Json::Null => return Err(unknown()),
    })
}

/// Where parameters lie in safetensors files, by name: the file as seen from the model's folder, and the tensor in it.
pub type Places = BTreeMap<String, (String, String)>;

/// Writes a model as JSON, one line a node.
///
/// # Errors
/// A sentence without a subject, when the model holds what the form has no words for (weights in external files, subgraphs).
pub fn write(model: &Model) -> Result<String, String> {
    write_with(model, &Places::new())
}

/// Writes a model as JSON whose weights lie in files.
///
/// # Errors
/// As [`write`], but for the files that `places` names.
pub fn write_with(model: &Model, places: &Places) -> Result<String, String> {
    let file = File {
        format: FORMAT.into(),
        version: VERSION,
        opset: model.opset,
        name: model.name.clone(),
        inputs: model.inputs.iter().map(input_out).collect(),
        parameters: model
            .initializers
            .iter()
            .filter(|i| i.declared_parameter)
            .map(|i| parameter_out(i, places))
            .collect::<Result<_, _>>()?,
        constants: model.initializers.iter().filter(|i| !i.declared_parameter).map(constant_out).collect::<Result<_, _>>()?,
        nodes: model.nodes.iter().map(node_out).collect::<Result<_, _>>()?,
        outputs: model.outputs.iter().map(|o| o.name.clone()).collect(),
    };
    lines(&file).map_err(|e| format!("cannot be written: {e}"))
}

/// One line for each element of the top-level lists.
fn lines(file: &File) -> serde_json::Result<String> {
    let text = |v: &Json| serde_json::to_string(v);
    let mut out = String::from("{");
    let Json::Object(fields) = serde_json::to_value(file)? else { return Ok(out) };
    for (n, key) in FIELDS.iter().filter(|k| fields.contains_key(**k)).enumerate() {
        out.push_str(if n == 0 { "" } else { ",\n " });
        out.push_str(&format!("{}: ", text(&Json::from(*key))?));
        match &fields[*key] {
            Json::Array(list) if list.len() > 1 => {
                let items = list.iter().map(text).collect::<Result<Vec<_>, _>>()?;
                out.push_str(&format!("[\n  {}]", items.join(",\n  ")));
            }
            other => out.push_str(&text(other)?),
        }
    }
    out.push_str("}\n");
    Ok(out)
}

const FIELDS: [&str; 9] = ["format", "version", "opset", "name", "inputs", "parameters", "constants", "nodes", "outputs"];

fn input_out(i: &ModelInput) -> Input {
    let shape = i.shape.iter().map(|d| match d {
        Dim::Known(n) => Extent::Known(*n),
        Dim::Symbol(name) => Extent::Symbol(name.clone()),
    });
    Input { name: i.name.clone(), dtype: i.elem.name(), shape: shape.collect() }
}

fn parameter_out(i: &Initializer, places: &Places) -> Result<Parameter, String> {
    let (init, elem) = match &i.init {
        Init::Zeros => (Recipe::Zeros, i.elem),
        Init::Ones => (Recipe::Ones, i.elem),
        Init::Normal { std } => (Recipe::Normal { std: *std }, i.elem),
        Init::Uniform { low, high } => (Recipe::Uniform { low: *low, high: *high }, i.elem),
        Init::Data(d) => (Recipe::Data(elements_out(d)), Elem::of(d.ty.dtype)),
        Init::File { .. } => match places.get(&i.name).cloned() {
            Some((path, tensor)) => (Recipe::File { path, tensor }, i.elem),
            None => return Err(format!("has the parameter {:?} in another file, which cannot be written as JSON", i.name)),
        },
    };
    Ok(Parameter { name: i.name.clone(), dtype: elem.name(), shape: i.shape.clone(), init })
}

fn constant_out(i: &Initializer) -> Result<Constant, String> {
    let d = super::parameters::elements(i)?;
    Ok(Constant { name: i.name.clone(), dtype: Elem::of(d.ty.dtype).name(), shape: i.shape.clone(), data: elements_out(&d) })
}

fn elements_out(d: &ConstData) -> Json {
    match d.ty.dtype {
        DType::Bool => d.to_i64().into_iter().map(|x| Json::from(x != 0)).collect(),
        dtype if dtype.is_float() => d.to_f32().into_iter().map(float_out).collect(),
        _ => d.to_i64().into_iter().map(Json::from).collect(),
    }
}

/// The shortest number that reads back as this float.
fn float_out(x: f32) -> Json {
    let shortest = x.to_string().parse().ok().and_then(serde_json::Number::from_f64).map(Json::Number);
    shortest.unwrap_or_else(|| {
        Json::from(if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        })
    })
}

fn node_out(n: &ModelNode) -> Result<Node, String> {
    let mut attributes = BTreeMap::new();
    for (key, value) in &n.attributes {
        let written = match value {
            Attribute::Int(i) => Json::from(*i),
            Attribute::Float(x) if x.is_finite() => float_out(*x),
            Attribute::String(s) => Json::from(s.as_str()),
            Attribute::Ints(list) => list.iter().copied().map(Json::from).collect(),
            Attribute::Floats(list) if list.iter().all(|x| x.is_finite()) => list.iter().copied().map(float_out).collect(),
            Attribute::Strings(list) => list.iter().map(String::as_str).map(Json::from).collect(),
            Attribute::Tensor { elem, shape, bytes } => {
                let d = onnx::constant(*elem, shape, bytes.clone()).map_err(|e| format!("has the attribute {key:?} that {e}"))?;
                serde_json::json!({"dtype": Elem::of(d.ty.dtype).name(), "shape": shape, "data": elements_out(&d)})
            }
            Attribute::Float(_) | Attribute::Floats(_) => return Err(format!("has the attribute {key:?}, which is not finite")),
            Attribute::Unsupported(what) => return Err(format!("has the attribute {key:?}, {what}, which cannot be written as JSON")),
        };
        attributes.insert(key.clone(), written);
    }
    let (name, domain) = (n.name.clone(), n.domain.clone());
    Ok(Node { op: n.op.clone(), name, domain, inputs: n.inputs.clone(), outputs: n.outputs.clone(), attributes })
}
