//! When checkpoints are due.

use std::time::{Duration, Instant};

/// How often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// At each multiple of so many steps.
    Steps(u64),
    /// At the end of the first step after so much time.
    Time(Duration),
}

/// An [`Every`] under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    every: Every,
    last: Instant,
}

impl Every {
    pub(super) fn begin(self) -> Pace {
        Pace { every: self, last: Instant::now() }
    }
}

impl Pace {
    /// Whether it is due after this step; then its time begins anew.
    pub fn is_due(&mut self, step: u64) -> bool {
        match self.every {
            Every::Steps(n) => n > 0 && step.is_multiple_of(n),
            Every::Time(pause) if self.last.elapsed() >= pause => {
                self.last = Instant::now();
                true
            }
            Every::Time(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_from_the_beginning_and_time_from_the_last() {
        let mut pace = Every::Steps(3).begin();
        assert_eq!((1..=7).filter(|&s| pace.is_due(s)).collect::<Vec<_>>(), [3, 6]);
        let mut pace = Every::Time(Duration::from_secs(3600)).begin();
        assert!(!pace.is_due(1));
        pace.last = Instant::now().checked_sub(Duration::from_secs(3601)).expect("an hour ago");
        assert!(pace.is_due(2) && !pace.is_due(3));
    }
}
