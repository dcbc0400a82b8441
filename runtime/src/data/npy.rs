//! Numpy files: samples along the first axis, converted as they are read.

use super::range::{Odd, check_range, takes};
use crate::Error;
use crate::convert::{convert, file_dtype, file_dtype_size};
use crate::error::DataFault;
use crate::files::Input;
use crate::plan::Port;
use npyz::{DType as NpyType, Endianness, NpyHeader, Order, TypeChar};
use rayon::prelude::*;
use safetensors::Dtype;
use std::path::Path;

/// Longest header that numpy itself reads.
const MAX_HEADER: usize = 10_000;
/// Most opening brackets in a header: an array of numbers has two. The parser's time grows exponentially with their nesting.
const MAX_BRACKETS: usize = 6;
/// Bytes that one thread searches at a time.
const CHUNK: usize = 1 << 20;

/// An array of samples in a file.
pub(super) struct NpyArray {
    name: String,
    input: Input,
    start: u64,
    dtype: Dtype,
    samples: u64,
    sample_bytes: usize,
}

impl NpyArray {
    /// Opens a file and compares it with the input it is for: `[N, ..]` for an input `[B, ..]`.
    pub fn open(path: &Path, port: &Port) -> Result<Self, Error> {
        let name = path.display().to_string();
        let fault = |reason: String| Error::data(&name, reason);
        let input = Input::open(path)?;
        let head = input.read(0..input.bytes().min(MAX_HEADER as u64))?;
        let (header, start) = header(&head).map_err(fault)?;
        let dtype = element(&header.dtype()).map_err(fault)?;
        if header.order() == Order::Fortran && header.shape().len() > 1 {
            return Err(fault("the array is in Fortran order; save it with numpy.ascontiguousarray".into()));
        }
        let Some((&samples, shape)) = header.shape().split_first() else {
            return Err(fault("the array has no axis of samples".into()));
        };
        let sample = port.shape.get(1..).unwrap_or(&[]);
        if shape != sample {
            return Err(fault(format!("samples of shape {shape:?} where input {} has {sample:?}", port.name)));
        }
        let sample_bytes = shape.iter().try_fold(file_dtype_size(dtype), |n, &d| n.checked_mul(d));
        let total = sample_bytes.and_then(|n| n.checked_mul(samples)).filter(|&n| n <= input.bytes() - start);
        let (Some(sample_bytes), Some(_)) = (sample_bytes, total) else {
            return Err(fault("the file is shorter than its header says".into()));
        };
        let mut probe = vec![0; port.dtype.size() as usize];
        let zero = vec![0; file_dtype_size(dtype) as usize];
        convert(&zero, dtype, &mut probe, port.dtype).map_err(fault)?;
        Ok(NpyArray { name, input, start, dtype, samples, sample_bytes: sample_bytes as usize })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Searches the whole array for integers that an input does not take.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and the place of the first.
    pub fn check(&self, port: &Port) -> Result<(), Error> {
        if port.bound.is_none() || self.sample_bytes == 0 {
            return Ok(());
        }
        let at_once = (CHUNK / self.sample_bytes).max(1) as u64;
        let search = |first: u64| {
            let samples: Vec<u64> = (first..self.samples.min(first + at_once)).collect();
            let elements = self.sample_bytes / file_dtype_size(self.dtype) as usize * samples.len();
            let mut values = vec![0; elements * port.dtype.size() as usize];
            self.gather(&samples, port, &mut values)?;
            check_range(port, &values).map_err(|odd| self.fault(port, |row| first + row, odd))
        };
        let firsts: Vec<u64> = (0..self.samples).step_by(at_once as usize).collect();
        firsts.into_par_iter().map(search).find_first(Result::is_err).unwrap_or(Ok(()))
    }

    /// What is wrong with an element of an input whose rows are these samples.
    pub fn fault(&self, port: &Port, sample: impl Fn(u64) -> u64, (element, value): Odd) -> Error {
        let per_sample = port.shape.iter().skip(1).product::<u64>().max(1);
        let (sample, inside) = (sample(element / per_sample), element % per_sample);
        let byte = self.start + sample * self.sample_bytes as u64 + inside * file_dtype_size(self.dtype);
        let reason = format!("sample {sample}, element {inside} (byte {byte}) is {value}, {}", takes(port));
        Error::Data { name: self.name.clone(), reason, fault: DataFault::Range }
    }

    /// Copies samples, one after the other, in the input's dtype.
    pub fn gather(&self, samples: &[u64], port: &Port, out: &mut [u8]) -> Result<(), Error> {
        let step = self.sample_bytes / file_dtype_size(self.dtype) as usize * port.dtype.size() as usize;
        if step == 0 {
            return Ok(());
        }
        let mut out = out.chunks_exact_mut(step);
        // Samples that follow one another are read at once.
        for run in samples.chunk_by(|a, b| a + 1 == *b) {
            let from = self.start + run[0] * self.sample_bytes as u64;
            let bytes = self.input.read(from..from + (run.len() * self.sample_bytes) as u64)?;
            for ((sample, bytes), out) in run.iter().zip(bytes.chunks_exact(self.sample_bytes)).zip(&mut out) {
                convert(bytes, self.dtype, out, port.dtype)
                    .map_err(|reason| Error::data(&self.name, format!("sample {sample}: {reason}")))?;
            }
        }
        Ok(())
    }
}

/// The header and where the data begins.
fn header(head: &[u8]) -> Result<(NpyHeader, u64), String> {
    let fault = |e: &dyn std::fmt::Display| format!("not a numpy file ({e})");
    // What the parser is given is bounded first: it recurses on brackets.
    let length = match head.get(..12) {
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, low, high, ..]) => usize::from(u16::from_le_bytes([*low, *high])) + 10,
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', _, _, a, b, c, d]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize).saturating_add(12),
        _ => return Err(fault(&"the magic number is missing")),
    };
    let text = head.get(..length).filter(|_| length <= MAX_HEADER).ok_or_else(|| fault(&"the header is cut off or too long"))?;
    if text.iter().filter(|b| matches!(b, b'(' | b'[' | b'{')).count() > MAX_BRACKETS {
        return Err(fault(&"the header is too deep"));
    }
    let mut rest = text;
    let header = NpyHeader::from_reader(&mut rest).map_err(|e| fault(&e))?;
    Ok((header, length as u64))
}

fn element(dtype: &NpyType) -> Result<Dtype, String> {
    let NpyType::Plain(t) = dtype else { return Err("the elements are records".into()) };
    if t.endianness() == Endianness::Big && t.size_field() > 1 {
        return Err("the elements are big-endian".into());
    }
    Ok(match (t.type_char(), t.size_field()) {
        (TypeChar::Float, 2) => Dtype::F16,
        (TypeChar::Float, 4) => Dtype::F32,
        (TypeChar::Float, 8) => Dtype::F64,
        (TypeChar::Int, 1) => Dtype::I8,
        (TypeChar::Int, 2) => Dtype::I16,
        (TypeChar::Int, 4) => Dtype::I32,
        (TypeChar::Int, 8) => Dtype::I64,
        (TypeChar::Uint, 1) => Dtype::U8,
        (TypeChar::Uint, 2) => Dtype::U16,
        (TypeChar::Uint, 4) => Dtype::U32,
        (TypeChar::Uint, 8) => Dtype::U64,
        (TypeChar::Bool, _) => file_dtype(fp8c_kernels::DType::Bool),
        _ => return Err(format!("elements of type {} are not read", dtype.descr())),
    })
}
