//! `metrics.jsonl`: one JSON object a step.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One line of the log. Numbers that are not finite are written as `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    /// Before the step's update.
    pub loss: f64,
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
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens a log to continue after `step`: lines of later steps, and a last line that is cut off, are removed. A new training has step 0.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, step: u64) -> Result<Self, Error> {
        let io = |e| Error::io(path, e);
        let text = match std::fs::read(path) {
            Ok(text) if step > 0 => text,
            Ok(_) => vec![],
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(e) => return Err(io(e)),
        };
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io)?;
        file.set_len(kept_bytes(&text, step)).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(MetricsLog { path: path.to_path_buf(), file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<(), Error> {
        let mut line = serde_json::to_vec(metrics).map_err(|e| Error::io(&self.path, std::io::Error::other(e)))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))
    }
}

/// Bytes of the whole lines up to and including `step`.
fn kept_bytes(text: &[u8], step: u64) -> u64 {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    let whole = text.split_inclusive(|&b| b == b'\n').filter(|l| l.ends_with(b"\n"));
    let earlier = whole.take_while(|l| serde_json::from_slice::<Line>(l).is_ok_and(|l| l.step <= step));
    earlier.map(|l| l.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 1.5,
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

    #[test]
    fn a_resumed_log_has_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        (1..=5).for_each(|s| log.append(&metrics(s)).unwrap());
        drop(log);
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"step\": 6, \"lo");
        std::fs::write(&path, text).unwrap();
        let mut log = MetricsLog::open(&path, 3).unwrap();
        (4..=6).for_each(|s| log.append(&metrics(s)).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> =
            text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn numbers_that_are_not_finite_are_null() {
        assert!(serde_json::to_string(&metrics(1)).unwrap().contains("\"grad_norm\":null"));
    }
}
