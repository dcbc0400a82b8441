//! Optimizer steps: groups of 128 elements over the threads, each read, updated and written in one go.

use super::Buffer;
use super::math::Fma;
use super::tasks::{Shared, Tasks};
use crate::numerics::simd::{Vectorised, dispatch};
use crate::numerics::{Expansion, bf16_to_f32, compress, expand, f32_to_bf16, f32_to_bf16_stochastic, philox};
use crate::program::{Control, Rule, Update};
use crate::{DType, KernelError};
use half::bf16;

const G: usize = Update::GROUP;
/// Groups that make a task.
const GROUPS: usize = 64;

/// A moment: its values or codes, and its words.
#[derive(Clone, Copy)]
struct Moment {
    values: Shared<u8>,
    words: Shared<u32>,
}

/// What a launch is made with.
struct Launch {
    k: Update,
    parameter: Shared<u8>,
    gradient: Shared<u8>,
    moments: [Moment; 2],
    numbers: Numbers,
    key: [u32; 2],
    stream: [u32; 2],
    site: u32,
}

/// Numbers that all elements share.
#[derive(Clone, Copy)]
struct Numbers {
    multiplier: f32,
    rate: f32,
    decay: f32,
    /// Decay of the moments, and the rest to 1.
    betas: [f32; 2],
    rests: [f32; 2],
    /// What a step is long, and what the second moment's root is multiplied by.
    step: f32,
    spread: f32,
    eps: f32,
    /// What is left of a parameter that decays.
    kept: f32,
}

impl Numbers {
    fn of(control: &[f32; Control::LEN], own: f32) -> Self {
        let rate = control[Control::LEARNING_RATE];
        let decay = control[Control::WEIGHT_DECAY] * own;
        let betas = [control[Control::BETA1], control[Control::BETA2]];
        Numbers {
            multiplier: control[Control::GRAD_MULTIPLIER],
            rate,
            decay,
            betas,
            rests: betas.map(|beta| 1.0 - beta),
            step: rate / control[Control::CORRECTION1],
            spread: 1.0 / control[Control::CORRECTION2],
            eps: control[Control::EPS],
            kept: 1.0 - rate * decay,
        }
    }
}

/// One group at work: elements from `first` on, `len` of them.
struct Group<'a> {
    launch: &'a Launch,
    first: usize,
    len: usize,
}

impl Vectorised for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn run<F: Fma>(self) {
        let (k, n) = (self.launch.k, &self.launch.numbers);
        let [mut p, mut g, mut m, mut v] = [[0f32; G]; 4];
        let len = self.len;
        // SAFETY: the elements and the group are inside the arguments, and this task's own.
        unsafe {
            self.load(self.launch.parameter, k.master, &mut p[..len]);
            self.load(self.launch.gradient, k.gradient, &mut g[..len]);
            self.moment::<F>(0, &mut m[..len]);
            if k.rule == Rule::AdamW {
                self.moment::<F>(1, &mut v[..len]);
            }
        }
        let squared = k.moments == DType::E4m3;
        match k.rule {
            Rule::AdamW => adam_w(n, squared, &mut p, &g, &mut m, &mut v),
            Rule::Sgd => sgd(n, &mut p, &g, &mut m),
            Rule::Lion => lion(n, &mut p, &g, &mut m),
        }
        // SAFETY: as above.
        unsafe {
            self.store_parameter(&p[..len]);
            self.store_moment::<F>(0, &m[..len]);
            if k.rule == Rule::AdamW {
                self.store_moment::<F>(1, &v[..len]);
            }
        }
    }
}

/// The second moment is given and left as its root where it is `squared` here.
#[inline(always)]
fn adam_w(n: &Numbers, squared: bool, p: &mut [f32; G], g: &[f32; G], m: &mut [f32; G], v: &mut [f32; G]) {
    for i in 0..G {
        let g = g[i] * n.multiplier;
        m[i] = m[i] * n.betas[0] + g * n.rests[0];
        let old = if squared { v[i] * v[i] } else { v[i] };
        let new = old * n.betas[1] + g * g * n.rests[1];
        let root = new.sqrt();
        v[i] = if squared { root } else { new };
        p[i] = p[i] * n.kept - m[i] * n.step / (root * n.spread + n.eps);
    }
}

#[inline(always)]
fn sgd(n: &Numbers, p: &mut [f32; G], g: &[f32; G], m: &mut [f32; G]) {
    for i in 0..G {
        m[i] = m[i] * n.betas[0] + g[i] * n.multiplier + p[i] * n.decay;
        p[i] -= m[i] * n.rate;
    }
}

#[inline(always)]
fn lion(n: &Numbers, p: &mut [f32; G], g: &[f32; G], m: &mut [f32; G]) {
    for i in 0..G {
        let g = g[i] * n.multiplier;
        let toward = m[i] * n.betas[0] + g * n.rests[0];
        let sign = if toward.abs() > 0.0 { 1f32.copysign(toward) } else { toward };
        p[i] = p[i] * n.kept - sign * n.rate;
        m[i] = m[i] * n.betas[1] + g * n.rests[1];
    }
}

