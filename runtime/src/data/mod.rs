//! Training data: token files and numpy arrays, in an order that depends on the seed and the position alone.
//!
//! The position is the number of samples consumed so far, so a training resumes anywhere without reading what came before.
//!
//! Integers that index something have a range in the plan. Files are searched for others when they are opened, and every batch is
//! checked again, since a file may change while it is mapped.

mod npy;
mod range;
mod tokens;
mod windows;

pub(crate) use range::check_range;
pub use tokens::TokenWidth;

use crate::Error;
use crate::plan::{Labels, Plan, Port};
use crate::random::Shuffle;
use crate::session::Batch;
use npy::NpyArray;
use std::path::Path;
use tokens::Tokens;
use windows::Windows;

/// In which order samples are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Step i takes samples `[i * B, (i + 1) * B)`, wrapping around.
    Sequential,
    /// Arrays: a new permutation for each epoch. Tokens: windows that start anywhere.
    Shuffled { seed: u64 },
}

/// How data is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOptions {
    pub order: Order,
    /// What `labels` gets from a token file; what the plan says where absent.
    pub labels: Option<Labels>,
    /// Of a `.bin` file without a header; what is possible where absent.
    pub width: Option<TokenWidth>,
}

impl From<Order> for DataOptions {
    fn from(order: Order) -> Self {
        DataOptions { order, labels: None, width: None }
    }
}

/// Fills the batches of a plan.
pub struct Loader {
    ports: Vec<Port>,
    source: Source,
    order: Order,
    /// Samples of a step, all micro-batches together.
    rows: u64,
    tokens_per_step: u64,
    notes: Vec<String>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("order", &self.order).field("samples", &self.samples()).finish_non_exhaustive()
    }
}

enum Source {
    /// For each port the array and its samples per step.
    Arrays {
        arrays: Vec<(NpyArray, u64)>,
        samples: u64,
    },
    Tokens(Windows),
}

impl Loader {
    /// Opens `--data` specifications: one token file (`.txt`, `.bin`), or `NAME=FILE.npy` for each input of the plan.
    ///
    /// # Errors
    /// [`Error::Usage`] for specifications that do not fit the plan's inputs, [`Error::Data`] for files that do not or that hold a value
    /// out of range, [`Error::Io`].
    pub fn open(plan: &Plan, specs: &[String], options: impl Into<DataOptions>) -> Result<Self, Error> {
        let options = options.into();
        let names = || plan.inputs.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        let mut arrays: Vec<(usize, &str)> = vec![];
        let mut files: Vec<&str> = vec![];
        for spec in specs {
            match spec.split_once('=') {
                Some((name, file)) => match plan.inputs.iter().position(|p| p.name == name) {
                    Some(i) if arrays.iter().any(|(j, _)| i == *j) => {
                        return Err(Error::Usage(format!("data of input {name} is given twice")));
                    }
                    Some(i) => arrays.push((i, file)),
                    None if Path::new(spec).exists() => files.push(spec),
                    None => return Err(Error::Usage(format!("the plan has no input {name}; its inputs are: {}", names()))),
                },
                None => files.push(spec),
            }
        }
        let mut loader = match (&files[..], &arrays[..]) {
            ([], []) => return Err(Error::Usage(format!("there is no data; the plan's inputs are: {}", names()))),
            ([file], []) => Self::tokens(plan, Path::new(file), options)?,
            ([], _) => Self::arrays(plan, &arrays, options.order)?,
            ([_, second, ..], _) => return Err(Error::Usage(format!("{second} is a second token file; one is read"))),
            ([file], _) => return Err(Error::Usage(format!("token file {file} and arrays cannot be mixed"))),
        };
        loader.ports = plan.inputs.clone();
        Ok(loader)
    }

    fn tokens(plan: &Plan, path: &Path, options: DataOptions) -> Result<Self, Error> {
        let tokens = Tokens::open(path, options.width, windows::ids(plan)?.bound)?;
        let windows = Windows::new(plan, tokens, options.labels)?;
        let rows = windows.rows() * u64::from(plan.accumulation);
        let tokens_per_step = rows * windows.length();
        let notes = windows.notes().to_vec();
        Ok(Loader { ports: vec![], source: Source::Tokens(windows), order: options.order, rows, tokens_per_step, notes })
    }

