//! Parsing of row programs.

use super::names::Named;
use super::record::{Field, Record, lines};
use crate::program::{Access, Arg, Binary, Fold, Guard, Indexed, Kind, Literal, Mode, RowProgram, Stmt, Unary, Var};
use crate::{DType, KernelError};

/// Parses a row program.
pub(super) fn parse(text: &str) -> Result<RowProgram, KernelError> {
    let mut lines = lines(text);
    let Some((line, head)) = lines.next() else {
        return Err(KernelError::Parse { line: 1, reason: "there is no kernel".into() });
    };
    let head = Record::read(line, head.trim_start())?;
    let row_dims = head.get::<u64>("row_dims")?.try_into().or_else(|_| head.fail("too many row dimensions"))?;
    let mut p = RowProgram { space: head.get("space")?, row_dims, args: Vec::new(), body: Vec::new() };
    for (line, text) in lines {
        one(&mut p, text.trim()).map_err(|reason| KernelError::Parse { line, reason })?;
    }
    Ok(p)
}

/// Parses the line of an argument or a statement.
fn one(p: &mut RowProgram, text: &str) -> Result<(), String> {
    let mut words = Words(text);
    if text.starts_with('%') {
        let at = words.var()?;
        if at.0 as usize != p.body.len() {
            return Err(format!("%{} is statement {}", at.0, p.body.len()));
        }
        words.expect("=")?;
        let name = words.word();
        let stmt = value(p, name, &mut words)?;
        p.body.push(stmt);
    } else if text.starts_with("store ") || text.starts_with("quantize ") {
        let stmt = sink(p, words.word(), &mut words)?;
        p.body.push(stmt);
    } else {
        let name = words.until(':')?;
        if name != format!("a{}", p.args.len()) {
            return Err(format!("expected argument a{}, found {name}", p.args.len()));
        }
        let dtype = words.until('[')?;
        let dtype = DType::from_name(dtype).ok_or(format!("{dtype} is not a format"))?;
        let elements = number(words.until(']')?)?;
        let mode = words.word();
        p.args.push(Arg { dtype, elements, mode: Mode::named(mode).ok_or(format!("{mode} is not a mode"))? });
    }
    words.end()
}

/// Parses a statement that gives a value, after its name.
fn value(p: &RowProgram, name: &str, words: &mut Words) -> Result<Stmt, String> {
    let stmt = match name {
        "load" => {
            let (arg, mut access) = place(p, words)?;
            let indexed = if words.skip("by ") {
                let stride = number(words.until('*')?)?;
                let index = words.var()?;
                words.expect("below")?;
                Some(Indexed { index, stride, bound: number(words.word())? })
            } else {
                None
            };
            access.guards = guards(words)?;
            Stmt::Load { arg, access, indexed }
        }
        "const" => {
            let kind = words.word();
            let kind = Kind::named(kind).ok_or(format!("{kind} is not a kind"))?;
            Stmt::Const { kind, value: literal(words.word())? }
        }
        "index" => Stmt::Index { dim: dimension(words.word())? },
        "select" => {
            let c = words.var()?;
            words.expect(",")?;
            let x = words.var()?;
            words.expect(",")?;
            Stmt::Select { c, x, y: words.var()? }
        }
        "cast" => {
            let x = words.var()?;
            words.expect("to")?;
            let to = words.word();
            Stmt::Cast { x, to: DType::from_name(to).ok_or(format!("{to} is not a format"))? }
        }
        _ => operator(name, words)?,
    };
    Ok(stmt)
}

fn operator(name: &str, words: &mut Words) -> Result<Stmt, String> {
    if let Some(op) = Unary::named(name) {
        return Ok(Stmt::Unary { op, x: words.var()? });
    }
    if let Some(op) = Fold::named(name) {
        return Ok(Stmt::Reduce { op, x: words.var()? });
    }
    let op = Binary::named(name).ok_or(format!("there is no statement {name}"))?;
    let x = words.var()?;
    words.expect(",")?;
    Ok(Stmt::Binary { op, x, y: words.var()? })
}

