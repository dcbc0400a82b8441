//! ONNX files to [`Model`].

pub mod external;
mod functions;
mod tensor;

pub use tensor::constant;

use super::model::{Attribute, Dim, Elem, Initializer, Model, ModelInput, ModelNode, ModelOutput};
use super::{sort, wire};
use crate::Error;
use external::ExternalFiles;
use fp8c_runtime::files::Input;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::dimension;
use onnx_protobuf::{AttributeProto, GraphProto, Message, ModelProto, NodeProto, StringStringEntryProto, ValueInfoProto, type_proto};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::io::{BufReader, Read};
use std::path::Path;

/// Operator set versions that are understood.
pub const OPSETS: std::ops::RangeInclusive<i64> = 13..=23;
/// ONNX IR versions that are understood: 3 brought operator-set imports, 13 is that of ONNX 1.20.
const IR_VERSIONS: std::ops::RangeInclusive<i64> = 3..=13;

/// Reads an ONNX file.
///
/// # Errors
/// [`Error::Runtime`] when the file cannot be read, [`Error::Model`] when it is damaged, of another version, or uses what is not
/// supported (subgraph-free dense models of opset 13 to 23 are).
pub fn read(path: &Path) -> Result<Model, Error> {
    let (proto, sha256) = parse(path)?;
    model_of(proto, path, sha256)
}

/// Reads an ONNX file, and gives the message that it holds too.
///
/// # Errors
/// As [`read`].
pub fn read_with_message(path: &Path) -> Result<(ModelProto, Model), Error> {
    let (proto, sha256) = parse(path)?;
    let model = model_of(proto.clone(), path, sha256)?;
    Ok((proto, model))
}

fn model_of(proto: ModelProto, path: &Path, sha256: String) -> Result<Model, Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    convert(proto, &mut ExternalFiles::new(folder), sha256).map_err(|reason| Error::Model { path: path.display().to_string(), reason })
}

/// The message in a file, and the file's digest.
fn parse(path: &Path) -> Result<(ModelProto, String), Error> {
    let model = |reason| Error::Model { path: path.display().to_string(), reason };
    let input = Input::open(path)?;
    let sha256 = {
        let bytes = input.read_all()?;
        wire::check(&bytes).map_err(model)?;
        Sha256::digest(&bytes)
    };
    // Parsing from a reader keeps one copy of the weights, from a slice two. What is parsed is what was checked: it has the same digest.
    let mut reader = Digesting { inner: input.section(0..input.bytes()), digest: Sha256::new() };
    let parsed = ModelProto::parse_from_reader(&mut BufReader::new(&mut reader));
    if reader.digest.finalize() != sha256 {
        return Err(model("was changed while it was read".into()));
    }
    let proto = parsed.map_err(|e| model(format!("is not an ONNX file: {e}")))?;
    Ok((proto, hex(&sha256)))
}

/// A reader that digests what passes.
struct Digesting<R> {
    inner: R,
    digest: Sha256,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.inner.read(out)?;
        self.digest.update(&out[..bytes]);
        Ok(bytes)
    }
}

