//! Elements from one storage format to another, and axes in another order.

use fp8c_kernels::DType;
use half::{bf16, f16};
use safetensors::Dtype;

/// The safetensors name of a storage format.
pub fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::Bf16 => Dtype::BF16,
        DType::E4m3 => Dtype::F8_E4M3,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::Bool => Dtype::BOOL,
    }
}

/// Bytes of one element of a file format; 0 for formats narrower than a byte.
pub fn file_dtype_size(dtype: Dtype) -> u64 {
    dtype.bitsize() as u64 / 8
}

/// A format by the name that plans, safetensors or people give it.
pub fn file_dtype_named(name: &str) -> Option<Dtype> {
    let all = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I64, Dtype::I32, Dtype::I16, Dtype::I8, Dtype::U8, Dtype::BOOL];
    all.into_iter().find(|d| d.to_string().eq_ignore_ascii_case(name))
}

/// One element, read.
enum Reader {
    Float(fn(&[u8]) -> f32),
    Int(fn(&[u8]) -> Option<i64>),
}

fn bytes<const N: usize>(b: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&b[..N]);
    out
}

fn reader(from: Dtype) -> Option<Reader> {
    Some(match from {
        Dtype::F32 => Reader::Float(|b| f32::from_le_bytes(bytes(b))),
        Dtype::F64 => Reader::Float(|b| f64::from_le_bytes(bytes(b)) as f32),
        Dtype::F16 => Reader::Float(|b| f16::from_le_bytes(bytes(b)).to_f32()),
        Dtype::BF16 => Reader::Float(|b| bf16::from_le_bytes(bytes(b)).to_f32()),
        Dtype::I64 => Reader::Int(|b| Some(i64::from_le_bytes(bytes(b)))),
        Dtype::U64 => Reader::Int(|b| i64::try_from(u64::from_le_bytes(bytes(b))).ok()),
        Dtype::I32 => Reader::Int(|b| Some(i32::from_le_bytes(bytes(b)).into())),
        Dtype::U32 => Reader::Int(|b| Some(u32::from_le_bytes(bytes(b)).into())),
        Dtype::I16 => Reader::Int(|b| Some(i16::from_le_bytes(bytes(b)).into())),
        Dtype::U16 => Reader::Int(|b| Some(u16::from_le_bytes(bytes(b)).into())),
        Dtype::I8 => Reader::Int(|b| Some(i8::from_le_bytes(bytes(b)).into())),
        Dtype::U8 => Reader::Int(|b| Some(b[0].into())),
        Dtype::BOOL => Reader::Int(|b| Some((b[0] != 0).into())),
        _ => return None,
    })
}

fn store_float(x: f32, to: DType, out: &mut [u8]) -> bool {
    match to {
        DType::F32 => out.copy_from_slice(&x.to_le_bytes()),
        DType::Bf16 => out.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
        DType::E4m3 | DType::I64 | DType::I32 | DType::Bool => return false,
    }
    true
}

fn store_int(x: i64, to: DType, out: &mut [u8]) -> bool {
    match to {
        DType::I64 => out.copy_from_slice(&x.to_le_bytes()),
        DType::I32 => match i32::try_from(x) {
            Ok(x) => out.copy_from_slice(&x.to_le_bytes()),
            Err(_) => return false,
        },
        DType::Bool => match x {
            0 | 1 => out[0] = x as u8,
            _ => return false,
        },
        DType::F32 | DType::Bf16 | DType::E4m3 => return store_float(x as f32, to, out),
    }
    true
}

