//! Types of a row program's variables: the rules that every back end shares.

use super::{Access, Binary, Kind, RowProgram, Stmt, Unary, Var};

/// Whether a variable has one value for each row or one for each point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rank {
    Row,
    Tile,
}

/// The type of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VarType {
    pub kind: Kind,
    pub rank: Rank,
}

impl Unary {
    /// Kind of the result, or `None` where the operator does not take the kind.
    pub fn result_kind(self, x: Kind) -> Option<Kind> {
        match (self, x) {
            (Unary::Not, Kind::Bool) => Some(Kind::Bool),
            (Unary::IsNan | Unary::IsInf, Kind::Float) => Some(Kind::Bool),
            (Unary::Neg | Unary::Abs | Unary::Sign, Kind::Int) => Some(Kind::Int),
            (Unary::Not | Unary::IsNan | Unary::IsInf, _) | (_, Kind::Int | Kind::Bool) => None,
            (_, Kind::Float) => Some(Kind::Float),
        }
    }
}

impl Binary {
    /// Kind of the result for two operands of kind `x`, or `None` where the operator does not take the kind.
    pub fn result_kind(self, x: Kind) -> Option<Kind> {
        use Binary::*;
        match self {
            Eq | Ne => Some(Kind::Bool),
            Lt | Le | Gt | Ge => (x != Kind::Bool).then_some(Kind::Bool),
            And | Or | Xor => (x == Kind::Bool).then_some(Kind::Bool),
            Add | Sub | Mul | Div | Min | Max | Pow | Mod | Fmod => (x != Kind::Bool).then_some(x),
        }
    }
}

impl RowProgram {
    /// Types of the variables, in the order of the body; `None` for statements that give no value.
    ///
    /// # Errors
    /// A sentence on the first statement that breaks a rule of kinds, refers to a later statement or to a missing argument.
    pub fn types(&self) -> Result<Vec<Option<VarType>>, String> {
        let mut types = Vec::with_capacity(self.body.len());
        for (at, stmt) in self.body.iter().enumerate() {
            let ty = Typing { program: self, types: &types }.stmt(stmt).map_err(|e| format!("statement {at}: {e}"))?;
            types.push(ty);
        }
        Ok(types)
    }

    /// True where dimension `dim` belongs to the row.
    pub fn in_row(&self, dim: usize) -> bool {
        dim + self.row_dims as usize >= self.space.len()
    }

    /// True for a row access: one that no dimension of the row moves or guards. A dimension of one index moves nothing.
    pub fn constant_along_row(&self, access: &Access) -> bool {
        let dims = access.strides.iter().zip(&self.space).enumerate();
        let moves = dims.filter(|(d, _)| self.in_row(*d)).any(|(_, (&stride, &extent))| stride != 0 && extent != 1);
        !moves && !access.guards.iter().any(|g| self.in_row(g.dim as usize))
    }
}

/// The types of what comes before a statement.
struct Typing<'a> {
    program: &'a RowProgram,
    types: &'a [Option<VarType>],
}

impl Typing<'_> {
    fn var(&self, v: Var) -> Result<VarType, String> {
        let ty = self.types.get(v.0 as usize).ok_or(format!("%{} is not an earlier statement", v.0))?;
        ty.ok_or(format!("%{} has no value", v.0))
    }

    fn arg_kind(&self, arg: u32) -> Result<Kind, String> {
        Ok(Kind::from(self.program.args.get(arg as usize).ok_or(format!("there is no argument {arg}"))?.dtype))
    }

    fn stmt(&self, stmt: &Stmt) -> Result<Option<VarType>, String> {
        let ty = match stmt {
            Stmt::Load { arg, access, indexed } => {
                let along = if self.program.constant_along_row(access) { Rank::Row } else { Rank::Tile };
                let rank = match indexed {
                    None => along,
                    Some(i) => match self.var(i.index)? {
                        VarType { kind: Kind::Int, rank } => along.max(rank),
                        _ => return Err("the index is not an integer".into()),
                    },
                };
                VarType { kind: self.arg_kind(*arg)?, rank }
            }
            Stmt::Const { kind, .. } => VarType { kind: *kind, rank: Rank::Row },
            Stmt::Index { dim } => {
                if *dim as usize >= self.program.space.len() {
                    return Err(format!("there is no dimension {dim}"));
                }
                VarType { kind: Kind::Int, rank: if self.program.in_row(*dim as usize) { Rank::Tile } else { Rank::Row } }
            }
            Stmt::Unary { op, x } => {
                let x = self.var(*x)?;
                VarType { kind: op.result_kind(x.kind).ok_or(format!("{op:?} does not take {:?}", x.kind))?, ..x }
            }
            Stmt::Binary { op, x, y } => {
                let (x, y) = (self.var(*x)?, self.var(*y)?);
                if x.kind != y.kind {
                    return Err(format!("{op:?} of {:?} and {:?}", x.kind, y.kind));
                }
                let kind = op.result_kind(x.kind).ok_or(format!("{op:?} does not take {:?}", x.kind))?;
                VarType { kind, rank: x.rank.max(y.rank) }
            }
            Stmt::Select { c, x, y } => {
                let (c, x, y) = (self.var(*c)?, self.var(*x)?, self.var(*y)?);
                if c.kind != Kind::Bool || x.kind != y.kind {
                    return Err(format!("select of {:?}, {:?} and {:?}", c.kind, x.kind, y.kind));
                }
                VarType { kind: x.kind, rank: c.rank.max(x.rank).max(y.rank) }
            }
            Stmt::Cast { x, to } => VarType { kind: Kind::from(*to), ..self.var(*x)? },
            Stmt::Reduce { op, x } => match self.var(*x)?.kind {
                Kind::Bool => return Err(format!("{op:?} of Bool")),
                kind => VarType { kind, rank: Rank::Row },
            },
            Stmt::Store { arg, x, .. } => {
                self.arg_kind(*arg)?;
                self.var(*x)?;
                return Ok(None);
            }
            Stmt::Accumulate { arg, x, .. } => {
                let (to, x) = (self.arg_kind(*arg)?, self.var(*x)?.kind);
                if to != x || x == Kind::Bool {
                    return Err(format!("a sum of {to:?} and {x:?}"));
                }
                return Ok(None);
            }
            Stmt::StoreQuantized { codes, scales, x, .. } => {
                self.arg_kind(*codes)?;
                self.arg_kind(*scales)?;
                if self.var(*x)?.kind != Kind::Float {
                    return Err("a quantizing store of what is not a float".into());
                }
                return Ok(None);
            }
        };
        Ok(Some(ty))
    }
}