/// Reads an ONNX model from memory; external data is refused.
///
/// # Errors
/// A sentence without a subject.
pub fn read_bytes(bytes: &[u8]) -> Result<Model, String> {
    wire::check(bytes)?;
    let proto = ModelProto::parse_from_bytes(bytes).map_err(|e| format!("is not an ONNX file: {e}"))?;
    convert(proto, &mut ExternalFiles::none(), hex(&Sha256::digest(bytes)))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn convert(mut proto: ModelProto, files: &mut ExternalFiles, sha256: String) -> Result<Model, String> {
    if !IR_VERSIONS.contains(&proto.ir_version) {
        let range = (IR_VERSIONS.start(), IR_VERSIONS.end());
        return Err(format!("has the ONNX IR version {}; {} to {} are supported", proto.ir_version, range.0, range.1));
    }
    let opset = default_opset(&proto)?;
    if !OPSETS.contains(&opset) {
        return Err(format!("uses ONNX operator set {opset}; {} to {} are supported", OPSETS.start(), OPSETS.end()));
    }
    let functions = functions::Functions::new(std::mem::take(&mut proto.functions), opset)?;
    let graph = proto.graph.take().ok_or("holds no graph")?;
    let GraphProto { node, name, initializer, sparse_initializer, input, output, value_info, metadata_props, .. } = graph;
    if let Some(sparse) = sparse_initializer.first() {
        return Err(format!("has the sparse initializer {:?}; only dense ones are supported", sparse.values.name));
    }
    let mut metadata = entries(proto.metadata_props);
    metadata.extend(entries(metadata_props));
    let value_metadata = [&input, &value_info].into_iter().flatten().filter(|v| !v.metadata_props.is_empty());
    let value_metadata = value_metadata.map(|v| (v.name.clone(), entries(v.metadata_props.clone()))).collect();
    let initializers: Vec<Initializer> = initializer.into_iter().map(|t| tensor::initializer(t, files)).collect::<Result<_, _>>()?;
    // Before IR 4 initializers had to be listed as inputs too: those are defaults, not fed.
    let preset: HashSet<&str> = initializers.iter().map(|i| i.name.as_str()).collect();
    let inputs = input.iter().filter(|i| !preset.contains(i.name.as_str())).map(graph_input).collect::<Result<_, _>>()?;
    let outputs = output.iter().map(|o| ModelOutput { name: o.name.clone(), elem: tensor_type(o).map(|t| Elem::from_onnx(t.elem_type)) });
    let outputs = outputs.collect();
    let nodes = functions.inline(node.into_iter().map(|n| self::node(n, files)).collect::<Result<_, _>>()?, files)?;
    let mut model = Model { name, opset, inputs, initializers, nodes, outputs, metadata, value_metadata, sha256 };
    sort::normalise(&mut model)?;
    Ok(model)
}

fn default_opset(proto: &ModelProto) -> Result<i64, String> {
    let mut versions = proto.opset_import.iter().filter(|o| is_default(&o.domain)).map(|o| o.version);
    let first = versions.next().ok_or("imports no version of the ONNX operator set")?;
    match versions.find(|&v| v != first) {
        None => Ok(first),
        Some(other) => Err(format!("imports two versions of the ONNX operator set, {first} and {other}")),
    }
}

fn is_default(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

fn entries(props: Vec<StringStringEntryProto>) -> BTreeMap<String, String> {
    props.into_iter().map(|e| (e.key, e.value)).collect()
}

fn tensor_type(v: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match v.type_.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => Some(t),
        _ => None,
    }
}

fn graph_input(v: &ValueInfoProto) -> Result<ModelInput, String> {
    let fail = |what: &str| format!("has the input {:?}, {what}", v.name);
    let ty = tensor_type(v).ok_or_else(|| fail("which is not a tensor"))?;
    let shape = ty.shape.as_ref().ok_or_else(|| fail("whose rank is not given"))?;
    let dim = |(axis, d): (usize, &onnx_protobuf::tensor_shape_proto::Dimension)| match &d.value {
        Some(dimension::Value::DimValue(n)) => u64::try_from(*n).map(Dim::Known).map_err(|_| fail("which has a negative extent")),
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Ok(Dim::Symbol(name.clone())),
        _ => Ok(Dim::Symbol(format!("{}.{axis}", v.name))),
    };
    let shape = shape.dim.iter().enumerate().map(dim).collect::<Result<_, _>>()?;
    Ok(ModelInput { name: v.name.clone(), elem: Elem::from_onnx(ty.elem_type), shape })
}

/// A node as the file has it, but for the names of absent optional outputs, which stay empty.
fn node(n: NodeProto, files: &mut ExternalFiles) -> Result<ModelNode, String> {
    let mut attributes = BTreeMap::new();
    for a in n.attribute {
        let (name, of) = (a.name.clone(), n.name.clone());
        let value = attribute(a, files).map_err(|e| format!("has the node {of:?} whose attribute {name:?} {e}"))?;
        attributes.insert(name, value);
    }
    let domain = if is_default(&n.domain) { String::new() } else { n.domain };
    let metadata = entries(n.metadata_props);
    Ok(ModelNode { op: n.op_type, domain, name: n.name, inputs: n.input, outputs: n.output, attributes, metadata })
}

fn attribute(a: AttributeProto, files: &mut ExternalFiles) -> Result<Attribute, String> {
    let text = |b: Vec<u8>| String::from_utf8(b).map_err(|_| "is not UTF-8 text".to_string());
    if !a.ref_attr_name.is_empty() {
        return Ok(Attribute::Unsupported("a reference to an attribute outside of a function"));
    }
    Ok(match a.type_.enum_value() {
        Ok(AttributeType::FLOAT) => Attribute::Float(a.f),
        Ok(AttributeType::INT) => Attribute::Int(a.i),
        Ok(AttributeType::STRING) => Attribute::String(text(a.s)?),
        Ok(AttributeType::TENSOR) => tensor::attribute(a.t.into_option().unwrap_or_default(), files)?,
        Ok(AttributeType::FLOATS) => Attribute::Floats(a.floats),
        Ok(AttributeType::INTS) => Attribute::Ints(a.ints),
        Ok(AttributeType::STRINGS) => Attribute::Strings(a.strings.into_iter().map(text).collect::<Result<_, _>>()?),
        Ok(AttributeType::GRAPH | AttributeType::GRAPHS) => Attribute::Unsupported("a subgraph"),
        Ok(AttributeType::SPARSE_TENSOR | AttributeType::SPARSE_TENSORS) => Attribute::Unsupported("a sparse tensor"),
        Ok(AttributeType::TENSORS) => Attribute::Unsupported("a list of tensors"),
        Ok(_) | Err(_) => Attribute::Unsupported("an attribute of unknown type"),
    })
}
