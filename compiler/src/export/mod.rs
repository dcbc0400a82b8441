//! Trained weights back in the form that their model came in.
//!
//! Import made each parameter an initializer of its own (`import/parameters`); what it changed for that in the model is changed in the file,
//! and nothing else: [`onnx`].

mod message;
mod onnx;

pub use onnx::{Trained, onnx};
