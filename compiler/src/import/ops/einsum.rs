//! Einstein sums, as sums, transposes and matrix products of two operands at a time.

use super::call::{Call, volume};
use super::matmul::product;
use super::{Outcome, Rule, Table};
use crate::graph::{Op, ValueId};
use fp8c_kernels::program::{Binary, Fold};

pub(super) const OPS: Table = &[("Einsum", Rule::Call(einsum))];

/// A letter, or an axis of the ellipsis counted from its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Label {
    Dots(usize),
    Letter(char),
}

/// A tensor whose axes are labelled, each label once.
struct Term {
    value: ValueId,
    labels: Vec<Label>,
}

fn einsum(call: &mut Call) -> Outcome {
    let inputs = call.all_inputs()?;
    let equation: String = call.string("equation", "")?.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left.to_string(), Some(right.to_string())),
        None => (equation, None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != inputs.len() {
        return Err(format!("has {} terms for {} inputs", terms.len(), inputs.len()));
    }
    let labelled = terms.iter().zip(&inputs).map(|(term, &v)| labels(term, Some(call.rank(v)))).collect::<Result<Vec<_>, _>>()?;
    let output = output_labels(right.as_deref(), &labelled)?;
    let mut rest: Vec<Term> = vec![];
    for (labels, &value) in labelled.into_iter().zip(&inputs) {
        rest.push(diagonals(call, Term { value, labels })?);
    }
    let mut result = rest.remove(0);
    loop {
        let needed = |l: &Label| output.contains(l) || rest.iter().any(|t| t.labels.contains(l));
        result = summed(call, result, needed)?;
        if rest.is_empty() {
            break;
        }
        let next = rest.remove(0);
        let needed = |l: &Label| output.contains(l) || rest.iter().any(|t| t.labels.contains(l));
        let next = {
            let first = &result.labels;
            summed(call, next, |l| needed(l) || first.contains(l))?
        };
        result = pair(call, result, next, needed)?;
    }
    arranged(call, &result, &output).map(|v| vec![v])
}

/// The labels of a term; `rank` tells how many axes the ellipsis stands for.
fn labels(term: &str, rank: Option<usize>) -> Result<Vec<Label>, String> {
    let bad = || format!("has the term {term:?}, which does not fit its input");
    let (before, after) = term.split_once("...").unwrap_or((term, ""));
    let letters =
        |s: &str| s.chars().map(|c| c.is_ascii_alphabetic().then_some(Label::Letter(c)).ok_or_else(bad)).collect::<Result<Vec<_>, _>>();
    let (before, after) = (letters(before)?, letters(after)?);
    let dots = match (term.contains("..."), rank) {
        (false, Some(rank)) if before.len() != rank => return Err(bad()),
        (false, _) | (true, None) => 0,
        (true, Some(rank)) => rank.checked_sub(before.len() + after.len()).ok_or_else(bad)?,
    };
    Ok([before, (0..dots).rev().map(Label::Dots).collect(), after].concat())
}

/// As written, or the ellipsis and then the letters that occur once, in alphabetical order.
fn output_labels(written: Option<&str>, terms: &[Vec<Label>]) -> Result<Vec<Label>, String> {
    let all = || terms.iter().flatten().copied();
    let dots = all().filter_map(|l| if let Label::Dots(i) = l { Some(i + 1) } else { None }).max().unwrap_or(0);
    let output = match written {
        Some(term) => {
            let letters = term.chars().filter(|c| *c != '.').count();
            labels(term, Some(letters + if term.contains("...") { dots } else { 0 }))?
        }
        None => {
            let mut once: Vec<Label> = all().filter(|l| matches!(l, Label::Letter(_)) && all().filter(|m| m == l).count() == 1).collect();
            once.sort_unstable();
            (0..dots).rev().map(Label::Dots).chain(once).collect()
        }
    };
    let repeated = (1..output.len()).any(|i| output[..i].contains(&output[i]));
    match repeated || output.iter().any(|l| !all().any(|m| m == *l)) {
        true => Err("has an output with a label that is repeated or unknown".into()),
        false => Ok(output),
    }
}

