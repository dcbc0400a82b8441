//! Attention, grown from its products: scores, then what masks and caps them, then probabilities, then the values.
//!
//! `(scores q k [bias] @attention)` and `(probs ..)` stand for the part recognised so far. They cost infinitely much: either the whole
//! attention is found, or the chain stays as it was.

use super::{Match, Rule, family};
use crate::graph::{AttentionOp, Op};
use crate::recognise::term::attention_of;
use egg::Id;
use fp8c_kernels::DType;
use fp8c_kernels::program::{FloatBits, Mask};

pub fn rules() -> Vec<Rule> {
    [
        family("scores", &["(matmul ?q ?k ?t)"], scores),
        family("scores-scaled", &["(mul (scores ?q ?k ?a) ?c)"], scaled),
        family("scores-capped", &["(mul (tanh (scores ?q ?k ?a)) ?c)"], capped),
        family("scores-masked", &["(add (scores ?q ?k ?a) ?m)"], masked),
        family("scores-masked-twice", &["(add (scores ?q ?k ?b ?a) ?m)"], masked_again),
        family("scores-selected", &["(select ?m (scores ?q ?k ?a) ?low)"], selected),
        family("scores-selected-out", &["(select ?m ?low (scores ?q ?k ?a))"], selected_out),
        family("probs", &["(softmax (scores ?q ?k ?a) ?s)"], probs),
        family("probs-biased", &["(softmax (scores ?q ?k ?b ?a) ?s)"], probs_biased),
        family("probs-guarded", &["(select (is_nan ?p) ?zero ?p)"], guarded),
        family("attention", &["(matmul (probs ?q ?k ?a) ?v ?t)"], attention),
        family("attention-biased", &["(matmul (probs ?q ?k ?b ?a) ?v ?t)"], attention_biased),
        family("attention-selected", &["(matmul (select (is_nan ?p) ?zero (probs ?q ?k ?a)) ?v ?t)"], attention),
        family("grouped-heads", &[GROUPED], grouped),
        family("grouped-heads-biased", &[GROUPED_BIASED], grouped_biased),
    ]
    .concat()
}

const GROUPED: &str = "(attention ?q (reshape (broadcast (reshape ?k ?k1) ?k2) ?k3) (reshape (broadcast (reshape ?v ?v1) ?v2) ?v3) ?a)";
const GROUPED_BIASED: &str =
    "(attention ?q (reshape (broadcast (reshape ?k ?k1) ?k2) ?k3) (reshape (broadcast (reshape ?v ?v1) ?v2) ?v3) ?b ?a)";

/// `q @ k^T` of rank 4.
fn scores(m: &mut Match) -> Option<Id> {
    let Op::Matmul { trans_a: false, trans_b: true, .. } = m.op("?t")? else { return None };
    let (q, k) = (m.shape("?q")?, m.shape("?k")?);
    if q.len() != 4 || q[..2] != k[..2] {
        return None;
    }
    let plain = AttentionOp { scale: FloatBits(1f32.to_bits()), softcap: None, mask: Mask::default(), bias: false };
    let (q, k) = (m.id("?q")?, m.id("?k")?);
    Some(m.add("scores", &[q, k], Op::Attention(plain)))
}

fn half_built(m: &Match) -> Option<AttentionOp> {
    attention_of(m.egraph, m.id("?a")?)
}

fn rebuilt(m: &mut Match, bias: Option<Id>, a: AttentionOp) -> Option<Id> {
    let mut children = vec![m.id("?q")?, m.id("?k")?];
    children.extend(bias);
    Some(m.add("scores", &children, Op::Attention(a)))
}

fn is_plain(mask: &Mask) -> bool {
    !mask.causal && mask.window.is_none()
}

/// A scale before any mask or cap.
fn scaled(m: &mut Match) -> Option<Id> {
    let (mut a, c) = (half_built(m)?, m.scalar("?c")?);
    if !is_plain(&a.mask) || a.softcap.is_some() || !c.is_normal() {
        return None;
    }
    a.scale = FloatBits((f32::from_bits(a.scale.0) * c).to_bits());
    rebuilt(m, None, a)
}

/// `c tanh(s q k)` caps at c what is scaled by `s c`.
fn capped(m: &mut Match) -> Option<Id> {
    let (mut a, c) = (half_built(m)?, m.scalar("?c").filter(|c| *c > 0.0 && c.is_normal())?);
    if !is_plain(&a.mask) || a.softcap.is_some() {
        return None;
    }
    a.scale = FloatBits((f32::from_bits(a.scale.0) * c).to_bits());
    a.softcap = Some(FloatBits(c.to_bits()));
    rebuilt(m, None, a)
}

