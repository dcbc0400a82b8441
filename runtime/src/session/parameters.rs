//! Parameters and optimizer state, by PyTorch's names and in its orientation.

use super::{Scaler, Session};
use crate::Error;
use crate::convert::{convert, file_dtype, inverse, permuted};
use crate::plan::{Parameter, Plan, Tensor, TensorId};
use crate::tensors::{HostTensor, View};
use fp8c_kernels::DType;
use safetensors::Dtype;

impl Session {
    /// Reads a parameter: f32 (integer buffers keep their dtype), in PyTorch's orientation.
    ///
    /// # Errors
    /// [`Error::Usage`] when the plan has no such parameter, [`Error::Device`].
    pub fn parameter(&self, name: &str) -> Result<HostTensor, Error> {
        self.read_parameter(find(&self.plan, name)?)
    }

    /// The format that [`Session::parameter`] gives.
    pub(crate) fn outside_dtype(&self, p: &Parameter) -> Dtype {
        outside_dtype(self.plan.tensor(p.tensor))
    }

    pub(crate) fn read_parameter(&self, p: &Parameter) -> Result<HostTensor, Error> {
        let t = self.plan.tensor(p.tensor);
        let mut bytes = self.read_tensor(p.tensor)?;
        let dtype = outside_dtype(t);
        if dtype == Dtype::F32 && t.dtype != DType::F32 {
            let mut wide = vec![0; (t.bytes / t.dtype.size() * 4) as usize];
            convert(&bytes, file_dtype(t.dtype), &mut wide, DType::F32).map_err(|reason| Error::data(&p.name, reason))?;
            bytes = wide;
        }
        if let (Some(perm), Some(inside)) = (&p.perm, p.inside_shape()) {
            let size = dtype.bitsize() / 8;
            bytes = permuted(&bytes, size, &inside, &inverse(perm));
        }
        Ok(HostTensor { name: p.name.clone(), dtype, shape: p.shape.clone(), bytes })
    }

    /// Writes a parameter from a tensor in PyTorch's orientation, converting floats.
    ///
    /// # Errors
    /// [`Error::Usage`] when the plan has no such parameter, [`Error::Data`] when shape or dtype do not fit.
    pub fn set_parameter(&mut self, name: &str, value: &View<'_>) -> Result<(), Error> {
        let plan = self.plan.clone();
        let p = find(&plan, name)?;
        if value.shape != p.shape {
            return Err(Error::data(name, format!("shape {:?} where the plan has {:?}", value.shape, p.shape)));
        }
        let t = plan.tensor(p.tensor);
        let mut bytes = vec![0; t.bytes as usize];
        convert(value.bytes, value.dtype, &mut bytes, t.dtype).map_err(|reason| Error::data(name, reason))?;
        if let Some(perm) = &p.perm {
            bytes = permuted(&bytes, t.dtype.size() as usize, &p.shape, perm);
        }
        self.device.write(t.offset, &bytes)
    }

    /// Bytes of a tensor as the arena holds them.
    pub(crate) fn read_tensor(&self, id: TensorId) -> Result<Vec<u8>, Error> {
        let t = self.plan.tensor(id);
        let mut bytes = vec![0; t.bytes as usize];
        self.device.read(t.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces a tensor's bytes; as many as it has.
    pub(crate) fn write_tensor(&mut self, id: TensorId, bytes: &[u8]) -> Result<(), Error> {
        let t = self.plan.tensor(id);
        if bytes.len() as u64 != t.bytes {
            return Err(Error::data(&t.name, format!("{} bytes where {} belong", bytes.len(), t.bytes)));
        }
        self.device.write(t.offset, bytes)
    }

    /// Sets a tensor's bytes to zero.
    pub(crate) fn zero_tensor(&mut self, id: TensorId) -> Result<(), Error> {
        let t = self.plan.tensor(id);
        self.device.zero(t.offset, t.bytes)
    }

    /// The loss scale, the number of updates and the norm that clips the next one, for a checkpoint.
    pub(crate) fn progress(&self) -> (Scaler, u64, Option<f32>) {
        (self.scaler, self.updates, self.norm)
    }

    pub(crate) fn set_progress(&mut self, scaler: Scaler, updates: u64, norm: Option<f32>) {
        (self.scaler, self.updates, self.norm) = (scaler, updates, norm);
    }
}

fn find<'a>(plan: &'a Plan, name: &str) -> Result<&'a Parameter, Error> {
    let found = plan.parameters.iter().find(|p| p.name == name);
    found.ok_or_else(|| Error::Usage(format!("the plan has no parameter {name}")))
}

/// The format of a parameter outside the plan.
fn outside_dtype(t: &Tensor) -> Dtype {
    match t.dtype {
        DType::F32 | DType::Bf16 | DType::E4m3 => Dtype::F32,
        DType::I64 | DType::I32 | DType::Bool => file_dtype(t.dtype),
    }
}
