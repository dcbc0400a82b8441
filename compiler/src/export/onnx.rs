//! A model with trained weights as an ONNX file.

use super::message;
use crate::Error;
use crate::graph::Graph;
use crate::import::model::{Attribute, Initializer, Model, ModelNode};
use crate::import::parameters::{self, ParameterSpec};
use crate::import::{ImportOptions, import_model, json, onnx as file, sort};
use fp8c_runtime::convert::{convert, permuted};
use fp8c_runtime::files::{EXPORTED_ONNX, EXPORTED_WEIGHTS, Replaces, write_aside};
use fp8c_runtime::tensors::HostTensor;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{GraphProto, Message, ModelProto, NodeProto, TensorProto};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes of weights from which on they lie in a file beside the model: a message holds 2 GB at the most.
const LARGE: usize = 1 << 30;
/// Smallest tensor that is put there, bytes.
const WORTH_MOVING: usize = 1024;
/// Alignment of tensors in that file.
const ALIGN: usize = 4096;
/// The first IR version whose initializers need not be inputs too.
const IR_WITHOUT_DEFAULTS: i64 = 4;

/// Trained parameters by PyTorch's names, in its orientation: f32.
pub type Trained = BTreeMap<String, HostTensor>;

/// Writes the model of a file with other values of its parameters: the same graph, with an initializer for each parameter. Gives the files
/// that were written.
///
/// # Errors
/// [`Error::Usage`] when a parameter is not the model's, [`Error::Model`], [`Error::Runtime`] for what cannot be read or written.
pub fn onnx(model: &Path, options: &ImportOptions, trained: &Trained, out: &Path) -> Result<Vec<PathBuf>, Error> {
    let beside = out.with_file_name(format!("{}.data", out.file_name().unwrap_or_default().to_string_lossy()));
    Replaces::Onnx.check(out)?;
    let fail = |reason: String| Error::Model { path: model.display().to_string(), reason };
    let is_json = model.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let (mut proto, mut read) = if is_json { described(model, options)? } else { file::read_with_message(model)? };
    let before = read_names(&read);
    let specs = parameters::resolve(&mut read, &options.parameters, &mut vec![])?;
    sort::normalise(&mut read).map_err(fail)?;
    known(&specs, trained, model)?;
    let parameters: HashSet<&str> = specs.iter().map(|s| s.initializer.as_str()).collect();
    let editor = Editor { model: &read, before };
    if let Some(graph) = proto.graph.as_mut() {
        graph.node = editor.nodes(std::mem::take(&mut graph.node), &parameters).map_err(fail)?;
        graph.initializer = editor.initializers(graph, &specs, trained).map_err(fail)?;
    }
    // Import put their bodies where they are called.
    proto.functions.clear();
    proto.ir_version = proto.ir_version.max(IR_WITHOUT_DEFAULTS);
    let moved = move_out(&mut proto, &beside)?;
    write(proto, out)?;
    Ok(std::iter::once(out.to_path_buf()).chain(moved.then_some(beside)).collect())
}

/// A JSON model as a message without initializers, and as what import reads.
fn described(path: &Path, options: &ImportOptions) -> Result<(ModelProto, Model), Error> {
    let mut model = json::read(path)?;
    let infer = ImportOptions { infer: true, ..options.clone() };
    let graph: Graph = import_model(model.clone(), path, &infer)?.graph;
    spread_angles(&mut model);
    let proto = message::model(&model, &graph).map_err(|reason| Error::Model { path: path.display().to_string(), reason })?;
    Ok((proto, model))
}

