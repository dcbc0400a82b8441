//! What training minimises.

use super::ops::Lowering;
use crate::Error;
use crate::graph::{CrossEntropyOp, Expr, Op, TensorType, ValueId};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Binary, Fold};
use std::str::FromStr;
use std::sync::Arc;

/// Labels with this value count for nothing, as in PyTorch.
const IGNORE_INDEX: i64 = -100;

/// The value of `--loss`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LossSpec {
    /// `cross-entropy:LOGITS[,LABELS]`: mean over the labels that are not -100, over the last axis of the logits.
    CrossEntropy { logits: String, labels: Option<String> },
    /// `mse:OUTPUT,TARGET`: mean of the squared differences.
    MeanSquares { output: String, target: String },
    /// `output:NAME`: a scalar of the model.
    Output(String),
}

impl FromStr for LossSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, names) = text.split_once(':').unwrap_or((text, ""));
        let names: Vec<&str> = names.split(',').collect();
        match (kind, &names[..]) {
            (_, names) if names.contains(&"") => Err(()),
            ("cross-entropy", [logits]) => Ok(LossSpec::CrossEntropy { logits: logits.to_string(), labels: None }),
            ("cross-entropy", [logits, labels]) => {
                Ok(LossSpec::CrossEntropy { logits: logits.to_string(), labels: Some(labels.to_string()) })
            }
            ("mse", [output, target]) => Ok(LossSpec::MeanSquares { output: output.to_string(), target: target.to_string() }),
            ("output", [name]) => Ok(LossSpec::Output(name.to_string())),
            _ => Err(()),
        }
        .map_err(|()| format!("{text:?} is no loss; use cross-entropy:LOGITS[,LABELS], mse:OUTPUT,TARGET or output:NAME"))
    }
}

/// Appends the loss, a scalar f32, and returns its name and value.
///
/// # Errors
/// [`Error::Usage`] when the request does not fit the model's outputs, or none was made and they do not say.
pub fn attach(
    lowering: &mut Lowering,
    outputs: &[(String, ValueId)],
    spec: Option<&LossSpec>,
    notes: &mut Vec<String>,
) -> Result<(String, ValueId), Error> {
    let chosen = match spec {
        Some(spec) => spec.clone(),
        None => default(lowering, outputs)?,
    };
    let mut at = Attach { lowering, site: "loss".into() };
    let (name, value) = match &chosen {
        LossSpec::Output(name) => (name.clone(), at.output(outputs, name).and_then(|v| at.scalar(name, v))),
        LossSpec::CrossEntropy { logits, labels } => {
            let labels = labels.as_deref().unwrap_or("labels");
            if spec.is_none() {
                notes.push(format!("the model computes no loss: trained on the cross-entropy of {logits} and a new input {labels}"));
            }
            ("loss".to_string(), at.output(outputs, logits).and_then(|v| at.cross_entropy(v, logits, labels)))
        }
        LossSpec::MeanSquares { output, target } => {
            ("loss".to_string(), at.output(outputs, output).and_then(|v| at.mean_squares(v, output, target)))
        }
    };
    value.map(|v| (name, v)).map_err(Error::Usage)
}

/// The scalar float output; else cross-entropy over the last axis of the one float output of rank 2 or more.
fn default(lowering: &Lowering, outputs: &[(String, ValueId)]) -> Result<LossSpec, Error> {
    let of = |fits: fn(&TensorType) -> bool| -> Vec<&str> {
        let all = outputs.iter().filter(|(_, v)| lowering.graph.ty(*v).dtype.is_float() && fits(lowering.graph.ty(*v)));
        all.map(|(name, _)| name.as_str()).collect()
    };
    let preferred = |list: &[&str], name: &str| match list {
        [only] => Some(only.to_string()),
        list => list.iter().find(|n| **n == name).map(|n| n.to_string()),
    };
    let (scalars, wide) = (of(|t| t.elements() == 1), of(|t| t.rank() >= 2 && t.elements() > 1));
    if let Some(name) = preferred(&scalars, "loss") {
        return Ok(LossSpec::Output(name));
    }
    match preferred(&wide, "logits").filter(|_| scalars.is_empty()) {
        Some(logits) => Ok(LossSpec::CrossEntropy { logits, labels: None }),
        None => {
            let names = outputs.iter().map(|(name, v)| format!("{name} {:?}", lowering.graph.ty(*v).shape)).collect::<Vec<_>>().join(", ");
            Err(Error::Usage(format!("--loss must say what to minimise; the model's outputs are {names}")))
        }
    }
}

struct Attach<'a> {
    lowering: &'a mut Lowering,
    site: Arc<str>,
}

