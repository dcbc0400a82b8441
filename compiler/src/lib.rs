//! Compiles a model to a training plan that fits a memory budget.

mod error;
pub mod graph;
pub mod import;
pub mod units;

pub use error::Error;
