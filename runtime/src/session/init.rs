//! First values of parameters and constants, slice by slice.
//!
//! Stored values are copied to the device as the checksum of their file passes, in one reading: what is used is what was checked. A file
//! that turns out to be another ends the session before it begins.

use crate::Error;
use crate::convert::{convert, file_dtype, file_dtype_named, file_dtype_size};
use crate::device::Device;
use crate::files::{Input, parent};
use crate::plan::{Init, Parameter, Plan, PlanFile, Role, Section, Tensor};
use crate::random::Philox;
use fp8c_kernels::DType;
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// Elements that are made at a time; a multiple of 4, the numbers in a block of the generator.
const SLICE: usize = 1 << 18;

/// Gives every persistent tensor of a fresh (zeroed) arena its first value. States stay zero.
pub(super) fn initialise(device: &mut Device, file: &PlanFile, seed: u64) -> Result<(), Error> {
    let plan = file.plan();
    let mut weights = vec![];
    let mut outside: BTreeMap<PathBuf, Outside<'_>> = BTreeMap::new();
    for p in &plan.parameters {
        let t = plan.tensor(p.tensor);
        match &p.init {
            Init::Stored { name } => {
                let place = file.place(Section::Weights, name).ok_or_else(|| damaged(file, format!("weight {name} is missing")))?;
                weights.push(Filling::new(t, place.dtype, place.range).map_err(|e| damaged(file, format!("weight {name}: {e}")))?);
            }
            Init::File { path, offset, bytes, dtype, file_bytes, sha256 } => {
                let from = file_dtype_named(dtype).ok_or_else(|| damaged(file, format!("{dtype} is no element format")))?;
                let end = offset.checked_add(*bytes).filter(|end| end <= file_bytes);
                let end = end.ok_or_else(|| Error::data(path, "ends before the weights that the plan expects"))?;
                let copy = Filling::new(t, from, *offset..end).map_err(|e| damaged(file, format!("{}: {e}", p.name)))?;
                let known = Outside { bytes: *file_bytes, sha256, copies: vec![] };
                let own = outside.entry(parent(file.path()).join(path)).or_insert(known);
                if (own.bytes, own.sha256) != (*file_bytes, sha256) {
                    return Err(damaged(file, format!("{path} is said to be two different files")));
                }
                own.copies.push(copy);
            }
            Init::Zeros | Init::Ones | Init::Normal { .. } | Init::Uniform { .. } => make(device, t, p, seed)?,
        }
        if let Some(decay) = p.decay {
            device.write(plan.tensor(decay).offset, &1f32.to_le_bytes())?;
        }
    }
    stored(device, file, Section::Weights, &mut weights)?;
    stored(device, file, Section::Constants, &mut constants(file)?)?;
    outside.into_iter().try_for_each(|(path, file)| file.load(device, &path))
}

/// What the plan file has for its constants, but for decay multipliers that are planned as such.
fn constants(file: &PlanFile) -> Result<Vec<Filling<'_>>, Error> {
    let plan = file.plan();
    let is_decay = |id: usize| plan.parameters.iter().any(|p| p.decay.is_some_and(|d| d.0 as usize == id));
    let mut copies = vec![];
    for (id, t) in plan.tensors.iter().enumerate().filter(|(_, t)| t.role == Role::Constant) {
        match file.place(Section::Constants, &t.name) {
            Some(place) => {
                copies.push(Filling::new(t, place.dtype, place.range).map_err(|e| damaged(file, format!("constant {}: {e}", t.name)))?);
            }
            None if is_decay(id) => {}
            None => return Err(damaged(file, format!("constant {} is missing", t.name))),
        }
    }
    Ok(copies)
}

fn damaged(file: &PlanFile, reason: String) -> Error {
    Error::Plan { path: file.path().display().to_string(), reason }
}

fn ranges(copies: &[Filling<'_>]) -> Vec<Range<u64>> {
    copies.iter().map(|c| c.range.clone()).collect()
}

/// Copies tensors that the plan file stores.
fn stored(device: &mut Device, file: &PlanFile, section: Section, copies: &mut [Filling<'_>]) -> Result<(), Error> {
    file.take(section, &ranges(copies), &mut |i, bytes| copies[i].take(device, bytes))
}

/// A weight file beside the plan, as the compiler saw it, and what is copied out of it.
struct Outside<'a> {
    bytes: u64,
    sha256: &'a String,
    copies: Vec<Filling<'a>>,
}

impl Outside<'_> {
    fn load(mut self, device: &mut Device, path: &PathBuf) -> Result<(), Error> {
        let input = Input::open(path)?;
        let changed = || Error::data(path.display().to_string(), "has changed since the plan was compiled");
        if input.bytes() != self.bytes {
            return Err(changed());
        }
        let mut sum = Sha256::new();
        let copies = &mut self.copies;
        input.pass(0..self.bytes, &mut |bytes| sum.update(bytes), &ranges(copies), &mut |i, bytes| copies[i].take(device, bytes))?;
        if hexadecimal(&sum.finalize()).eq_ignore_ascii_case(self.sha256) { Ok(()) } else { Err(changed()) }
    }
}

