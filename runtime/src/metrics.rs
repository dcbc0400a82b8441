//! `metrics.jsonl`: one JSON object a step.

use crate::Error;
use crate::checkpoint::take;
use crate::files::{Replaces, set_aside};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One line of the log. Numbers that are not finite are written as `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    /// Before the step's update.
    pub loss: f64,
    /// Over data that is not trained on, after the step's update; absent where none was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    pub lr: f64,
    pub grad_norm: f64,
    pub loss_scale: f32,
    pub skipped: bool,
    /// Steps skipped since the training began.
    pub skipped_total: u64,
    /// Wall time, reading the data included.
    pub seconds: f64,
    pub tokens_per_second: f64,
    pub arena_peak_bytes: u64,
    pub peak_rss_bytes: Option<u64>,
}

/// An open log; each line is handed to the operating system when it is complete.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    // Locked for as long as it is open.
    file: File,
    bytes: u64,
}

/// Which log is continued: that whose line of this step has this loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Continued {
    pub step: u64,
    /// Absent when it was not finite.
    pub loss: Option<f64>,
}

impl MetricsLog {
    /// Opens a log. That of the training that is continued keeps its lines up to the step, so that each step has one; any other log is renamed,
    /// and its new name given.
    ///
    /// # Errors
    /// [`Error::Kept`] when the file is no log, [`Error::Misplaced`], [`Error::Locked`] when another training writes it, [`Error::Io`].
    pub fn open(path: &Path, continued: Option<Continued>) -> Result<(Self, Option<PathBuf>), Error> {
        let io = |e| Error::io(path, e);
        Replaces::Log.check(path)?;
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
        take(&mut file, path)?;
        file.rewind().map_err(io)?;
        let mut text = vec![];
        file.read_to_end(&mut text).map_err(io)?;
        let own = if text.is_empty() { Some(0) } else { continued.and_then(|c| own_bytes(&text, c)) };
        let Some(bytes) = own else {
            let aside = set_aside(path)?;
            let mut file = OpenOptions::new().create_new(true).write(true).open(path).map_err(io)?;
            take(&mut file, path)?;
            return Ok((MetricsLog { path: path.to_path_buf(), file, bytes: 0 }, Some(aside)));
        };
        file.set_len(bytes).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok((MetricsLog { path: path.to_path_buf(), file, bytes }, None))
    }

    /// Appends a line, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<(), Error> {
        let mut line = serde_json::to_vec(metrics).map_err(|e| Error::io(&self.path, std::io::Error::other(e)))?;
        line.push(b'\n');
        if let Err(e) = self.file.write_all(&line) {
            // Half a line would make the next one unreadable.
            drop(self.file.set_len(self.bytes).and_then(|()| self.file.seek(SeekFrom::End(0))));
            return Err(Error::io(&self.path, e));
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Makes the lines so far survive a power cut.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))
    }
}

/// Bytes of the whole lines up to and including the step, if its line is there with that loss.
fn own_bytes(text: &[u8], continued: Continued) -> Option<u64> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
        loss: Option<f64>,
    }
    let mut bytes = 0;
    for line in text.split_inclusive(|&b| b == b'\n').filter(|l| l.ends_with(b"\n")) {
        let read: Line = serde_json::from_slice(line).ok()?;
        bytes += line.len() as u64;
        if read.step == continued.step {
            return (read.loss == continued.loss).then_some(bytes);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 1.5,
            eval_loss: None,
            lr: 0.1,
            grad_norm: f64::NAN,
            loss_scale: 1.0,
            skipped: false,
            skipped_total: 0,
            seconds: 0.5,
            tokens_per_second: 10.0,
            arena_peak_bytes: 256,
            peak_rss_bytes: None,
        }
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap()).collect()
    }

    #[test]
    fn a_resumed_log_has_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let (mut log, _) = MetricsLog::open(&path, None).unwrap();
        (1..=5).for_each(|s| log.append(&metrics(s)).unwrap());
        drop(log);
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"step\": 6, \"lo");
        std::fs::write(&path, text).unwrap();
        let (mut log, aside) = MetricsLog::open(&path, Some(Continued { step: 3, loss: Some(1.5) })).unwrap();
        (4..=6).for_each(|s| log.append(&metrics(s)).unwrap());
        assert_eq!((steps(&path), aside), (vec![1, 2, 3, 4, 5, 6], None));
    }

    #[test]
    fn the_log_of_another_training_is_kept_under_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let log = |continued, number| {
            let (mut log, aside) = MetricsLog::open(&path, continued).unwrap();
            log.append(&metrics(number)).unwrap();
            aside
        };
        assert_eq!(log(None, 7), None);
        let aside = |n: u32| Some(folder.path().join(format!("metrics.{n}.jsonl")));
        assert_eq!(log(None, 8), aside(1), "a training from the beginning");
        assert_eq!(log(Some(Continued { step: 8, loss: Some(1.25) }), 9), aside(2), "one with another loss at that step");
        assert_eq!(log(Some(Continued { step: 3, loss: Some(1.5) }), 10), aside(3), "one that lacks the step");
        assert_eq!([aside(1), aside(2), aside(3)].map(|p| steps(&p.unwrap())), [[7], [8], [9]]);
    }

    #[test]
    fn what_is_no_log_is_left_as_it_is_and_two_trainings_do_not_share_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.txt");
        std::fs::write(&path, b"the only copy").unwrap();
        assert!(matches!(MetricsLog::open(&path, None), Err(Error::Kept { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"the only copy");
        let path = folder.path().join("log.jsonl");
        let (mut first, _) = MetricsLog::open(&path, None).unwrap();
        first.append(&metrics(1)).unwrap();
        assert!(matches!(MetricsLog::open(&path, None), Err(Error::Locked { .. })));
        first.append(&metrics(2)).unwrap();
        assert_eq!(steps(&path), [1, 2]);
    }

    #[test]
    fn numbers_that_are_not_finite_are_null() {
        assert!(serde_json::to_string(&metrics(1)).unwrap().contains("\"grad_norm\":null"));
    }
}
