//! A plan on a device, ready to train or to run.

mod batch;
mod compare;
mod evaluate;
mod init;
mod parameters;
mod run;
mod scale;

use crate::Error;
use crate::device::{Device, DeviceChoice};
use crate::hyper::Hyper;
use crate::plan::{Clip, Control, Plan, PlanFile, Purpose, Step, TensorId};
use crate::random::Philox;
use fp8c_kernels::program::Mode;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

pub use batch::Batch;
pub use compare::Difference;
pub use run::RunOutput;
pub use scale::Scaler;

/// PyTorch's `clip_grad_norm_` adds this to the norm.
const CLIP_EPS: f32 = 1e-6;

/// Skipped steps in a row that end a training.
pub const SKIPS_THAT_DIVERGE: u32 = 50;

/// What a session is opened with.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    pub device: DeviceChoice,
    /// Threads of a CPU device; `None` for all of the machine's.
    pub threads: Option<usize>,
    /// Seed of parameters that are made at load.
    pub seed: u64,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Mean over the micro-batches, before the update.
    pub loss: f64,
    /// Of the unscaled gradient, before clipping; not finite when the step was skipped for that.
    pub grad_norm: f64,
    pub loss_scale: f32,
    /// The loss or the gradient was not finite: parameters and optimizer state are untouched, bit for bit. Under [`Clip::Previous`] those
    /// are whose gradients came with the first that was not finite or after it; others have been updated, by finite gradients.
    pub skipped: bool,
    /// Steps skipped in a row, this one included. [`SKIPS_THAT_DIVERGE`] should end the training.
    pub skipped_in_row: u32,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("model", &self.plan.model).field("device", &self.device.id()).finish_non_exhaustive()
    }
}

/// A training or inference session. Allocates device memory when it is made, and none afterwards.
pub struct Session {
    plan: Arc<Plan>,
    device: Device,
    seed: u64,
    zeroed: Vec<TensorId>,
    ends: Ends,
    updates: u64,
    scaler: Scaler,
    /// Norm of the last gradient that was finite, which clips the next one under [`Clip::Previous`].
    norm: Option<f32>,
    profile: Option<Vec<f64>>,
}

impl Session {
    /// Opens the device, reserves the arena and gives every parameter its first value.
    ///
    /// # Errors
    /// [`Error::Device`] without the device or the memory, [`Error::Data`] or [`Error::Io`] for weight files that are missing or have
    /// changed, [`Error::Plan`] for damaged weights in the plan.
    pub fn new(file: &PlanFile, options: SessionOptions) -> Result<Self, Error> {
        let mut device = Device::open(options.device, file, options.threads)?;
        init::initialise(&mut device, file, options.seed)?;
        let plan = file.shared_plan();
        let (zeroed, ends) = (plan.zeroed_gradients(), Ends::of(&plan));
        Ok(Session { plan, device, seed: options.seed, zeroed, ends, updates: 0, scaler: Scaler::default(), norm: None, profile: None })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn shared_plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// The device's name, as `--device` takes it.
    pub fn device(&self) -> String {
        self.device.id()
    }

    /// Threads that the CPU device uses.
    pub fn threads(&self) -> usize {
        self.device.threads()
    }

    /// Seed of the parameters' first values.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Updates made so far, skipped steps not counted.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One past the highest byte of the arena that was touched so far, in units of the arena's alignment.
    pub fn arena_peak_bytes(&self) -> u64 {
        self.device.peak_bytes()
    }

    /// Excludes parameters from weight decay: those for which `decays` is false. At first all decay.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn set_decay(&mut self, decays: impl Fn(&str) -> bool) -> Result<(), Error> {
        init::set_decay(&mut self.device, &self.plan, decays)
    }

    /// Runs the micro-batches of a step and the update.
    ///
    /// # Errors
    /// [`Error::Usage`] for a plan that does not train or hyper-parameters out of range, [`Error::Data`] for an index out of range
    /// (then the step has changed no parameter), [`Error::Device`].
    pub fn step(&mut self, batch: &Batch, hyper: &Hyper) -> Result<StepResult, Error> {
        let (Some(control), Some(loss)) = (self.plan.control, self.plan.loss) else {
            return Err(Error::Usage("this plan was compiled for inference and cannot train".into()));
        };
        hyper.validate()?;
        let scale = self.scaler.current(hyper.loss_scaling);
        self.write_control(control, hyper, scale)?;
        self.zero_gradients()?;
        let Ends { loss: forward, micro, norm, update } = self.ends;
        let mut sum = 0f64;
        for number in 0..self.plan.accumulation as usize {
            self.feed(batch, number)?;
            // The loss is read back while the backward pass runs, so that the update is there before a device runs dry.
            self.launch(0..forward)?;
            self.device.fetch(self.plan.tensor(loss).offset, 4)?;
            self.launch(forward..micro)?;
            sum += f64::from(float(&self.device.fetched()?, 0));
        }
        let loss = sum / f64::from(self.plan.accumulation);
        // A loss that is not finite has no gradient worth applying, whatever the gradients hold.
        let mut grad_norm = f64::NAN;
        let mut finite = loss.is_finite();
        if finite {
            // Likewise the norm, while the parameters are updated; it comes last where they are updated one by one.
            self.launch(micro..norm)?;
            self.device.fetch(self.plan.tensor(control).offset, 4 * Control::LEN)?;
            self.launch(norm..update)?;
            let block = self.device.fetched()?;
            grad_norm = f64::from(float(&block, Control::GRAD_NORM));
            finite = float(&block, Control::FINITE) == 1.0;
        }
        if finite {
            self.norm = Some(grad_norm as f32);
        }
        self.updates += u64::from(finite);
        self.scaler.observe(hyper.loss_scaling, !finite);
        Ok(StepResult { loss, grad_norm, loss_scale: scale, skipped: !finite, skipped_in_row: self.scaler.skipped_in_row })
    }

