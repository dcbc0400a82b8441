//! Files of tokens: how wide they are, and whether they fit the vocabulary.

use crate::Error;
use crate::error::DataFault;
use crate::files::Input;
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

/// The header of llm.c's files: 256 numbers of 32 bits.
const HEADER: u64 = 1024;
/// Magic number, version and bytes of a token, as llm.c's `dev/data/data_common.py` writes them.
const LLM_C: [(u32, u32, u64); 2] = [(20240520, 1, 2), (20240801, 7, 4)];
/// The vocabulary of bytes.
const BYTES: i64 = 256;
/// Bytes that one thread searches at a time.
const CHUNK: u64 = 1 << 22;

/// Bits of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenWidth {
    Narrow,
    Wide,
}

impl TokenWidth {
    fn bytes(self) -> u64 {
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

/// A file of tokens.
pub(super) struct Tokens {
    name: String,
    input: Input,
    start: u64,
    width: u64,
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
        let input = Input::open(path)?;
        let (start, width) = match path.extension().and_then(|e| e.to_str()) {
            Some("txt") => (0, byte_tokens(&name, vocabulary)?),
            Some("bin") => {
                let head = input.read(0..input.bytes().min(HEADER))?;
                match llm_c_header(&head, input.bytes()).map_err(|reason| Error::data(&name, reason))? {
                    Some(found) => found,
                    None => (0, headerless(&name, &input, width, vocabulary)?),
                }
            }
            _ => return Err(Error::data(&name, "token files end in .txt or .bin, arrays are given as NAME=FILE.npy")),
        };
        let len = (input.bytes() - start) / width;
        Ok(Tokens { name, input, start, width, len })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Tokens that follow one another.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read(&self, tokens: Range<u64>) -> Result<impl Iterator<Item = i64>, Error> {
        let bytes = self.input.read(self.offset(tokens.start)..self.offset(tokens.end))?;
        let width = self.width as usize;
        Ok((0..bytes.len() / width).map(move |i| token(&bytes[i * width..(i + 1) * width])))
    }

    /// Where in the file a token is, in bytes.
    pub fn offset(&self, i: u64) -> u64 {
        self.start + i * self.width
    }

    /// The first token of `bound` or more, and its value.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn beyond(&self, bound: i64) -> Result<Option<(u64, i64)>, Error> {
        beyond(&self.input, self.start, self.width, bound)
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

fn byte_tokens(name: &str, vocabulary: Option<i64>) -> Result<u64, Error> {
    let of = match vocabulary {
        Some(BYTES) => return Ok(1),
        Some(n) => format!("this model's has {n} tokens"),
        None => "this model's is not known".into(),
    };
    let reason = format!("bytes are tokens only for a vocabulary of {BYTES}, and {of}");
    Err(Error::Data { name: name.into(), reason, fault: DataFault::Text })
}

/// Where the tokens begin and how wide they are; none without a header.
fn llm_c_header(head: &[u8], bytes: u64) -> Result<Option<(u64, u64)>, String> {
    let word = |i: usize| head.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let known = LLM_C.iter().find(|(magic, ..)| word(0) == Some(*magic));
    let Some((_, version, width)) = known else { return Ok(None) };
    let (Some(found), Some(count)) = (word(1), word(2)) else { return Err("the header is cut off".into()) };
    if found != *version {
        return Err(format!("the header has version {found}, {version} is read"));
    }
    let need = u64::from(count).saturating_mul(*width).saturating_add(HEADER);
    if bytes < need {
        return Err(format!("the header counts {count} tokens, the file is shorter"));
    }
    Ok(Some((HEADER, *width)))
}

/// Bytes of a token in a file without a header.
fn headerless(name: &str, input: &Input, asked: Option<TokenWidth>, vocabulary: Option<i64>) -> Result<u64, Error> {
    let bytes = input.bytes();
    let whole = |w: TokenWidth| bytes.is_multiple_of(w.bytes());
    if let Some(width) = asked {
        let reason = || format!("{bytes} bytes are no whole number of {}-bit tokens", 8 * width.bytes());
        return if whole(width) { Ok(width.bytes()) } else { Err(Error::data(name, reason())) };
    }
    let odd = |w: TokenWidth| vocabulary.map_or(Ok(None), |bound| beyond(input, 0, w.bytes(), bound));
    let fault = |reason: String, fault| Err(Error::Data { name: name.into(), reason, fault });
    // What reads as 32-bit tokens reads as 16-bit ones too, for halves of numbers within the vocabulary are.
    if bytes > 0 && whole(TokenWidth::Wide) && odd(TokenWidth::Wide)?.is_none() {
        return fault("it has no header, and its tokens may be of 32 bits (which is likely) or of 16".into(), DataFault::Width);
    }
    if !whole(TokenWidth::Narrow) {
        return fault(format!("{bytes} bytes are no whole number of tokens"), DataFault::Misfit);
    }
    match (odd(TokenWidth::Narrow)?, vocabulary) {
        (Some((at, value)), Some(bound)) => {
            let place = format!("read as 16-bit tokens, token {at} (byte {}) is {value}", 2 * at);
            fault(format!("{place}, and the vocabulary has {bound}"), DataFault::Range)
        }
        _ => Ok(TokenWidth::Narrow.bytes()),
    }
}

/// The first token of `bound` or more in the file from `start` on, and its value.
fn beyond(input: &Input, start: u64, width: u64, bound: i64) -> Result<Option<(u64, i64)>, Error> {
    if bound >= 1 << (8 * width) {
        return Ok(None);
    }
    let search = |n: u64| {
        let from = start + n * CHUNK;
        let chunk = match input.read(from..input.bytes().min(from + CHUNK)) {
            Ok(chunk) => chunk,
            Err(e) => return Some(Err(e)),
        };
        let largest = match width {
            1 => chunk.iter().copied().max().map(i64::from),
            2 => chunk.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).max().map(i64::from),
            _ => chunk.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).max().map(i64::from),
        };
        largest.filter(|&m| m >= bound)?;
        let mut tokens = chunk.chunks_exact(width as usize).map(token).enumerate();
        tokens.find(|(_, value)| *value >= bound).map(|(at, value)| Ok((n * (CHUNK / width) + at as u64, value)))
    };
    let chunks = (input.bytes() - start).div_ceil(CHUNK);
    (0..chunks).into_par_iter().find_map_first(search).transpose()
}
