//! Storage formats of tensor elements.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Names how an element is stored. Arithmetic on floats is f32, on integers i64, whatever the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    Bf16,
    /// E4M3FN: bias 7, no infinity, largest value 448.
    E4m3,
    I64,
    I32,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> u64 {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::Bf16 => 2,
            DType::E4m3 | DType::Bool => 1,
        }
    }

    /// True for the formats whose arithmetic is f32.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::E4m3)
    }

    /// The lower-case name used in printed IRs and in plans.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::E4m3 => "e4m3",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::Bool => "bool",
        }
    }

    /// Inverse of [`DType::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [DType::F32, DType::Bf16, DType::E4m3, DType::I64, DType::I32, DType::Bool].into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