    fn arrays(plan: &Plan, specs: &[(usize, &str)], order: Order) -> Result<Self, Error> {
        let accumulation = u64::from(plan.accumulation);
        let mut arrays: Vec<(NpyArray, u64)> = Vec::with_capacity(plan.inputs.len());
        for (i, port) in plan.inputs.iter().enumerate() {
            let file = specs.iter().find(|(j, _)| i == *j).map(|(_, file)| Path::new(file));
            let file = file.ok_or_else(|| Error::Usage(format!("there is no data for input {}", port.name)))?;
            let array = NpyArray::open(file, port)?;
            arrays.push((array, port.shape.first().copied().unwrap_or(1) * accumulation));
        }
        let (samples, rows) = arrays.first().map_or((0, 0), |(a, rows)| (a.samples(), *rows));
        if let Some((a, _)) = arrays.iter().find(|(a, _)| a.samples() != samples) {
            return Err(Error::data(a.name(), format!("{} samples where the first input has {samples}", a.samples())));
        }
        if samples == 0 || rows == 0 {
            return Err(Error::Usage("the data holds no samples".into()));
        }
        if let (Order::Shuffled { .. }, Some(i)) = (order, arrays.iter().position(|(_, n)| *n != rows)) {
            let name = &plan.inputs[i].name;
            return Err(Error::Usage(format!(
                "input {name} has another batch size than the first, so samples cannot be shuffled together"
            )));
        }
        plan.inputs.iter().zip(&arrays).try_for_each(|(port, (array, _))| array.check(port))?;
        let token_port = plan.inputs.iter().find(|p| p.name == "input_ids");
        let token_port = token_port.or_else(|| plan.inputs.iter().find(|p| !p.dtype.is_float() && p.shape.len() >= 2));
        let tokens_per_step = token_port.map_or(rows, |p| p.shape.iter().product::<u64>() * accumulation);
        Ok(Loader { ports: vec![], source: Source::Arrays { arrays, samples }, order, rows, tokens_per_step, notes: vec![] })
    }

    /// Samples of one step, its micro-batches together.
    pub fn samples_per_step(&self) -> u64 {
        self.rows
    }

    /// Samples of one pass over the data in order: rows of arrays, or windows of a token file that do not overlap.
    pub fn samples(&self) -> u64 {
        match &self.source {
            Source::Arrays { samples, .. } => *samples,
            Source::Tokens(windows) => windows.samples(),
        }
    }

    /// Tokens of one step: elements of `input_ids` or the first integer input of two axes or more, else samples.
    pub fn tokens_per_step(&self) -> u64 {
        self.tokens_per_step
    }

    /// What was assumed about inputs that the data says nothing of.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Fills the batch of the step that begins after `position` samples.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and the place in it, for a value outside the range that the plan states.
    pub fn fill(&self, position: u64, batch: &mut Batch) -> Result<(), Error> {
        for (i, port) in self.ports.iter().enumerate() {
            match &self.source {
                Source::Arrays { arrays, samples } => {
                    let (array, rows) = &arrays[i];
                    // Inputs of another batch size move in step with the first.
                    let start = position / self.rows * rows + if *rows == self.rows { position % self.rows } else { 0 };
                    let sources: Vec<u64> = (0..*rows).map(|r| self.sample(start + r, *samples)).collect();
                    array.gather(&sources, port, batch.input_mut(i))?;
                    check_range(port, batch.input(i)).map_err(|odd| array.fault(port, |row| sources[row as usize], odd))?;
                }
                Source::Tokens(windows) => {
                    let starts: Vec<u64> = (0..self.rows).map(|r| windows.start(self.order, position + r)).collect();
                    windows.write(i, port, &starts, batch.input_mut(i))?;
                    check_range(port, batch.input(i)).map_err(|odd| windows.fault(i, port, &starts, odd))?;
                }
            }
        }
        Ok(())
    }

    fn sample(&self, position: u64, samples: u64) -> u64 {
        let (epoch, at) = (position / samples, position % samples);
        match self.order {
            Order::Sequential => at,
            Order::Shuffled { seed } => Shuffle::new(seed, epoch, samples).at(at),
        }
    }
}
