//! Decides which products run in E4M3, and what of the forward pass is kept for the backward pass and what is computed again.
//!
//! [`formats`] gives products their operands' formats where the [`policy`] permits. After lowering, [`chain`] cuts the program into sections,
//! [`forms`] finds the ways to run each kind of section, [`master`] chooses among them under the budget, and [`planner`] makes a plan of
//! what it chose.

pub mod chain;
pub mod formats;
pub mod forms;
pub mod master;
pub mod planner;
pub mod policy;
pub mod sites;
