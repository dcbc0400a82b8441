//! The forward pass of a training plan alone.

use super::{Batch, Session, float};
use crate::Error;
use crate::hyper::Hyper;

impl Session {
    /// Computes the loss of one micro-batch. Parameters, optimizer state and loss scale stay as they are, bit for bit.
    ///
    /// # Errors
    /// [`Error::Usage`] for a plan that has no loss, [`Error::Data`] for an index out of range, [`Error::Device`].
    pub fn evaluate(&mut self, batch: &Batch, micro: usize) -> Result<f64, Error> {
        let (Some(control), Some(loss)) = (self.plan.control, self.plan.loss) else {
            return Err(Error::Usage("this plan was compiled for inference and has no loss".into()));
        };
        // Each step writes its own control block, and zeroes its own gradients.
        self.write_control(control, &Hyper::default(), 1.0)?;
        self.feed(batch, micro)?;
        self.launch(0..self.ends.loss)?;
        self.device.fetch(self.plan.tensor(loss).offset, 4)?;
        Ok(f64::from(float(&self.device.fetched()?, 0)))
    }

    /// Writes one micro-batch to the plan's inputs.
    pub(super) fn feed(&mut self, batch: &Batch, micro: usize) -> Result<(), Error> {
        for (index, port) in self.plan.inputs.iter().enumerate() {
            self.device.write(self.plan.tensor(port.tensor).offset, batch.micro(index, micro))?;
        }
        Ok(())
    }

    /// Runs the forward pass of an inference plan over one micro-batch and gives its outputs' bytes, in the plan's order and dtypes.
    ///
    /// # Errors
    /// [`Error::Data`] for an index out of range, [`Error::Device`].
    pub fn forward(&mut self, batch: &Batch, micro: usize) -> Result<Vec<Vec<u8>>, Error> {
        self.feed(batch, micro)?;
        self.launch(0..self.plan.schedule.micro.len())?;
        self.plan.outputs.iter().map(|p| self.read_tensor(p.tensor)).collect()
    }
}
