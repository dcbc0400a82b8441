//! Names of operators, as plans and texts spell them.

use crate::program::{Binary, Fold, Kind, Mode, Unary};

/// Values that have names.
pub trait Named: Copy + PartialEq + 'static {
    /// Every value with its name.
    const ALL: &'static [(Self, &'static str)];

    /// The name of a value. Every value is in the table, as a test shows.
    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(value, _)| *value == self).map_or("?", |(_, name)| name)
    }

    /// The value of a name.
    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(value, _)| *value)
    }
}

impl Named for Unary {
    const ALL: &'static [(Self, &'static str)] = &[
        (Unary::Neg, "neg"),
        (Unary::Abs, "abs"),
        (Unary::Sign, "sign"),
        (Unary::Not, "not"),
        (Unary::Exp, "exp"),
        (Unary::Log, "log"),
        (Unary::Log1p, "log1p"),
        (Unary::Sqrt, "sqrt"),
        (Unary::Rsqrt, "rsqrt"),
        (Unary::Recip, "recip"),
        (Unary::Sin, "sin"),
        (Unary::Cos, "cos"),
        (Unary::Tan, "tan"),
        (Unary::Asin, "asin"),
        (Unary::Acos, "acos"),
        (Unary::Atan, "atan"),
        (Unary::Sinh, "sinh"),
        (Unary::Cosh, "cosh"),
        (Unary::Asinh, "asinh"),
        (Unary::Acosh, "acosh"),
        (Unary::Atanh, "atanh"),
        (Unary::Tanh, "tanh"),
        (Unary::Erf, "erf"),
        (Unary::Sigmoid, "sigmoid"),
        (Unary::Softplus, "softplus"),
        (Unary::Floor, "floor"),
        (Unary::Ceil, "ceil"),
        (Unary::Round, "round"),
        (Unary::IsNan, "is_nan"),
        (Unary::IsInf, "is_inf"),
        (Unary::GeluErf, "gelu_erf"),
        (Unary::GeluErfGrad, "gelu_erf_grad"),
        (Unary::GeluTanh, "gelu_tanh"),
        (Unary::GeluTanhGrad, "gelu_tanh_grad"),
    ];
}

impl Named for Binary {
    const ALL: &'static [(Self, &'static str)] = &[
        (Binary::Add, "add"),
        (Binary::Sub, "sub"),
        (Binary::Mul, "mul"),
        (Binary::Div, "div"),
        (Binary::Min, "min"),
        (Binary::Max, "max"),
        (Binary::Pow, "pow"),
        (Binary::Mod, "mod"),
        (Binary::Fmod, "fmod"),
        (Binary::Eq, "eq"),
        (Binary::Ne, "ne"),
        (Binary::Lt, "lt"),
        (Binary::Le, "le"),
        (Binary::Gt, "gt"),
        (Binary::Ge, "ge"),
        (Binary::And, "and"),
        (Binary::Or, "or"),
        (Binary::Xor, "xor"),
    ];
}

/// Folds are spelled apart from the operators of two operands.
impl Named for Fold {
    const ALL: &'static [(Self, &'static str)] =
        &[(Fold::Sum, "reduce.sum"), (Fold::Max, "reduce.max"), (Fold::Min, "reduce.min"), (Fold::Prod, "reduce.prod")];
}

impl Named for Kind {
    const ALL: &'static [(Self, &'static str)] = &[(Kind::Float, "float"), (Kind::Int, "int"), (Kind::Bool, "bool")];
}

impl Named for Mode {
    const ALL: &'static [(Self, &'static str)] = &[(Mode::Read, "read"), (Mode::Write, "write"), (Mode::Update, "update")];
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use std::collections::HashSet;

    fn check<T: Named + DeserializeOwned + std::fmt::Debug + Eq + std::hash::Hash>(prefix: &str) {
        for (value, name) in T::ALL {
            let spelled = name.strip_prefix(prefix).unwrap_or(name);
            assert_eq!(serde_json::from_str::<T>(&format!("\"{spelled}\"")).ok(), Some(*value));
        }
        assert_eq!(T::ALL.iter().map(|(v, _)| v).collect::<HashSet<_>>().len(), T::ALL.len());
        let error = serde_json::from_str::<T>("\"no such name\"").expect_err("no such name").to_string();
        assert_eq!(error.matches('`').count() / 2 - 1, T::ALL.len(), "{error}");
    }

    #[test]
    fn every_operator_has_the_name_that_plans_use() {
        check::<Unary>("");
        check::<Binary>("");
        check::<Fold>("reduce.");
        check::<Kind>("");
        check::<Mode>("");
    }
}