/// Gives each sample its own copy of the angles that a JSON model may have once for all: ONNX's rotary embedding does not broadcast.
fn spread_angles(model: &mut Model) {
    const BATCH: &str = "rotary.batch";
    const REST: &str = "rotary.rest";
    const SHAPE: &str = "rotary.spread";
    let node = |op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]| ModelNode {
        op: op.into(),
        name: output.into(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.into()],
        attributes: attributes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        ..ModelNode::default()
    };
    let mut spread: HashSet<String> = HashSet::new();
    let mut nodes = vec![];
    for mut n in std::mem::take(&mut model.nodes) {
        if n.op == "RotaryEmbedding" && n.inputs.len() == 3 {
            if spread.is_empty() {
                nodes.push(node("Shape", &[&n.inputs[0]], BATCH, &[("start", Attribute::Int(0)), ("end", Attribute::Int(1))]));
                nodes.push(node("Constant", &[], REST, &[("value_ints", Attribute::Ints(vec![1, 1]))]));
                nodes.push(node("Concat", &[BATCH, REST], SHAPE, &[("axis", Attribute::Int(0))]));
            }
            for table in &mut n.inputs[1..] {
                let wide = format!("{table}.spread");
                if spread.insert(wide.clone()) {
                    nodes.push(node("Expand", &[table, SHAPE], &wide, &[]));
                }
                *table = wide;
            }
        }
        nodes.push(n);
    }
    model.nodes = nodes;
}

fn read_names(model: &Model) -> HashSet<String> {
    let outputs = model.outputs.iter().map(|o| &o.name);
    model.nodes.iter().flat_map(|n| &n.inputs).chain(outputs).cloned().collect()
}

/// Each trained parameter must be one of the model's.
fn known(specs: &[ParameterSpec], trained: &Trained, model: &Path) -> Result<(), Error> {
    let names: HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    match trained.keys().find(|name| !names.contains(name.as_str())) {
        None => Ok(()),
        Some(stranger) => Err(Error::Usage(format!(
            "the plan trains {stranger}, which {} has not; give --tie and --untie as they were given to compile",
            model.display()
        ))),
    }
}

/// Changes a graph into what import made of it.
struct Editor<'a> {
    model: &'a Model,
    /// What nodes and outputs of the file read.
    before: HashSet<String>,
}

impl Editor<'_> {
    /// The nodes: those of the file, with other inputs where their parameters have parted, and those that stand for merged or folded ones.
    fn nodes(&self, file: Vec<NodeProto>, parameters: &HashSet<&str>) -> Result<Vec<NodeProto>, String> {
        // `Constant` nodes became initializers; they stay what they are unless they hold a parameter.
        let constants: HashSet<&str> =
            self.model.initializers.iter().map(|i| i.name.as_str()).filter(|n| !parameters.contains(n)).collect();
        let mut nodes = vec![];
        let mut own: HashMap<(String, String), NodeProto> = HashMap::new();
        for n in file {
            let output = n.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
            if constants.contains(output.as_str()) {
                nodes.push(n);
            } else {
                own.insert((output, n.op_type.clone()), n);
            }
        }
        for n in &self.model.nodes {
            nodes.push(match own.remove(&(first_output(n), n.op.clone())) {
                Some(proto) => with_inputs(proto, &n.inputs),
                None => message::node(n)?,
            });
        }
        Ok(nodes)
    }

    /// The initializers: those of the file that are still read or never were, and those of the parameters with their values.
    fn initializers(&self, graph: &mut GraphProto, specs: &[ParameterSpec], trained: &Trained) -> Result<Vec<TensorProto>, String> {
        let now = read_names(self.model);
        let values: HashMap<&str, (&ParameterSpec, &HostTensor)> =
            specs.iter().filter_map(|s| Some((s.initializer.as_str(), (s, trained.get(&s.name)?)))).collect();
        let computed: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let mut own: HashMap<String, TensorProto> = HashMap::new();
        let mut all = vec![];
        for t in std::mem::take(&mut graph.initializer) {
            match now.contains(&t.name) {
                true => drop(own.insert(t.name.clone(), t)),
                false if self.before.contains(&t.name) => {}
                false => all.push(t),
            }
        }
        for i in self.model.initializers.iter().filter(|i| now.contains(&i.name)) {
            let proto = own.remove(&i.name);
            match (values.get(i.name.as_str()), proto) {
                (Some((spec, value)), proto) => all.push(trained_tensor(i, spec, value, proto)?),
                (None, Some(proto)) if !is_external(&proto) => all.push(proto),
                (None, None) if computed.contains(i.name.as_str()) => {}
                (None, proto) => {
                    let data = parameters::elements(i)?;
                    all.push(TensorProto { raw_data: message::elements(i.elem, &data), ..blank(i, proto) });
                }
            }
        }
        Ok(all)
    }
}

