//! ONNX tensors to little-endian elements.

use super::external::{ExternalFiles, read};
use crate::graph::{ConstData, Init, SourceDType, TensorType};
use crate::import::model::{Attribute, Elem, Initializer};
use crate::import::sort::{MAX_ELEMENTS, MAX_RANK};
use fp8c_kernels::DType;
use onnx_protobuf::{TensorProto, tensor_proto::DataLocation};
use std::sync::Arc;

/// An initializer; its bytes are moved, not copied, where the graph's storage is the file's.
///
/// # Errors
/// A sentence that names the tensor.
pub fn initializer(mut t: TensorProto, files: &mut ExternalFiles) -> Result<Initializer, String> {
    let name = std::mem::take(&mut t.name);
    let fail = |reason: String| format!("initializer {name:?} {reason}");
    let elem = Elem::from_onnx(t.data_type);
    let shape = shape_of(&t).map_err(fail)?;
    let init = contents(&mut t, elem, &shape, files).map_err(fail)?;
    Ok(Initializer { name, elem, shape, init, declared_parameter: false })
}

fn contents(t: &mut TensorProto, elem: Elem, shape: &[u64], files: &mut ExternalFiles) -> Result<Init, String> {
    if !is_external(t) {
        return Ok(Init::Data(Arc::new(constant(elem, shape, stored_bytes(t, elem, shape)?)?)));
    }
    let need = byte_length(elem, shape)?;
    let record = t.external_data.iter().map(|e| (e.key.as_str(), e.value.as_str()));
    let range = files.range(record, need)?;
    let dtype = match elem {
        Elem::F32 => SourceDType::F32,
        Elem::F16 => SourceDType::F16,
        Elem::Bf16 => SourceDType::Bf16,
        Elem::F64 => SourceDType::F64,
        _ => {
            let bytes = read(&range.path, range.offset, range.bytes).map_err(|e| format!("cannot be read: {e}"))?;
            return Ok(Init::Data(Arc::new(constant(elem, shape, bytes)?)));
        }
    };
    Ok(Init::File { path: range.path, offset: range.offset, bytes: range.bytes, dtype })
}

/// A tensor attribute.
///
/// # Errors
/// A sentence without a subject.
pub fn attribute(mut t: TensorProto, files: &mut ExternalFiles) -> Result<Attribute, String> {
    let elem = Elem::from_onnx(t.data_type);
    if matches!(elem, Elem::Other(_)) {
        return Ok(Attribute::Unsupported("a tensor of an element type that is not supported"));
    }
    let shape = shape_of(&t)?;
    let bytes = if is_external(&t) {
        let need = byte_length(elem, &shape)?;
        let range = files.range(t.external_data.iter().map(|e| (e.key.as_str(), e.value.as_str())), need)?;
        read(&range.path, range.offset, range.bytes).map_err(|e| format!("cannot be read: {e}"))?
    } else {
        stored_bytes(&mut t, elem, &shape)?
    };
    Ok(Attribute::Tensor { elem, shape, bytes })
}

fn is_external(t: &TensorProto) -> bool {
    t.data_location.enum_value() == Ok(DataLocation::EXTERNAL)
}

fn shape_of(t: &TensorProto) -> Result<Vec<u64>, String> {
    let shape: Option<Vec<u64>> = t.dims.iter().map(|&d| u64::try_from(d).ok()).collect();
    let shape = shape.ok_or_else(|| format!("has a negative extent: {:?}", t.dims))?;
    if shape.len() > MAX_RANK || TensorType::new(DType::F32, shape.clone()).elements() > MAX_ELEMENTS {
        return Err(format!("has an absurd shape: {:?}", t.dims));
    }
    Ok(shape)
}

fn byte_length(elem: Elem, shape: &[u64]) -> Result<u64, String> {
    let size = elem.size().ok_or_else(|| format!("has an element type that is not supported ({elem:?})"))?;
    Ok(TensorType::new(DType::F32, shape).elements() * size)
}

/// The elements as the file stores them, moved out of `t`.
fn stored_bytes(t: &mut TensorProto, elem: Elem, shape: &[u64]) -> Result<Vec<u8>, String> {
    let need = byte_length(elem, shape)?;
    let bytes = if t.raw_data.is_empty() { typed_bytes(t, elem) } else { std::mem::take(&mut t.raw_data) };
    match bytes.len() as u64 == need {
        true => Ok(bytes),
        false => Err(format!("has the shape {shape:?} and needs {need} bytes, but holds {}", bytes.len())),
    }
}

/// Elements kept in the typed fields; narrow types lie in `int32_data`.
fn typed_bytes(t: &TensorProto, elem: Elem) -> Vec<u8> {
    fn le<T: Copy, const N: usize>(data: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        data.iter().flat_map(|&x| f(x)).collect()
    }
    match elem {
        Elem::F32 => le(&t.float_data, f32::to_le_bytes),
        Elem::F64 => le(&t.double_data, f64::to_le_bytes),
        Elem::I64 => le(&t.int64_data, i64::to_le_bytes),
        Elem::U64 => le(&t.uint64_data, u64::to_le_bytes),
        Elem::U32 => le(&t.uint64_data, |x| (x as u32).to_le_bytes()),
        Elem::I32 => le(&t.int32_data, i32::to_le_bytes),
        Elem::F16 | Elem::Bf16 | Elem::I16 | Elem::U16 => le(&t.int32_data, |x| (x as u16).to_le_bytes()),
        Elem::I8 | Elem::U8 | Elem::Bool => le(&t.int32_data, |x| [x as u8]),
        Elem::Other(_) => vec![],
    }
}

