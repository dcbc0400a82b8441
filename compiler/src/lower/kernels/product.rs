//! Matrix products: operands by strides, so that transposes, slices and broadcasts of them cost nothing.

use super::{At, Draft, Fault};
use crate::graph::{NodeId, Op, ValueId};
use crate::lower::absorb::{Tail, tail};
use crate::lower::access::row_major;
use crate::lower::places::reshaped;
use crate::quantity::Flops;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Contract, Epilogue, Kernel, Matrix, ScaleGroup, ScaledContract};

/// The product's node and what its reader adds to it.
struct Parts {
    product: NodeId,
    epilogue: Epilogue,
    bias: Option<ValueId>,
    c: DType,
}

fn parts(at: At) -> Result<Parts, Fault> {
    let graph = at.scene.graph();
    let c = graph.ty(at.results()[0]).dtype;
    let mut parts = Parts { product: at.n, epilogue: Epilogue::default(), bias: None, c };
    let Some(&m) = at.scene.absorbs.get(&at.n) else { return Ok(parts) };
    parts.product = m;
    match tail(at.scene, graph.node(at.n), graph.node(m).results[0]) {
        Some(Tail::Bias(operand)) => {
            parts.epilogue.bias = Some(graph.ty(at.inputs()[operand]).dtype);
            parts.bias = Some(at.whole(operand)?);
        }
        Some(Tail::Accumulate) => parts.epilogue.accumulate = true,
        Some(Tail::Cast) => {}
        None => return at.fail("has absorbed a product that it cannot finish"),
    }
    Ok(parts)
}

pub(super) fn dense(at: At, trans_a: bool, trans_b: bool) -> Result<Draft, Fault> {
    let parts = parts(at)?;
    let product = At { n: parts.product, ..at };
    let shape = at.scene.shape(product.results()[0]);
    let (batch, [m, n]) = (&shape[..shape.len() - 2], [shape[shape.len() - 2], shape[shape.len() - 1]]);
    let a_shape = at.scene.shape(product.inputs()[0]);
    let k = a_shape[a_shape.len() - if trans_a { 2 } else { 1 }];
    let (a, a_owner) = operand(product, 0, batch, trans_a)?;
    let (b, b_owner) = operand(product, 1, batch, trans_b)?;
    let (c, c_owner) = result(at, shape, parts.c)?;
    let flops = Flops::of_loops(shape) * k;
    let mut contract = Contract { batch: batch.to_vec(), m, n, k, a, b, c, epilogue: parts.epilogue };
    simplify(&mut contract);
    let owners = [a_owner, b_owner].into_iter().chain(parts.bias).chain([c_owner]).collect();
    Ok(Draft { kernel: Kernel::Contract(contract), owners, flops })
}

/// One operand over the batch of the result. One of its last two axes must be contiguous.
fn operand(at: At, input: usize, batch: &[u64], swap: bool) -> Result<(Matrix, ValueId), Fault> {
    let v = at.inputs()[input];
    let shape = at.scene.shape(v);
    let Ok(r) = at.scene.resolve(v) else { return Err(at.copy(input)) };
    let s = &r.access.strides;
    let moving = |d: usize| if shape[d] == 1 { 0 } else { s[d] };
    let (rows, cols) = (shape.len() - 2, shape.len() - 1);
    let unit = [rows, cols].iter().any(|&d| moving(d) == 1) || shape[rows] * shape[cols] == 1;
    let vector = [rows, cols].iter().any(|&d| shape[d] == 1);
    if !r.access.guards.is_empty() || r.access.offset < 0 || s.iter().any(|&s| s < 0) || !(unit || vector) {
        return Err(at.copy(input));
    }
    // An axis of extent 1 has any stride: that of a row-major matrix suits every kernel.
    let row = if shape[rows] == 1 { shape[cols] as i64 } else { s[rows] };
    let col = if shape[cols] == 1 { 1 } else { s[cols] };
    let (row, col) = if swap { (col, row) } else { (row, col) };
    let matrix = Matrix {
        dtype: at.scene.graph().ty(v).dtype,
        elements: at.scene.elements(r.owner),
        offset: r.access.offset as u64,
        batch_strides: (0..batch.len()).map(|d| moving(d) as u64).collect(),
        row_stride: row as u64,
        col_stride: col as u64,
    };
    Ok((matrix, r.owner))
}

