//! Files of tokens: how wide they are, and whether they fit the vocabulary.

use crate::Error;
use crate::error::DataFault;
use memmap2::Mmap;
use rayon::prelude::*;
use std::fs::File;
use std::path::Path;
use std::str::FromStr;

/// The header of llm.c's files: 256 numbers of 32 bits.
const HEADER: usize = 1024;
/// Magic number, version and bytes of a token, as llm.c's `dev/data/data_common.py` writes them.
const LLM_C: [(u32, u32, usize); 2] = [(20240520, 1, 2), (20240801, 7, 4)];
/// The vocabulary of bytes.
const BYTES: i64 = 256;
/// Bytes that one thread searches at a time.
const CHUNK: usize = 1 << 22;

/// Bits of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenWidth {
    Narrow,
    Wide,
}

impl TokenWidth {
    fn bytes(self) -> usize {
        match self {
            TokenWidth::Narrow => 2,
            TokenWidth::Wide => 4,
        }
    }
}

impl FromStr for TokenWidth {
    /// A sentence without a subject.
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "16" => Ok(TokenWidth::Narrow),
            "32" => Ok(TokenWidth::Wide),
            _ => Err("must be 16 or 32".into()),
        }
    }
}

/// A mapped file of tokens.
pub(super) struct Tokens {
    name: String,
    map: Option<Mmap>,
    start: usize,
    width: usize,
    len: u64,
}

impl Tokens {
    /// `.txt`: one token a byte, for a vocabulary of 256. `.bin`: llm.c's header and 16 or 32 bits a token, or tokens alone, of the width
    /// that is asked for or that alone is possible.
    ///
    /// # Errors
    /// [`Error::Data`] for a file of another kind or of a width that cannot be told, [`Error::Io`].
    pub fn open(path: &Path, width: Option<TokenWidth>, vocabulary: Option<i64>) -> Result<Self, Error> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        // SAFETY: read-only; a file truncated while mapped ends the process with SIGBUS, as for every mapped reader.
        let map = if bytes == 0 { None } else { Some(unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?) };
        let data = map.as_deref().unwrap_or(&[]);
        let (start, width) = match path.extension().and_then(|e| e.to_str()) {
            Some("txt") => (0, byte_tokens(&name, vocabulary)?),
            Some("bin") => match llm_c_header(data).map_err(|reason| Error::data(&name, reason))? {
                Some(found) => found,
                None => (0, headerless(&name, data, width, vocabulary)?),
            },
            _ => return Err(Error::data(&name, "token files end in .txt or .bin, arrays are given as NAME=FILE.npy")),
        };
        let len = ((data.len() - start) / width) as u64;
        Ok(Tokens { name, map, start, width, len })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn get(&self, i: u64) -> i64 {
        let at = self.offset(i) as usize;
        token(&self.map.as_deref().unwrap_or(&[])[at..at + self.width])
    }

    /// Where in the file a token is, in bytes.
    pub fn offset(&self, i: u64) -> u64 {
        (self.start + i as usize * self.width) as u64
    }

    /// The first token of `bound` or more.
    pub fn beyond(&self, bound: i64) -> Option<u64> {
        beyond(&self.map.as_deref().unwrap_or(&[])[self.start..], self.width, bound)
    }
}

fn token(bytes: &[u8]) -> i64 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        _ => 0,
    }
}

fn byte_tokens(name: &str, vocabulary: Option<i64>) -> Result<usize, Error> {
    let of = match vocabulary {
        Some(BYTES) => return Ok(1),
        Some(n) => format!("this model's has {n} tokens"),
        None => "this model's is not known".into(),
    };
    let reason = format!("bytes are tokens only for a vocabulary of {BYTES}, and {of}");
    Err(Error::Data { name: name.into(), reason, fault: DataFault::Text })
}

/// Where the tokens begin and how wide they are; none without a header.
fn llm_c_header(data: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let word = |i: usize| data.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let known = LLM_C.iter().find(|(magic, ..)| word(0) == Some(*magic));
    let Some((_, version, width)) = known else { return Ok(None) };
    let (Some(found), Some(count)) = (word(1), word(2)) else { return Err("the header is cut off".into()) };
    if found != *version {
        return Err(format!("the header has version {found}, {version} is read"));
    }
    let need = (count as usize).saturating_mul(*width).saturating_add(HEADER);
    if data.len() < need {
        return Err(format!("the header counts {count} tokens, the file is shorter"));
    }
    Ok(Some((HEADER, *width)))
}

/// Bytes of a token in a file without a header.
fn headerless(name: &str, data: &[u8], asked: Option<TokenWidth>, vocabulary: Option<i64>) -> Result<usize, Error> {
    let whole = |w: TokenWidth| data.len().is_multiple_of(w.bytes());
    if let Some(width) = asked {
        let reason = || format!("{} bytes are no whole number of {}-bit tokens", data.len(), 8 * width.bytes());
        return if whole(width) { Ok(width.bytes()) } else { Err(Error::data(name, reason())) };
    }
    let possible = |w: TokenWidth| whole(w) && vocabulary.is_none_or(|bound| beyond(data, w.bytes(), bound).is_none());
    let fault = |reason: String, fault| Err(Error::Data { name: name.into(), reason, fault });
    // What reads as 32-bit tokens reads as 16-bit ones too, for halves of numbers within the vocabulary are.
    if !data.is_empty() && possible(TokenWidth::Wide) {
        return fault("it has no header, and its tokens may be of 32 bits (which is likely) or of 16".into(), DataFault::Width);
    }
    if possible(TokenWidth::Narrow) {
        return Ok(TokenWidth::Narrow.bytes());
    }
    let odd = vocabulary.filter(|_| whole(TokenWidth::Narrow)).and_then(|bound| Some((bound, beyond(data, 2, bound)?)));
    match odd {
        None => fault(format!("{} bytes are no whole number of tokens", data.len()), DataFault::Misfit),
        Some((bound, at)) => {
            let value = token(&data[2 * at as usize..2 * at as usize + 2]);
            let place = format!("read as 16-bit tokens, token {at} (byte {}) is {value}", 2 * at);
            fault(format!("{place}, and the vocabulary has {bound}"), DataFault::Range)
        }
    }
}

/// The first token of `bound` or more.
fn beyond(data: &[u8], width: usize, bound: i64) -> Option<u64> {
    if bound >= 1 << (8 * width) {
        return None;
    }
    let search = |(n, chunk): (usize, &[u8])| {
        let largest = match width {
            1 => chunk.iter().copied().max().map(i64::from),
            2 => chunk.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).max().map(i64::from),
            _ => chunk.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).max().map(i64::from),
        };
        largest.filter(|&m| m >= bound)?;
        let at = chunk.chunks_exact(width).position(|t| token(t) >= bound)?;
        Some((n * (CHUNK / width) + at) as u64)
    };
    data.par_chunks(CHUNK).enumerate().find_map_first(search)
}