/// Adds a mask: one that constant folding made causal or windowed becomes a flag, another becomes the bias.
fn masked(m: &mut Match) -> Option<Id> {
    let a = half_built(m)?;
    if !is_plain(&a.mask) {
        return None;
    }
    let additive = m.egraph[m.id("?m")?].data.data.as_ref().map(|d| (d.ty.shape.clone(), d.to_f32()));
    let seen = additive.as_ref().and_then(|(shape, values)| visible(shape, values.iter().map(|&x| mask_value(x))));
    with_mask(m, a, seen)
}

fn masked_again(m: &mut Match) -> Option<Id> {
    let a = half_built(m)?;
    let (b, mask) = (m.id("?b")?, m.id("?m")?);
    let both = m.ty("?b").zip(m.ty("?m")).is_some_and(|(x, y)| x.dtype == DType::F32 && y.dtype == DType::F32);
    let sum = if both { m.map("add", &[b, mask]) } else { return None };
    rebuilt(m, Some(sum), a)
}

/// `where(m, scores, -inf)`
fn selected(m: &mut Match) -> Option<Id> {
    excluded_by(m, false)
}

/// `where(m, -inf, scores)`
fn selected_out(m: &mut Match) -> Option<Id> {
    excluded_by(m, true)
}

fn excluded_by(m: &mut Match, inverted: bool) -> Option<Id> {
    let a = half_built(m)?;
    m.scalar("?low").filter(|x| *x < -1e30)?;
    if !is_plain(&a.mask) {
        return None;
    }
    let constant = m.egraph[m.id("?m")?].data.data.as_ref().map(|d| (d.ty.shape.clone(), d.to_i64()));
    let seen = constant.as_ref().and_then(|(shape, bits)| visible(shape, bits.iter().map(|&b| Some((b != 0) != inverted))));
    match seen {
        Some(_) => with_mask(m, a, seen),
        None => {
            // As an addend, so that a row whose every key is excluded by a finite number stays uniform.
            let (mask, low, zero) = (m.id("?m")?, m.scalar("?low")?, m.literal(0.0));
            let low = m.literal(low);
            let addend = if inverted { m.map("select", &[mask, low, zero]) } else { m.map("select", &[mask, zero, low]) };
            let bias = as_bias(m, addend)?;
            rebuilt(m, Some(bias), AttentionOp { bias: true, ..a })
        }
    }
}

fn with_mask(m: &mut Match, a: AttentionOp, seen: Option<Mask>) -> Option<Id> {
    match seen {
        Some(mask) => rebuilt(m, None, AttentionOp { mask, ..a }),
        None => {
            let mask = m.id("?m")?;
            let bias = as_bias(m, mask)?;
            rebuilt(m, Some(bias), AttentionOp { bias: true, ..a })
        }
    }
}

/// A bias has rank 4 and broadcasts to the scores.
fn as_bias(m: &mut Match, mask: Id) -> Option<Id> {
    let ty = m.egraph[mask].data.ty.clone()?;
    let (q, k) = (m.shape("?q")?, m.shape("?k")?);
    let scores = [q[0], q[1], q[2], k[2]];
    let lead = 4usize.checked_sub(ty.rank())?;
    let mut shape = vec![1; lead];
    shape.extend(&ty.shape);
    let fits = shape.iter().zip(scores).all(|(&a, b)| a == 1 || a == b);
    match (fits, lead) {
        (false, _) => None,
        (true, 0) => Some(mask),
        (true, _) => Some(m.add("reshape", &[mask], Op::Reshape(shape))),
    }
}

/// What an additive mask's element says: visible, excluded, or neither (a bias).
fn mask_value(x: f32) -> Option<bool> {
    match x {
        0.0 => Some(true),
        _ if x < -1e30 => Some(false),
        _ => None,
    }
}