/// Stored elements in the graph's storage for their type (see [`Elem::dtype`]).
///
/// # Errors
/// A sentence without a subject: a type without storage here, or a u64 beyond i64.
pub fn constant(elem: Elem, shape: &[u64], bytes: Vec<u8>) -> Result<ConstData, String> {
    let dtype = elem.dtype().ok_or_else(|| format!("has an element type that is not supported ({elem:?})"))?;
    fn widen<const N: usize, const M: usize>(b: &[u8], f: impl Fn([u8; N]) -> [u8; M]) -> Vec<u8> {
        b.as_chunks::<N>().0.iter().flat_map(|&c| f(c)).collect()
    }
    let bytes = match elem {
        Elem::F32 | Elem::Bf16 | Elem::I64 | Elem::I32 => bytes,
        Elem::F16 => widen(&bytes, |c: [u8; 2]| half::f16::from_le_bytes(c).to_f32().to_le_bytes()),
        Elem::F64 => widen(&bytes, |c: [u8; 8]| (f64::from_le_bytes(c) as f32).to_le_bytes()),
        Elem::U64 if bytes.as_chunks::<8>().0.iter().any(|&c| u64::from_le_bytes(c) > i64::MAX as u64) => {
            return Err("holds an unsigned number beyond the signed 64-bit range".into());
        }
        Elem::U64 => bytes,
        Elem::U32 => widen(&bytes, |c: [u8; 4]| i64::from(u32::from_le_bytes(c)).to_le_bytes()),
        Elem::I16 => widen(&bytes, |c: [u8; 2]| i32::from(i16::from_le_bytes(c)).to_le_bytes()),
        Elem::U16 => widen(&bytes, |c: [u8; 2]| i32::from(u16::from_le_bytes(c)).to_le_bytes()),
        Elem::I8 => widen(&bytes, |c: [u8; 1]| i32::from(c[0] as i8).to_le_bytes()),
        Elem::U8 => widen(&bytes, |c: [u8; 1]| i32::from(c[0]).to_le_bytes()),
        Elem::Bool => bytes.iter().map(|&b| (b != 0) as u8).collect(),
        Elem::Other(_) => vec![],
    };
    Ok(ConstData { ty: TensorType::new(dtype, shape), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_typed(t: TensorProto) -> Result<Arc<ConstData>, String> {
        match initializer(t, &mut ExternalFiles::new(std::path::Path::new(".")))?.init {
            Init::Data(d) => Ok(d),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn every_element_type_reads_the_same_from_raw_and_typed_fields() {
        let cases: [(i32, Vec<u8>); 6] = [
            (2, vec![1, 200]),
            (3, vec![1, 200]),
            (4, vec![1, 0, 200, 255]),
            (5, vec![1, 0, 200, 255]),
            (9, vec![1, 0]),
            (10, [half::f16::from_f32(1.5).to_le_bytes(), half::f16::from_f32(-2.0).to_le_bytes()].concat()),
        ];
        for (code, raw) in cases {
            let width = raw.len() / 2;
            let typed: Vec<i32> = raw.chunks(width).map(|c| c.iter().rev().fold(0, |v, &b| v << 8 | i32::from(b))).collect();
            let from_raw = read_typed(TensorProto { data_type: code, dims: vec![2], raw_data: raw, ..Default::default() }).unwrap();
            let from_typed = read_typed(TensorProto { data_type: code, dims: vec![2], int32_data: typed, ..Default::default() }).unwrap();
            assert_eq!(from_raw, from_typed, "type {code}");
        }
        let i8s = read_typed(TensorProto { data_type: 3, dims: vec![2], raw_data: vec![1, 200], ..Default::default() }).unwrap();
        assert_eq!(i8s.to_i64(), [1, -56]);
    }

    #[test]
    fn wrong_sizes_and_shapes_are_refused_in_a_sentence() {
        let short = TensorProto { name: "w".into(), data_type: 1, dims: vec![3], raw_data: vec![0; 8], ..Default::default() };
        assert_eq!(read_typed(short).unwrap_err(), "initializer \"w\" has the shape [3] and needs 12 bytes, but holds 8");
        let huge = TensorProto { data_type: 1, dims: vec![i64::MAX, i64::MAX], ..Default::default() };
        assert!(read_typed(huge).unwrap_err().contains("absurd shape"));
        let negative = TensorProto { data_type: 1, dims: vec![-1], ..Default::default() };
        assert!(read_typed(negative).unwrap_err().contains("negative extent"));
        let strings = TensorProto { data_type: 8, dims: vec![1], ..Default::default() };
        assert!(read_typed(strings).unwrap_err().contains("not supported"));
    }
}
