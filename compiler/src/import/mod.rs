//! Model files to graphs.

pub mod model;