/// The mask that constant visibility of shape `[.., queries, keys]` is, if it is all-visible, causal, windowed or both, for every
/// batch and head alike.
fn visible(shape: &[u64], bits: impl Iterator<Item = Option<bool>>) -> Option<Mask> {
    let bits: Vec<bool> = bits.collect::<Option<_>>()?;
    let &[.., queries, keys] = shape else { return None };
    let (queries, keys) = (queries as usize, keys as usize);
    if queries * keys == 0 {
        return None;
    }
    if bits.iter().all(|&b| b) {
        return Some(Mask::default());
    }
    // The first row of the last query tells the window; then every element must agree.
    let last_row = &bits[(queries - 1) * keys..queries * keys];
    let shift = keys.checked_sub(queries)?;
    let reach = (0..keys).rev().skip(keys - queries - shift).take_while(|&j| last_row[j]).count();
    if reach == 0 {
        return None;
    }
    let window = if reach < keys { Some(reach as u64) } else { None };
    let mask = Mask { causal: true, window, align_end: shift > 0 };
    let agrees = |(n, &b): (usize, &bool)| {
        let (i, j) = ((n / keys) % queries + shift, n % keys);
        b == (j <= i && window.is_none_or(|w| j as u64 + w > i as u64))
    };
    bits.iter().enumerate().all(agrees).then_some(mask)
}

fn probs(m: &mut Match) -> Option<Id> {
    if m.op("?s")? != (Op::Softmax { log: false }) {
        return None;
    }
    let (q, k, a) = (m.id("?q")?, m.id("?k")?, half_built(m)?);
    // Without a guard, a row that sees nothing at all is NaN here and zero in an attention; a model that meets one trains with neither.
    Some(m.add("probs", &[q, k], Op::Attention(a)))
}

fn probs_biased(m: &mut Match) -> Option<Id> {
    if m.op("?s")? != (Op::Softmax { log: false }) {
        return None;
    }
    let (q, k, b, a) = (m.id("?q")?, m.id("?k")?, m.id("?b")?, half_built(m)?);
    Some(m.add("probs", &[q, k, b], Op::Attention(a)))
}

/// `where(isnan(p), 0, p) = p` for the probabilities of an attention, which are zero where nothing is seen.
fn guarded(m: &mut Match) -> Option<Id> {
    let p = m.id("?p")?;
    let is_probs = m.egraph[p].nodes.iter().any(|n| matches!(n, crate::recognise::term::Term::Apply(name, _) if name.as_str() == "probs"));
    (is_probs && m.scalar("?zero")? == 0.0).then_some(p)
}

fn attention(m: &mut Match) -> Option<Id> {
    let (q, k, v, a) = (m.id("?q")?, m.id("?k")?, m.id("?v")?, half_built(m)?);
    untransposed_product(m)?;
    Some(m.add("attention", &[q, k, v], Op::Attention(a)))
}

fn attention_biased(m: &mut Match) -> Option<Id> {
    let (q, k, v, b, a) = (m.id("?q")?, m.id("?k")?, m.id("?v")?, m.id("?b")?, half_built(m)?);
    untransposed_product(m)?;
    Some(m.add("attention", &[q, k, v, b], Op::Attention(a)))
}

fn untransposed_product(m: &Match) -> Option<()> {
    let plain = matches!(m.op("?t")?, Op::Matmul { trans_a: false, trans_b: false, .. });
    (plain && m.shape("?v")?.len() == 4).then_some(())
}

/// Keys and values repeated for each query head of a group need not be repeated.
fn grouped(m: &mut Match) -> Option<Id> {
    grouped_operands(m).map(|(q, k, v, a)| m.add("attention", &[q, k, v], Op::Attention(a)))
}

fn grouped_biased(m: &mut Match) -> Option<Id> {
    let b = m.id("?b")?;
    grouped_operands(m).map(|(q, k, v, a)| m.add("attention", &[q, k, v, b], Op::Attention(a)))
}

fn grouped_operands(m: &mut Match) -> Option<(Id, Id, Id, AttentionOp)> {
    let heads = m.shape("?q")?[1];
    for (x, inner, wide) in [("?k", "?k1", "?k2"), ("?v", "?v1", "?v2")] {
        let s = m.shape(x)?;
        let (Op::Reshape(one), Op::Broadcast(all)) = (m.op(inner)?, m.op(wide)?) else { return None };
        let repeats = s.len() == 4 && one == [s[0], s[1], 1, s[2], s[3]] && all == [s[0], s[1], heads / s[1].max(1), s[2], s[3]];
        if !repeats || s[1] * all[2] != heads {
            return None;
        }
    }
    Some((m.id("?q")?, m.id("?k")?, m.id("?v")?, half_built(m)?))
}
