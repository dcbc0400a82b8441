//! The PTX generator against NVIDIA's assembler, and snapshots of its text.
#![cfg(feature = "ptx")]

mod agree;
mod assembler;
mod attention;
mod contract;
mod counts;
mod direct;
mod emulated;
mod planted;
mod programs;
mod quantize;
mod row;
mod text;
mod update;
