//! Compiles a model to a training plan that fits a memory budget.

pub mod bench;
pub mod check;
pub mod cli;
pub mod codegen;
pub mod compile;
pub mod compose;
pub mod cost;
pub mod curve;
pub mod decide;
pub mod differentiate;
pub mod emit;
mod error;
pub mod export;
pub mod graph;
pub mod head;
pub mod hf;
pub mod import;
pub mod lower;
pub mod page;
pub mod parameters;
pub mod plan;
pub mod precision;
pub mod quantity;
pub mod recognise;
pub mod report;
pub mod sections;
pub mod sums;
pub mod text;
pub mod units;

pub use error::Error;
