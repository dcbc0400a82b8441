//! The rules, one file a family.
//!
//! A rule is a name, a pattern and either a pattern or a function that builds the equal term. Function rules look at facts of what
//! the pattern bound and decline (`None`) where the equality does not hold.

mod activation;
mod algebra;
mod attention;
mod norm;
mod rotary;

use super::term::{Term, TermAnalysis, Terms};
use crate::graph::{Op, TensorType};
use egg::{Applier, Id, Pattern, PatternAst, Rewrite, Subst, Symbol, Var};

pub type Rule = Rewrite<Term, TermAnalysis>;

/// Every rule, in a fixed order.
pub fn all() -> Vec<Rule> {
    [algebra::rules(), activation::rules(), norm::rules(), attention::rules(), rotary::rules()].concat()
}

/// What a pattern bound.
pub struct Match<'a> {
    pub egraph: &'a mut Terms,
    subst: &'a Subst,
}

impl Match<'_> {
    /// The class bound to a variable; a variable that the pattern lacks is a fault of the rule table, caught by its test.
    pub fn id(&self, var: &str) -> Option<Id> {
        let var: Var = var.parse().ok()?;
        self.subst.get(var).copied()
    }

    pub fn ty(&self, var: &str) -> Option<&TensorType> {
        self.egraph[self.id(var)?].data.ty.as_ref()
    }

    pub fn shape(&self, var: &str) -> Option<Vec<u64>> {
        self.ty(var).map(|t| t.shape.clone())
    }

    /// The value of a class all of whose elements are one constant.
    pub fn scalar(&self, var: &str) -> Option<f32> {
        self.egraph[self.id(var)?].data.scalar
    }

    /// `Some(())` if the class is that constant, to a relative 1e-5 (exporters write sqrt(2) in many ways).
    pub fn is(&self, var: &str, value: f32) -> Option<()> {
        let x = self.scalar(var)?;
        ((x - value).abs() <= 1e-5 * value.abs().max(1e-30)).then_some(())
    }

    pub fn op(&self, var: &str) -> Option<Op> {
        super::term::op_of(self.egraph, self.id(var)?).cloned()
    }

    /// Adds `(name children.. @op)`.
    pub fn add(&mut self, name: &str, children: &[Id], op: Op) -> Id {
        let mut all = children.to_vec();
        all.push(super::term::attribute(self.egraph, op));
        super::term::apply(self.egraph, name, all)
    }

    /// Adds a scalar operation.
    pub fn map(&mut self, name: &str, children: &[Id]) -> Id {
        super::term::apply(self.egraph, name, children.to_vec())
    }

    pub fn literal(&mut self, x: f32) -> Id {
        self.egraph.add(Term::Scalar(fp8c_kernels::program::FloatBits(x.to_bits())))
    }
}

/// Builds the right-hand side of a rule, or declines.
type Build = fn(&mut Match) -> Option<Id>;

struct Function(Build);

impl Applier<Term, TermAnalysis> for Function {
    fn apply_one(&self, egraph: &mut Terms, class: Id, subst: &Subst, _: Option<&PatternAst<Term>>, _: Symbol) -> Vec<Id> {
        let built = (self.0)(&mut Match { egraph, subst });
        match built {
            Some(id) if egraph.union(class, id) => vec![id],
            _ => vec![],
        }
    }
}

/// A rule whose right-hand side is computed. Patterns are part of the program text and parse (`every_rule_parses`).
fn rule(name: &str, from: &str, build: Build) -> Option<Rule> {
    let pattern: Pattern<Term> = from.parse().ok()?;
    Rewrite::new(name, pattern, Function(build)).ok()
}

/// Rules of one function for several patterns that bind the same variables.
fn family(name: &str, from: &[&str], build: Build) -> Vec<Rule> {
    from.iter().enumerate().filter_map(|(i, p)| rule(&format!("{name}.{i}"), p, build)).collect()
}

/// A rule whose right-hand side is a pattern.
fn plain(name: &str, from: &str, to: &str) -> Option<Rule> {
    let (from, to): (Pattern<Term>, Pattern<Term>) = (from.parse().ok()?, to.parse().ok()?);
    Rewrite::new(name, from, to).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_rule_parses() {
        // A pattern that does not parse would vanish from its family.
        assert_eq!(super::all().len(), 51);
        let mut names: Vec<_> = super::all().iter().map(|r| r.name.to_string()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 51, "names are unique");
    }
}
