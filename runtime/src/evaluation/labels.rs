//! The labels of a batch: which count.

use crate::plan::{Labels, Plan};
use crate::session::Batch;
use fp8c_kernels::DType;

/// The one input whose elements the loss ignores where they have some value.
#[derive(Clone, Copy, Debug)]
pub(super) struct LabelPort {
    /// Position among the plan's inputs.
    input: usize,
    dtype: DType,
    ignore: i64,
    /// Elements of a row whose first the loss never looks at, as the model shifts its labels.
    shifted: Option<usize>,
}

impl LabelPort {
    /// `None` where no input, or more than one, is of that kind.
    pub fn of(plan: &Plan) -> Option<Self> {
        let mut all = plan.inputs.iter().enumerate().filter_map(|(input, p)| Some((input, p, p.ignore?)));
        let (input, port, ignore) = all.next()?;
        let shifted = (port.labels == Some(Labels::Same)).then(|| port.shape.last().map_or(1, |&n| n as usize).max(1));
        let own = matches!(port.dtype, DType::I64 | DType::I32);
        (own && all.next().is_none()).then_some(LabelPort { input, dtype: port.dtype, ignore, shifted })
    }

    /// The labels of a micro-batch.
    pub fn values(&self, batch: &Batch, micro: usize) -> Vec<i64> {
        let bytes = batch.micro(self.input, micro);
        let eight = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let four = |b: &[u8]| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        match self.dtype {
            DType::I64 => bytes.chunks_exact(8).map(eight).collect(),
            _ => bytes.chunks_exact(4).map(four).collect(),
        }
    }

    /// How many labels of a micro-batch count.
    pub fn count(&self, batch: &Batch, micro: usize) -> u64 {
        let looked_at = |i: usize| self.shifted.is_none_or(|n| !i.is_multiple_of(n));
        self.values(batch, micro).iter().enumerate().filter(|&(i, &v)| v != self.ignore && looked_at(i)).count() as u64
    }

    /// Makes the labels of the samples from `valid` on count for nothing.
    pub fn ignore_from(&self, batch: &mut Batch, micro: usize, valid: u64, rows: u64) {
        let bytes = batch.micro_mut(self.input, micro);
        let from = bytes.len() / rows.max(1) as usize * valid as usize;
        match self.dtype {
            DType::I64 => bytes[from..].chunks_exact_mut(8).for_each(|b| b.copy_from_slice(&self.ignore.to_le_bytes())),
            _ => bytes[from..].chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&(self.ignore as i32).to_le_bytes())),
        }
    }
}
