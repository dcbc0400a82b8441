//! One pass without an update.

use super::Session;
use crate::Error;
use crate::convert::{convert, file_dtype, inverse, permuted, to_f32};
use crate::data::check_range;
use crate::hyper::Hyper;
use crate::plan::{Clip, Plan, Port};
use crate::tensors::HostTensor;
use safetensors::Dtype;

/// What a pass gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunOutput {
    /// The plan's outputs, in its order and dtypes, by the model's names.
    pub outputs: Vec<HostTensor>,
    /// The loss's gradient of each trained parameter: f32, by PyTorch's name and in its orientation.
    pub gradients: Vec<HostTensor>,
    /// Tensors that were given and that the plan has no input for.
    pub ignored: Vec<String>,
}

impl Session {
    /// Runs one micro-batch: the forward pass, and in a training plan the backward pass. No parameter changes.
    ///
    /// Inputs are converted to the plan's dtypes where nothing is lost in kind (floats to floats, integers to anything).
    ///
    /// # Errors
    /// [`Error::Data`] for inputs that are missing or do not fit, [`Error::Usage`] for gradients of a plan that has none.
    pub fn run(&mut self, inputs: &[HostTensor], gradients: bool) -> Result<RunOutput, Error> {
        if gradients && !self.trains() {
            return Err(Error::Usage("this plan was compiled for inference and has no gradients".into()));
        }
        if gradients && self.plan.clip == Clip::Previous {
            return Err(Error::Usage("this plan was compiled with --clip previous and never has all gradients at once".into()));
        }
        let plan = self.plan.clone();
        for port in &plan.inputs {
            let given = inputs.iter().find(|t| t.name == port.name);
            let given = given.ok_or_else(|| Error::data(&port.name, "this input of the plan is missing"))?;
            let bytes = fit(&plan, port, given)?;
            self.device.write(plan.tensor(port.tensor).offset, &bytes)?;
        }
        if let Some(control) = plan.control {
            self.write_control(control, &Hyper::default(), 1.0)?;
        }
        self.zero_gradients()?;
        self.launch(0..plan.schedule.micro.len())?;
        let outputs = plan.outputs.iter().map(|p| self.output(p)).collect::<Result<_, _>>()?;
        let gradients = if gradients { self.gradients()? } else { vec![] };
        let known = |t: &&HostTensor| !plan.inputs.iter().any(|p| p.name == t.name);
        let ignored = inputs.iter().filter(known).map(|t| t.name.clone()).collect();
        Ok(RunOutput { outputs, gradients, ignored })
    }

    fn output(&self, port: &Port) -> Result<HostTensor, Error> {
        let t = self.plan.tensor(port.tensor);
        let mut bytes = vec![0; t.bytes as usize];
        self.device.read(t.offset, &mut bytes)?;
        Ok(HostTensor { name: port.name.clone(), dtype: file_dtype(port.dtype), shape: port.shape.clone(), bytes })
    }

    fn gradients(&self) -> Result<Vec<HostTensor>, Error> {
        let mut all = vec![];
        for p in &self.plan.parameters {
            let Some(gradient) = p.gradient else { continue };
            let t = self.plan.tensor(gradient);
            let mut bytes = vec![0; t.bytes as usize];
            self.device.read(t.offset, &mut bytes)?;
            let mut bytes = to_f32(&bytes, t.dtype).map_err(|reason| Error::data(&p.name, reason))?;
            if let (Some(perm), Some(inside)) = (&p.perm, p.inside_shape()) {
                bytes = permuted(&bytes, 4, &inside, &inverse(perm));
            }
            all.push(HostTensor { name: p.name.clone(), dtype: Dtype::F32, shape: p.shape.clone(), bytes });
        }
        Ok(all)
    }
}

/// An input in the plan's dtype, its shape and range checked.
fn fit(plan: &Plan, port: &Port, given: &HostTensor) -> Result<Vec<u8>, Error> {
    if given.shape != port.shape {
        return Err(Error::data(&port.name, format!("shape {:?} where the plan has {:?}", given.shape, port.shape)));
    }
    let mut bytes = vec![0; plan.tensor(port.tensor).bytes as usize];
    convert(&given.bytes, given.dtype, &mut bytes, port.dtype).map_err(|reason| Error::data(&port.name, reason))?;
    check_range(port, &bytes)
        .map_err(|(element, value)| Error::data(&port.name, format!("element {element} is {value}, but it takes {}", port.allowed())))?;
    Ok(bytes)
}
