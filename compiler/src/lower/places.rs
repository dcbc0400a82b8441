//! Where values lie: permuted layouts that make a following transpose free, sub-ranges of a concatenation, updates in place.

use super::access::row_major;
use super::fuse::reads;
use super::scene::{Class, Place, Scene};
use crate::graph::{Graph, NodeId, Op, ValueId};

/// Decides the places of all values that do not lie row-major in a buffer of their own.
pub(super) fn find(scene: &mut Scene) {
    let users = scene.graph().users();
    for n in (0..scene.graph().nodes.len() as u32).rev().map(NodeId) {
        for &v in &scene.graph().node(n).results {
            if let Some(place) = layout(scene, n, v, &users) {
                scene.places.insert(v, place);
            }
        }
        if scene.class_of(n) == Class::Join {
            join(scene, n);
        }
    }
    for n in (0..scene.graph().nodes.len() as u32).map(NodeId) {
        in_place(scene, n);
    }
}

/// A layout in which the transposes that read a value are row-major. Depth stays contiguous: kernels need that.
fn layout(scene: &Scene, n: NodeId, v: ValueId, users: &[Vec<NodeId>]) -> Option<Place> {
    let node = scene.graph().node(n);
    let flexible = match scene.class_of(n) {
        Class::Row | Class::Join => true,
        Class::Kernel => matches!((&node.op, node.results[0] == v), (Op::Attention(_), true) | (Op::AttentionGrad(_), _)),
        _ => false,
    };
    if !flexible || scene.places.contains_key(&v) || is_result(scene.graph(), v) {
        return None;
    }
    let user = |&u: &NodeId| &scene.graph().node(u).op;
    let mut perms = users[v.index()].iter().filter_map(|u| if let Op::Transpose(perm) = user(u) { Some(perm) } else { None });
    let first = perms.next()?;
    // Whoever else reads the value does so by strides.
    let strided = |u: &NodeId| {
        let kernel = matches!(user(u), Op::Attention(_) | Op::AttentionGrad(_) | Op::Matmul { .. });
        kernel || scene.class_of(*u) == Class::Row || *user(u) == Op::Transpose(first.clone())
    };
    if first.last() != Some(&(first.len().wrapping_sub(1))) || !users[v.index()].iter().all(strided) {
        return None;
    }
    let shape = scene.shape(v);
    let laid: Vec<u64> = first.iter().map(|&p| shape[p]).collect();
    let mut strides = vec![0; shape.len()];
    first.iter().zip(row_major(&laid)).for_each(|(&p, s)| strides[p] = s);
    Some(Place { owner: v, offset: 0, strides })
}

fn is_result(graph: &Graph, v: ValueId) -> bool {
    graph.loss == Some(v) || graph.outputs.iter().any(|o| o.value == v) || graph.gradients.iter().any(|g| g.value == v)
}

/// Puts the operands of a concatenation where they belong in its buffer, as far as they can be written there.
fn join(scene: &mut Scene, n: NodeId) {
    let node = scene.graph().node(n);
    let Op::Concat { axis } = node.op else { return };
    let whole = scene.place(node.results[0]);
    let mut start = 0;
    for &operand in &node.inputs {
        let sub = Place { offset: whole.offset + start * whole.strides[axis], ..whole.clone() };
        start += scene.shape(operand)[axis] as i64;
        if let Some((base, place)) = pushed_back(scene, operand, sub)
            && may_lie(scene, n, base, &place)
        {
            scene.places.insert(base, place);
        }
    }
}

/// The place of a chain's base that puts the chain's end at `place`.
fn pushed_back(scene: &Scene, mut v: ValueId, mut place: Place) -> Option<(ValueId, Place)> {
    loop {
        let node = scene.def(v).1;
        let from = match &node.op {
            op if !op.is_view() => return Some((v, place)),
            Op::Transpose(perm) => {
                let mut strides = vec![0; perm.len()];
                perm.iter().zip(&place.strides).for_each(|(&p, &s)| strides[p] = s);
                place.strides = strides;
                node.inputs[0]
            }
            Op::Reshape(_) => {
                place.strides = reshaped(scene.shape(v), &place.strides, scene.shape(node.inputs[0]))?;
                node.inputs[0]
            }
            _ => return None,
        };
        v = from;
    }
}

