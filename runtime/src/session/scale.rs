//! The dynamic loss scale.

use crate::hyper::LossScaling;
use serde::{Deserialize, Serialize};

const START: f32 = 65536.0;
const GOOD_STEPS: u32 = 2000;

/// Where a dynamic loss scale stands; part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    pub scale: f32,
    /// Good steps since the scale last changed.
    pub good_steps: u32,
    /// Steps skipped since the last good one.
    pub skipped_in_row: u32,
}

impl Default for Scaler {
    fn default() -> Self {
        Scaler { scale: START, good_steps: 0, skipped_in_row: 0 }
    }
}

impl Scaler {
    /// The scale of the next step.
    pub fn current(&self, scaling: LossScaling) -> f32 {
        match scaling {
            LossScaling::None => 1.0,
            LossScaling::Fixed(x) => x,
            LossScaling::Dynamic => self.scale,
        }
    }

    /// Takes note of a step.
    pub fn observe(&mut self, scaling: LossScaling, skipped: bool) {
        self.skipped_in_row = if skipped { self.skipped_in_row.saturating_add(1) } else { 0 };
        if scaling != LossScaling::Dynamic {
            return;
        }
        self.good_steps = if skipped { 0 } else { self.good_steps.saturating_add(1) };
        if skipped {
            self.scale = (self.scale / 2.0).max(f32::MIN_POSITIVE);
        } else if self.good_steps >= GOOD_STEPS {
            self.scale = (self.scale * 2.0).min(1.0 / f32::MIN_POSITIVE);
            self.good_steps = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_doubles_after_two_thousand_good_steps_and_halves_on_a_skip() {
        let mut s = Scaler::default();
        (0..1999).for_each(|_| s.observe(LossScaling::Dynamic, false));
        assert_eq!(s.scale, 65536.0);
        s.observe(LossScaling::Dynamic, false);
        assert_eq!(s.scale, 131072.0);
        s.observe(LossScaling::Dynamic, true);
        assert_eq!((s.scale, s.good_steps, s.skipped_in_row), (65536.0, 0, 1));
    }

    #[test]
    fn a_fixed_scale_stays_but_skips_are_counted() {
        let mut s = Scaler::default();
        (0..3).for_each(|_| s.observe(LossScaling::Fixed(8.0), true));
        assert_eq!((s.current(LossScaling::Fixed(8.0)), s.skipped_in_row), (8.0, 3));
        s.observe(LossScaling::Fixed(8.0), false);
        assert_eq!(s.skipped_in_row, 0);
    }
}
