//! Inference plans whose output is classes: cross-entropy and accuracy from their logits.

use crate::Error;
use crate::convert::to_f32;
use crate::plan::{ALIGN, Labels, Plan, Port, Role, Tensor, TensorId, Tier};
use fp8c_kernels::DType;
use rayon::prelude::*;

/// The labels' name, as models that compute a loss have it.
const LABELS: &str = "labels";
/// Labels with this value count for nothing, as in PyTorch.
const IGNORE: i64 = -100;

/// An inference plan as one that is fed labels too.
#[derive(Clone, Debug)]
pub struct Classes {
    /// The plan with an input `labels` at the end. It is for loading data, not for running: nothing reads that input.
    pub plan: Plan,
    /// Position of the logits among the outputs.
    output: usize,
    classes: usize,
}

/// Loss and accuracy, summed over labels.
pub(super) struct Score {
    pub loss: f64,
    pub correct: u64,
}

/// Finds the logits of an inference plan: its one float output of two axes or more, or that of them which is called `logits`.
///
/// # Errors
/// [`Error::Usage`] when there is none.
pub fn judged(plan: &Plan) -> Result<Classes, Error> {
    let wide: Vec<usize> =
        (0..plan.outputs.len()).filter(|&i| plan.outputs[i].dtype.is_float() && plan.outputs[i].shape.len() >= 2).collect();
    let logits = match wide[..] {
        [only] => Some(only),
        _ => wide.iter().copied().find(|&i| plan.outputs[i].name == "logits"),
    };
    let names = || plan.outputs.iter().map(|p| format!("{} {:?}", p.name, p.shape)).collect::<Vec<_>>().join(", ");
    let output = logits
        .ok_or_else(|| Error::Usage(format!("this inference plan has no output of classes to judge; its outputs are {}", names())))?;
    let (classes, places) = plan.outputs[output].shape.split_last().map_or((1, vec![]), |(&n, places)| (n, places.to_vec()));
    if plan.inputs.iter().any(|p| p.name == LABELS) {
        return Err(Error::Usage(
            "this inference plan computes with its labels itself; compile it without --infer to evaluate its loss".into(),
        ));
    }
    let mut fed = plan.clone();
    let tensor = TensorId(fed.tensors.len() as u32);
    let bytes = 8 * places.iter().product::<u64>();
    let offset = fed.arena_bytes.next_multiple_of(ALIGN);
    fed.tensors.push(Tensor {
        name: LABELS.into(),
        dtype: DType::I64,
        shape: places.clone(),
        role: Role::Input,
        tier: Tier::Device,
        offset,
        bytes,
        first: 0,
        last: 0,
    });
    fed.inputs.push(Port {
        name: LABELS.into(),
        dtype: DType::I64,
        shape: places,
        tensor,
        bound: i64::try_from(classes).ok(),
        least: 0,
        ignore: Some(IGNORE),
        labels: Some(Labels::Next),
    });
    Ok(Classes { plan: fed, output, classes: classes as usize })
}

impl Classes {
    /// Cross-entropy and right guesses of the logits among `outputs` at the labels that count.
    pub(super) fn score(&self, outputs: &[Vec<u8>], labels: &[i64]) -> Result<Score, Error> {
        let port = &self.plan.outputs[self.output];
        let logits = to_f32(&outputs[self.output], port.dtype).map_err(|reason| Error::data(&port.name, reason))?;
        let rows = logits.par_chunks_exact(4 * self.classes).zip(labels).filter(|&(_, &label)| label != IGNORE);
        let (loss, correct) = rows.map(|(row, &label)| row_score(row, label as usize)).reduce(|| (0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        Ok(Score { loss, correct })
    }
}

/// The cross-entropy of a row of f32 logits, and 1 where the label is the first of the greatest.
fn row_score(row: &[u8], label: usize) -> (f64, u64) {
    let values = || row.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    let (likeliest, most) = values().enumerate().fold((0, f64::NEG_INFINITY), |best, (i, x)| if x > best.1 { (i, x) } else { best });
    let total: f64 = values().map(|x| (x - most).exp()).sum();
    let own = values().nth(label).unwrap_or(f64::NAN);
    (most + total.ln() - own, u64::from(likeliest == label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn the_cross_entropy_of_a_row_is_the_logarithm_of_its_softmax() {
        let (loss, correct) = row_score(&row(&[1000.0, 1001.0, 999.0]), 1);
        let want = (1.0 + (-1f64).exp() + (-2f64).exp()).ln();
        assert!((loss - want).abs() < 1e-12 && correct == 1, "{loss}");
        assert_eq!(row_score(&row(&[0.0, 0.0]), 1), (2f64.ln(), 0), "the first of equals is the guess");
    }
}