fn first_output(n: &ModelNode) -> String {
    n.outputs.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default()
}

/// A node of the file that reads what import made it read.
fn with_inputs(mut proto: NodeProto, inputs: &[String]) -> NodeProto {
    let own = proto.input.iter().rposition(|i| !i.is_empty()).map_or(0, |last| last + 1);
    if proto.input[..own] != *inputs {
        proto.input = inputs.to_vec();
    }
    proto
}

/// An initializer without its elements; all else that the file says of it stays.
fn blank(i: &Initializer, proto: Option<TensorProto>) -> TensorProto {
    let fresh = message::tensor(&i.name, i.elem, &i.shape, vec![]);
    let TensorProto { doc_string, metadata_props, .. } = proto.unwrap_or_default();
    TensorProto { doc_string, metadata_props, ..fresh }
}

/// A parameter's initializer with the trained value, in the file's orientation and element type.
fn trained_tensor(i: &Initializer, spec: &ParameterSpec, value: &HostTensor, proto: Option<TensorProto>) -> Result<TensorProto, String> {
    let mut bytes = vec![0; value.bytes.len() / (value.dtype.bitsize() / 8) * 4];
    convert(&value.bytes, value.dtype, &mut bytes, fp8c_kernels::DType::F32)
        .map_err(|e| format!("has the parameter {:?}: {e}", spec.name))?;
    let mut shape = value.shape.clone();
    if let Some(perm) = &spec.outside_perm {
        bytes = permuted(&bytes, 4, &value.shape, perm);
        shape = perm.iter().map(|&k| value.shape[k]).collect();
    }
    if shape != i.shape {
        return Err(format!("has the parameter {:?} of shape {:?}, the checkpoint one of {shape:?}", spec.name, i.shape));
    }
    let floats: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let raw_data =
        message::floats(i.elem, &floats).ok_or_else(|| format!("has the parameter {:?}, which is not one of floats", spec.name))?;
    Ok(TensorProto { raw_data, ..blank(i, proto) })
}

fn is_external(t: &TensorProto) -> bool {
    t.data_location.enum_value() == Ok(DataLocation::EXTERNAL)
}

/// Moves large weights into a file beside the model, where there are too many for a message; whether it did.
fn move_out(proto: &mut ModelProto, path: &Path) -> Result<bool, Error> {
    let Some(graph) = proto.graph.as_mut() else { return Ok(false) };
    if graph.initializer.iter().map(|t| t.raw_data.len()).sum::<usize>() < LARGE {
        return Ok(false);
    }
    Replaces::Onnx.check(path)?;
    let io = |source| fp8c_runtime::Error::Io { path: path.to_path_buf(), source };
    let location = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    write_aside(path, |out| {
        out.write_all(EXPORTED_WEIGHTS).map_err(io)?;
        let mut at = EXPORTED_WEIGHTS.len();
        for t in graph.initializer.iter_mut().filter(|t| t.raw_data.len() >= WORTH_MOVING) {
            let bytes = std::mem::take(&mut t.raw_data);
            let start = at.next_multiple_of(ALIGN);
            out.write_all(&vec![0; start - at]).and_then(|()| out.write_all(&bytes)).map_err(io)?;
            at = start + bytes.len();
            t.data_location = DataLocation::EXTERNAL.into();
            let pairs = [("location", location.clone()), ("offset", start.to_string()), ("length", bytes.len().to_string())];
            t.external_data = pairs.iter().map(|(key, value)| message::entry(key, value)).collect();
        }
        Ok(())
    })?;
    Ok(true)
}

fn write(mut proto: ModelProto, path: &Path) -> Result<(), Error> {
    let io = |source| fp8c_runtime::Error::Io { path: path.to_path_buf(), source };
    // An earlier export's mark: it comes first, and once.
    proto.metadata_props.retain(|e| e.key != "made_by");
    write_aside(path, |out| {
        out.write_all(EXPORTED_ONNX).map_err(io)?;
        proto.write_to_writer(out).map_err(|e| io(std::io::Error::other(e)))
    })?;
    Ok(())
}
