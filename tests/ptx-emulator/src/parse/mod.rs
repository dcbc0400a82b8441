//! PTX text to instructions with numbered registers.

mod asynchronous;

pub(crate) use asynchronous::{Async, Matrix, Product};

use crate::Fault;
use crate::ops::{Op, lookup};
use std::collections::HashMap;

/// A parsed module.
#[derive(Clone, Debug)]
pub struct Program {
    pub(crate) entries: HashMap<String, Entry>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub code: Vec<Instruction>,
    /// Registers a lane has.
    pub registers: usize,
    /// Bytes of static shared memory.
    pub shared: usize,
    /// Bytes of each parameter.
    pub parameters: Vec<usize>,
    /// Blocks of a cluster.
    pub cluster: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub line: usize,
    /// Register and the value at which the instruction runs.
    pub guard: Option<(usize, u64)>,
    pub kind: Kind,
    /// Registers of some `wgmma` that this instruction, which is none, reads or writes.
    pub touches: Vec<usize>,
}

/// A source operand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    Register(usize),
    Constant(u64),
}

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Source,
    pub offset: i64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Special {
    Thread,
    Block,
    BlockInCluster,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Plain {
        op: Op,
        to: usize,
        from: Vec<Source>,
    },
    Special {
        to: usize,
        which: Special,
    },
    Parameter {
        to: usize,
        number: usize,
    },
    Pack {
        to: usize,
        from: Vec<Source>,
        bits: u32,
    },
    Unpack {
        to: Vec<Option<usize>>,
        from: Source,
        bits: u32,
    },
    Load {
        space: Space,
        to: Vec<Option<usize>>,
        bytes: usize,
        signed: bool,
        from: Address,
    },
    Store {
        space: Space,
        from: Vec<Source>,
        bytes: usize,
        to: Address,
    },
    Branch {
        to: usize,
    },
    Return,
    /// `bar`: number of the barrier and, if not all of the block, of threads; `waits` unless it is `bar.arrive`.
    Barrier {
        number: Source,
        threads: Option<Source>,
        waits: bool,
    },
    WarpBarrier,
    Shuffle {
        to: usize,
        from: Source,
        lane: Source,
        xor: bool,
    },
    Ballot {
        to: usize,
        from: Source,
    },
    Matrices {
        to: [usize; 4],
        from: Address,
        transposed: bool,
    },
    Mma {
        to: [usize; 4],
        a: [Source; 4],
        b: [Source; 2],
        c: [Source; 4],
        codes: bool,
    },
    /// Copies `bytes` and fills the rest of `size` with zeros.
    Copy {
        to: Address,
        from: Address,
        size: u64,
        bytes: Source,
    },
    Commit,
    Wait {
        pending: u64,
    },
    /// A fence among generic accesses, which barriers imply here.
    Fence,
    Async(Async),
}

struct Parser<'t> {
    registers: HashMap<&'t str, usize>,
    labels: HashMap<&'t str, usize>,
    /// Entry and address of each name in shared memory.
    shared: HashMap<String, u64>,
    shared_size: u64,
    line: usize,
}

impl Program {
    /// Parses a module.
    ///
    /// # Errors
    /// A [`Fault`] for anything outside the emulated subset.
    pub fn parse(text: &str) -> Result<Program, Fault> {
        let mut entries = HashMap::new();
        let mut dynamic = vec![];
        let lines: Vec<&str> = text.lines().map(|l| l.split("//").next().unwrap_or("").trim()).collect();
        let mut at = 0;
        while at < lines.len() {
            if let Some(rest) = lines[at].strip_prefix(".extern .shared") {
                dynamic.extend(rest.split(['[', ' ', '\t']).filter(|w| w.ends_with("_shared")).map(str::to_string));
            }
            if let Some(rest) = lines[at].strip_prefix(".visible .entry ") {
                let name = rest.trim_end_matches(['(', ')']).to_string();
                let open = (at..lines.len()).find(|&i| lines[i] == "{").unwrap_or(lines.len());
                let close = end_of_scope(&lines, open);
                let parameters = lines[at + 1..open].iter().filter(|l| l.starts_with(".param")).map(|l| parameter_bytes(l)).collect();
                let cluster = lines[at + 1..open].iter().find_map(|l| l.strip_prefix(".reqnctapercluster"));
                let cluster = cluster.and_then(|c| c.split(',').next()?.trim().parse().ok()).unwrap_or(1);
                entries.insert(name, Entry { parameters, cluster, ..entry(&lines, open + 1, close, &dynamic)? });
                at = close;
            }
            at += 1;
        }
        Ok(Program { entries })
    }

    /// Bytes of each parameter of an entry.
    pub fn parameters(&self, entry: &str) -> Option<&[usize]> {
        self.entries.get(entry).map(|e| e.parameters.as_slice())
    }