impl Attach<'_> {
    fn output(&self, outputs: &[(String, ValueId)], name: &str) -> Result<ValueId, String> {
        let found = outputs.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        found.ok_or_else(|| {
            let names: Vec<&str> = outputs.iter().map(|(n, _)| n.as_str()).collect();
            format!("--loss names {name:?}, but the model's outputs are {}", names.join(", "))
        })
    }

    fn emit(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, String> {
        let results = self.lowering.graph.add_forward(op, inputs, &self.site);
        results.map(|r| r[0]).map_err(|e| e.to_string())
    }

    fn ty(&self, v: ValueId) -> TensorType {
        self.lowering.graph.ty(v).clone()
    }

    /// A value as f32 of this shape.
    fn shaped(&mut self, v: ValueId, dtype: DType, shape: &[u64]) -> Result<ValueId, String> {
        let ty = self.ty(v);
        let v = if ty.dtype == dtype { v } else { self.emit(Op::Map(Expr::identity(), dtype), &[v])? };
        if ty.shape == shape { Ok(v) } else { self.emit(Op::Reshape(shape.to_vec()), &[v]) }
    }

    fn scalar(&mut self, name: &str, v: ValueId) -> Result<ValueId, String> {
        let ty = self.ty(v);
        if !ty.dtype.is_float() || ty.elements() != 1 {
            return Err(format!("{name} is {} {:?}, but a loss is one float", ty.dtype, ty.shape));
        }
        self.shaped(v, DType::F32, &[])
    }

    /// The graph input of this name, or a new one; `ty` is what it should be, but for the kind of float or integer.
    fn input(&mut self, name: &str, ty: TensorType) -> Result<ValueId, String> {
        let known = self.lowering.graph.nodes.iter().find(|n| matches!(&n.op, Op::Input { name: n } if n == name));
        if let Some(v) = known.map(|n| n.results[0]) {
            let have = self.ty(v);
            let fits = have.elements() == ty.elements() && have.dtype.is_float() == ty.dtype.is_float() && have.dtype != DType::Bool;
            return fits.then_some(v).ok_or_else(|| {
                format!("the input {name} is {} {:?}, but the loss needs {} {:?}", have.dtype, have.shape, ty.dtype, ty.shape)
            });
        }
        if self.lowering.values.contains_key(name) {
            return Err(format!("{name} is computed by the model and cannot be an input of the loss"));
        }
        let site: Arc<str> = name.into();
        Ok(self.lowering.graph.add_source(Op::Input { name: name.to_string() }, ty, &site))
    }

    fn cross_entropy(&mut self, logits: ValueId, name: &str, labels: &str) -> Result<ValueId, String> {
        let ty = self.ty(logits);
        let Some((&classes, places)) = ty.shape.split_last().filter(|(_, p)| !p.is_empty() && ty.dtype.is_float()) else {
            return Err(format!("{name} is {} {:?}, but cross-entropy needs floats of rank 2 or more", ty.dtype, ty.shape));
        };
        let labels = self.input(labels, TensorType::new(DType::I64, places))?;
        let n = TensorType::new(DType::I64, places).elements();
        let labels = self.shaped(labels, DType::I64, &[n])?;
        let logits = self.shaped(logits, ty.dtype, &[n, classes])?;
        let op = CrossEntropyOp { ignore_index: Some(IGNORE_INDEX), sum: false, dtype: ty.dtype };
        self.emit(Op::CrossEntropy(op), &[logits, labels])
    }

    fn mean_squares(&mut self, output: ValueId, name: &str, target: &str) -> Result<ValueId, String> {
        let ty = self.ty(output);
        if !ty.dtype.is_float() || ty.elements() == 0 {
            return Err(format!("{name} is {} {:?}, which has no squared error", ty.dtype, ty.shape));
        }
        let target = self.input(target, TensorType::new(DType::F32, ty.shape.clone()))?;
        let (output, target) = (self.shaped(output, DType::F32, &ty.shape)?, self.shaped(target, DType::F32, &ty.shape)?);
        let difference = self.emit(Op::Map(Expr::binary(Binary::Sub), DType::F32), &[output, target])?;
        let square = self.emit(Op::Map(Expr::binary(Binary::Mul), DType::F32), &[difference, difference])?;
        let sum = self.emit(Op::Reduce { op: Fold::Sum, axes: (0..ty.rank()).collect(), dtype: DType::F32 }, &[square])?;
        let mean = Expr::with_constant(Binary::Mul, (1.0 / ty.elements() as f64) as f32);
        let mean = self.emit(Op::Map(mean, DType::F32), &[sum])?;
        self.shaped(mean, DType::F32, &[])
    }
}
