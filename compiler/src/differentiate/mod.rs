//! From a forward graph to a joint one: loss, a gradient for every trainable parameter, and the update.
//!
//! Reverse mode, one rule an operator, the rules in one file a family. What the rules keep to:
//! * a gradient has the shape of its value, and its dtype, except on the *parameter side* (values made from parameters and constants
//!   alone, such as a parameter's cast to bf16), where gradients are f32 however the value is stored;
//! * operands that were broadcast get the sum of their gradient over the broadcast axes; a weight shared by a batch of matrices gets one
//!   product over all rows;
//! * contributions to one value are added as they come, so that at most one partial sum is live; slices that tile an axis are
//!   concatenated instead;
//! * values that do not depend on a trainable parameter get no gradient, and no nodes are made for them;
//! * backward nodes run in reverse order of their primals, but what lies on the parameter side runs as soon as it can, so that a
//!   parameter's gradient is complete as early as possible;
//! * where an expression's derivative can be had from its result, it is taken from it (`tanh`, `exp`, ReLU), since the result tends to be
//!   needed anyway.
//!
//! At kinks: a maximum or minimum against a constant has gradient where it is strictly on the operand's side (ReLU is flat at 0), of two
//! operands that tie each gets half; a maximum along axes splits evenly among ties, as PyTorch's `amax`; `abs` is flat at 0.

mod attention;
mod backward;
mod conv;
mod index;
mod loss;
mod map;
mod matmul;
mod norm;
mod reduce;
#[cfg(test)]
mod tests;
mod update;
mod views;

pub use fp8c_kernels::program::Rule as Optimizer;
pub use update::GRADIENT_SLOT;

use crate::Error;
use crate::graph::*;
use fp8c_kernels::DType;
use fp8c_runtime::plan::Clip;

/// How a model is trained, as far as the graph shows it.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    pub optimizer: Optimizer,
    /// Format of the optimizer's moments: f32, bf16 or E4M3.
    pub state_dtype: DType,
    /// Micro-batches whose gradients are summed before an update.
    pub accumulation: u32,
    /// What clips gradients, and so when parameters can be updated.
    pub clip: Clip,
}

/// Adds the backward pass and the update to a forward graph.
///
/// Trainable parameters that the loss does not depend on get no gradient and no update: [`untrained`] names them.
///
/// # Errors
/// [`Error::Usage`] when there is no loss or nothing to train, [`Error::Graph`] at an operator without a derivative.
pub fn differentiate(forward: Graph, options: &TrainOptions) -> Result<Graph, Error> {
    let loss = forward.loss.ok_or_else(|| Error::Usage("the model has no loss to minimise".into()))?;
    let mut graph = with_gradients(forward, loss, options.accumulation > 1)?;
    if graph.gradients.is_empty() {
        return Err(Error::Usage("the loss depends on no trainable parameter".into()));
    }
    update::append(&mut graph, options)?;
    Ok(graph.without_dead_code()?.0)
}

/// Adds the backward pass alone: `gradients` names the gradient of each parameter that has one, summed over micro-batches where
/// `accumulate` says so.
///
/// # Errors
/// [`Error::Graph`] at an operator without a derivative.
pub fn with_gradients(forward: Graph, loss: ValueId, accumulate: bool) -> Result<Graph, Error> {
    let mut pass = backward::Backward::new(forward, accumulate);
    pass.run(loss)?;
    pass.finish()
}

/// Names of the trainable parameters that a joint graph leaves as they are.
pub fn untrained(joint: &Graph) -> Vec<&str> {
    let trained = |p: usize| joint.gradients.iter().any(|g| g.parameter == p);
    let left = joint.parameters.iter().enumerate().filter(|(i, p)| p.trainable && !trained(*i));
    left.map(|(_, p)| p.name.as_str()).collect()
}
