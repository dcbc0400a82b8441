//! Model files to graphs.

mod fold;
pub mod model;
pub mod ops;
