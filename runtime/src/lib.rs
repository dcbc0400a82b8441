//! Loads a plan and trains it. Knows nothing of e-graphs, ONNX or LLVM.
//!
//! [`plan::PlanFile::open`] reads and verifies a plan, [`session::Session::new`] puts it on a device, [`data::Loader`] fills batches, and
//! [`session::Session::step`] trains on one. [`trainer::train`] is the loop around them, with schedules, metrics and checkpoints,
//! [`evaluation::evaluate`] the loss over data that is not trained on.

pub mod checkpoint;
pub mod convert;
pub mod data;
pub mod device;
mod error;
pub mod evaluation;
pub mod files;
pub mod generation;
pub mod hyper;
pub mod metrics;
pub mod names;
pub mod plan;
mod random;
pub mod schedule;
pub mod session;
pub mod tensors;
pub mod trainer;

pub use error::{DataFault, Error};
