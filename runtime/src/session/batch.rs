//! The data of one step.

use crate::plan::Plan;

/// Host memory for the inputs of one step: for each input of the plan its micro-batches, one after the other, in the plan's dtype.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    inputs: Vec<Vec<u8>>,
    micro: usize,
}

impl Batch {
    /// Reserves the memory, once for a whole training.
    pub fn new(plan: &Plan) -> Self {
        let micro = plan.accumulation as usize;
        let bytes = |id| plan.tensor(id).bytes as usize * micro;
        Batch { inputs: plan.inputs.iter().map(|p| vec![0; bytes(p.tensor)]).collect(), micro }
    }

    /// All micro-batches of an input, by its position in the plan.
    pub fn input(&self, index: usize) -> &[u8] {
        &self.inputs[index]
    }

    /// All micro-batches of an input, to be filled.
    pub fn input_mut(&mut self, index: usize) -> &mut [u8] {
        &mut self.inputs[index]
    }

    /// One micro-batch of an input, to be filled.
    pub fn micro_mut(&mut self, index: usize, micro: usize) -> &mut [u8] {
        let all = &mut self.inputs[index];
        let size = all.len() / self.micro;
        &mut all[micro * size..(micro + 1) * size]
    }

    /// One micro-batch of an input.
    pub fn micro(&self, index: usize, micro: usize) -> &[u8] {
        let all = &self.inputs[index];
        let size = all.len() / self.micro;
        &all[micro * size..(micro + 1) * size]
    }
}