/// Strides of `to` over the elements that `strides` steps through in row-major order of `from`.
pub(super) fn reshaped(from: &[u64], strides: &[i64], to: &[u64]) -> Option<Vec<i64>> {
    // Runs of `from` that one stride covers, outermost first: (extent, stride).
    let mut runs: Vec<(u64, i64)> = vec![];
    for (&e, &s) in from.iter().zip(strides).filter(|(e, _)| **e != 1) {
        match runs.last_mut() {
            Some(last) if last.1 == s * e as i64 => *last = (last.0 * e, s),
            _ => runs.push((e, s)),
        }
    }
    let mut out = vec![0; to.len()];
    let (mut run, mut step) = (runs.pop(), 1u64);
    for d in (0..to.len()).rev().filter(|&d| to[d] != 1) {
        let (extent, stride) = run?;
        out[d] = stride * step as i64;
        step = step.checked_mul(to[d])?;
        if step == extent {
            (run, step) = (runs.pop(), 1);
        } else if !extent.is_multiple_of(step) {
            return None;
        }
    }
    Some(out)
}

/// True if the node that computes `base` can write it at `place`, and all other readers can read it there.
fn may_lie(scene: &Scene, join: NodeId, base: ValueId, place: &Place) -> bool {
    let (n, node) = scene.def(base);
    let shape = scene.shape(base);
    let unit_columns = shape.last() == Some(&1) || place.strides.last() == Some(&1);
    let alone = |v: &ValueId| *v == base || scene.places.get(v).is_none_or(|p| p.owner != place.owner);
    let writes = match scene.class_of(n) {
        Class::Row | Class::Join => true,
        Class::Kernel => match product(scene, n) {
            Op::Matmul { .. } => unit_columns,
            Op::Attention(_) => unit_columns && node.results[0] == base,
            Op::AttentionGrad(_) => unit_columns && node.results.iter().all(alone),
            _ => false,
        },
        _ => false,
    };
    let readers = &scene.readers[base.index()];
    let reads = readers.iter().all(|&r| r == join || scene.class_of(r) == Class::Row);
    let twice = scene.graph().node(join).inputs.iter().filter(|&&v| scene.base(v) == base).count() > 1;
    let fits = node.epoch() == scene.graph().node(join).epoch() && !scene.pinned[base.index()] && !scene.places.contains_key(&base);
    writes && reads && !twice && fits && !reads_its_buffer(scene, base, place.owner)
}

/// True if putting `base` into the buffer of `owner` makes a kernel read a buffer that it writes.
fn reads_its_buffer(scene: &Scene, base: ValueId, owner: ValueId) -> bool {
    let lies_there = |v: &ValueId| scene.places.get(v).is_some_and(|p| p.owner == owner);
    let inputs_of = |v: ValueId| {
        let n = scene.def(v).0;
        // A concatenation computes nothing.
        let computed = Some(n).filter(|&n| scene.class_of(n) != Class::Join);
        computed.into_iter().chain(scene.absorbs.get(&n).copied()).flat_map(|n| reads(scene, n)).collect::<Vec<_>>()
    };
    let mut others = scene.places.iter().filter(|(_, p)| p.owner == owner);
    inputs_of(base).iter().any(lies_there) || others.any(|(&v, _)| inputs_of(v).contains(&base))
}

/// The operator that a kernel's output side has: that of the product where the node has absorbed one.
fn product<'a>(scene: &Scene<'a>, n: NodeId) -> &'a Op {
    &scene.graph().node(*scene.absorbs.get(&n).unwrap_or(&n)).op
}

/// Results that replace an input lie in that input's buffer.
fn in_place(scene: &mut Scene, n: NodeId) {
    let node = scene.graph().node(n);
    for (&v, alias) in node.results.iter().zip(node.op.aliases()) {
        let Some(input) = alias else { continue };
        if let Ok(r) = scene.resolve(node.inputs[*input]) {
            let strides = row_major(scene.shape(v));
            scene.places.insert(v, Place { owner: r.owner, offset: 0, strides });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_concatenation_splits_into_heads() {
        assert_eq!(reshaped(&[2, 8, 32], &[768, 96, 1], &[2, 8, 4, 8]), Some(vec![768, 96, 8, 1]));
        assert_eq!(reshaped(&[16, 32], &[96, 1], &[2, 8, 32]), Some(vec![768, 96, 1]));
        assert_eq!(reshaped(&[2, 8, 32], &[768, 96, 1], &[2, 256]), None);
        assert_eq!(reshaped(&[2, 3, 1], &[6, 2, 1], &[2, 3]), Some(vec![6, 2]));
    }
}