    /// Takes the time of every launch from now on, at the cost of a wait after each.
    pub fn start_profile(&mut self) {
        self.profile = Some(vec![0.0; self.plan.schedule.micro.len() + self.plan.schedule.update.len()]);
    }

    /// Seconds spent in each step of the flattened schedule since [`Session::start_profile`].
    pub fn profile(&self) -> Option<&[f64]> {
        self.profile.as_deref()
    }

    fn launch(&mut self, positions: Range<usize>) -> Result<(), Error> {
        let Some(seconds) = &mut self.profile else { return self.device.run(positions) };
        for at in positions {
            let started = Instant::now();
            self.device.run(at..at + 1)?;
            self.device.wait()?;
            seconds[at] += started.elapsed().as_secs_f64();
        }
        Ok(())
    }

    fn write_control(&mut self, control: TensorId, hyper: &Hyper, scale: f32) -> Result<(), Error> {
        let mut block = [0f32; Control::LEN];
        let unscale = 1.0 / (scale * self.plan.accumulation as f32);
        // The corrections are of the betas that the kernels use: 1 - 0.999f32 is off by 1.3e-5, which every step would be, too.
        let [beta1, beta2] = hyper.betas.map(|beta| f64::from(beta as f32));
        let t = i32::try_from(self.updates + 1).unwrap_or(i32::MAX);
        block[Control::LEARNING_RATE] = hyper.learning_rate as f32;
        block[Control::BETA1] = beta1 as f32;
        block[Control::BETA2] = beta2 as f32;
        block[Control::EPS] = hyper.eps as f32;
        block[Control::WEIGHT_DECAY] = hyper.weight_decay as f32;
        block[Control::CORRECTION1] = (1.0 - beta1.powi(t)) as f32;
        block[Control::CORRECTION2] = (1.0 - beta2.powi(t)).sqrt() as f32;
        block[Control::LOSS_SCALE] = scale;
        block[Control::CLIP] = hyper.clip.map_or(f32::INFINITY, |c| c as f32);
        // A plan without a gradient norm never skips.
        block[Control::FINITE] = 1.0;
        let previous = self.norm.filter(|_| self.plan.clip == Clip::Previous);
        let clip = previous.map_or(1.0, |norm| (block[Control::CLIP] / (norm + CLIP_EPS)).min(1.0));
        block[Control::GRAD_MULTIPLIER] = clip * unscale;
        let mut words = block.map(f32::to_bits);
        // A step that was skipped in part has used its numbers.
        let attempt = (self.updates + 1) << 8 | u64::from(self.scaler.skipped_in_row & 0xff);
        words[Control::RANDOM..].copy_from_slice(&Philox::of_step(self.seed, attempt));
        self.device.write(self.plan.tensor(control).offset, bytemuck::cast_slice(&words))
    }

    fn zero_gradients(&mut self) -> Result<(), Error> {
        for &id in &self.zeroed {
            let t = self.plan.tensor(id);
            self.device.zero(t.offset, t.bytes)?;
        }
        Ok(())
    }

    fn trains(&self) -> bool {
        self.plan.purpose == Purpose::Train
    }
}

/// Ends of parts of the flattened schedule, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    /// Of what the loss needs.
    loss: usize,
    micro: usize,
    /// Of what the gradient's norm needs.
    norm: usize,
    update: usize,
}

impl Ends {
    fn of(plan: &Plan) -> Ends {
        let (micro, update) = (plan.schedule.micro.len(), plan.schedule.update.len());
        // One past the last step that writes a tensor.
        let written = |steps: &[Step], id: Option<TensorId>| {
            let writes = |s: &Step| {
                let args = plan.kernels[s.kernel as usize].kernel.args();
                s.args.iter().zip(args).any(|(&a, arg)| Some(a) == id && arg.mode != Mode::Read)
            };
            steps.iter().rposition(writes).map_or(0, |at| at + 1)
        };
        let loss = written(&plan.schedule.micro, plan.loss);
        Ends { loss, micro, norm: micro + written(&plan.schedule.update, plan.control), update: micro + update }
    }
}

/// A little-endian f32 by index.
fn float(bytes: &[u8], index: usize) -> f32 {
    let at = 4 * index;
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