    /// Bytes of static shared memory of an entry.
    pub fn static_shared(&self, entry: &str) -> Option<usize> {
        self.entries.get(entry).map(|e| e.shared)
    }

    /// Names of the entries.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

/// The line that closes the scope that a line opens.
fn end_of_scope(lines: &[&str], open: usize) -> usize {
    let mut depth = 0;
    let closes = |line: &&str| {
        depth += (*line == "{") as i32 - (*line == "}") as i32;
        depth == 0
    };
    lines[open.min(lines.len())..].iter().position(closes).map_or(lines.len(), |i| open + i)
}

/// Bytes of a declared parameter: `.param .u64 .ptr .global name`.
fn parameter_bytes(line: &str) -> usize {
    line.split_whitespace().nth(1).map_or(8, |t| width(t.trim_start_matches('.')) as usize / 8)
}

fn entry(lines: &[&str], from: usize, to: usize, dynamic: &[String]) -> Result<Entry, Fault> {
    let mut p = Parser { registers: HashMap::new(), labels: HashMap::new(), shared: HashMap::new(), shared_size: 0, line: 0 };
    p.shared.extend(dynamic.iter().map(|name| (name.clone(), 0)));
    // Statements end with a semicolon and may span lines.
    let mut statements: Vec<(usize, String)> = vec![];
    let mut open: Option<(usize, String)> = None;
    let mut count = 0;
    for (i, &line) in lines.iter().enumerate().take(to).skip(from).filter(|(_, l)| !matches!(**l, "" | "{" | "}")) {
        if let Some(label) = line.strip_suffix(':') {
            p.labels.insert(label, count);
            continue;
        }
        let (_, text) = open.get_or_insert_with(|| (i + 1, String::new()));
        text.push_str(line);
        text.push(' ');
        if line.ends_with(';') {
            let (line, text) = open.take().unwrap_or_default();
            match text.starts_with('.') {
                true => p.directive(line, &text)?,
                false => {
                    statements.push((line, text));
                    count += 1;
                }
            }
        }
    }
    let names: Vec<String> = statements.iter().flat_map(|(_, s)| registers(s)).collect();
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    for name in &names {
        let next = numbers.len();
        numbers.entry(name).or_insert(next);
    }
    p.registers = numbers;
    let mut code = statements.iter().map(|(line, text)| p.instruction(*line, text)).collect::<Result<Vec<_>, _>>()?;
    note_touches(&mut code, &statements, &p.registers);
    Ok(Entry { code, registers: p.registers.len(), shared: p.shared_size as usize, parameters: vec![], cluster: 1 })
}

/// Notes which other instructions touch the registers of `wgmma`.
fn note_touches(code: &mut [Instruction], statements: &[(usize, String)], numbers: &HashMap<&str, usize>) {
    let mut of_products = vec![false; numbers.len()];
    let products = code.iter().filter_map(|i| if let Kind::Async(Async::Multiply(p)) = &i.kind { Some(p) } else { None });
    products.flat_map(Product::registers).for_each(|r| of_products[r] = true);
    for (instruction, (_, text)) in code.iter_mut().zip(statements) {
        if !matches!(instruction.kind, Kind::Async(Async::Multiply(_))) {
            instruction.touches = registers(text).iter().map(|name| numbers[name.as_str()]).filter(|&r| of_products[r]).collect();
        }
    }
}

/// Names of the registers in a statement.
fn registers(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "%._$".contains(c)));
    let numbered = |w: &&str| w.starts_with('%') && w.ends_with(|c: char| c.is_ascii_digit()) && !w.contains('.');
    words.filter(numbered).map(str::to_string).collect()
}

/// Splits operands at commas outside braces and brackets.
fn operands(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, vec![]);
    for (i, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.into_iter().filter(|p| !p.is_empty()).collect()
}

fn braced(text: &str) -> Vec<&str> {
    operands(text.trim().trim_start_matches('{').trim_end_matches('}'))
}

