//! Files that anyone may send: for each kind a function that must return whatever bytes it is given.

pub mod kernel;
pub mod plan;
