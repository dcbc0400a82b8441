//! The PTX generator against NVIDIA's assembler, and snapshots of its text.
#![cfg(feature = "ptx")]

mod assembler;
mod contract;
mod programs;
mod quantize;
mod row;
