//! Learning-rate schedules.

use std::str::FromStr;

/// The shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Constant,
    /// Half a cosine down to a tenth of the peak.
    Cosine,
    /// A straight line down to zero.
    Linear,
    /// Warm-up, stable, decay: constant, then a straight line to zero over the last fifth.
    Wsd,
}

impl FromStr for Shape {
    /// A sentence without a subject.
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "constant" => Ok(Shape::Constant),
            "cosine" => Ok(Shape::Cosine),
            "linear" => Ok(Shape::Linear),
            "wsd" => Ok(Shape::Wsd),
            _ => Err("must be constant, cosine, linear or wsd".into()),
        }
    }
}

/// Learning rate by step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    pub shape: Shape,
    pub peak: f64,
    /// Steps over which the rate rises from 0 in a straight line; the first step has `peak / warmup`.
    pub warmup: u64,
    /// Steps of the whole run.
    pub steps: u64,
}

impl LrSchedule {
    /// The rate of a step, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let (done, left) = ((step - self.warmup) as f64, self.steps.saturating_sub(self.warmup).max(1) as f64);
        let progress = (done / left).min(1.0);
        let factor = match self.shape {
            Shape::Constant => 1.0,
            Shape::Cosine => 0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Shape::Linear => 1.0 - progress,
            Shape::Wsd => ((1.0 - progress) / 0.2).min(1.0),
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape) -> LrSchedule {
        LrSchedule { shape, peak: 1.0, warmup: 10, steps: 110 }
    }

    #[test]
    fn every_schedule_rises_in_a_line_to_its_peak() {
        for shape in [Shape::Constant, Shape::Cosine, Shape::Linear, Shape::Wsd] {
            let s = schedule(shape);
            assert!((s.at(0) - 0.1).abs() < 1e-12);
            assert!((s.at(4) - 0.5).abs() < 1e-12);
            assert!((s.at(10) - 1.0).abs() < 1e-12, "{shape:?}");
        }
    }

    #[test]
    fn schedules_end_where_they_should() {
        assert_eq!(schedule(Shape::Constant).at(109), 1.0);
        assert!((schedule(Shape::Cosine).at(110) - 0.1).abs() < 1e-12);
        assert!((schedule(Shape::Cosine).at(60) - 0.55).abs() < 1e-12);
        assert!((schedule(Shape::Linear).at(60) - 0.5).abs() < 1e-12);
        assert_eq!(schedule(Shape::Wsd).at(89), 1.0);
        assert!((schedule(Shape::Wsd).at(100) - 0.5).abs() < 1e-12);
        assert!(schedule(Shape::Linear).at(500).abs() < 1e-12);
    }

    #[test]
    fn a_run_that_is_all_warm_up_never_divides_by_zero() {
        let s = LrSchedule { shape: Shape::Cosine, peak: 1.0, warmup: 5, steps: 3 };
        assert!((0..10).all(|i| s.at(i).is_finite()));
        let s = LrSchedule { shape: Shape::Linear, peak: 1.0, warmup: 0, steps: 0 };
        assert!(s.at(0).is_finite());
    }
}
