//! The planner's bare problems: packing lifetimes into memory, and computing values again in a graph.
//!
//! Nothing here knows a model or a kernel. Limits are counts, never clocks: the same input gives the same answer on every machine.

pub mod pack;
pub mod remat;