/// A tensor that is being copied from a file, converted on the way.
struct Filling<'a> {
    tensor: &'a Tensor,
    from: Dtype,
    range: Range<u64>,
    /// Bytes of the tensor that have been written.
    written: u64,
    /// The beginning of an element whose end is yet to come.
    rest: Vec<u8>,
}

impl<'a> Filling<'a> {
    /// Checks that the bytes of a range fill a tensor.
    fn new(tensor: &'a Tensor, from: Dtype, range: Range<u64>) -> Result<Self, String> {
        let (size, bytes) = (file_dtype_size(from), range.end - range.start);
        if size == 0 || !bytes.is_multiple_of(size) || bytes / size != tensor.bytes / tensor.dtype.size() {
            return Err(format!("{bytes} bytes of {from} do not fill shape {:?}", tensor.shape));
        }
        Ok(Filling { tensor, from, range, written: 0, rest: vec![] })
    }

    /// Takes the next bytes.
    fn take(&mut self, device: &mut Device, bytes: &[u8]) -> Result<(), Error> {
        if self.from == file_dtype(self.tensor.dtype) && self.tensor.dtype != DType::Bool {
            device.write(self.tensor.offset + self.written, bytes)?;
            self.written += bytes.len() as u64;
            return Ok(());
        }
        let size = file_dtype_size(self.from) as usize;
        let mut bytes = bytes;
        if !self.rest.is_empty() {
            let (head, tail) = bytes.split_at((size - self.rest.len()).min(bytes.len()));
            self.rest.extend_from_slice(head);
            bytes = tail;
            if self.rest.len() < size {
                return Ok(());
            }
            let element = std::mem::take(&mut self.rest);
            self.write(device, &element)?;
        }
        let (whole, rest) = bytes.split_at(bytes.len() / size * size);
        self.rest.extend_from_slice(rest);
        whole.chunks(SLICE * size).try_for_each(|slice| self.write(device, slice))
    }

    /// Converts and writes whole elements.
    fn write(&mut self, device: &mut Device, elements: &[u8]) -> Result<(), Error> {
        let t = self.tensor;
        let mut out = vec![0; elements.len() / file_dtype_size(self.from) as usize * t.dtype.size() as usize];
        convert(elements, self.from, &mut out, t.dtype).map_err(|reason| Error::data(&t.name, reason))?;
        device.write(t.offset + self.written, &out)?;
        self.written += out.len() as u64;
        Ok(())
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Makes the values of a parameter that no file holds.
fn make(device: &mut Device, t: &Tensor, p: &Parameter, seed: u64) -> Result<(), Error> {
    match p.init {
        Init::Ones => generate(device, t, |_, out| out.fill(1.0)),
        Init::Normal { std, stream } => {
            let philox = Philox::new(seed, stream);
            generate(device, t, |counter, out| blocks(counter, out, |c| philox.normals(c).map(|x| x * std)))
        }
        Init::Uniform { low, high, stream } => {
            let philox = Philox::new(seed, stream);
            generate(device, t, |counter, out| blocks(counter, out, |c| philox.uniforms(c).map(|u| low + u * (high - low))))
        }
        Init::Zeros | Init::Stored { .. } | Init::File { .. } => Ok(()),
    }
}

/// Fills `out` from element `4 * counter` on with blocks of four numbers.
fn blocks(counter: u64, out: &mut [f32], block: impl Fn(u64) -> [f32; 4] + Sync) {
    use rayon::prelude::*;
    out.par_chunks_mut(4096).enumerate().for_each(|(n, chunk)| {
        let first = counter + n as u64 * 1024;
        for (i, four) in chunk.chunks_mut(4).enumerate() {
            let values = block(first + i as u64);
            four.copy_from_slice(&values[..four.len()]);
        }
    });
}

/// Makes a tensor from f32 values, given the number of a slice's first block.
fn generate(device: &mut Device, t: &Tensor, fill: impl Fn(u64, &mut [f32])) -> Result<(), Error> {
    let elements = (t.bytes / t.dtype.size()) as usize;
    let mut values = vec![0f32; SLICE.min(elements)];
    let mut bytes = vec![0u8; values.len() * t.dtype.size() as usize];
    let mut at = 0;
    while at < elements {
        let n = values.len().min(elements - at);
        fill(at as u64 / 4, &mut values[..n]);
        let out = &mut bytes[..n * t.dtype.size() as usize];
        let source: &[u8] = bytemuck::cast_slice(&values[..n]);
        convert(source, Dtype::F32, out, t.dtype).map_err(|reason| Error::data(&t.name, reason))?;
        device.write(t.offset + at as u64 * t.dtype.size(), out)?;
        at += n;
    }
    Ok(())
}

/// Sets the weight-decay multiplier of each parameter.
pub(super) fn set_decay(device: &mut Device, plan: &Plan, decays: impl Fn(&str) -> bool) -> Result<(), Error> {
    for p in &plan.parameters {
        if let Some(decay) = p.decay {
            let multiplier: f32 = if decays(&p.name) { 1.0 } else { 0.0 };
            device.write(plan.tensor(decay).offset, &multiplier.to_le_bytes())?;
        }
    }
    Ok(())
}
