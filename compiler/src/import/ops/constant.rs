//! Constants, and tensors that only dimensions determine.

use super::call::{Call, dtype_of_code, volume};
use super::expr::Scalar;
use super::{Outcome, Rule, Table};
use crate::graph::{ConstData, Op, TensorType, ValueId};
use crate::import::model::{Attribute, Elem};
use fp8c_kernels::DType;
use fp8c_kernels::program::Binary;

pub(super) const OPS: Table = &[
    ("Constant", Rule::Call(constant)),
    ("ConstantOfShape", Rule::Call(constant_of_shape)),
    ("EyeLike", Rule::Call(eye_like)),
    ("Range", Rule::Call(range)),
    ("Trilu", Rule::Call(trilu)),
];

/// A constant of rank 0.
pub(super) fn scalar(dtype: DType, x: f64) -> Result<ConstData, String> {
    let bytes = match dtype {
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f64(x).to_le_bytes().to_vec(),
        DType::I64 => (x as i64).to_le_bytes().to_vec(),
        DType::I32 => (x as i32).to_le_bytes().to_vec(),
        DType::Bool => vec![(x != 0.0) as u8],
        DType::E4m3 => return Err("has a constant in E4M3, which models do not have".into()),
    };
    Ok(ConstData { ty: TensorType::new(dtype, []), bytes })
}

/// Data of a tensor attribute, in the storage that initializers of its type have.
fn tensor(elem: Elem, shape: &[u64], bytes: &[u8]) -> Result<ConstData, String> {
    match volume(shape)?.checked_mul(elem.size().unwrap_or(0)) == Some(bytes.len() as u64) {
        true => crate::import::onnx::constant(elem, shape, bytes.to_vec()),
        false => Err(format!("holds {} bytes for a tensor of shape {shape:?}", bytes.len())),
    }
}

fn constant(call: &mut Call) -> Outcome {
    let data = match (call.node.attributes.len(), call.node.attributes.iter().next()) {
        (1, Some((name, value))) => match (name.as_str(), value) {
            ("value", Attribute::Tensor { elem, shape, bytes }) => tensor(*elem, shape, bytes)?,
            ("value_float", Attribute::Float(x)) => ConstData::f32([], &[*x]),
            ("value_int", Attribute::Int(i)) => ConstData::i64([], &[*i]),
            ("value_floats", Attribute::Floats(list)) => ConstData::f32([list.len() as u64], list),
            ("value_ints", Attribute::Ints(list)) => ConstData::i64([list.len() as u64], list),
            _ => return Err(format!("has a value of a kind that tensors cannot have ({name})")),
        },
        _ => return Err("needs exactly one value".into()),
    };
    Ok(vec![call.constant(data)])
}

/// Extents read from data.
pub(super) fn extents(list: &[i64]) -> Result<Vec<u64>, String> {
    let shape = list.iter().map(|&d| u64::try_from(d)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| format!("has a negative extent in the shape {list:?}"))?;
    volume(&shape)?;
    Ok(shape)
}

fn constant_of_shape(call: &mut Call) -> Outcome {
    let shape = extents(&call.const_ints(0, "the shape")?.ok_or("needs a shape")?)?;
    let value = match call.attribute("value") {
        None => ConstData::f32([], &[0.0]),
        Some(Attribute::Tensor { elem, shape, bytes }) if volume(shape)? == 1 => tensor(*elem, &[], bytes)?,
        Some(_) => return Err("needs one element as its value".into()),
    };
    let value = call.constant(value);
    call.broadcast(value, shape).map(|v| vec![v])
}

/// `start, start + delta, ..` before `limit`.
fn range(call: &mut Call) -> Outcome {
    let mut data = Vec::with_capacity(3);
    for (i, what) in ["the start", "the limit", "the step"].into_iter().enumerate() {
        data.push(call.const_data(i, what)?.ok_or("needs a start, a limit and a step")?);
    }
    let dtype = data[0].ty.dtype;
    if data.iter().any(|d| d.ty.dtype != dtype || d.ty.elements() != 1) || dtype == DType::Bool {
        return Err("needs three numbers of one type".into());
    }
    let data = match dtype.is_float() {
        true => float_range([0, 1, 2].map(|i: usize| data[i].to_f32()[0] as f64))?,
        false => int_range([0, 1, 2].map(|i: usize| data[i].to_i64()[0] as i128))?,
    };
    let v = call.constant(data);
    call.cast(v, dtype).map(|v| vec![v])
}

/// Most elements of a range.
const MAX_RANGE: i128 = 1 << 24;

fn float_range([start, limit, delta]: [f64; 3]) -> Result<ConstData, String> {
    let count = ((limit - start) / delta).ceil().max(0.0);
    if count.is_nan() || count > MAX_RANGE as f64 {
        return Err(format!("makes more than {MAX_RANGE} elements"));
    }
    let list: Vec<f32> = (0..count as u64).map(|i| (start + i as f64 * delta) as f32).collect();
    Ok(ConstData::f32([list.len() as u64], &list))
}

fn int_range([start, limit, delta]: [i128; 3]) -> Result<ConstData, String> {
    let count = match delta {
        0 => return Err("needs a step other than 0".into()),
        d if d > 0 => (limit - start + d - 1) / d,
        d => (start - limit - d - 1) / -d,
    };
    if count > MAX_RANGE {
        return Err(format!("makes more than {MAX_RANGE} elements"));
    }
    let list: Vec<i64> = (0..count.max(0)).map(|i| (start + i * delta) as i64).collect();
    Ok(ConstData::i64([list.len() as u64], &list))
}

/// `column - row` of the last two axes, as an i64 matrix `[rows, columns]`.
fn diagonal(call: &mut Call, rows: u64, columns: u64) -> Result<ValueId, String> {
    let row = call.one(Op::Iota { shape: vec![rows, 1], axis: 0 }, &[])?;
    let column = call.one(Op::Iota { shape: vec![1, columns], axis: 1 }, &[])?;
    call.binary(Binary::Sub, column, row)
}

fn eye_like(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let dtype = match call.attribute("dtype") {
        None => call.dtype(x),
        Some(_) => dtype_of_code(call.int("dtype", 1)?)?,
    };
    let [rows, columns] = call.shape(x)[..] else { return Err("needs a matrix".into()) };
    let k = call.int("k", 0)?;
    let diagonal = diagonal(call, rows, columns)?;
    let k = call.constant(ConstData::i64([], &[k]));
    let eye = call.binary(Binary::Eq, diagonal, k)?;
    call.cast(eye, dtype).map(|v| vec![v])
}

/// Keeps the upper or lower triangle of the last two axes.
fn trilu(call: &mut Call) -> Outcome {
    let x = call.input(0)?;
    let upper = call.int("upper", 1)? != 0;
    let k = call.const_ints(1, "the diagonal")?.and_then(|k| k.first().copied()).unwrap_or(0);
    let (shape, dtype) = (call.shape(x), call.dtype(x));
    let [.., rows, columns] = shape[..] else { return Err("needs a matrix".into()) };
    let diagonal = diagonal(call, rows, columns)?;
    let k = call.constant(ConstData::i64([], &[k]));
    let kept = call.binary(if upper { Binary::Ge } else { Binary::Le }, diagonal, k)?;
    let mut e = Scalar::default();
    let (c, x0) = (e.operand(0), e.operand(1));
    let zero = e.literal(0.0, dtype);
    e.select(c, x0, zero);
    call.map(e.finish(), &[kept, x], dtype).map(|v| vec![v])
}
