//! Text from a causal language model, token by token.
//!
//! A plan has one sequence length. Tokens stand at its beginning, and what follows them does not matter to a causal model; each new token is one
//! forward pass over the whole sequence. Once a text is longer than the sequence, the model sees as much of its end as fits.

use crate::Error;
use crate::convert::to_f32;
use crate::data::check_range;
use crate::plan::Port;
use crate::random::Philox;
use crate::session::{Batch, Session};
use fp8c_kernels::DType;
use std::cmp::Ordering;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; the likeliest token is taken where it is 0.
    pub temperature: f64,
    /// The likeliest tokens whose probabilities together reach this are drawn from; 1 for all.
    pub top_p: f64,
    pub seed: u64,
}

/// A model that tokens are asked of.
#[derive(Debug)]
pub struct Generator {
    session: Session,
    batch: Batch,
    /// Position of `input_ids` among the inputs, and of the logits among the outputs.
    ids: usize,
    logits: usize,
    length: usize,
    vocab: usize,
}

impl Generator {
    /// Takes a session of an inference plan with an integer input `input_ids` `[batch, seq]` and logits `[batch, seq, vocab]`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a plan of another kind, or with inputs that do not follow from the tokens.
    pub fn new(session: Session) -> Result<Self, Error> {
        let plan = session.shared_plan();
        let is_ids = |p: &Port| p.name == "input_ids" && is_integer(p) && p.shape.len() == 2;
        let ids = plan.inputs.iter().position(is_ids);
        let ids = ids.ok_or_else(|| Error::Usage("generation needs a model with an integer input input_ids [batch, seq]".into()))?;
        let [rows, length] = [plan.inputs[ids].shape[0], plan.inputs[ids].shape[1]];
        let is_logits = |p: &Port| p.dtype.is_float() && p.shape.len() == 3 && p.shape[..2] == [rows, length];
        let wide: Vec<usize> = (0..plan.outputs.len()).filter(|&i| is_logits(&plan.outputs[i])).collect();
        let named = wide.iter().copied().find(|&i| plan.outputs[i].name == "logits");
        let logits = named.or(wide.first().copied()).ok_or_else(|| {
            let outputs = plan.outputs.iter().map(|p| format!("{} {:?}", p.name, p.shape)).collect::<Vec<_>>().join(", ");
            Error::Usage(format!("generation needs logits [batch, seq, vocab] among the model's outputs, which are {outputs}"))
        })?;
        let mut batch = Batch::new(&plan);
        for (i, port) in plan.inputs.iter().enumerate().filter(|&(i, _)| i != ids) {
            fill(port, batch.input_mut(i))?;
        }
        let vocab = plan.outputs[logits].shape[2] as usize;
        Ok(Generator { session, batch, ids, logits, length: length as usize, vocab })
    }

