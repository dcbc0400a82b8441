//! Model files to graphs.
//!
//! [`import`] reads an ONNX or JSON file, binds its symbolic dimensions, finds its parameters (`parameters/`), lowers its operators
//! one by one (`ops/`) and attaches the loss. Everything that cannot be compiled is collected and reported at once.

pub mod build;
mod fold;
pub mod inputs;
pub mod json;
mod loss;
pub mod model;
pub mod new;
pub mod onnx;
pub mod ops;
mod padding;
pub mod parameters;
pub mod sort;
mod torch;
mod unread;
mod wire;

pub use loss::LossSpec;
pub use parameters::ParameterOptions;

use crate::Error;
use crate::graph::{Graph, Init, Op, Output, Parameter, TensorType, ValueId};
use inputs::InputFacts;
use model::{Dim, Elem, Initializer, Model};
use ops::Lowering;
use parameters::ParameterSpec;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Most bytes of one input or parameter.
const MAX_BYTES: u64 = 1 << 46;
/// Extent that [`check`] gives to dimensions that nothing binds.
const CHECK_EXTENT: u64 = 8;

/// What the command line says about a model.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Extents of symbolic dimensions.
    pub dims: BTreeMap<String, u64>,
    /// None: the scalar float output, else cross-entropy over the last axis of the one float output.
    pub loss: Option<LossSpec>,
    pub parameters: ParameterOptions,
    /// Keeps all outputs and attaches no loss.
    pub infer: bool,
}

/// A model as a forward graph.
#[derive(Debug)]
pub struct Imported {
    /// With `loss` set, unless for inference.
    pub graph: Graph,
    /// What is known of the integer inputs.
    pub inputs: Vec<InputFacts>,
    /// What a user should know about how the file was read, a sentence each.
    pub notes: Vec<String>,
    /// Of the model file, hexadecimal.
    pub sha256: String,
}

/// Reads a model file into a forward graph.
///
/// # Errors
/// [`Error::Runtime`] and [`Error::Model`] for the file, [`Error::Usage`] for options that do not fit it (unbound dimensions are all
/// listed), [`Error::Unsupported`] with every operator that cannot be compiled.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, Error> {
    import_model(read(path)?, path, options)
}

/// Lists everything in a model that cannot be compiled, without naming what depends on it. Dimensions that `options` does not bind
/// are taken to be small.
///
/// # Errors
/// As [`import`], but for the gaps.
pub fn check(path: &Path, options: &ImportOptions) -> Result<Vec<String>, Error> {
    let model = read(path)?;
    let mut options = options.clone();
    for name in symbols(&model) {
        options.dims.entry(name).or_insert(CHECK_EXTENT);
    }
    match import_model(model, path, &options) {
        Ok(_) => Ok(vec![]),
        Err(Error::Unsupported { gaps }) => Ok(gaps),
        Err(other) => Err(other),
    }
}

/// Reads a model file: JSON if its name says so, else ONNX.
///
/// # Errors
/// [`Error::Runtime`] and [`Error::Model`].
pub fn read(path: &Path) -> Result<Model, Error> {
    match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        true => json::read(path),
        false => onnx::read(path),
    }
}

/// Turns a model into a graph; `path` is for messages.
///
/// # Errors
/// As [`import`].
pub fn import_model(mut model: Model, path: &Path, options: &ImportOptions) -> Result<Imported, Error> {
    let fail = |reason: String| Error::Model { path: path.display().to_string(), reason };
    let mut notes = vec![];
    bind(&mut model, &options.dims)?;
    let specs = parameters::resolve(&mut model, &options.parameters, &mut notes).map_err(|e| match e {
        Error::Model { reason, .. } => fail(reason),
        other => other,
    })?;
    sort::prune(&mut model);
    sort::normalise(&mut model).map_err(fail)?;
    let mut lowering = Lowering::new(&model);
    add_inputs(&mut lowering, &model, &mut notes).map_err(fail)?;
    add_initializers(&mut lowering, &model, &specs).map_err(fail)?;
    let mut gaps = vec![];
    for n in &model.nodes {
        match lowering.node(n) {
            Err(gap) => gaps.push(gap.to_string()),
            Ok(()) if options.infer => {}
            Ok(()) => padding::mask(&mut lowering, n).map_err(|e| Error::graph(&n.name, e))?,
        }
    }
    let outputs = model.outputs.iter().filter_map(|o| Some((o.name.clone(), lowering.values.get(&o.name).copied()?)));
    let outputs: Vec<(String, ValueId)> = outputs.collect();
    let missing = model.outputs.iter().filter(|o| !lowering.values.contains_key(&o.name)).filter_map(|o| lowering.why_missing(&o.name));
    gaps.extend(missing);
    if !gaps.is_empty() {
        return Err(Error::Unsupported { gaps });
    }
    let outputs = match options.infer {
        true => outputs,
        false => vec![loss::attach(&mut lowering, &outputs, options.loss.as_ref(), &mut notes)?],
    };
    let (names, mut values): (Vec<String>, Vec<ValueId>) = outputs.into_iter().unzip();
    let mut graph = lowering.finish(&mut values)?;
    graph.outputs = names.into_iter().zip(&values).map(|(name, &value)| Output { name, value }).collect();
    graph.loss = values.first().copied().filter(|_| !options.infer);
    let graph = unread::drop_parameters(graph);
    if !options.infer && !graph.parameters.iter().any(|p| p.trainable) {
        return Err(Error::Usage(format!("{} has no parameter to train", path.display())));
    }
    graph.verify()?;
    let inputs = inputs::facts(&graph);
    notes.extend(inputs::note(&graph, &inputs).filter(|_| !options.infer));
    Ok(Imported { graph, inputs, notes, sha256: model.sha256 })
}

