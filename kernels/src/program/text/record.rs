//! Lines of named fields.

use crate::program::FloatBits;
use crate::{DType, KernelError};
use std::fmt;

/// One line: a name and `key=value` fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    name: String,
    fields: Vec<(String, String)>,
    /// Where it stands, from 1.
    line: usize,
    /// A part of the record before it, not a kernel.
    part: bool,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.part {
            write!(f, "  {}:", self.name)?;
        } else {
            f.write_str(&self.name)?;
        }
        self.fields.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))?;
        f.write_str("\n")
    }
}

/// A value of a field.
pub(super) trait Field: Sized {
    fn print(&self) -> String;
    fn read(text: &str) -> Option<Self>;
}

impl Field for u64 {
    fn print(&self) -> String {
        self.to_string()
    }
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Field for bool {
    fn print(&self) -> String {
        self.to_string()
    }
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Field for DType {
    fn print(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Option<Self> {
        DType::from_name(text)
    }
}

impl Field for FloatBits {
    /// The shortest decimal that gives the same float; NaN by its bits.
    fn print(&self) -> String {
        let x = f32::from_bits(self.0);
        if x.is_nan() { format!("0x{:08x}", self.0) } else { format!("{x:?}") }
    }
    fn read(text: &str) -> Option<Self> {
        match text.strip_prefix("0x") {
            Some(bits) => u32::from_str_radix(bits, 16).ok().map(FloatBits),
            None => text.parse().ok().map(|x: f32| FloatBits(x.to_bits())),
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn print(&self) -> String {
        self.as_ref().map_or("none".into(), T::print)
    }
    fn read(text: &str) -> Option<Self> {
        if text == "none" { Some(None) } else { T::read(text).map(Some) }
    }
}

impl<T: Field> Field for Vec<T> {
    fn print(&self) -> String {
        format!("[{}]", self.iter().map(T::print).collect::<Vec<_>>().join(", "))
    }
    fn read(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?.trim();
        if inner.is_empty() { Some(Vec::new()) } else { inner.split(',').map(|t| T::read(t.trim())).collect() }
    }
}

impl Field for [u64; 2] {
    fn print(&self) -> String {
        self.to_vec().print()
    }
    fn read(text: &str) -> Option<Self> {
        Vec::read(text)?.try_into().ok()
    }
}

impl Record {
    pub(super) fn kernel(name: &str) -> Record {
        Record { name: name.into(), fields: Vec::new(), line: 1, part: false }
    }

    pub(super) fn part(name: &str) -> Record {
        Record { part: true, ..Record::kernel(name) }
    }

    pub(super) fn with<T: Field>(mut self, key: &str, value: &T) -> Record {
        self.fields.push((key.into(), value.print()));
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn fail<T>(&self, reason: impl Into<String>) -> Result<T, KernelError> {
        Err(KernelError::Parse { line: self.line, reason: reason.into() })
    }

    /// The value of a field.
    pub(super) fn get<T: Field>(&self, key: &str) -> Result<T, KernelError> {
        let Some((_, text)) = self.fields.iter().find(|(k, _)| k == key) else {
            return self.fail(format!("{} has no {key}", self.name));
        };
        T::read(text).map_or_else(|| self.fail(format!("{text} is not a value of {key}")), Ok)
    }

    /// Reads a line that is not empty.
    pub(super) fn read(line: usize, text: &str) -> Result<Record, KernelError> {
        let fail = |reason: String| Err(KernelError::Parse { line, reason });
        let part = text.starts_with(' ');
        let (name, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let name = if part { name.strip_suffix(':').unwrap_or(name) } else { name };
        let mut fields = Vec::new();
        while !rest.trim_start().is_empty() {
            let Some((key, tail)) = rest.trim_start().split_once('=') else { return fail(format!("{rest} is not key=value")) };
            let end = if tail.starts_with('[') { tail.find(']').map(|i| i + 1) } else { tail.find(' ') };
            let (value, tail) = tail.split_at(end.unwrap_or(tail.len()));
            fields.push((key.to_string(), value.to_string()));
            rest = tail;
        }
        Ok(Record { name: name.into(), fields, line, part })
    }
}

/// The lines that are not empty, from 1.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, l)| (i + 1, l.trim_end())).filter(|(_, l)| !l.is_empty())
}
