//! Tests of the runtime through its public interface, on plans made by hand.

mod checkpoints;
mod data;
mod evaluation;
mod fixtures;
mod plan_file;
mod sessions;
mod verification;
