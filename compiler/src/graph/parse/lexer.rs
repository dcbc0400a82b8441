//! Tokens of one line of a printed graph.

use super::*;
use serde::de::DeserializeOwned;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// Letters, digits, `_`, `.`, `+`, `-`.
    Word(String),
    Text(String),
    Mark(char),
}

/// A place in the tokens of a line.
pub(super) struct Line {
    tokens: Vec<Token>,
    at: usize,
}

impl Line {
    pub fn new(text: &str) -> Result<Self, String> {
        let mut tokens = vec![];
        let mut rest = text.trim_start();
        while let Some(c) = rest.chars().next() {
            let taken = match c {
                '"' => {
                    let end = end_of_string(rest).ok_or("has a string without an end")?;
                    tokens.push(Token::Text(serde_json::from_str(&rest[..end]).map_err(|e| format!("has a bad string: {e}"))?));
                    end
                }
                c if is_word(c) => {
                    let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                    tokens.push(Token::Word(rest[..end].into()));
                    end
                }
                c => {
                    tokens.push(Token::Mark(c));
                    c.len_utf8()
                }
            };
            rest = rest[taken..].trim_start();
        }
        Ok(Line { tokens, at: 0 })
    }

    pub fn is_empty(&self) -> bool {
        self.at >= self.tokens.len()
    }

    fn next(&mut self) -> Result<Token, String> {
        let token = self.tokens.get(self.at).cloned().ok_or("ends early")?;
        self.at += 1;
        Ok(token)
    }

    /// Consumes a mark if it is next.
    pub fn has(&mut self, mark: char) -> bool {
        let is = self.tokens.get(self.at) == Some(&Token::Mark(mark));
        self.at += is as usize;
        is
    }

    /// True where a list is next.
    pub fn has_list(&self) -> bool {
        self.tokens.get(self.at) == Some(&Token::Mark('['))
    }

    pub fn expect(&mut self, mark: char) -> Result<(), String> {
        if self.has(mark) { Ok(()) } else { Err(format!("needs `{mark}` where it has {:?}", self.tokens.get(self.at))) }
    }

    pub fn word(&mut self) -> Result<String, String> {
        match self.next()? {
            Token::Word(w) => Ok(w),
            other => Err(format!("needs a word where it has {other:?}")),
        }
    }

    pub fn text(&mut self) -> Result<String, String> {
        match self.next()? {
            Token::Text(t) => Ok(t),
            other => Err(format!("needs a string where it has {other:?}")),
        }
    }

    /// A number, or `true` or `false`.
    pub fn value<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.word()?;
        word.parse().map_err(|_| format!("has {word} where a {} must be", std::any::type_name::<T>()))
    }

    /// `name=`
    pub fn key(&mut self, name: &str) -> Result<(), String> {
        match self.word()? {
            w if w == name => self.expect('='),
            w => Err(format!("needs {name} where it has {w}")),
        }
    }

    /// `name=value`
    pub fn attribute<T: FromStr>(&mut self, name: &str) -> Result<T, String> {
        self.key(name)?;
        self.value()
    }

    /// `none` or what `f` reads.
    pub fn option<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<Option<T>, String> {
        if self.tokens.get(self.at) == Some(&Token::Word("none".into())) {
            self.at += 1;
            return Ok(None);
        }
        f(self).map(Some)
    }

    /// `[a, b, ...]`
    pub fn list<T>(&mut self, mut f: impl FnMut(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        self.expect('[')?;
        let mut out = vec![];
        while !self.has(']') {
            if !out.is_empty() {
                self.expect(',')?;
            }
            out.push(f(self)?);
        }
        Ok(out)
    }

    /// `name=[a, b, ...]`
    pub fn numbers<T: FromStr>(&mut self, name: &str) -> Result<Vec<T>, String> {
        self.key(name)?;
        self.list(Line::value)
    }

    /// `name=[a, b]`
    pub fn pair(&mut self, name: &str) -> Result<[u64; 2], String> {
        self.numbers(name)?.try_into().map_err(|_| format!("needs two numbers for {name}"))
    }

    /// A float by its shortest form, or a NaN by its bits.
    pub fn float(&mut self) -> Result<f32, String> {
        let word = self.word()?;
        float_of(&word).ok_or_else(|| format!("has {word} where a number must be"))
    }

    pub fn dtype(&mut self) -> Result<DType, String> {
        let word = self.word()?;
        DType::from_name(&word).ok_or_else(|| format!("has {word} where a dtype must be"))
    }

    pub fn dtype_attribute(&mut self) -> Result<DType, String> {
        self.key("dtype")?;
        self.dtype()
    }

    /// A variant by the name that serde gives it.
    pub fn variant<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        let word = self.word()?;
        variant_of(&word).ok_or_else(|| format!("has the unknown name {word}"))
    }

    pub fn ty(&mut self) -> Result<TensorType, String> {
        let dtype = self.dtype()?;
        Ok(TensorType::new(dtype, self.list(Line::value::<u64>)?))
    }
}

pub(super) fn variant_of<T: DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::from(name)).ok()
}

pub(super) fn float_of(word: &str) -> Option<f32> {
    match word.strip_prefix("nan_") {
        Some(bits) => u32::from_str_radix(bits, 16).ok().map(f32::from_bits),
        None => word.parse().ok(),
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.+-".contains(c)
}

/// Bytes of the string literal that the text begins with, quotes included.
fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return Some(i + 1),
            _ => escaped = c == '\\' && !escaped,
        }
    }
    None
}
