//! RMS norm and layer norm from their arithmetic, over the last axes.

use super::{Match, Rule, family};
use crate::graph::{NormOp, Op};
use egg::Id;
use fp8c_kernels::program::{FloatBits, Fold};

pub fn rules() -> Vec<Rule> {
    // The mean of squares is a sum times 1/n, plus epsilon, under an inverse square root.
    let rms = [
        "(mul ?w (mul ?x (rsqrt (add (mul (reduce (mul ?x ?x) ?axes) ?n) ?eps))))",
        "(mul (mul ?w ?x) (rsqrt (add (mul (reduce (mul ?x ?x) ?axes) ?n) ?eps)))",
    ];
    let layer = ["(add ?b (mul ?w (mul (sub ?x (mul (reduce ?x ?axes) ?n)) \
         (rsqrt (add (mul (reduce (mul (sub ?x (mul (reduce ?x ?axes) ?n)) (sub ?x (mul (reduce ?x ?axes) ?n))) ?axes) ?n) ?eps)))))"];
    let unscaled = ["(mul (sub ?x (mul (reduce ?x ?axes) ?n)) \
         (rsqrt (add (mul (reduce (mul (sub ?x (mul (reduce ?x ?axes) ?n)) (sub ?x (mul (reduce ?x ?axes) ?n))) ?axes) ?n) ?eps)))"];
    let affine = ["(add ?b (mul ?w (norm ?x ?s ?z ?attr)))"];
    [
        family("rms-norm", &rms, rms_norm),
        family("layer-norm", &layer, layer_norm),
        family("layer-norm-unscaled", &unscaled, unscaled_layer_norm),
        family("affine-layer-norm", &affine, affine_layer_norm),
    ]
    .concat()
}

/// The number of trailing axes that a norm of `?x` over `?axes` with factor `?n` averages over.
fn trailing_axes(m: &Match) -> Option<usize> {
    let Op::Reduce { op: Fold::Sum, axes, .. } = m.op("?axes")? else { return None };
    let shape = m.shape("?x")?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    let trailing = sorted.iter().rev().enumerate().all(|(i, &a)| a + i + 1 == shape.len());
    let count: u64 = sorted.iter().map(|&a| shape[a]).product();
    m.is("?n", 1.0 / count as f32)?;
    trailing.then_some(axes.len())
}

/// A scale or bias: shaped like the normalised axes, leading ones aside.
fn weight(m: &mut Match, var: &str, axes: usize) -> Option<Id> {
    let (x, w) = (m.shape("?x")?, m.shape(var)?);
    let inner = &x[x.len() - axes..];
    let (id, lead) = (m.id(var)?, w.len().checked_sub(axes)?);
    if w[lead..] != *inner || w[..lead].iter().any(|&d| d != 1) {
        return None;
    }
    match lead {
        0 => Some(id),
        _ => Some(m.add("reshape", &[id], Op::Reshape(inner.to_vec()))),
    }
}

fn norm_op(m: &Match, center: bool, axes: usize, bias: bool) -> Option<Op> {
    let eps = m.scalar("?eps").filter(|e| *e >= 0.0 && *e < 0.1)?;
    Some(Op::Norm(NormOp { center, axes, eps: FloatBits(eps.to_bits()), bias, dtype: m.ty("?x")?.dtype }))
}

fn rms_norm(m: &mut Match) -> Option<Id> {
    let axes = trailing_axes(m)?;
    let op = norm_op(m, false, axes, false)?;
    let (x, w) = (m.id("?x")?, weight(m, "?w", axes)?);
    Some(m.add("norm", &[x, w], op))
}

fn layer_norm(m: &mut Match) -> Option<Id> {
    let axes = trailing_axes(m)?;
    let op = norm_op(m, true, axes, true)?;
    let (x, w, b) = (m.id("?x")?, weight(m, "?w", axes)?, weight(m, "?b", axes)?);
    Some(m.add("norm", &[x, w, b], op))
}

/// A norm without scale has scale one.
fn unscaled_layer_norm(m: &mut Match) -> Option<Id> {
    let axes = trailing_axes(m)?;
    let op = norm_op(m, true, axes, false)?;
    let (x, one) = (m.id("?x")?, m.literal(1.0));
    let shape = m.shape("?x")?;
    let ones = m.add("broadcast", &[one], Op::Broadcast(shape[shape.len() - axes..].to_vec()));
    Some(m.add("norm", &[x, ones], op))
}

/// Scale one and bias zero inside, scale and bias outside: one norm.
fn affine_layer_norm(m: &mut Match) -> Option<Id> {
    let Op::Norm(norm) = m.op("?attr")? else { return None };
    m.is("?s", 1.0)?;
    if !norm.bias || m.scalar("?z")? != 0.0 {
        return None;
    }
    let (x, w, b) = (m.id("?x")?, weight(m, "?w", norm.axes)?, weight(m, "?b", norm.axes)?);
    Some(m.add("norm", &[x, w, b], Op::Norm(norm)))
}
