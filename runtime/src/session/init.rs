//! First values of parameters and constants, slice by slice.

use crate::Error;
use crate::convert::{convert, file_dtype, file_dtype_named, file_dtype_size};
use crate::device::Device;
use crate::files::parent;
use crate::plan::{Init, Parameter, Plan, PlanFile, Role, Tensor};
use crate::random::Philox;
use fp8c_kernels::DType;
use memmap2::Mmap;
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

/// Elements that are made at a time; a multiple of 4, the numbers in a block of the generator.
const SLICE: usize = 1 << 18;

/// Weight files outside the plan, mapped and checked once each.
type Outside = HashMap<PathBuf, Mmap>;

/// Gives every persistent tensor of a fresh (zeroed) arena its first value. States stay zero.
pub(super) fn initialise(device: &mut Device, file: &PlanFile, seed: u64) -> Result<(), Error> {
    file.check_weights()?;
    let plan = file.plan();
    let mut outside = Outside::new();
    for p in &plan.parameters {
        let named = |e: Error| match e {
            Error::Data { name, reason, .. } if name.is_empty() => Error::data(&p.name, reason),
            other => other,
        };
        parameter(device, file, p, seed, &mut outside).map_err(named)?;
        if let Some(decay) = p.decay {
            device.write(plan.tensor(decay).offset, &1f32.to_le_bytes())?;
        }
    }
    constants(device, file)?;
    file.release_pages();
    Ok(())
}

/// Writes the constants, but for decay multipliers that are planned as such.
fn constants(device: &mut Device, file: &PlanFile) -> Result<(), Error> {
    let plan = file.plan();
    let is_decay = |id: usize| plan.parameters.iter().any(|p| p.decay.is_some_and(|d| d.0 as usize == id));
    for (id, t) in plan.tensors.iter().enumerate().filter(|(_, t)| t.role == Role::Constant) {
        match file.constant(&t.name) {
            Some(view) => {
                copy(device, t, view.bytes, view.dtype).map_err(|reason| damaged(file, format!("constant {}: {reason}", t.name)))?
            }
            None if is_decay(id) => {}
            None => return Err(damaged(file, format!("constant {} is missing", t.name))),
        }
    }
    Ok(())
}

fn damaged(file: &PlanFile, reason: String) -> Error {
    Error::Plan { path: file.path().display().to_string(), reason }
}

fn parameter(device: &mut Device, file: &PlanFile, p: &Parameter, seed: u64, outside: &mut Outside) -> Result<(), Error> {
    let t = file.plan().tensor(p.tensor);
    match &p.init {
        Init::Zeros => Ok(()),
        Init::Ones => generate(device, t, |_, out| out.fill(1.0)),
        Init::Normal { std, stream } => {
            let philox = Philox::new(seed, *stream);
            generate(device, t, |counter, out| blocks(counter, out, |c| philox.normals(c).map(|x| x * std)))
        }
        Init::Uniform { low, high, stream } => {
            let philox = Philox::new(seed, *stream);
            generate(device, t, |counter, out| blocks(counter, out, |c| philox.uniforms(c).map(|u| low + u * (high - low))))
        }
        Init::Stored { name } => {
            let view = file.weight(name).ok_or_else(|| damaged(file, format!("weight {name} is missing")))?;
            copy(device, t, view.bytes, view.dtype).map_err(|reason| damaged(file, format!("weight {name}: {reason}")))
        }
        Init::File { path, offset, bytes, dtype, file_bytes, sha256 } => {
            let from = file_dtype_named(dtype).ok_or_else(|| damaged(file, format!("{dtype} is no element format")))?;
            let path = parent(file.path()).join(path);
            if !outside.contains_key(&path) {
                outside.insert(path.clone(), map_outside(&path, *file_bytes, sha256)?);
            }
            let whole = &outside[&path][..];
            let range = offset.checked_add(*bytes).and_then(|end| whole.get(usize::try_from(*offset).ok()?..usize::try_from(end).ok()?));
            let range = range.ok_or_else(|| Error::data(path.display().to_string(), "ends before the weights that the plan expects"))?;
            copy(device, t, range, from).map_err(|reason| Error::data(path.display().to_string(), reason))
        }
    }
}

/// Maps a weight file and compares it with what the plan was made from.
fn map_outside(path: &PathBuf, bytes: u64, sha256: &str) -> Result<Mmap, Error> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: read-only; see `PlanFile::open`.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    let changed = || Error::data(path.display().to_string(), "has changed since the plan was compiled");
    if map.len() as u64 != bytes || !hexadecimal(&Sha256::digest(&map[..])).eq_ignore_ascii_case(sha256) {
        return Err(changed());
    }
    Ok(map)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
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
        convert(source, Dtype::F32, out, t.dtype).map_err(|reason| Error::data("", reason))?;
        device.write(t.offset + at as u64 * t.dtype.size(), out)?;
        at += n;
    }
    Ok(())
}

/// Copies stored elements, converting slice by slice where the format differs.
fn copy(device: &mut Device, t: &Tensor, bytes: &[u8], from: Dtype) -> Result<(), String> {
    let (size, step) = (file_dtype_size(from), t.dtype.size());
    if size == 0 || bytes.len() as u64 / size != t.bytes / step || !(bytes.len() as u64).is_multiple_of(size) {
        return Err(format!("{} bytes of {from} do not fill shape {:?}", bytes.len(), t.shape));
    }
    if from == file_dtype(t.dtype) && t.dtype != DType::Bool {
        return device.write(t.offset, bytes).map_err(|e| e.to_string());
    }
    let mut out = vec![0; SLICE * step as usize];
    for (n, slice) in bytes.chunks(SLICE * size as usize).enumerate() {
        let out = &mut out[..slice.len() / size as usize * step as usize];
        convert(slice, from, out, t.dtype)?;
        device.write(t.offset + (n * SLICE) as u64 * step, out).map_err(|e| e.to_string())?;
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