/// Parses a statement that gives no value, after its name.
fn sink(p: &RowProgram, name: &str, words: &mut Words) -> Result<Stmt, String> {
    let (arg, mut access) = place(p, words)?;
    if name == "quantize" {
        words.expect(",")?;
        let scales = argument(words.word())?;
        words.expect("=")?;
        let x = words.var()?;
        let power_of_two = words.skip("power_of_two");
        access.guards = guards(words)?;
        return Ok(Stmt::StoreQuantized { codes: arg, access, scales, power_of_two, x });
    }
    let accumulate = words.skip("+=");
    if !accumulate {
        words.expect("=")?;
    }
    let x = words.var()?;
    access.guards = guards(words)?;
    Ok(if accumulate { Stmt::Accumulate { arg, access, x } } else { Stmt::Store { arg, access, x } })
}

/// Parses `a0[2*d0 + d1 - 3]`.
fn place(p: &RowProgram, words: &mut Words) -> Result<(u32, Access), String> {
    let arg = argument(words.until('[')?)?;
    let text = words.until(']')?.replace("- ", "+ -");
    let mut access = Access { offset: 0, strides: vec![0; p.space.len()], guards: Vec::new() };
    for term in text.split('+').map(str::trim) {
        let Some(at) = term.find('d') else {
            access.offset = number(term)?;
            continue;
        };
        let stride = match &term[..at] {
            "" => 1,
            "-" => -1,
            times => number(times.strip_suffix('*').ok_or(format!("{term} is not a term"))?)?,
        };
        let dim = dimension(&term[at..])? as usize;
        *access.strides.get_mut(dim).ok_or(format!("there is no dimension {dim}"))? = stride;
    }
    Ok((arg, access))
}

/// Parses ` if 0 <= d0 < 3, ...`, if it is there.
fn guards(words: &mut Words) -> Result<Vec<Guard>, String> {
    let mut guards = Vec::new();
    if !words.skip("if ") {
        return Ok(guards);
    }
    loop {
        let lower = number(words.word())?;
        words.expect("<=")?;
        let dim = dimension(words.word())?;
        words.expect("<")?;
        guards.push(Guard { dim, lower, upper: number(words.word())? });
        if !words.skip(",") {
            return Ok(guards);
        }
    }
}

fn literal(text: &str) -> Result<Literal, String> {
    if let Ok(i) = text.parse() {
        return Ok(Literal::Int(i));
    }
    Field::read(text).map(Literal::Float).ok_or(format!("{text} is not a number"))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("{text} is not a whole number"))
}

fn argument(text: &str) -> Result<u32, String> {
    number(text.trim().strip_prefix('a').ok_or(format!("{text} is not an argument"))?)
}

fn dimension(text: &str) -> Result<u32, String> {
    number(text.strip_prefix('d').ok_or(format!("{text} is not a dimension"))?)
}

/// What is left of a line.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// The next word, without a comma that ends it.
    fn word(&mut self) -> &'a str {
        let text = self.0.trim_start();
        let end = text.find([' ', ',']).unwrap_or(text.len());
        self.0 = &text[end..];
        &text[..end]
    }

    /// What comes before a character, which is skipped.
    fn until(&mut self, end: char) -> Result<&'a str, String> {
        let (before, after) = self.0.split_once(end).ok_or(format!("expected {end} in {:?}", self.0))?;
        self.0 = after;
        Ok(before.trim())
    }

    fn skip(&mut self, text: &str) -> bool {
        let rest = self.0.trim_start().strip_prefix(text);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        if self.skip(text) { Ok(()) } else { Err(format!("expected {text} at {:?}", self.0)) }
    }

    fn var(&mut self) -> Result<Var, String> {
        let word = self.word();
        number(word.strip_prefix('%').ok_or(format!("{word} is not a variable"))?).map(Var)
    }

    fn end(&self) -> Result<(), String> {
        if self.0.trim().is_empty() { Ok(()) } else { Err(format!("{:?} is too much", self.0)) }
    }
}