impl Parser<'_> {
    fn fault<T>(&self, reason: impl Into<String>) -> Result<T, Fault> {
        Err(Fault { line: self.line, reason: reason.into() })
    }

    fn directive(&mut self, line: usize, text: &str) -> Result<(), Fault> {
        self.line = line;
        if !text.starts_with(".shared") {
            return Ok(());
        }
        let Some((head, size)) = text.split_once('[') else { return self.fault("a shared variable that is not an array") };
        let name = head.split_whitespace().last().unwrap_or_default().to_string();
        let Some(Ok(size)) = size.split(']').next().map(str::parse::<u64>) else { return self.fault("a shared array without a size") };
        let align = head.split(".align").nth(1).and_then(|a| a.split_whitespace().next()?.parse().ok()).unwrap_or(1);
        let at = self.shared_size.next_multiple_of(align);
        self.shared.insert(name, at);
        self.shared_size = at + size;
        Ok(())
    }

    fn register(&self, text: &str) -> Result<usize, Fault> {
        self.registers.get(text).copied().map_or_else(|| self.fault(format!("{text} is not a register")), Ok)
    }

    /// A result's register; None for one that nobody wants.
    fn target(&self, text: &str) -> Result<Option<usize>, Fault> {
        if text == "_" { Ok(None) } else { self.register(text).map(Some) }
    }

    fn source(&self, text: &str) -> Result<Source, Fault> {
        if let Some(&at) = self.shared.get(text) {
            return Ok(Source::Constant(at));
        }
        let constant = match text {
            t if t.starts_with('%') => return Ok(Source::Register(self.register(t)?)),
            t if t.starts_with("0f") => u64::from_str_radix(&t[2..], 16).ok(),
            t if t.starts_with("0d") => u64::from_str_radix(&t[2..], 16).ok(),
            t if t.starts_with("0x") => u64::from_str_radix(t[2..].trim_end_matches('U'), 16).ok(),
            t => t.parse::<i128>().ok().map(|v| v as u64),
        };
        constant.map_or_else(|| self.fault(format!("{text} is not an operand")), |c| Ok(Source::Constant(c)))
    }

    fn address(&self, text: &str) -> Result<Address, Fault> {
        let inside = text.trim_start_matches('[').trim_end_matches(']');
        let (base, offset) = inside.split_once('+').unwrap_or((inside, "0"));
        let Ok(offset) = offset.parse() else { return self.fault(format!("{text} is not an address")) };
        Ok(Address { base: self.source(base)?, offset })
    }

    fn sources<const N: usize>(&self, texts: &[&str]) -> Result<[Source; N], Fault> {
        let all = texts.iter().map(|t| self.source(t)).collect::<Result<Vec<_>, _>>()?;
        all.try_into().or_else(|_| self.fault("a wrong number of operands"))
    }

    fn four(&self, text: &str) -> Result<[usize; 4], Fault> {
        let all = braced(text).iter().map(|t| self.register(t)).collect::<Result<Vec<_>, _>>()?;
        all.try_into().or_else(|_| self.fault("a wrong number of results"))
    }

    fn instruction(&mut self, line: usize, text: &str) -> Result<Instruction, Fault> {
        self.line = line;
        let mut text = text.trim().trim_end_matches(';').trim();
        let mut guard = None;
        if let Some(rest) = text.strip_prefix('@') {
            let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let wanted = !name.starts_with('!') as u64;
            guard = Some((self.register(name.trim_start_matches('!'))?, wanted));
            text = rest.trim();
        }
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let kind = self.kind(name, &operands(rest))?;
        Ok(Instruction { line, guard, kind, touches: vec![] })
    }

    fn kind(&self, name: &str, args: &[&str]) -> Result<Kind, Fault> {
        let arg = |i: usize| args.get(i).copied().unwrap_or_default();
        Ok(match name {
            "ret" => Kind::Return,
            "bra" | "bra.uni" => match self.labels.get(arg(0)) {
                Some(&to) => Kind::Branch { to },
                None => return self.fault(format!("no label {}", arg(0))),
            },
            "bar.sync" | "barrier.sync" | "barrier.sync.aligned" | "bar.arrive" | "barrier.arrive" | "barrier.arrive.aligned" => {
                let threads = args.get(1).map(|t| self.source(t)).transpose()?;
                Kind::Barrier { number: self.source(arg(0))?, threads, waits: name.contains("sync") }
            }
            "membar.cta" | "membar.gl" | "fence.acq_rel.cta" | "fence.acq_rel.cluster" | "fence.acq_rel.gpu" => Kind::Fence,
            "bar.warp.sync" => Kind::WarpBarrier,
            "cp.async.commit_group" => Kind::Commit,
            "cp.async.wait_group" => match self.source(arg(0))? {
                Source::Constant(pending) => Kind::Wait { pending },
                Source::Register(_) => return self.fault("a wait for a variable number of groups"),
            },
            "mov.u32" if arg(1) == "%tid.x" => Kind::Special { to: self.register(arg(0))?, which: Special::Thread },
            "mov.u32" if arg(1) == "%ctaid.x" => Kind::Special { to: self.register(arg(0))?, which: Special::Block },
            "mov.u32" if arg(1) == "%cluster_ctarank" => Kind::Special { to: self.register(arg(0))?, which: Special::BlockInCluster },
            "mov.b32" | "mov.b64" if arg(1).starts_with('{') => {
                let from = braced(arg(1)).iter().map(|t| self.source(t)).collect::<Result<Vec<_>, _>>()?;
                Kind::Pack { to: self.register(arg(0))?, bits: width(name) / from.len() as u32, from }
            }
            "mov.b32" | "mov.b64" if arg(0).starts_with('{') => {
                let to = braced(arg(0)).iter().map(|t| self.target(t)).collect::<Result<Vec<_>, _>>()?;
                Kind::Unpack { bits: width(name) / to.len() as u32, to, from: self.source(arg(1))? }
            }
            n if n.starts_with("ld.param") => {
                let number = arg(1).trim_end_matches(']').rsplit('_').next().and_then(|n| n.parse().ok());
                let Some(number) = number else { return self.fault("a parameter without a number") };
                Kind::Parameter { to: self.register(arg(0))?, number }
            }
            n if n.starts_with("ld.") || n.starts_with("st.") => self.memory(name, args)?,
            "shfl.sync.bfly.b32" | "shfl.sync.idx.b32" if (arg(3), arg(4)) == ("31", "-1") => Kind::Shuffle {
                to: self.register(arg(0))?,
                from: self.source(arg(1))?,
                lane: self.source(arg(2))?,
                xor: name.contains("bfly"),
            },
            "vote.sync.ballot.b32" if arg(2) == "-1" => Kind::Ballot { to: self.register(arg(0))?, from: self.source(arg(1))? },
            n if n.starts_with("ldmatrix.sync.aligned.m8n8.x4.") => {
                Kind::Matrices { to: self.four(arg(0))?, from: self.address(arg(1))?, transposed: n.contains(".trans.") }
            }
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" | "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32" => Kind::Mma {
                to: self.four(arg(0))?,
                a: self.sources(&braced(arg(1)))?,
                b: self.sources(&braced(arg(2)))?,
                c: self.sources(&braced(arg(3)))?,
                codes: name.contains("e4m3"),
            },
            "cp.async.cg.shared.global" | "cp.async.ca.shared.global" if matches!(arg(2), "4" | "8" | "16") => {
                let size = arg(2).parse().unwrap_or(16);
                let bytes = if args.len() > 3 { self.source(arg(3))? } else { Source::Constant(size) };
                Kind::Copy { to: self.address(arg(0))?, from: self.address(arg(1))?, size, bytes }
            }
            _ => match self.asynchronous(name, args)? {
                Some(kind) => Kind::Async(kind),
                None => return self.plain(name, args),
            },
        })
    }

    fn plain(&self, name: &str, args: &[&str]) -> Result<Kind, Fault> {
        let Some((count, op)) = lookup(name) else { return self.fault(format!("{name} is not emulated")) };
        if args.len() != count + 1 {
            return self.fault(format!("{name} with {} operands", args.len()));
        }
        let mut from = args[1..].iter().map(|t| self.source(t)).collect::<Result<Vec<_>, _>>()?;
        // Constants are written signed: keep as many bits as the instruction has.
        let mask = if width(name) < 64 && !name.starts_with("mul.wide") { (1u64 << width(name)) - 1 } else { u64::MAX };
        from.iter_mut().for_each(|s| {
            if let Source::Constant(c) = s {
                *c &= mask;
            }
        });
        Ok(Kind::Plain { op, to: self.register(args[0])?, from })
    }

    fn memory(&self, name: &str, args: &[&str]) -> Result<Kind, Fault> {
        let parts: Vec<&str> = name.split('.').collect();
        let space = match parts[1] {
            "global" => Space::Global,
            "shared" => Space::Shared,
            other => return self.fault(format!("{other} memory is not emulated")),
        };
        let known = |p: &&str| matches!(*p, "nc" | "v2" | "v4") || p.starts_with(['b', 's', 'u', 'f']);
        if !parts[2..].iter().all(known) {
            return self.fault(format!("{name} is not emulated"));
        }
        let (bytes, signed) = (width(name) as usize / 8, parts[parts.len() - 1].starts_with('s'));
        let list = |text: &str| -> Vec<String> {
            if text.starts_with('{') { braced(text).into_iter().map(String::from).collect() } else { vec![text.into()] }
        };
        if parts[0] == "ld" {
            let to = list(args[0]).iter().map(|t| self.target(t)).collect::<Result<Vec<_>, _>>()?;
            return Ok(Kind::Load { space, to, bytes, signed, from: self.address(args[1])? });
        }
        let from = list(args[1]).iter().map(|t| self.source(t)).collect::<Result<Vec<_>, _>>()?;
        Ok(Kind::Store { space, from, bytes, to: self.address(args[0])? })
    }
}

/// Bits of the type that an opcode ends with.
fn width(name: &str) -> u32 {
    let last = name.rsplit('.').next().unwrap_or_default();
    match last {
        "pred" => 1,
        "bf16" | "f16" => 16,
        t => t.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(64),
    }
}