    /// Positions of the plan's sequence: how much of a text's end the model sees.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Logits of the token that follows these, one for each of the vocabulary.
    ///
    /// # Errors
    /// [`Error::Usage`] without a token, [`Error::Data`] for one beyond the vocabulary, [`Error::Device`].
    pub fn logits(&mut self, tokens: &[i64]) -> Result<Vec<f32>, Error> {
        let seen = &tokens[tokens.len().saturating_sub(self.length)..];
        if seen.is_empty() {
            return Err(Error::Usage("generation needs at least one token to begin with".into()));
        }
        let plan = self.session.shared_plan();
        let port = &plan.inputs[self.ids];
        let bytes = self.batch.input_mut(self.ids);
        bytes.fill(0);
        for (token, out) in seen.iter().zip(bytes.chunks_exact_mut(port.dtype.size() as usize)) {
            let width = out.len();
            out.copy_from_slice(&token.to_le_bytes()[..width]);
        }
        check_range(port, bytes)
            .map_err(|(at, value)| Error::data("input_ids", format!("token {at} is {value}, but it takes {}", port.allowed())))?;
        let outputs = self.session.forward(&self.batch, 0)?;
        let (output, dtype) = (&outputs[self.logits], plan.outputs[self.logits].dtype);
        let row = self.vocab * dtype.size() as usize;
        let at = (seen.len() - 1) * row;
        let floats = to_f32(&output[at..at + row], dtype).map_err(|reason| Error::data("logits", reason))?;
        Ok(floats.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Tokens that follow, up to `most` of them or to one of `ends`, which is given too.
    ///
    /// # Errors
    /// As [`Generator::logits`].
    pub fn generate(&mut self, prompt: &[i64], most: usize, ends: &[i64], sampling: Sampling) -> Result<Vec<i64>, Error> {
        let mut tokens = prompt.to_vec();
        while tokens.len() < prompt.len() + most {
            let number = (tokens.len() - prompt.len()) as u64;
            let token = choose(&self.logits(&tokens)?, sampling, number);
            tokens.push(token);
            if ends.contains(&token) {
                break;
            }
        }
        Ok(tokens.split_off(prompt.len()))
    }
}

fn is_integer(p: &Port) -> bool {
    matches!(p.dtype, DType::I64 | DType::I32)
}

/// Fills an input that follows from there being tokens.
fn fill(port: &Port, out: &mut [u8]) -> Result<(), Error> {
    let last = port.shape.last().copied().unwrap_or(1).max(1);
    let size = port.dtype.size() as usize;
    let value = |i: u64| match port.name.as_str() {
        "attention_mask" => Some(1),
        "token_type_ids" => Some(0),
        "position_ids" | "cache_position" => Some(i % last),
        _ => None,
    };
    for (i, out) in out.chunks_exact_mut(size).enumerate() {
        let value = value(i as u64).ok_or_else(|| Error::Usage(format!("generation does not know what to give input {}", port.name)))?;
        match port.dtype {
            DType::F32 => out.copy_from_slice(&(value as f32).to_le_bytes()),
            DType::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value as f32).to_le_bytes()),
            _ => out.copy_from_slice(&value.to_le_bytes()[..size]),
        }
    }
    Ok(())
}

/// The token that logits and the `number`-th draw choose.
fn choose(logits: &[f32], sampling: Sampling, number: u64) -> i64 {
    let greater = |a: &(usize, f64), b: &(usize, f64)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0));
    let mut all: Vec<(usize, f64)> = logits.iter().map(|&x| f64::from(x)).enumerate().collect();
    let best = all.iter().copied().min_by(greater).unwrap_or((0, 0.0));
    if sampling.temperature <= 0.0 {
        return best.0 as i64;
    }
    all.iter_mut().for_each(|(_, x)| *x = ((*x - best.1) / sampling.temperature).exp());
    all.sort_by(greater);
    let total: f64 = all.iter().map(|(_, p)| p).sum();
    let mut reached = 0.0;
    let drawn_from = all.iter().take_while(|(_, p)| {
        let before = reached;
        reached += p / total;
        before < sampling.top_p
    });
    let kept: Vec<(usize, f64)> = drawn_from.copied().collect();
    // The stream with the third highest bit belongs to generation.
    let uniform = f64::from(Philox::new(sampling.seed, 1 << 61).uniforms(number)[0]);
    let mut left = uniform * kept.iter().map(|(_, p)| p).sum::<f64>();
    let drawn = kept.iter().find(|(_, p)| {
        left -= p;
        left <= 0.0
    });
    drawn.or(kept.last()).map_or(best.0, |(token, _)| *token) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_is_taken_when_cold_and_draws_follow_the_probabilities() {
        let logits = [0.0, 2.0, 1.0, 2.0].map(|x: f32| x);
        let at = |temperature, top_p, number| choose(&logits, Sampling { temperature, top_p, seed: 3 }, number);
        assert_eq!(at(0.0, 1.0, 0), 1, "the first of equals");
        let draws: Vec<i64> = (0..4000).map(|n| at(1.0, 1.0, n)).collect();
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        for (token, x) in logits.iter().enumerate() {
            let share = draws.iter().filter(|&&d| d == token as i64).count() as f64 / 4000.0;
            let want = f64::from(*x).exp() / total;
            assert!((share - want).abs() < 0.03, "token {token}: {share} of the draws, {want} wanted");
        }
        assert!((0..1000).all(|n| [1, 3].contains(&at(1.0, 0.7, n))), "the two likeliest have 0.84 together");
        assert_eq!(draws, (0..4000).map(|n| at(1.0, 1.0, n)).collect::<Vec<_>>());
    }
}
