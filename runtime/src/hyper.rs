//! Hyper-parameters of an optimizer step.

use crate::Error;
use std::str::FromStr;

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
        let positive = |x: f64| x.is_finite() && x >= 0.0;
        let checks = [
            (positive(self.learning_rate), "the learning rate must be a finite number, 0 or more"),
            (self.betas.iter().all(|b| (0.0..1.0).contains(b)), "each beta must lie in [0, 1)"),
            (positive(self.eps), "eps must be a finite number, 0 or more"),
            (positive(self.weight_decay), "the weight decay must be a finite number, 0 or more"),
            (self.clip.is_none_or(|c| c > 0.0 && c.is_finite()), "the clipping norm must be positive"),
            (self.loss_scaling.holds(), "the loss scale must be positive and finite"),
        ];
        checks.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, reason)| Err(Error::Usage(reason.to_string())))
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

    fn holds(self) -> bool {
        match self {
            LossScaling::Fixed(x) => x.is_finite() && x > 0.0,
            LossScaling::None | LossScaling::Dynamic => true,
        }
    }
}

impl FromStr for LossScaling {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let parsed = match s {
            "none" => Some(LossScaling::None),
            "dynamic" => Some(LossScaling::Dynamic),
            other => other.parse().ok().map(LossScaling::Fixed),
        };
        parsed.filter(|p| p.holds()).ok_or_else(|| Error::Usage(format!("{s:?} is no loss scale: none, dynamic or a positive number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_scales_parse_as_the_command_line_writes_them() {
        assert_eq!("dynamic".parse::<LossScaling>().unwrap(), LossScaling::Dynamic);
        assert_eq!("1024".parse::<LossScaling>().unwrap(), LossScaling::Fixed(1024.0));
        for bad in ["-1", "0", "nan", "inf", "often"] {
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
    }
}