/// Converts elements; both slices hold the same number of them.
///
/// Floats become floats (rounded to nearest even, f64 by way of f32), integers and bools become anything that can hold them.
///
/// # Errors
/// A sentence when the formats do not convert or a value does not fit.
pub fn convert(src: &[u8], from: Dtype, dst: &mut [u8], to: DType) -> Result<(), String> {
    if from == file_dtype(to) {
        if src.len() != dst.len() {
            return Err(format!("{} bytes where {} belong", src.len(), dst.len()));
        }
        dst.copy_from_slice(src);
        if to == DType::Bool {
            dst.iter_mut().for_each(|b| *b = (*b != 0).into());
        }
        return Ok(());
    }
    let (size, step) = (file_dtype_size(from) as usize, to.size() as usize);
    let incompatible = || format!("elements of type {from} cannot be used as {to}");
    let reader = reader(from).ok_or_else(incompatible)?;
    if src.len() / size != dst.len() / step {
        return Err(format!("{} elements where {} belong", src.len() / size, dst.len() / step));
    }
    for (i, (s, d)) in src.chunks_exact(size).zip(dst.chunks_exact_mut(step)).enumerate() {
        let stored = match reader {
            Reader::Float(read) => store_float(read(s), to, d),
            Reader::Int(read) => match read(s) {
                Some(x) => store_int(x, to, d),
                None => false,
            },
        };
        if !stored {
            return Err(match reader {
                Reader::Float(_) => incompatible(),
                Reader::Int(_) => format!("element {i} does not fit {to}"),
            });
        }
    }
    Ok(())
}

/// Widens stored floats to f32. E4M3 codes have no scale here and are refused.
///
/// # Errors
/// A sentence when `from` is not f32 or bf16.
pub fn to_f32(src: &[u8], from: DType) -> Result<Vec<u8>, String> {
    let mut out = vec![0; src.len() / from.size() as usize * 4];
    convert(src, file_dtype(from), &mut out, DType::F32)?;
    Ok(out)
}

/// Transposes: axis `k` of the result is axis `perm[k]` of a row-major `shape` with elements of `size` bytes.
pub fn permuted(src: &[u8], size: usize, shape: &[u64], perm: &[usize]) -> Vec<u8> {
    let mut strides = vec![0usize; shape.len()];
    let mut run = size;
    for d in (0..shape.len()).rev() {
        strides[d] = run;
        run *= shape[d] as usize;
    }
    let extents: Vec<usize> = perm.iter().map(|&p| shape[p] as usize).collect();
    let steps: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
    let mut out = vec![0; src.len()];
    let mut index = vec![0usize; perm.len()];
    let mut at = 0;
    for d in out.chunks_exact_mut(size) {
        d.copy_from_slice(&src[at..at + size]);
        for k in (0..index.len()).rev() {
            index[k] += 1;
            at += steps[k];
            if index[k] < extents[k] {
                break;
            }
            at -= steps[k] * extents[k];
            index[k] = 0;
        }
    }
    out
}

/// The permutation that undoes `perm`.
pub fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(k, &p)| out[p] = k);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permuting_and_permuting_back_is_the_identity() {
        let shape = [2u64, 3, 4];
        let src: Vec<u8> = (0..24u16).flat_map(u16::to_le_bytes).collect();
        let perm = [2, 0, 1];
        let there = permuted(&src, 2, &shape, &perm);
        assert_eq!(&there[..8], &[0, 0, 4, 0, 8, 0, 12, 0]);
        assert_eq!(permuted(&there, 2, &[4, 2, 3], &inverse(&perm)), src);
    }

    #[test]
    fn integers_that_do_not_fit_are_refused() {
        let src = (1i64 << 40).to_le_bytes();
        assert!(convert(&src, Dtype::I64, &mut [0; 4], DType::I32).unwrap_err().contains("does not fit"));
        let mut out = [0; 4];
        convert(&7u16.to_le_bytes(), Dtype::U16, &mut out, DType::I32).unwrap();
        assert_eq!(out, 7i32.to_le_bytes());
    }

    #[test]
    fn floats_round_to_nearest_even_and_never_become_integers() {
        let mut out = [0; 2];
        convert(&(1.0 + f32::powi(2.0, -8)).to_le_bytes(), Dtype::F32, &mut out, DType::Bf16).unwrap();
        assert_eq!(out, bf16::from_f32(1.0).to_le_bytes());
        assert!(convert(&1f32.to_le_bytes(), Dtype::F32, &mut [0; 8], DType::I64).is_err());
    }
}
