//! Compiles a model to a training plan that fits a memory budget.

pub mod differentiate;
mod error;
pub mod graph;
pub mod import;
pub mod lower;
pub mod units;

pub use error::Error;
