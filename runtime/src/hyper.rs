//! Hyper-parameters of an optimizer step.

use crate::Error;
use std::fmt;
use std::str::FromStr;

/// Numbers that a setting takes: 0 where `zero` says so, and `least..=most`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub least: f64,
    pub most: f64,
    pub zero: bool,
}

// The arithmetic is f32: smaller numbers would be 0 there without a word, larger ones overflow in products with one another.
const LEAST: f64 = 1e-30;
pub const LEARNING_RATE: Span = Span { least: LEAST, most: 1e6, zero: true };
pub const WEIGHT_DECAY: Span = Span { least: LEAST, most: 1e6, zero: true };
pub const EPS: Span = Span { least: LEAST, most: 1e30, zero: true };
/// The largest is what f32 tells from 1.
pub const BETA: Span = Span { least: LEAST, most: 0.9999999, zero: true };
pub const CLIP: Span = Span { least: LEAST, most: 1e30, zero: false };
pub const LOSS_SCALE: Span = Span { least: LEAST, most: 1e30, zero: false };

impl Span {
    pub fn contains(self, x: f64) -> bool {
        (self.least..=self.most).contains(&x) || (self.zero && x == 0.0)
    }

    /// A number of the span.
    ///
    /// # Errors
    /// A sentence without a subject: `must be 0, or from 1e-30 to 1e6`.
    pub fn parse(self, text: &str) -> Result<f64, String> {
        text.trim().parse().ok().filter(|x| self.contains(*x)).ok_or_else(|| format!("must be {self}"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zero = if self.zero { "0, or " } else { "" };
        let plain = |x: f64| if x == 0.0 || (1e-3..1e3).contains(&x) { x.to_string() } else { format!("{x:e}") };
        write!(f, "{zero}from {} to {}", plain(self.least), plain(self.most))
    }
}

/// What one step is made with. The learning rate is the schedule's value for the step.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    pub learning_rate: f64,
    /// Decay of the first and second moment; SGD takes its momentum from the first.
    pub betas: [f64; 2],
    pub eps: f64,
    /// Decoupled: parameters shrink by `learning_rate * weight_decay`.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient.
    pub clip: Option<f64>,
    pub loss_scaling: LossScaling,
}

impl Default for Hyper {
    /// Learning rate 3e-4, betas 0.9 and 0.999, eps 1e-8, weight decay 0.01, no clipping, no loss scaling.
    fn default() -> Self {
        Hyper { learning_rate: 3e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01, clip: None, loss_scaling: LossScaling::None }
    }
}

impl Hyper {
    /// Checks the ranges that the optimizers need.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the value.
    pub fn validate(&self) -> Result<(), Error> {
        let scale = if let LossScaling::Fixed(x) = self.loss_scaling { Some(f64::from(x)) } else { None };
        // A schedule's own small rates are no mistake.
        let rate = Span { least: 0.0, zero: false, ..LEARNING_RATE };
        let settings = [
            ("the learning rate", Some(self.learning_rate), rate),
            ("beta 1", Some(self.betas[0]), BETA),
            ("beta 2", Some(self.betas[1]), BETA),
            ("eps", Some(self.eps), EPS),
            ("the weight decay", Some(self.weight_decay), WEIGHT_DECAY),
            ("the clipping norm", self.clip, CLIP),
            ("the loss scale", scale, LOSS_SCALE),
        ];
        let wrong = settings.iter().find_map(|(name, x, span)| Some((name, x.filter(|x| !span.contains(*x))?, span)));
        wrong.map_or(Ok(()), |(name, x, span)| Err(Error::Usage(format!("{name} must be {span}, not {x}"))))
    }
}

/// How the loss is scaled before the backward pass. Whatever it is, a step with a non-finite gradient is skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LossScaling {
    /// The scale is 1.
    #[default]
    None,
    /// Starts at 2^16, doubles after 2000 good steps, halves when a step is skipped.
    Dynamic,
    Fixed(f32),
}

impl LossScaling {
    /// `dynamic` for fp8, where small gradients matter most; else `none`, for f32 and bf16 have the exponent range.
    pub fn default_for(precision: &str) -> Self {
        if precision == "fp8" { LossScaling::Dynamic } else { LossScaling::None }
    }
}

impl FromStr for LossScaling {
    /// A sentence without a subject.
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(LossScaling::None),
            "dynamic" => Ok(LossScaling::Dynamic),
            other => match LOSS_SCALE.parse(other) {
                Ok(x) => Ok(LossScaling::Fixed(x as f32)),
                Err(_) => Err(format!("must be none, dynamic, or a number {LOSS_SCALE}")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_scales_parse_as_the_command_line_writes_them() {
        assert_eq!("dynamic".parse::<LossScaling>().unwrap(), LossScaling::Dynamic);
        assert_eq!("1024".parse::<LossScaling>().unwrap(), LossScaling::Fixed(1024.0));
        for bad in ["-1", "0", "nan", "inf", "often", "1e39", "1e-50"] {
            assert!(bad.parse::<LossScaling>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hyper_parameters_out_of_range_are_named() {
        assert!(Hyper::default().validate().is_ok());
        let wrong = Hyper { betas: [0.9, 1.0], ..Hyper::default() };
        assert!(wrong.validate().unwrap_err().to_string().contains("beta"));
        let wrong = Hyper { learning_rate: f64::NAN, ..Hyper::default() };
        assert!(wrong.validate().unwrap_err().to_string().contains("learning rate"));
        for lr in [1e39, 1e7, -1e-9, f64::INFINITY] {
            let wrong = Hyper { learning_rate: lr, ..Hyper::default() };
            assert_eq!(wrong.validate().unwrap_err().to_string(), format!("the learning rate must be from 0 to 1e6, not {lr}"));
        }
        assert!(Hyper { learning_rate: 1e-35, ..Hyper::default() }.validate().is_ok());
        assert!(Hyper { eps: 1e-50, ..Hyper::default() }.validate().is_err(), "it would be 0 in f32");
        assert!(Hyper { betas: [0.9, 0.99999999], ..Hyper::default() }.validate().is_err(), "it would be 1 in f32");
    }

    #[test]
    fn what_a_span_allows_stays_a_number_in_f32() {
        for span in [LEARNING_RATE, WEIGHT_DECAY, EPS, BETA, CLIP, LOSS_SCALE] {
            assert!([span.least, span.most].iter().all(|&x| (x as f32).is_normal()), "{span}");
        }
        assert!((BETA.most as f32) < 1.0);
        assert!(((LEARNING_RATE.most * WEIGHT_DECAY.most) as f32).is_finite());
    }
}
