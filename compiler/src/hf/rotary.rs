//! Rotary embeddings as configurations describe them.

use super::config::Config;
use std::f64::consts::TAU;

/// A rotary embedding: what each pair of elements turns by from one position to the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians, one for each pair.
    pub frequencies: Vec<f32>,
}

impl Rotary {
    /// Elements of a head that are turned.
    pub fn dims(&self) -> u64 {
        2 * self.frequencies.len() as u64
    }

    /// Wavelengths in geometric progression, in the precision in which transformers computes them.
    pub fn plain(base: f64, dims: u64) -> Self {
        let exponent = |i: u64| f64::from((2 * i) as f32 / dims as f32);
        Rotary { frequencies: (0..dims / 2).map(|i| 1.0 / (base.powf(exponent(i)) as f32)).collect() }
    }

    /// Reads the embedding of heads of `head` elements. `fields` is where its parameters are: `rope_parameters`, or one of its parts.
    ///
    /// # Errors
    /// A sentence without a subject, for a kind that is not known.
    pub fn of(config: &Config, fields: &str, head: u64) -> Result<Self, String> {
        let number = |name: &str, usual: f64| config.number_or(&format!("{fields}.{name}"), usual);
        // Before version 5 of transformers the base and the part stood beside the rest.
        let base = number("rope_theta", config.number_or("rope_theta", config.number_or("rotary_emb_base", 10_000.0)?)?)?;
        let part = config.number_or("partial_rotary_factor", config.number_or("rotary_pct", 1.0)?)?;
        let part = number("partial_rotary_factor", part)?;
        let dims = (head as f64 * part) as u64 / 2 * 2;
        if base <= 1.0 || dims == 0 || dims > head {
            return Err(format!("turns {dims} of {head} elements of a head by wavelengths of base {base}, which cannot be"));
        }
        let Rotary { frequencies } = Rotary::plain(base, dims);
        let scaled = scaling(config, fields);
        let kind = scaled
            .as_deref()
            .and_then(|at| config.text(&format!("{at}.rope_type")).or(config.text(&format!("{at}.type"))))
            .unwrap_or("default");
        let at = |name: &str, usual: f64| config.number_or(&format!("{}.{name}", scaled.as_deref().unwrap_or(fields)), usual);
        let frequencies = match kind {
            "default" => frequencies,
            "linear" => {
                let factor = at("factor", 1.0)?;
                frequencies.iter().map(|f| (f64::from(*f) / factor) as f32).collect()
            }
            "llama3" => {
                let scaling = Llama3 {
                    factor: at("factor", 8.0)?,
                    low: at("low_freq_factor", 1.0)?,
                    high: at("high_freq_factor", 4.0)?,
                    context: at("original_max_position_embeddings", 8192.0)?,
                };
                frequencies.iter().map(|&f| scaling.of(f)).collect()
            }
            other => return Err(format!("has rotary embeddings of the kind {other:?}; default, linear and llama3 are read")),
        };
        Ok(Rotary { frequencies })
    }
}

/// Where the kind of scaling stands.
fn scaling(config: &Config, fields: &str) -> Option<String> {
    [fields, "rope_scaling"]
        .iter()
        .find(|at| config.get(&format!("{at}.rope_type")).or(config.get(&format!("{at}.type"))).is_some())
        .map(|s| s.to_string())
}

/// Llama 3.1's stretching of long wavelengths.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    /// Positions that the model was first trained on.
    context: f64,
}

impl Llama3 {
    fn of(&self, frequency: f32) -> f32 {
        let f = f64::from(frequency);
        let wavelength = TAU / f;
        if wavelength < self.context / self.high {
            return frequency;
        }
        if wavelength > self.context / self.low {
            return (f / self.factor) as f32;
        }
        let smooth = (self.context / wavelength - self.low) / (self.high - self.low);
        ((1.0 - smooth) * f / self.factor + smooth * f) as f32
    }
}
