//! The shipped binary on a GPU, for which the driver stand-in stands in: see `docs/gpu.md`.

mod faults;
mod machine;
mod refusals;
mod training;