/// The symbolic dimensions of a model's inputs.
fn symbols(model: &Model) -> BTreeSet<String> {
    let dims = model.inputs.iter().flat_map(|i| &i.shape);
    dims.filter_map(|d| if let Dim::Symbol(name) = d { Some(name.clone()) } else { None }).collect()
}

/// Gives every symbolic dimension its extent.
fn bind(model: &mut Model, dims: &BTreeMap<String, u64>) -> Result<(), Error> {
    let symbols = symbols(model);
    if let Some(unknown) = dims.keys().find(|name| !symbols.contains(*name)) {
        let known = if symbols.is_empty() { "none".into() } else { Vec::from_iter(symbols).join(", ") };
        return Err(Error::Usage(format!("the model has no symbolic dimension {unknown:?}; its symbolic dimensions: {known}")));
    }
    let unbound: Vec<&str> = symbols.iter().filter(|s| !dims.contains_key(*s)).map(String::as_str).collect();
    if !unbound.is_empty() {
        let list = unbound.join(", ");
        return Err(Error::Usage(format!("the model's symbolic dimensions need an extent, --dim NAME=N for each of: {list}")));
    }
    for dim in model.inputs.iter_mut().flat_map(|i| &mut i.shape) {
        if let Dim::Symbol(name) = dim {
            *dim = Dim::Known(dims[name]);
        }
    }
    Ok(())
}

fn add_inputs(lowering: &mut Lowering, model: &Model, notes: &mut Vec<String>) -> Result<(), String> {
    for i in &model.inputs {
        let dtype = i.elem.dtype().ok_or_else(|| format!("has the input {:?} of an element type that is not supported", i.name))?;
        let shape: Vec<u64> = i.shape.iter().map(|d| if let Dim::Known(n) = d { *n } else { 0 }).collect();
        let ty = TensorType::new(dtype, shape);
        if ty.bytes() > MAX_BYTES {
            return Err(format!("has the input {:?} of the absurd shape {:?}", i.name, ty.shape));
        }
        if matches!(i.elem, Elem::F16 | Elem::F64) {
            notes.push(format!("the input {} is {} in the file and float32 here", i.name, i.elem.name()));
        }
        let site: Arc<str> = i.name.as_str().into();
        let value = lowering.graph.add_source(Op::Input { name: i.name.clone() }, ty, &site);
        lowering.values.insert(i.name.clone(), value);
    }
    Ok(())
}

/// Parameters as such, all other initializers as constants.
fn add_initializers(lowering: &mut Lowering, model: &Model, specs: &[ParameterSpec]) -> Result<(), String> {
    let by_name: HashMap<&str, &Initializer> = model.initializers.iter().map(|i| (i.name.as_str(), i)).collect();
    for spec in specs {
        let Some(i) = by_name.get(spec.initializer.as_str()) else { continue };
        let (site, ty): (Arc<str>, TensorType) = (spec.name.as_str().into(), parameter_type(i)?);
        let op = Op::Parameter(lowering.graph.parameters.len());
        lowering.graph.parameters.push(Parameter {
            name: spec.name.clone(),
            source: i.name.clone(),
            trainable: spec.trainable,
            outside_perm: spec.outside_perm.clone(),
            init: i.init.clone(),
            ty: ty.clone(),
        });
        let value = lowering.graph.add_source(op, ty, &site);
        lowering.values.insert(i.name.clone(), value);
    }
    for i in &model.initializers {
        if !lowering.values.contains_key(&i.name) {
            let data = parameters::elements(i)?;
            let site: Arc<str> = i.name.as_str().into();
            let value = lowering.graph.add_source(Op::Constant(data.clone()), data.ty.clone(), &site);
            lowering.values.insert(i.name.clone(), value);
        }
    }
    Ok(())
}

fn parameter_type(i: &Initializer) -> Result<TensorType, String> {
    let dtype = i.elem.dtype().filter(|d| d.is_float());
    let dtype = dtype.ok_or_else(|| format!("has the parameter {:?} of type {}, which cannot be trained", i.name, i.elem.name()))?;
    let ty = TensorType::new(dtype, i.shape.clone());
    let held = match &i.init {
        Init::Data(data) => data.ty == ty,
        _ => true,
    };
    match held && ty.bytes() <= MAX_BYTES {
        true => Ok(ty),
        false => Err(format!("has the parameter {:?} of the absurd shape {:?}", i.name, i.shape)),
    }
}

#[cfg(test)]
mod tests;