/// Where the product goes; `shape` is the product's own.
fn result(at: At, shape: &[u64], dtype: DType) -> Result<(Matrix, ValueId), Fault> {
    let v = at.results()[0];
    let place = at.scene.place(v);
    let own = at.scene.shape(v);
    let strides = if place.strides == row_major(own) { Some(row_major(shape)) } else { reshaped(own, &place.strides, shape) };
    let Some(strides) = strides else { return at.fail("was given a place that a product cannot write") };
    let (rows, cols) = (shape.len() - 2, shape.len() - 1);
    let row = if shape[rows] == 1 { shape[cols] as i64 } else { strides[rows] };
    let matrix = Matrix {
        dtype,
        elements: at.scene.elements(place.owner),
        offset: place.offset as u64,
        batch_strides: strides[..rows].iter().map(|&s| s as u64).collect(),
        row_stride: row as u64,
        col_stride: if shape[cols] == 1 { 1 } else { strides[cols] as u64 },
    };
    Ok((matrix, place.owner))
}

/// Drops batch dimensions of extent 1, and folds those into `m` or into each other that all three operands step over alike.
fn simplify(c: &mut Contract) {
    for d in (0..c.batch.len()).rev().filter(|&d| c.batch[d] == 1).collect::<Vec<_>>() {
        drop_batch(c, d);
    }
    while let Some(d) = c.batch.len().checked_sub(1) {
        let over_rows = |x: &Matrix, m: u64| x.batch_strides[d] == x.row_stride * m;
        if c.b.batch_strides[d] == 0 && over_rows(&c.a, c.m) && over_rows(&c.c, c.m) {
            c.m *= c.batch[d];
            drop_batch(c, d);
            continue;
        }
        break;
    }
    for d in (1..c.batch.len()).rev() {
        let extent = c.batch[d];
        let over = |x: &Matrix| x.batch_strides[d - 1] == x.batch_strides[d] * extent;
        if [&c.a, &c.b, &c.c].into_iter().all(over) {
            c.batch[d - 1] *= extent;
            for x in [&mut c.a, &mut c.b, &mut c.c] {
                x.batch_strides[d - 1] = x.batch_strides[d];
            }
            drop_batch(c, d);
        }
    }
}

fn drop_batch(c: &mut Contract, d: usize) {
    c.batch.remove(d);
    for x in [&mut c.a, &mut c.b, &mut c.c] {
        x.batch_strides.remove(d);
    }
}

pub(super) fn scaled(at: At, block_b: bool) -> Result<Draft, Fault> {
    let parts = parts(at)?;
    let product = At { n: parts.product, ..at };
    let Op::ScaledMatmul { .. } = at.scene.graph().node(parts.product).op else { return at.fail("is no scaled product") };
    let mut owners = (0..4).map(|i| product.whole(i)).collect::<Result<Vec<_>, _>>()?;
    let (a, b) = (at.scene.shape(product.inputs()[0]), at.scene.shape(product.inputs()[2]));
    let (m, k, n) = (a[0], a[1], b[0]);
    owners.extend(parts.bias);
    owners.push(at.result(0)?);
    let b_scales = if block_b { ScaleGroup::Block } else { ScaleGroup::Row };
    let kernel = Kernel::ScaledContract(ScaledContract { m, n, k, b_scales, c: parts.c, epilogue: parts.epilogue });
    Ok(Draft { kernel, owners, flops: Flops::of_loops(&[m, n, k]) })
}
