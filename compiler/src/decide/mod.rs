//! Decides what of the forward pass is kept for the backward pass and what is computed again.
//!
//! [`late`] states, in an e-graph, every way to obtain each value that the backward pass reads; [`lp`] relaxes the choice among
//! those ways to a linear program with memory at every event, which also bounds what any plan can reach; [`search`] rounds it
//! against the exact schedule. [`ladder`] does so for a fixed series of budgets that depends on the program alone, so that a
//! larger budget never gets a slower plan and a smaller one never a larger peak.

pub mod formats;
pub mod ladder;
pub mod late;
pub mod lp;
pub mod policy;
pub mod search;
pub mod sites;
