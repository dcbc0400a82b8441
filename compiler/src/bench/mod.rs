//! The planner's parts on bare problems, as others publish them: buffers to pack, graphs to compute again in.

pub mod buffers;
pub mod graph;
