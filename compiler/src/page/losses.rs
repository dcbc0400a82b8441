//! The losses of a training's log.

use serde::Deserialize;

/// Most points on a page.
const POINTS: usize = 4000;

/// Losses by step.
#[derive(Clone, Debug, PartialEq)]
pub struct Losses {
    /// Steps and losses, ascending.
    pub points: Vec<(u64, f64)>,
    /// Steps that a point is the mean of.
    pub each: usize,
}

/// What is read of a line; others have no `loss`, or one that was not finite.
#[derive(Deserialize)]
struct Line {
    step: u64,
    loss: Option<f64>,
}

impl Losses {
    /// Reads a log's text.
    ///
    /// # Errors
    /// One sentence on the first line that is wrong, or on a log without losses.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = (1..).zip(text.lines()).filter(|(_, l)| !l.trim().is_empty());
        let parsed =
            lines.map(|(n, l)| serde_json::from_str::<Line>(l).map_err(|e| format!("line {n} is no line of a training's log: {e}")));
        let lines: Vec<Line> = parsed.collect::<Result<_, _>>()?;
        let mut all: Vec<(u64, f64)> = lines.into_iter().filter_map(|l| Some((l.step, l.loss?))).collect();
        all.sort_by_key(|p| p.0);
        if all.is_empty() {
            return Err("there is no loss in it".into());
        }
        let each = all.len().div_ceil(POINTS);
        let mean = |part: &[(u64, f64)]| (part[part.len() / 2].0, part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64);
        Ok(Losses { points: all.chunks(each).map(mean).collect(), each })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_that_were_not_finite_are_left_out() {
        let l = Losses::parse("{\"step\":1,\"loss\":2.5,\"lr\":0.1}\n{\"step\":2,\"loss\":null}\n\n{\"step\":3,\"loss\":1.5}\n").unwrap();
        assert_eq!(l, Losses { points: vec![(1, 2.5), (3, 1.5)], each: 1 });
    }

    #[test]
    fn a_long_log_is_shown_by_its_means() {
        let text: String = (1..=8000).map(|i| format!("{{\"step\":{i},\"loss\":{}}}\n", i % 2)).collect();
        let l = Losses::parse(&text).unwrap();
        assert_eq!((l.each, l.points.len(), l.points[0]), (2, 4000, (2, 0.5)));
    }

    #[test]
    fn what_is_no_log_is_said() {
        assert!(Losses::parse("step 1").unwrap_err().starts_with("line 1 is no line of a training's log: "));
        assert_eq!(Losses::parse("").unwrap_err(), "there is no loss in it");
    }
}