/// Replaces two axes of one label by their diagonal: of `n * n` elements in a row, every `n + 1`-th.
fn diagonals(call: &mut Call, mut term: Term) -> Result<Term, String> {
    while let Some((i, j)) = repeated(&term.labels) {
        let shape = call.shape(term.value);
        if shape[i] != shape[j] {
            return Err(format!("takes the diagonal of {} x {} elements", shape[i], shape[j]));
        }
        let rest: Vec<usize> = (0..shape.len()).filter(|&d| d != i && d != j).collect();
        let x = call.transpose(term.value, rest.iter().copied().chain([i, j]).collect())?;
        let lead: Vec<u64> = rest.iter().map(|&d| shape[d]).collect();
        let n = shape[i];
        let x = call.reshape(x, [&lead[..], &[volume(&[n, n])?]].concat())?;
        let (starts, mut steps, sizes) = (vec![0; lead.len() + 1], vec![1; lead.len() + 1], [&lead[..], &[n]].concat());
        steps[lead.len()] = n as i64 + 1;
        term.value = call.one(Op::Slice { starts, steps, sizes }, &[x])?;
        term.labels = rest.iter().map(|&d| term.labels[d]).chain([term.labels[i]]).collect();
    }
    Ok(term)
}

fn repeated(labels: &[Label]) -> Option<(usize, usize)> {
    let pairs = (0..labels.len()).flat_map(|i| (i + 1..labels.len()).map(move |j| (i, j)));
    pairs.into_iter().find(|&(i, j)| labels[i] == labels[j])
}

/// Sums over the axes that nothing else needs.
fn summed(call: &mut Call, term: Term, needed: impl Fn(&Label) -> bool) -> Result<Term, String> {
    let dropped: Vec<usize> = (0..term.labels.len()).filter(|&d| !needed(&term.labels[d])).collect();
    if dropped.is_empty() {
        return Ok(term);
    }
    let (shape, dtype) = (call.shape(term.value), call.dtype(term.value));
    if dtype == fp8c_kernels::DType::Bool {
        return Err("cannot take bool".into());
    }
    let folded = call.reduce(Fold::Sum, term.value, &dropped, dtype)?;
    let kept: Vec<usize> = (0..shape.len()).filter(|d| !dropped.contains(d)).collect();
    let value = call.reshape(folded, kept.iter().map(|&d| shape[d]).collect())?;
    Ok(Term { value, labels: kept.iter().map(|&d| term.labels[d]).collect() })
}

/// The product of two terms, summed over the shared labels that nothing else needs.
fn pair(call: &mut Call, a: Term, b: Term, needed: impl Fn(&Label) -> bool) -> Result<Term, String> {
    let shared = |l: &Label| a.labels.contains(l) && b.labels.contains(l);
    let (batch, inner): (Vec<Label>, Vec<Label>) = a.labels.iter().copied().filter(shared).partition(|l| needed(l));
    let only = |t: &Term| t.labels.iter().copied().filter(|l| !shared(l)).collect::<Vec<_>>();
    let (left, right) = (only(&a), only(&b));
    let labels = [&batch[..], &left, &right].concat();
    let extents = |call: &Call, t: &Term, of: &[Label]| -> Vec<u64> {
        let shape = call.shape(t.value);
        of.iter().filter_map(|l| t.labels.iter().position(|m| m == l).map(|d| shape[d])).collect()
    };
    let (m, n) = (extents(call, &a, &left), extents(call, &b, &right));
    let (za, zb) = (extents(call, &a, &batch), extents(call, &b, &batch));
    let value = if inner.is_empty() {
        let x = arranged(call, &a, &[&batch[..], &left].concat())?;
        let x = call.reshape(x, [&za[..], &m, &vec![1; n.len()]].concat())?;
        let y = arranged(call, &b, &[&batch[..], &right].concat())?;
        let y = call.reshape(y, [&zb[..], &vec![1; m.len()], &n].concat())?;
        call.binary(Binary::Mul, x, y)?
    } else {
        let k = volume(&extents(call, &a, &inner))?;
        let x = arranged(call, &a, &[&batch[..], &left, &inner].concat())?;
        let x = call.reshape(x, [&za[..], &[volume(&m)?, k]].concat())?;
        let y = arranged(call, &b, &[&batch[..], &inner, &right].concat())?;
        let y = call.reshape(y, [&zb[..], &[k, volume(&n)?]].concat())?;
        let product = product(call, x, y, false, false)?;
        let z = call.shape(product);
        call.reshape(product, [&z[..z.len() - 2], &m, &n].concat())?
    };
    Ok(Term { value, labels })
}

/// The term with its axes in this order.
fn arranged(call: &mut Call, term: &Term, order: &[Label]) -> Result<ValueId, String> {
    let perm = order.iter().map(|l| term.labels.iter().position(|m| m == l)).collect::<Option<Vec<_>>>();
    let perm = perm.filter(|p| p.len() == term.labels.len()).ok_or("has an output that its inputs do not give")?;
    call.transpose(term.value, perm)
}
