//! Row programs: fused elementwise code and reductions along rows.
//!
//! The iteration space is a box; its last `row_dims` dimensions form the *row*. The body is a list of statements in SSA form
//! (a [`Var`] is a statement's position). A variable holds one value for each point (a *tile* variable), or one for each row
//! (a *row* variable: the result of [`Stmt::Reduce`], of [`Stmt::Const`], and of operators on row variables alone; loads whose
//! access has zero strides along the row are row variables too). Row variables broadcast along the row. A statement may use
//! any earlier one; a statement after a reduction sees the finished value, so softmax and layer norm are straight-line code.
//!
//! Order of summation along a row is a back end's own, but is the same at each launch.
//!
//! Which accesses are made, by every executor and whatever it makes of the space:
//! 1. where there is no row, none;
//! 2. a *row access* ([`RowProgram::constant_along_row`]) is made once for each row, at index 0 along the row, an empty row included;
//! 3. any other access is made once for each point, so never in an empty row;
//! 4. a guarded access is made only where its guards hold, and guards lie inside their dimension.
//!
//! The verifier bounds these accesses and no others. A back end may drop, merge and reorder dimensions as long as it makes no access
//! beside them: it takes an access out of the loop along the row only where 2 says that it is one of the row. (A GPU reads element 0
//! of the argument where a guard fails and forgets it.)

use super::{Arg, Binary, Fold, Literal, Unary};
use crate::{DType, KernelError};
use serde::{Deserialize, Serialize};

/// Position of a statement in [`RowProgram::body`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Var(pub u32);

/// An affine map from a point of the iteration space to an element: `offset + sum(strides[d] * index[d])`, in elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Access {
    pub offset: i64,
    /// One for each dimension of the space; 0 broadcasts.
    pub strides: Vec<i64>,
    /// Points outside any of these ranges read `0` (loads) or write nothing (stores).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guards: Vec<Guard>,
}

/// `lower <= index[dim] < upper`, both within `0..=extent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Guard {
    pub dim: u32,
    pub lower: i64,
    pub upper: i64,
}

/// A data-dependent term of an address: `index` (an integer variable) in `[0, bound)` times `stride`.
///
/// An index outside the bound is an error on the CPU ([`KernelError::IndexOutOfRange`]) and reads element 0 of the axis on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Indexed {
    pub index: Var,
    pub stride: i64,
    pub bound: i64,
}

/// The type of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Float,
    Int,
    Bool,
}

impl From<DType> for Kind {
    fn from(d: DType) -> Kind {
        match d {
            DType::F32 | DType::Bf16 | DType::E4m3 => Kind::Float,
            DType::I64 | DType::I32 => Kind::Int,
            DType::Bool => Kind::Bool,
        }
    }
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stmt {
    /// Reads argument `arg` (converted to the kind of its dtype).
    Load {
        arg: u32,
        access: Access,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        indexed: Option<Indexed>,
    },
    /// A literal of a kind.
    Const {
        kind: Kind,
        value: Literal,
    },
    /// The point's index along a dimension, as an integer.
    Index {
        dim: u32,
    },
    Unary {
        op: Unary,
        x: Var,
    },
    Binary {
        op: Binary,
        x: Var,
        y: Var,
    },
    /// `if c { x } else { y }`; `c` is bool.
    Select {
        c: Var,
        x: Var,
        y: Var,
    },
    /// Rounds to a format and comes back (floats: bf16 rounds to nearest even; float to int truncates; anything to bool is `!= 0`).
    Cast {
        x: Var,
        to: DType,
    },
    /// Folds a tile variable along the row to a row variable. Floats and integers.
    Reduce {
        op: Fold,
        x: Var,
    },
    /// Writes `x`, converted to the argument's dtype. No value is produced.
    Store {
        arg: u32,
        access: Access,
        x: Var,
    },
    /// Adds `x`, of the kind of the argument's dtype and no bool, to the argument's element (mode `Update`). No value is produced.
    Accumulate {
        arg: u32,
        access: Access,
        x: Var,
    },
    /// Writes E4M3 codes with one scale for each run of 128 along the last dimension of the space (a shorter last run): argument
    /// `scales` holds f32 `[rows, ceil(last / 128)]`. The access must have stride 1 along the last dimension and `row_dims` be 1.
    StoreQuantized {
        codes: u32,
        access: Access,
        scales: u32,
        power_of_two: bool,
        x: Var,
    },
}

impl Stmt {
    /// The variables that the statement reads.
    pub(crate) fn operands(&self) -> Vec<Var> {
        match *self {
            Stmt::Load { indexed, .. } => indexed.map(|i| i.index).into_iter().collect(),
            Stmt::Const { .. } | Stmt::Index { .. } => Vec::new(),
            Stmt::Unary { x, .. } | Stmt::Cast { x, .. } | Stmt::Reduce { x, .. } => vec![x],
            Stmt::Store { x, .. } | Stmt::Accumulate { x, .. } | Stmt::StoreQuantized { x, .. } => vec![x],
            Stmt::Binary { x, y, .. } => vec![x, y],
            Stmt::Select { c, x, y } => vec![c, x, y],
        }
    }
}

/// A fused elementwise and row-reduction kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowProgram {
    /// Extents, outermost first. May be empty: one point.
    pub space: Vec<u64>,
    pub row_dims: u32,
    pub args: Vec<Arg>,
    pub body: Vec<Stmt>,
}

impl RowProgram {
    /// Points in a row.
    pub fn row_len(&self) -> u64 {
        super::volume(&self.space[self.row_start()..])
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        super::volume(&self.space[..self.row_start()])
    }

    /// The first dimension of the row.
    pub fn row_start(&self) -> usize {
        self.space.len().saturating_sub(self.row_dims as usize)
    }

    /// Checks kinds, bounds of every access, write-once and SSA order.
    pub fn verify(&self) -> Result<(), KernelError> {
        super::verify::row(self)
    }
}
