//! Undoes what an exporter computed from a parameter.

use super::{Form, elements};
use crate::graph::{ConstData, Init, TensorType};
use crate::import::model::Initializer;
use fp8c_kernels::DType;
use std::collections::HashMap;

type Undone = (Vec<u64>, Init);

/// Shape and start of the parameter that an initializer was made from in a form; `read` are all initializers that were made from it in
/// that form. None where the initializer is the parameter itself, or does not look as if it had been made so.
///
/// # Errors
/// A sentence, when a weight file cannot be read.
pub fn undo(i: &Initializer, read: &[&Initializer], form: Form) -> Result<Option<Undone>, String> {
    Ok(match form {
        Form::Same => None,
        Form::Transposed => Some(transposed(i)?),
        Form::Reshaped => Some(flat(i)?),
        Form::Repeated => repeated(i)?,
        Form::PlusOne => Some(minus_one(i)?),
        Form::Rows => Some(table(read)?),
    })
}

/// A one of the initializer's type.
///
/// # Errors
/// As [`undo`].
pub fn one(i: &Initializer) -> Result<ConstData, String> {
    Ok(number(elements(i)?.ty.dtype, [1.0].into_iter(), vec![]))
}

fn number(dtype: DType, values: impl Iterator<Item = f32>, shape: Vec<u64>) -> ConstData {
    let bytes = match dtype {
        DType::Bf16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    };
    ConstData { ty: TensorType::new(dtype, shape), bytes }
}

/// The rows of a tensor along its last axis.
fn rows(d: &ConstData) -> std::slice::ChunksExact<'_, u8> {
    let width = d.ty.shape.last().map_or(0, |&w| w * d.ty.dtype.size());
    d.bytes.chunks_exact((width as usize).max(1))
}

/// Lookups of zero rows tell nothing of the table: each place along the axis before the last is then a row, as positions are.
fn tells_nothing(d: &ConstData) -> bool {
    d.bytes.iter().all(|&b| b == 0)
}

/// The different rows, in order.
fn table(read: &[&Initializer]) -> Result<Undone, String> {
    let (mut seen, mut bytes): (HashMap<Vec<u8>, ()>, Vec<u8>) = (HashMap::new(), vec![]);
    let (mut width, mut dtype, mut count) = (0, DType::F32, 0);
    for i in read {
        let d = elements(i)?;
        (width, dtype) = (d.ty.shape.last().copied().unwrap_or(1), d.ty.dtype);
        let places = d.ty.shape.iter().rev().nth(1).copied().unwrap_or(1);
        if tells_nothing(&d) && count < places {
            bytes = vec![0; (places * width * dtype.size()) as usize];
            count = places;
            continue;
        }
        for row in rows(&d).filter(|_| !tells_nothing(&d)) {
            if seen.insert(row.to_vec(), ()).is_none() {
                bytes.extend_from_slice(row);
                count += 1;
            }
        }
    }
    Ok(data(vec![count, width], dtype, bytes))
}

/// The row of `table` that each row of `read` is.
///
/// # Errors
/// As [`undo`], and when there is no such row.
pub fn index(read: &Initializer, table: &Initializer) -> Result<ConstData, String> {
    let (d, t) = (elements(read)?, elements(table)?);
    let shape: Vec<u64> = d.ty.shape[..d.ty.shape.len().saturating_sub(1)].to_vec();
    let places = shape.last().copied().unwrap_or(1).max(1);
    let mut at: HashMap<&[u8], i64> = HashMap::new();
    for (n, row) in rows(&t).enumerate() {
        at.entry(row).or_insert(n as i64);
    }
    let blank = tells_nothing(&d);
    let found = rows(&d).enumerate().map(|(n, row)| if blank { Some((n as u64 % places) as i64) } else { at.get(row).copied() });
    let found: Option<Vec<i64>> = found.collect();
    let found = found.ok_or_else(|| format!("initializer {:?} holds rows that {:?} does not have", read.name, table.name))?;
    Ok(ConstData::i64(shape, &found))
}

fn data(shape: Vec<u64>, dtype: DType, bytes: Vec<u8>) -> Undone {
    (shape.clone(), Init::Data(std::sync::Arc::new(ConstData { ty: TensorType::new(dtype, shape), bytes })))
}

fn transposed(i: &Initializer) -> Result<Undone, String> {
    let d = elements(i)?;
    let (rows, cols, size) = (i.shape[0] as usize, i.shape[1] as usize, d.ty.dtype.size() as usize);
    let mut bytes = Vec::with_capacity(d.bytes.len());
    for c in 0..cols {
        for r in 0..rows {
            let at = (r * cols + c) * size;
            bytes.extend_from_slice(&d.bytes[at..at + size]);
        }
    }
    Ok(data(vec![i.shape[1], i.shape[0]], d.ty.dtype, bytes))
}

fn flat(i: &Initializer) -> Result<Undone, String> {
    let d = elements(i)?;
    Ok(data(vec![d.ty.elements()], d.ty.dtype, d.bytes.clone()))
}

/// The first of the equal slices along the first axis; none if they are not equal.
fn repeated(i: &Initializer) -> Result<Option<Undone>, String> {
    let d = elements(i)?;
    let Some(&n) = i.shape.first().filter(|&&n| n > 1) else { return Ok(None) };
    let slice = d.bytes.len() / n as usize;
    if slice == 0 || !d.bytes.chunks_exact(slice).all(|c| c == &d.bytes[..slice]) {
        return Ok(None);
    }
    let shape = std::iter::once(1).chain(i.shape[1..].iter().copied()).collect();
    Ok(Some(data(shape, d.ty.dtype, d.bytes[..slice].to_vec())))
}

fn minus_one(i: &Initializer) -> Result<Undone, String> {
    let d = elements(i)?;
    let less = number(d.ty.dtype, d.to_f32().into_iter().map(|x| x - 1.0), i.shape.clone());
    Ok((i.shape.clone(), Init::Data(std::sync::Arc::new(less))))
}
