//! Token files and the windows that language models are trained on.

use super::Order;
use crate::Error;
use crate::plan::{Plan, Port};
use crate::random::Philox;
use fp8c_kernels::DType;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// The header of llm.c's files: 256 numbers of 32 bits.
const HEADER: usize = 1024;
/// Magic number, version and bytes of a token, as llm.c's `dev/data/data_common.py` writes them.
const LLM_C: [(u32, u32, usize); 2] = [(20240520, 1, 2), (20240801, 7, 4)];

/// A mapped file of tokens.
pub(super) struct Tokens {
    name: String,
    map: Option<Mmap>,
    start: usize,
    width: usize,
    len: u64,
}

impl Tokens {
    /// `.txt`: one token a byte. `.bin`: llm.c's header and 16 or 32 bits a token, or 16 bits without a header.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let fault = |reason: &str| Error::data(&name, reason);
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        // SAFETY: read-only; a file truncated while mapped ends the process with SIGBUS, as for every mapped reader.
        let map = if bytes == 0 { None } else { Some(unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?) };
        let data = map.as_deref().unwrap_or(&[]);
        let (start, width) = match path.extension().and_then(|e| e.to_str()) {
            Some("txt") => (0, 1),
            Some("bin") => llm_c_header(data).map_err(|r| fault(&r))?,
            _ => return Err(fault("token files end in .txt or .bin, arrays are given as NAME=FILE.npy")),
        };
        let len = ((data.len() - start) / width) as u64;
        Ok(Tokens { name, map, start, width, len })
    }

    fn get(&self, i: u64) -> i64 {
        let data = self.map.as_deref().unwrap_or(&[]);
        let at = self.start + i as usize * self.width;
        match self.width {
            1 => data[at].into(),
            2 => u16::from_le_bytes([data[at], data[at + 1]]).into(),
            _ => u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]).into(),
        }
    }
}

/// Where the tokens begin and how wide they are.
fn llm_c_header(data: &[u8]) -> Result<(usize, usize), String> {
    let word = |i: usize| data.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let known = LLM_C.iter().find(|(magic, ..)| word(0) == Some(*magic));
    let Some((_, version, width)) = known else { return Ok((0, 2)) };
    let (Some(found), Some(count)) = (word(1), word(2)) else { return Err("the header is cut off".into()) };
    if found != *version {
        return Err(format!("the header has version {found}, {version} is read"));
    }
    let need = (count as usize).saturating_mul(*width).saturating_add(HEADER);
    if data.len() < need {
        return Err(format!("the header counts {count} tokens, the file is shorter"));
    }
    Ok((HEADER, *width))
}

/// What an input of a language model is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Tokens,
    /// The tokens that follow.
    Next,
    /// Position along the last axis.
    Positions,
    Constant(i64),
}

/// Windows of a token file as samples.
pub(super) struct Windows {
    tokens: Tokens,
    fills: Vec<Fill>,
    rows: u64,
    length: u64,
    /// Tokens that a window reads beyond its length: 1 where there are labels.
    ahead: u64,
    notes: Vec<String>,
}

impl Windows {
    /// Pairs the plan's inputs with a token file: `input_ids` `[batch, length]`, `labels` of as many elements, and inputs that
    /// follow from these.
    pub fn new(plan: &Plan, tokens: Tokens) -> Result<Self, Error> {
        let ids = plan.inputs.iter().find(|p| p.name == "input_ids" && is_integer(p));
        let ids = ids.ok_or_else(|| Error::Usage("the model has no integer input input_ids; give each input as NAME=FILE.npy".into()))?;
        let [rows, length] = ids.shape[..] else {
            return Err(Error::Usage(format!("input_ids has {} axes; token files fill [batch, length]", ids.shape.len())));
        };
        let mut notes = vec![];
        let mut fills = vec![];
        for p in &plan.inputs {
            let fill = fill_of(p).ok_or_else(|| Error::Usage(format!("a token file says nothing about input {}", p.name)))?;
            let elements = p.shape.iter().product::<u64>();
            if fill == Fill::Next && (elements != rows * length || !is_integer(p)) {
                return Err(Error::Usage("labels and input_ids differ in size; give each input as NAME=FILE.npy".into()));
            }
            match fill {
                Fill::Tokens | Fill::Next => {}
                Fill::Positions => notes.push(format!("input {} is filled with positions 0, 1, 2, ...", p.name)),
                Fill::Constant(c) => notes.push(format!("input {} is filled with {c}", p.name)),
            }
            fills.push(fill);
        }
        let ahead = u64::from(fills.contains(&Fill::Next));
        if rows == 0 || length == 0 || tokens.len < length + ahead {
            let reason = format!("{} tokens, a sample of this model needs {}", tokens.len, length + ahead);
            return Err(Error::data(&tokens.name, reason));
        }
        Ok(Windows { tokens, fills, rows, length, ahead, notes })
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The first token of a sample.
    pub fn start(&self, order: Order, position: u64) -> u64 {
        match order {
            Order::Sequential => position % ((self.tokens.len - self.ahead) / self.length) * self.length,
            // The stream with the second highest bit belongs to windows.
            Order::Shuffled { seed } => Philox::new(seed, 1 << 62).below(position, self.tokens.len - self.length - self.ahead + 1),
        }
    }

    /// Writes one input of a step whose samples begin at these tokens.
    pub fn write(&self, input: usize, port: &Port, starts: &[u64], out: &mut [u8]) {
        let size = port.dtype.size() as usize;
        let last = port.shape.last().copied().unwrap_or(1).max(1);
        for (i, out) in out.chunks_exact_mut(size).enumerate() {
            let (row, at) = (i as u64 / self.length, i as u64 % self.length);
            let value = match self.fills[input] {
                Fill::Tokens => self.tokens.get(starts[row as usize] + at),
                Fill::Next => self.tokens.get(starts[row as usize] + at + 1),
                Fill::Positions => (i as u64 % last) as i64,
                Fill::Constant(c) => c,
            };
            store(value, port.dtype, out);
        }
    }
}

fn is_integer(p: &Port) -> bool {
    matches!(p.dtype, DType::I64 | DType::I32)
}

fn fill_of(p: &Port) -> Option<Fill> {
    Some(match p.name.as_str() {
        "input_ids" => Fill::Tokens,
        "labels" => Fill::Next,
        "position_ids" | "cache_position" if is_integer(p) => Fill::Positions,
        "attention_mask" => Fill::Constant(1),
        "token_type_ids" if is_integer(p) => Fill::Constant(0),
        _ => return None,
    })
}

fn store(value: i64, dtype: DType, out: &mut [u8]) {
    match dtype {
        DType::I64 => out.copy_from_slice(&value.to_le_bytes()),
        // Tokens have at most 32 bits; those beyond i32 fail the range check as negative numbers.
        DType::I32 => out.copy_from_slice(&(value as i32).to_le_bytes()),
        DType::F32 => out.copy_from_slice(&(value as f32).to_le_bytes()),
        DType::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value as f32).to_le_bytes()),
        DType::Bool => out[0] = (value != 0).into(),
        DType::E4m3 => out[0] = fp8c_kernels::numerics::f32_to_e4m3(value as f32),
    }
}