impl Group<'_> {
    /// # Safety
    /// The group's elements are inside.
    #[inline(always)]
    unsafe fn load(&self, from: Shared<u8>, dtype: DType, out: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            if dtype == DType::F32 {
                out.copy_from_slice(std::slice::from_raw_parts(from.get().cast::<f32>().add(self.first), self.len));
            } else {
                let stored = std::slice::from_raw_parts(from.get().cast::<bf16>().add(self.first), self.len);
                out.iter_mut().zip(stored).for_each(|(x, y)| *x = bf16_to_f32(*y));
            }
        }
    }

    /// # Safety
    /// As [`Group::load`].
    #[inline(always)]
    unsafe fn moment<F: Fma>(&self, which: usize, out: &mut [f32]) {
        let from = self.launch.moments[which];
        if self.launch.k.moments != DType::E4m3 {
            // SAFETY: the caller's promise.
            return unsafe { self.load(from.values, self.launch.k.moments, out) };
        }
        // SAFETY: the caller's promise.
        unsafe {
            let codes = std::slice::from_raw_parts(from.values.get().add(self.first), self.len);
            expand::<F>(codes, Expansion::of_word(*from.words.get().add(self.first / G)), out);
        }
    }

    /// # Safety
    /// As [`Group::load`].
    #[inline(always)]
    unsafe fn store_moment<F: Fma>(&self, which: usize, x: &[f32]) {
        let to = self.launch.moments[which];
        // SAFETY: the caller's promise.
        unsafe {
            match self.launch.k.moments {
                DType::F32 => std::slice::from_raw_parts_mut(to.values.get().cast::<f32>().add(self.first), self.len).copy_from_slice(x),
                DType::E4m3 => {
                    let codes = std::slice::from_raw_parts_mut(to.values.get().add(self.first), self.len);
                    let group = Expansion::of_values::<F>(x);
                    compress::<F>(x, group, codes);
                    *to.words.get().add(self.first / G) = group.word();
                }
                _ => {
                    let stored = std::slice::from_raw_parts_mut(to.values.get().cast::<bf16>().add(self.first), self.len);
                    stored.iter_mut().zip(x).for_each(|(y, x)| *y = f32_to_bf16(*x));
                }
            }
        }
    }

    /// # Safety
    /// As [`Group::load`].
    #[inline(always)]
    unsafe fn store_parameter(&self, p: &[f32]) {
        let to = self.launch.parameter.get();
        // SAFETY: the caller's promise.
        unsafe {
            if self.launch.k.master == DType::F32 {
                std::slice::from_raw_parts_mut(to.cast::<f32>().add(self.first), self.len).copy_from_slice(p);
                return;
            }
            let mut noise = [0u32; G];
            self.noise(&mut noise);
            let stored = std::slice::from_raw_parts_mut(to.cast::<bf16>().add(self.first), self.len);
            stored.iter_mut().zip(p).zip(noise).for_each(|((y, x), noise)| *y = f32_to_bf16_stochastic(*x, noise));
        }
    }

    /// Half a word for each element; a block has eight.
    #[inline(always)]
    fn noise(&self, noise: &mut [u32; G]) {
        const BLOCKS: usize = G / 8;
        let (l, first) = (self.launch, (self.first / 8) as u32);
        let mut words = [[0u32; BLOCKS]; 4];
        // One loop over blocks, which becomes vector code.
        for (i, counter) in (0..BLOCKS).zip(first..) {
            let block = philox(l.key, [counter, l.site, l.stream[0], l.stream[1]]);
            (0..4).for_each(|w| words[w][i] = block[w]);
        }
        for (i, eight) in noise.chunks_exact_mut(8).enumerate() {
            for w in 0..4 {
                (eight[2 * w], eight[2 * w + 1]) = (words[w][i] & 0xffff, words[w][i] >> 16);
            }
        }
    }
}

/// Runs the kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::Binding`] for want of arguments.
pub(crate) unsafe fn run(k: &Update, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let arg = |i: usize| args.get(i).map(|b| b.ptr).ok_or(KernelError::Binding { arg: i, have: 0, need: 1 });
    let at = k.control_arg();
    // SAFETY: the control block has `LEN` floats or words, what is behind it has one element.
    let (control, words, own) = unsafe {
        let block = arg(at)?;
        (*block.cast::<[f32; Control::LEN]>(), *block.cast::<[u32; Control::LEN]>(), *arg(at + 1)?.cast::<f32>())
    };
    // SAFETY: as above.
    let finite = !k.guarded || unsafe { *arg(k.sum_arg())?.cast::<f32>() }.is_finite();
    if control[Control::FINITE] == 0.0 || !finite {
        return Ok(());
    }
    let moment = |i: usize| {
        let first = 2 + i.min(k.rule.moments() - 1) * k.moment_args();
        Ok::<_, KernelError>(Moment { values: Shared(arg(first)?), words: Shared(arg(first + k.moment_args() - 1)?.cast()) })
    };
    let random = &words[Control::RANDOM..];
    let launch = Launch {
        k: *k,
        parameter: Shared(arg(0)?),
        gradient: Shared(arg(1)?),
        moments: [moment(0)?, moment(1)?],
        numbers: Numbers::of(&control, own),
        key: [random[0], random[1]],
        stream: [random[2], random[3]],
        // SAFETY: as above.
        site: if k.master == DType::Bf16 { unsafe { *arg(at + 2)?.cast::<u32>() } } else { 0 },
    };
    let elements = k.elements as usize;
    let tasks = Tasks { count: elements.div_ceil(G * GROUPS), floats: 0, flops: 16 * k.elements };
    let task = |task: usize, _: &mut [f32]| {
        let groups = task * GROUPS..((task + 1) * GROUPS).min(elements.div_ceil(G));
        for first in groups.map(|group| group * G) {
            dispatch(Group { launch: &launch, first, len: G.min(elements - first) });
        }
    };
    // SAFETY: tasks have groups of their own.
    unsafe { tasks.run(scratch, task) }
}
