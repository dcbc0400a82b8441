//! The windows of a token file that language models are trained on.

use super::Order;
use super::range::{Odd, takes};
use super::tokens::Tokens;
use crate::Error;
use crate::error::DataFault;
use crate::plan::{Labels, Plan, Port};
use crate::random::Philox;
use fp8c_kernels::DType;

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
    /// Tokens that a window reads beyond its length: 1 where labels are the next tokens.
    ahead: u64,
    notes: Vec<String>,
}

impl Windows {
    /// Pairs the plan's inputs with a token file: `input_ids` `[batch, length]`, `labels` of as many elements, and inputs that
    /// follow from these. `labels`: what was asked for.
    pub fn new(plan: &Plan, tokens: Tokens, labels: Option<Labels>) -> Result<Self, Error> {
        let ids = ids(plan)?;
        let [rows, length] = ids.shape[..] else {
            return Err(Error::Usage(format!("input_ids has {} axes; token files fill [batch, length]", ids.shape.len())));
        };
        let mut windows = Windows { tokens, fills: vec![], rows, length, ahead: 0, notes: vec![] };
        for p in &plan.inputs {
            let fill = windows.fill_of(p, labels)?;
            windows.fills.push(fill);
        }
        windows.ahead = u64::from(windows.fills.contains(&Fill::Next));
        let need = length.saturating_add(windows.ahead);
        if rows == 0 || length == 0 || windows.tokens.len() < need {
            let reason = format!("{} tokens, a sample of this model needs {need}", windows.tokens.len());
            return Err(Error::data(windows.tokens.name(), reason));
        }
        windows.check(plan)?;
        Ok(windows)
    }

    fn fill_of(&mut self, p: &Port, labels: Option<Labels>) -> Result<Fill, Error> {
        let fill = match p.name.as_str() {
            "input_ids" => Fill::Tokens,
            "labels" => return self.labels(p, labels),
            "position_ids" | "cache_position" if is_integer(p) => Fill::Positions,
            "attention_mask" => Fill::Constant(1),
            "token_type_ids" if is_integer(p) => Fill::Constant(0),
            _ => return Err(Error::Usage(format!("a token file says nothing about input {}", p.name))),
        };
        match fill {
            Fill::Tokens | Fill::Next => {}
            Fill::Positions => self.notes.push(format!("input {} is filled with positions 0, 1, 2, ...", p.name)),
            Fill::Constant(c) => self.notes.push(format!("input {} is filled with {c}", p.name)),
        }
        Ok(fill)
    }

    fn labels(&mut self, p: &Port, asked: Option<Labels>) -> Result<Fill, Error> {
        if p.shape.iter().product::<u64>() != self.rows.saturating_mul(self.length) || !is_integer(p) {
            return Err(Error::Usage("labels and input_ids differ in size; give each input as NAME=FILE.npy".into()));
        }
        let Some(labels) = asked.or(p.labels) else {
            let reason = "the plan does not say whether its labels are the next tokens or the tokens themselves".into();
            return Err(Error::Data { name: p.name.clone(), reason, fault: DataFault::Labels });
        };
        let (what, fill) = match labels {
            Labels::Next => ("labels are the next tokens", Fill::Next),
            Labels::Same => ("labels are the tokens themselves, which the model shifts by one position", Fill::Tokens),
        };
        self.notes.push(match p.labels {
            Some(own) if own != labels => format!("{what}, as asked for; the model's own loss wants the other"),
            _ => what.into(),
        });
        Ok(fill)
    }

    /// Searches the file for tokens that an input does not take, and checks what the other inputs are filled with.
    fn check(&self, plan: &Plan) -> Result<(), Error> {
        for (p, fill) in plan.inputs.iter().zip(&self.fills) {
            let constant = match fill {
                Fill::Tokens | Fill::Next => {
                    let odd = p.bound.map_or(Ok(None), |bound| self.tokens.beyond(bound))?;
                    odd.filter(|(_, value)| !p.allows(*value)).map_or(Ok(()), |(at, value)| Err(self.beyond(p, at, value)))?;
                    continue;
                }
                Fill::Positions => p.shape.last().map_or(0, |&n| n as i64 - 1),
                Fill::Constant(c) => *c,
            };
            if is_integer(p) && !p.allows(constant) {
                return Err(Error::Usage(format!("input {} would be filled with {constant}, {}", p.name, takes(p))));
            }
        }
        Ok(())
    }

    fn beyond(&self, port: &Port, token: u64, value: i64) -> Error {
        let reason = format!("token {token} (byte {}) is {value}, {}", self.tokens.offset(token), takes(port));
        Error::Data { name: self.tokens.name().into(), reason, fault: DataFault::Range }
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

    /// Windows that do not overlap.
    pub fn samples(&self) -> u64 {
        (self.tokens.len() - self.ahead) / self.length
    }

    /// The first token of a sample.
    pub fn start(&self, order: Order, position: u64) -> u64 {
        match order {
            Order::Sequential => position % self.samples() * self.length,
            // The stream with the second highest bit belongs to windows.
            Order::Shuffled { seed } => Philox::new(seed, 1 << 62).below(position, self.tokens.len() - self.length - self.ahead + 1),
        }
    }

    /// Writes one input of a step whose samples begin at these tokens.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, input: usize, port: &Port, starts: &[u64], out: &mut [u8]) -> Result<(), Error> {
        let last = port.shape.last().copied().unwrap_or(1).max(1);
        let mut out = out.chunks_exact_mut(port.dtype.size() as usize);
        match self.fills[input] {
            Fill::Tokens | Fill::Next => {
                for row in 0..starts.len() as u64 {
                    let first = self.token(input, starts, row * self.length);
                    self.tokens.read(first..first + self.length)?.zip(&mut out).for_each(|(value, out)| store(value, port.dtype, out));
                }
            }
            Fill::Positions => out.enumerate().for_each(|(i, out)| store((i as u64 % last) as i64, port.dtype, out)),
            Fill::Constant(c) => out.for_each(|out| store(c, port.dtype, out)),
        }
        Ok(())
    }

    /// The token that an element of an input is.
    fn token(&self, input: usize, starts: &[u64], element: u64) -> u64 {
        let (row, at) = (element / self.length, element % self.length);
        starts[row as usize] + at + u64::from(self.fills[input] == Fill::Next)
    }

    /// What is wrong with an element of an input.
    pub fn fault(&self, input: usize, port: &Port, starts: &[u64], (element, value): Odd) -> Error {
        match self.fills[input] {
            Fill::Tokens | Fill::Next => self.beyond(port, self.token(input, starts, element), value),
            Fill::Positions | Fill::Constant(_) => Error::data(&port.name, format!("element {element} is {value}, {}", takes(port))),
        }
    }
}

/// The input that a token file is for.
///
/// # Errors
/// [`Error::Usage`] for a model without one.
pub(super) fn ids(plan: &Plan) -> Result<&Port, Error> {
    let ids = plan.inputs.iter().find(|p| p.name == "input_ids" && is_integer(p));
    ids.ok_or_else(|| Error::Usage("the model has no integer input input_ids; give each input as NAME=FILE.npy".into()))
}

fn is_integer(p: &Port) -> bool {
    matches!(p.dtype, DType::I64 | DType::I32)
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
