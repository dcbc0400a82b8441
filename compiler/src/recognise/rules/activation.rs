//! GELU in its two forms, from erf and tanh chains.

use super::{Match, Rule, family};
use egg::Id;

pub fn rules() -> Vec<Rule> {
    // x / 2 * (1 + erf(x / sqrt 2)): the half may stand with x, with the sum, or outside.
    let erf = [
        "(mul (mul ?x ?half) (add (erf (mul ?x ?r)) ?one))",
        "(mul ?x (mul ?half (add (erf (mul ?x ?r)) ?one)))",
        "(mul ?half (mul ?x (add (erf (mul ?x ?r)) ?one)))",
    ];
    let tanh = [
        "(mul (mul ?x ?half) (add (tanh (mul ?r (add ?x (mul ?c (pow ?x ?three))))) ?one))",
        "(mul ?x (mul ?half (add (tanh (mul ?r (add ?x (mul ?c (pow ?x ?three))))) ?one)))",
        "(mul ?half (mul ?x (add (tanh (mul ?r (add ?x (mul ?c (pow ?x ?three))))) ?one)))",
    ];
    let cubes = [
        "(mul (mul ?x ?half) (add (tanh (mul ?r (add ?x (mul ?c (mul ?x (mul ?x ?x)))))) ?one))",
        "(mul ?half (mul ?x (add (tanh (mul ?r (add ?x (mul ?c (mul ?x (mul ?x ?x)))))) ?one)))",
        "(mul (mul ?x ?half) (add (tanh (mul ?r (mul ?x (add (mul ?c (mul ?x ?x)) ?one)))) ?one))",
        "(mul ?half (mul ?x (add (tanh (mul ?r (mul ?x (add (mul ?c (mul ?x ?x)) ?one)))) ?one)))",
    ];
    [family("gelu-erf", &erf, gelu_erf), family("gelu-tanh", &tanh, gelu_tanh), family("gelu-tanh-cube", &cubes, gelu_tanh_cube)].concat()
}

fn gelu_erf(m: &mut Match) -> Option<Id> {
    m.is("?half", 0.5)?;
    m.is("?one", 1.0)?;
    m.is("?r", std::f32::consts::FRAC_1_SQRT_2)?;
    let x = m.id("?x")?;
    Some(m.map("gelu_erf", &[x]))
}

fn gelu_tanh(m: &mut Match) -> Option<Id> {
    m.is("?three", 3.0)?;
    gelu_tanh_cube(m)
}

fn gelu_tanh_cube(m: &mut Match) -> Option<Id> {
    m.is("?half", 0.5)?;
    m.is("?one", 1.0)?;
    m.is("?c", 0.044715)?;
    m.is("?r", (2.0 / std::f32::consts::PI).sqrt())?;
    let x = m.id("?x")?;
    Some(m.map("gelu_tanh", &[x]))
}
