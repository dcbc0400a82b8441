//! Parts of a [`Model`] as ONNX messages.

use crate::graph::{ConstData, Graph};
use crate::import::model::{Attribute, Dim, Elem, Model, ModelInput, ModelNode};
use half::{bf16, f16};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};

/// The IR version of models that came as JSON: that of opset 23.
const IR_VERSION: i64 = 11;

/// A model without its initializers; the types of its outputs are those of its graph.
///
/// # Errors
/// As [`node`].
pub fn model(model: &Model, graph: &Graph) -> Result<ModelProto, String> {
    let output = |o: &crate::graph::Output| {
        let ty = graph.ty(o.value);
        value(&o.name, Elem::of(ty.dtype), ty.shape.iter().map(|&n| Dim::Known(n)))
    };
    let graph = GraphProto {
        name: if model.name.is_empty() { "model".into() } else { model.name.clone() },
        node: model.nodes.iter().map(node).collect::<Result<_, _>>()?,
        input: model.inputs.iter().map(|ModelInput { name, elem, shape }| value(name, *elem, shape.iter().cloned())).collect(),
        output: graph.outputs.iter().map(output).collect(),
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: model.opset, ..OperatorSetIdProto::default() };
    Ok(ModelProto {
        ir_version: IR_VERSION,
        producer_name: "fp8c".into(),
        opset_import: vec![opset],
        graph: Some(graph).into(),
        ..ModelProto::default()
    })
}

fn value(name: &str, elem: Elem, shape: impl Iterator<Item = Dim>) -> ValueInfoProto {
    let dim = |d| {
        let value = match d {
            Dim::Known(n) => dimension::Value::DimValue(n as i64),
            Dim::Symbol(name) => dimension::Value::DimParam(name),
        };
        Dimension { value: Some(value), ..Dimension::default() }
    };
    let shape = TensorShapeProto { dim: shape.map(dim).collect(), ..TensorShapeProto::default() };
    let tensor = type_proto::Tensor { elem_type: elem.to_onnx(), shape: Some(shape).into(), ..type_proto::Tensor::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..ValueInfoProto::default() }
}

/// A node.
///
/// # Errors
/// A sentence without a subject, for an attribute that is kept nowhere.
pub fn node(n: &ModelNode) -> Result<NodeProto, String> {
    let attribute = |(name, value): (&String, &Attribute)| {
        attribute(name, value).ok_or_else(|| format!("has the node {:?} whose attribute {name:?} cannot be written", n.name))
    };
    Ok(NodeProto {
        name: n.name.clone(),
        op_type: n.op.clone(),
        domain: n.domain.clone(),
        input: n.inputs.clone(),
        output: n.outputs.clone(),
        attribute: n.attributes.iter().map(attribute).collect::<Result<_, _>>()?,
        metadata_props: n.metadata.iter().map(|(key, value)| entry(key, value)).collect(),
        ..NodeProto::default()
    })
}

/// A pair of texts.
pub fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value: value.into(), ..StringStringEntryProto::default() }
}

fn attribute(name: &str, value: &Attribute) -> Option<AttributeProto> {
    let typed = |ty: AttributeType| AttributeProto { name: name.into(), type_: ty.into(), ..AttributeProto::default() };
    Some(match value {
        Attribute::Int(i) => AttributeProto { i: *i, ..typed(AttributeType::INT) },
        Attribute::Float(f) => AttributeProto { f: *f, ..typed(AttributeType::FLOAT) },
        Attribute::String(s) => AttributeProto { s: s.clone().into_bytes(), ..typed(AttributeType::STRING) },
        Attribute::Ints(list) => AttributeProto { ints: list.clone(), ..typed(AttributeType::INTS) },
        Attribute::Floats(list) => AttributeProto { floats: list.clone(), ..typed(AttributeType::FLOATS) },
        Attribute::Strings(list) => {
            AttributeProto { strings: list.iter().map(|s| s.clone().into_bytes()).collect(), ..typed(AttributeType::STRINGS) }
        }
        Attribute::Tensor { elem, shape, bytes } => {
            AttributeProto { t: Some(tensor("", *elem, shape, bytes.clone())).into(), ..typed(AttributeType::TENSOR) }
        }
        Attribute::Unsupported(_) => return None,
    })
}

/// A tensor of elements as they are stored.
pub fn tensor(name: &str, elem: Elem, shape: &[u64], bytes: Vec<u8>) -> TensorProto {
    let dims = shape.iter().map(|&n| n as i64).collect();
    TensorProto { name: name.into(), data_type: elem.to_onnx(), dims, raw_data: bytes, ..TensorProto::default() }
}

/// Floats as elements of a type; `None` for a type that is none of floats.
pub fn floats(elem: Elem, values: &[f32]) -> Option<Vec<u8>> {
    Some(match elem {
        Elem::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Elem::F64 => values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
        Elem::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Elem::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => return None,
    })
}

/// A constant of the graph as elements of the type that it has in a file.
pub fn elements(elem: Elem, data: &ConstData) -> Vec<u8> {
    if let Some(bytes) = Some(elem).filter(|e| e.is_float()).and_then(|elem| floats(elem, &data.to_f32())) {
        return bytes;
    }
    let width = elem.size().unwrap_or(8) as usize;
    data.to_i64().iter().flat_map(|x| x.to_le_bytes().into_iter().take(width)).collect()
}
