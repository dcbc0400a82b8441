//! One device against another, launch by launch.

use super::Session;
use crate::Error;
use crate::convert::to_f32;
use crate::hyper::Hyper;
use crate::plan::{Plan, Step, TensorId};
use crate::session::Batch;
use fp8c_kernels::DType;
use fp8c_kernels::numerics::e4m3_to_f32;
use fp8c_kernels::program::{Arg, Mode};

/// What a launch has written on two devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Of the step in the flattened schedule.
    pub position: usize,
    pub kernel: String,
    pub site: String,
    pub tensor: String,
    pub dtype: DType,
    /// Largest distance of two elements, relative to the tensor's largest magnitude; infinite where one is not a number, or where
    /// integers differ.
    pub worst: f64,
}

impl Difference {
    /// Whether it is no more than the rounding of the format and another order of summation explain.
    pub fn is_rounding(&self) -> bool {
        let allowed = match self.dtype {
            DType::F32 => 1e-4,
            DType::Bf16 => 1.0 / 128.0,
            DType::E4m3 => 1.0 / 8.0,
            DType::I32 | DType::I64 | DType::Bool => 0.0,
        };
        self.worst <= allowed
    }
}

/// What outputs hold before a launch: not a number, in every float format.
const POISON: u8 = 0xff;

impl Session {
    /// Runs one micro-batch and the update here and in another session of the same plan, seed and state, and compares what every launch has
    /// written. Each launch of `tested` gets what the ones before have made here, and both get outputs that hold no numbers, so that what
    /// one of them leaves out shows.
    ///
    /// # Errors
    /// Those of [`Session::step`].
    pub fn compare(&mut self, tested: &mut Session, batch: &Batch, hyper: &Hyper) -> Result<Vec<Difference>, Error> {
        hyper.validate()?;
        let plan = self.plan.clone();
        for session in [&mut *self, &mut *tested] {
            for (index, port) in plan.inputs.iter().enumerate() {
                session.device.write(plan.tensor(port.tensor).offset, batch.micro(index, 0))?;
            }
            if let Some(control) = plan.control {
                session.write_control(control, hyper, session.scaler.current(hyper.loss_scaling))?;
            }
            session.zero_gradients()?;
        }
        let mut found = vec![];
        for (position, step) in plan.schedule.micro.iter().chain(&plan.schedule.update).enumerate() {
            let mut written = written(&plan, step);
            for w in &mut written {
                self.device.read(w.offset, &mut w.before)?;
                if w.poisoned {
                    let poison = vec![POISON; w.before.len()];
                    self.device.write(w.offset, &poison)?;
                    tested.device.write(w.offset, &poison)?;
                }
            }
            self.device.run(position..position + 1)?;
            tested.device.run(position..position + 1)?;
            for w in written {
                let (mut want, mut have) = (vec![0; w.before.len()], vec![0; w.before.len()]);
                self.device.read(w.offset, &mut want)?;
                tested.device.read(w.offset, &mut have)?;
                let t = plan.tensor(w.id);
                let worst = distance(&want, &have, t.dtype).map_err(|reason| Error::data(&t.name, reason))?;
                let (kernel, site) = (plan.kernels[step.kernel as usize].name.clone(), step.site.clone());
                found.push(Difference { position, kernel, site, tensor: t.name.clone(), dtype: t.dtype, worst });
                if w.poisoned {
                    keep(&mut want, &w.before, t.dtype.size() as usize);
                    self.device.write(w.offset, &want)?;
                }
                tested.device.write(w.offset, &want)?;
            }
        }
        Ok(found)
    }
}

/// A tensor that a step writes, as many bytes as it may write.
struct Written {
    id: TensorId,
    offset: u64,
    before: Vec<u8>,
    /// The step does not read it, and it can hold what is no number.
    poisoned: bool,
}

fn written(plan: &Plan, step: &Step) -> Vec<Written> {
    let args = plan.kernels[step.kernel as usize].kernel.args();
    let written = step.args.iter().zip(args).filter(|(_, a)| a.mode != Mode::Read);
    let entry = |(&id, a): (&TensorId, Arg)| Written {
        id,
        offset: plan.tensor(id).offset,
        before: vec![0; a.bytes() as usize],
        poisoned: a.mode == Mode::Write && a.dtype.is_float(),
    };
    written.map(entry).collect()
}

/// Puts back what a launch has left as it was: some write a part of their output.
fn keep(after: &mut [u8], before: &[u8], size: usize) {
    for (new, old) in after.chunks_exact_mut(size).zip(before.chunks_exact(size)) {
        if new.iter().all(|&b| b == POISON) {
            new.copy_from_slice(old);
        }
    }
}

fn distance(want: &[u8], have: &[u8], dtype: DType) -> Result<f64, String> {
    if want == have {
        return Ok(0.0);
    }
    if !dtype.is_float() {
        return Ok(f64::INFINITY);
    }
    let floats = |bytes: &[u8]| -> Result<Vec<f64>, String> {
        if dtype == DType::E4m3 {
            return Ok(bytes.iter().map(|&code| f64::from(e4m3_to_f32(code))).collect());
        }
        let wide = to_f32(bytes, dtype)?;
        Ok(wide.chunks_exact(4).map(|c| f64::from(f32::from_le_bytes([c[0], c[1], c[2], c[3]]))).collect())
    };
    let (want, have) = (floats(want)?, floats(have)?);
    let largest = want.iter().filter(|x| x.is_finite()).fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let apart = |(a, b): (&f64, &f64)| match (a - b).abs() {
        _ if a == b || (a.is_nan() && b.is_nan()) => 0.0,
        d if d.is_nan() => f64::INFINITY,
        d => d / largest,
    };
    Ok(want.iter().zip(&have).map(apart).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_relative_to_the_largest_and_infinite_without_a_number() {
        let bytes = |x: [f32; 3]| x.map(f32::to_le_bytes).concat();
        let apart = |a: [f32; 3], b: [f32; 3]| distance(&bytes(a), &bytes(b), DType::F32).unwrap();
        assert_eq!(apart([1.0, -4.0, 0.0], [1.5, -4.0, 0.0]), 0.125);
        assert_eq!(apart([1.0, f32::NAN, 0.0], [1.0, f32::NAN, -0.0]), 0.0);
        assert_eq!(apart([1.0, 2.0, 0.0], [1.0, f32::NAN, 0.0]), f64::INFINITY);
        assert_eq!(distance(&[1], &[2], DType::Bool), Ok(f64::INFINITY));
    }

    #[test]
    fn what_a_launch_leaves_out_is_kept() {
        let mut after = [1, 2, POISON, POISON, POISON, 3];
        keep(&mut after, &[9, 9, 8, 7, 9, 9], 2);
        assert_eq!(after, [1, 2, 8, 7, POISON, 3]);
    }
}
