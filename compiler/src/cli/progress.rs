//! How far a training is: one line that is drawn again on a terminal, lines now and then elsewhere.

use super::Output;
use crate::quantity::Bytes;
use fp8c_runtime::metrics::StepMetrics;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between lines where there is no terminal and nobody said how many steps.
const PAUSE: Duration = Duration::from_secs(10);
/// Weight of the newest step in the mean that the time left is told by.
const NEWEST: f64 = 0.1;
/// Width where a terminal does not say its own.
const USUAL_WIDTH: usize = 80;

/// Tells how far a training is.
pub struct Progress {
    output: Output,
    /// Absent without a terminal.
    line: Option<ProgressBar>,
    steps: u64,
    /// Steps between lines without a terminal.
    every: Option<u64>,
    told: Option<Instant>,
    last: Instant,
    /// Mean time of a step, evaluations and checkpoints included.
    seconds: Option<f64>,
}

impl Progress {
    /// Of a training to step `steps`.
    pub fn new(steps: u64, every: Option<u64>, output: Output) -> Self {
        let drawn = !output.quiet && std::io::stderr().is_terminal();
        let line = drawn.then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { output, line, steps, every, told: None, last: Instant::now(), seconds: None }
    }

    /// Takes note of a step.
    pub fn step(&mut self, m: &StepMetrics) {
        let now = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.seconds = Some(self.seconds.map_or(now, |mean| mean + NEWEST * (now - mean)));
        let parts = self.parts(m);
        match &self.line {
            Some(line) => {
                let width = console::Term::stderr().size_checked().map_or(USUAL_WIDTH, |(_, columns)| usize::from(columns));
                line.set_message(fitted(&parts, width.saturating_sub(1)));
            }
            None if self.is_due(m) => {
                self.told = Some(Instant::now());
                self.output.say(parts.join("  "));
            }
            None => {}
        }
        if let Some(loss) = m.eval_loss.filter(|_| self.line.is_some()) {
            self.note(format!("step {}: loss {loss:.4} on the evaluation data", m.step));
        }
    }

    /// Says something in between.
    pub fn note(&self, text: impl std::fmt::Display) {
        match &self.line {
            Some(line) => line.suspend(|| self.output.say(text)),
            None => self.output.say(text),
        }
    }

    /// Takes the line away.
    pub fn finish(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }

    fn is_due(&self, m: &StepMetrics) -> bool {
        let paced = match self.every {
            Some(n) => m.step.is_multiple_of(n.max(1)),
            None => self.told.is_none_or(|told| told.elapsed() >= PAUSE),
        };
        paced || m.step == self.steps || m.eval_loss.is_some()
    }

    /// What is told of a step, the most important first.
    fn parts(&self, m: &StepMetrics) -> Vec<String> {
        let left = self.seconds.map_or(0.0, |s| s * self.steps.saturating_sub(m.step) as f64);
        let mut parts = vec![format!("step {}/{}", m.step, self.steps), format!("loss {:.4}", m.loss)];
        parts.extend(m.eval_loss.map(|loss| format!("evaluated {loss:.4}")));
        parts.push(format!("{} tokens/s", short(m.tokens_per_second)));
        if m.step < self.steps {
            parts.push(format!("{} left", span(left)));
        }
        parts.push(Bytes(m.arena_peak_bytes).to_string());
        parts
    }
}

/// As many parts as fit a line.
fn fitted(parts: &[String], width: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let gap = if line.is_empty() { "" } else { "  " };
        if line.len() + gap.len() + part.len() > width {
            break;
        }
        line.push_str(gap);
        line.push_str(part);
    }
    line
}

/// A number in four characters or so.
fn short(x: f64) -> String {
    match x {
        x if x < 100.0 => format!("{x:.1}"),
        x if x < 1e4 => format!("{x:.0}"),
        x if x < 1e6 => format!("{:.1}k", x / 1e3),
        x => format!("{:.1}M", x / 1e6),
    }
}

/// A time in its two largest units.
fn span(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_what_fits_it_and_no_more() {
        let parts = ["step 120/1000", "loss 2.3456", "12.3k tokens/s", "12 min 30 s left"].map(String::from);
        for (width, want) in [
            (12, ""),
            (13, "step 120/1000"),
            (40, "step 120/1000  loss 2.3456"),
            (42, "step 120/1000  loss 2.3456  12.3k tokens/s"),
            (80, "step 120/1000  loss 2.3456  12.3k tokens/s  12 min 30 s left"),
        ] {
            assert_eq!(fitted(&parts, width), want, "{width} columns");
        }
    }

    #[test]
    fn numbers_and_times_are_short() {
        assert_eq!([0.0, 99.94, 512.3, 12_345.0, 7.2e6].map(short), ["0.0", "99.9", "512", "12.3k", "7.2M"]);
        assert_eq!([0.4, 59.0, 61.0, 3725.0, 90_000.0].map(span), ["0 s", "59 s", "1 min 1 s", "1 h 2 min", "1 d 1 h"]);
    }
}
