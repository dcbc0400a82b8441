//! Printing of row programs.

use super::names::Named;
use super::record::{Field, Record};
use crate::program::{Access, Literal, RowProgram, Stmt};
use std::fmt;

pub(super) use super::listing::parse;

impl fmt::Display for RowProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Record::kernel("row").with("space", &self.space).with("row_dims", &u64::from(self.row_dims)))?;
        for (i, arg) in self.args.iter().enumerate() {
            writeln!(f, "  a{i}: {}[{}] {}", arg.dtype, arg.elements, arg.mode.name())?;
        }
        self.body.iter().enumerate().try_for_each(|(i, stmt)| {
            f.write_str("  ")?;
            if !matches!(stmt, Stmt::Store { .. } | Stmt::Accumulate { .. } | Stmt::StoreQuantized { .. }) {
                write!(f, "%{i} = ")?;
            }
            writeln!(f, "{}", statement(stmt))
        })
    }
}

fn statement(stmt: &Stmt) -> String {
    match stmt {
        Stmt::Load { arg, access, indexed } => {
            let by = indexed.map_or(String::new(), |i| format!(" by {}*%{} below {}", i.stride, i.index.0, i.bound));
            format!("load {}{by}{}", place(*arg, access), guards(access))
        }
        Stmt::Const { kind, value } => format!("const {} {}", kind.name(), literal(*value)),
        Stmt::Index { dim } => format!("index d{dim}"),
        Stmt::Unary { op, x } => format!("{} %{}", op.name(), x.0),
        Stmt::Binary { op, x, y } => format!("{} %{}, %{}", op.name(), x.0, y.0),
        Stmt::Select { c, x, y } => format!("select %{}, %{}, %{}", c.0, x.0, y.0),
        Stmt::Cast { x, to } => format!("cast %{} to {to}", x.0),
        Stmt::Reduce { op, x } => format!("{} %{}", op.name(), x.0),
        Stmt::Store { arg, access, x } => format!("store {} = %{}{}", place(*arg, access), x.0, guards(access)),
        Stmt::Accumulate { arg, access, x } => format!("store {} += %{}{}", place(*arg, access), x.0, guards(access)),
        Stmt::StoreQuantized { codes, access, scales, power_of_two, x } => {
            let up = if *power_of_two { " power_of_two" } else { "" };
            format!("quantize {}, a{scales} = %{}{up}{}", place(*codes, access), x.0, guards(access))
        }
    }
}

pub(super) fn literal(value: Literal) -> String {
    match value {
        Literal::Float(bits) => bits.print(),
        Literal::Int(i) => i.to_string(),
    }
}

fn place(arg: u32, access: &Access) -> String {
    let mut text = String::new();
    let term = |value: i64, dim: Option<usize>, text: &mut String| {
        let sign = match (text.is_empty(), value < 0) {
            (true, false) => "",
            (true, true) => "-",
            (false, false) => " + ",
            (false, true) => " - ",
        };
        let size = value.unsigned_abs();
        text.push_str(sign);
        match dim {
            None => text.push_str(&size.to_string()),
            Some(d) if size == 1 => text.push_str(&format!("d{d}")),
            Some(d) => text.push_str(&format!("{size}*d{d}")),
        }
    };
    access.strides.iter().enumerate().filter(|(_, s)| **s != 0).for_each(|(d, &s)| term(s, Some(d), &mut text));
    if access.offset != 0 || text.is_empty() {
        term(access.offset, None, &mut text);
    }
    format!("a{arg}[{text}]")
}

fn guards(access: &Access) -> String {
    let all: Vec<String> = access.guards.iter().map(|g| format!("{} <= d{} < {}", g.lower, g.dim, g.upper)).collect();
    if all.is_empty() { String::new() } else { format!(" if {}", all.join(", ")) }
}
