//! Optimizer steps: a warp for each group of 128 elements, four neighbours a lane.

use super::build::{Build, Float, Int};
use super::math;
use super::module::Emitter;
use super::value::Val;
use crate::numerics::{E4M3_MAX, LN_RANGE, MULTIPLIERS, ROUNDS, WEYL};
use crate::numerics::{EXPONENT, LARGEST};
use crate::program::{Control, GROUP, Kernel, Rule, Update, groups};
use crate::{DType, KernelError};
use inkwell::FloatPredicate;
use inkwell::values::BasicValueEnum;

const THREADS: u32 = 256;
const WARPS: u64 = THREADS as u64 / 32;
/// Neighbouring elements of a lane.
const LANES: usize = 4;

/// Generates the single entry of an optimizer step.
pub fn generate(e: &Emitter<'_>, k: &Update, name: &str) -> Result<(), KernelError> {
    if k.elements == 0 {
        return Ok(());
    }
    let all = groups(k.elements);
    let b = e.entry(name, &Kernel::Update(*k).args(), all.div_ceil(WARPS), THREADS, 0)?;
    let (thread, block) = (b.thread(), b.block_index());
    let group = b.add(b.mulc(block, WARPS as i64), b.udivc(thread, 32));
    let lane = b.andc(thread, 31);
    let first = b.add(b.mulc(b.to_i64(group), GROUP as i64), b.to_i64(b.mulc(lane, LANES as i64)));
    let step = Step { b: &b, k, group, lane, first };
    b.if_then(b.and(b.ltc(group, all as i64), step.runs()), || step.update());
    b.finish();
    Ok(())
}

type Four<'c> = [Float<'c>; LANES];

struct Step<'c, 'b, 'k> {
    b: &'b Build<'c, 'b>,
    k: &'k Update,
    group: Int<'c>,
    lane: Int<'c>,
    /// The lane's first element.
    first: Int<'c>,
}

impl<'c> Step<'c, '_, '_> {
    fn control(&self, at: usize) -> Float<'c> {
        self.b.load_f32(self.b.arg(self.k.control_arg()), self.b.i32(at as i32))
    }

    fn word(&self, arg: usize, at: Int<'c>) -> Int<'c> {
        let b = self.b;
        b.load(b.int_type(32), b.at(b.arg(arg), at, 4), 4).into_int_value()
    }

    /// Whether anything is written.
    fn runs(&self) -> Int<'c> {
        let b = self.b;
        let finite = b.fcmp(FloatPredicate::UNE, self.control(Control::FINITE), b.f32(0.0));
        if !self.k.guarded {
            return finite;
        }
        let sum = b.load_f32(b.arg(self.k.sum_arg()), b.i32(0));
        b.and(finite, b.fcmp(FloatPredicate::OLT, b.fabs(sum), b.f32(f32::INFINITY)))
    }

    /// True where an element of the lane exists.
    fn inside(&self, i: usize) -> Int<'c> {
        self.b.ltc(self.b.addc(self.first, i as i64), self.k.elements as i64)
    }

    /// Elements of a lane are all there or none is, so that they are read and written at once.
    fn whole_lanes(&self) -> bool {
        self.k.elements.is_multiple_of(LANES as u64)
    }

    /// The lane's elements of an argument, zeros where there are none.
    fn load(&self, arg: usize, dtype: DType) -> Four<'c> {
        let b = self.b;
        let cells = [(); LANES].map(|()| b.cell(b.f32(0.0)));
        // Reads of what another lane writes would be races, even if they were forgotten.
        if self.whole_lanes() {
            b.if_then(self.inside(0), || {
                let values = b.load_elems(b.arg(arg), dtype, self.first, LANES);
                cells.iter().zip(values).for_each(|(cell, x)| b.set(cell, b.to_float(x)));
            });
        } else {
            for (i, cell) in cells.iter().enumerate() {
                let load = || b.load_elem(b.arg(arg), dtype, b.addc(self.first, i as i64));
                b.if_then(self.inside(i), || b.set(cell, b.to_float(load())));
            }
        }
        cells.map(|cell| b.get(&cell))
    }

    fn store(&self, arg: usize, dtype: DType, x: Four<'c>) {
        let b = self.b;
        if self.whole_lanes() {
            b.if_then(self.inside(0), || b.store_elems(b.arg(arg), dtype, self.first, &x.map(Val::F)));
            return;
        }
        for (i, x) in x.into_iter().enumerate() {
            b.if_then(self.inside(i), || b.store_elem(b.arg(arg), dtype, b.addc(self.first, i as i64), Val::F(x)));
        }
    }

    fn update(&self) {
        let (b, k) = (self.b, self.k);
        let mut p = self.load(0, k.master);
        let g = self.load(1, k.gradient).map(|g| b.fmul(g, self.control(Control::GRAD_MULTIPLIER)));
        let mut moments = [self.moment(0), if k.rule == Rule::AdamW { self.moment(1) } else { [b.f32(0.0); LANES] }];
        for i in 0..LANES {
            let [m, v] = moments.each_mut();
            match k.rule {
                Rule::AdamW => self.adam_w(&mut p[i], g[i], &mut m[i], &mut v[i]),
                Rule::Sgd => self.sgd(&mut p[i], g[i], &mut m[i]),
                Rule::Lion => self.lion(&mut p[i], g[i], &mut m[i]),
            }
        }
        match k.master {
            DType::Bf16 => self.store_rounded(p),
            _ => self.store(0, k.master, p),
        }
        moments.into_iter().take(k.rule.moments()).enumerate().for_each(|(which, x)| self.store_moment(which, x));
    }

    fn rate(&self) -> Float<'c> {
        self.control(Control::LEARNING_RATE)
    }

    fn decay(&self) -> Float<'c> {
        let b = self.b;
        b.fmul(self.control(Control::WEIGHT_DECAY), b.load_f32(b.arg(self.k.control_arg() + 1), b.i32(0)))
    }

    /// `x b + y (1 - b)`
    fn mix(&self, x: Float<'c>, y: Float<'c>, beta: usize) -> Float<'c> {
        let (b, beta) = (self.b, self.control(beta));
        b.fadd(b.fmul(x, beta), b.fmul(y, b.fsub(b.f32(1.0), beta)))
    }

    /// `p (1 - rate decay)`
    fn decayed(&self, p: Float<'c>) -> Float<'c> {
        let b = self.b;
        b.fmul(p, b.fsub(b.f32(1.0), b.fmul(self.rate(), self.decay())))
    }

    /// Where moments are E4M3, `v` is given and left as its root.
    fn adam_w(&self, p: &mut Float<'c>, g: Float<'c>, m: &mut Float<'c>, v: &mut Float<'c>) {
        let b = self.b;
        let squared = self.k.moments == DType::E4m3;
        *m = self.mix(*m, g, Control::BETA1);
        let old = if squared { b.fmul(*v, *v) } else { *v };
        let new = self.mix(old, b.fmul(g, g), Control::BETA2);
        let root = b.float_intrinsic("llvm.sqrt", &[new]);
        *v = if squared { root } else { new };
        let step = b.fdiv(self.rate(), self.control(Control::CORRECTION1));
        let spread = b.fdiv(b.f32(1.0), self.control(Control::CORRECTION2));
        let below = b.fadd(b.fmul(root, spread), self.control(Control::EPS));
        *p = b.fsub(self.decayed(*p), b.fdiv(b.fmul(*m, step), below));
    }

    fn sgd(&self, p: &mut Float<'c>, g: Float<'c>, m: &mut Float<'c>) {
        let b = self.b;
        let pulled = b.fadd(b.fmul(*m, self.control(Control::BETA1)), g);
        *m = b.fadd(pulled, b.fmul(*p, self.decay()));
        *p = b.fsub(*p, b.fmul(*m, self.rate()));
    }

    fn lion(&self, p: &mut Float<'c>, g: Float<'c>, m: &mut Float<'c>) {
        let b = self.b;
        let toward = self.mix(*m, g, Control::BETA1);
        let zero = b.fcmp(FloatPredicate::UEQ, toward, b.f32(0.0));
        let sign = b.select(zero, toward, b.float_intrinsic("llvm.copysign", &[b.f32(1.0), toward]));
        *p = b.fsub(self.decayed(*p), b.fmul(sign, self.rate()));
        *m = self.mix(*m, g, Control::BETA2);
    }

    /// A moment's values.
    fn moment(&self, which: usize) -> Four<'c> {
        let (b, k) = (self.b, self.k);
        let arg = 2 + which * k.moment_args();
        let stored = self.load(arg, k.moments);
        if k.moments != DType::E4m3 {
            return stored;
        }
        let word = self.word(arg + 1, self.group);
        let largest = b.from_bits(b.andc(word, i64::from(!EXPONENT as i32)));
        let exponent = b.to_float(Val::I(b.zext(b.andc(word, i64::from(EXPONENT)), 64)));
        let root = b.fdiv(b.f32(16.0), exponent);
        stored.map(|y| {
            let log = math::log(b, b.fmul(b.fabs(y), b.f32(1.0 / E4M3_MAX)));
            let magnitude = b.fmul(largest, math::exp(b, b.fmul(root, log)));
            let magnitude = b.select(b.fcmp(FloatPredicate::OEQ, y, b.f32(0.0)), b.f32(0.0), magnitude);
            b.float_intrinsic("llvm.copysign", &[magnitude, y])
        })
    }

    fn store_moment(&self, which: usize, x: Four<'c>) {
        let (b, k) = (self.b, self.k);
        let arg = 2 + which * k.moment_args();
        if k.moments != DType::E4m3 {
            return self.store(arg, k.moments, x);
        }
        let (largest, exponent) = self.expansion(x);
        let power = b.fmul(b.to_float(Val::I(b.zext(exponent, 64))), b.f32(1.0 / 16.0));
        let some = b.fcmp(FloatPredicate::OGT, largest, b.f32(0.0));
        let codes = x.map(|x| {
            let y = math::exp(b, b.fmul(power, math::log(b, b.fdiv(b.fabs(x), largest))));
            let y = b.select(some, b.fmul(b.f32(E4M3_MAX), y), b.f32(0.0));
            b.float_intrinsic("llvm.copysign", &[y, x])
        });
        self.store(arg, k.moments, codes);
        let word = b.or(b.bits(largest), exponent);
        // Every lane has read the old one.
        b.warp_barrier();
        b.if_then(b.eqc(self.lane, 0), || b.store(b.at(b.arg(arg + 1), self.group, 4), word, 4));
    }

    /// The largest magnitude of the group, as the word has it, and the exponent in sixteenths.
    fn expansion(&self, x: Four<'c>) -> (Float<'c>, Int<'c>) {
        let b = self.b;
        let above = |x: Float<'c>, y: Float<'c>| b.fcmp(FloatPredicate::OGT, x, y);
        let own = x.into_iter().fold(b.f32(0.0), |m, x| b.fmax_number(m, b.fabs(x)));
        let beside_zero = |x: Float<'c>| {
            let zero = b.fcmp(FloatPredicate::OEQ, x, b.f32(0.0));
            b.fneg(b.select(zero, b.f32(f32::INFINITY), b.fabs(x)))
        };
        // Elements that are not there are zeros, which count for neither.
        let least = x.into_iter().map(beside_zero).fold(b.f32(f32::NEG_INFINITY), |m, x| b.fmax_number(m, x));
        let (largest, smallest) = (b.warp_max(own), b.fneg(b.warp_max(least)));
        let capped = b.select(above(largest, b.f32(LARGEST)), b.f32(LARGEST), largest);
        let half = i64::from(EXPONENT / 2 + 1);
        let largest = b.from_bits(b.andc(b.addc(b.bits(capped), half), i64::from(!EXPONENT as i32)));
        let range = math::log(b, b.fdiv(largest, smallest));
        let sixteenths = b.fdiv(b.f32(16.0 * LN_RANGE), range);
        let whole = b.select(b.fcmp(FloatPredicate::OLT, sixteenths, b.f32(255.0)), sixteenths, b.f32(255.0));
        let whole = b.select(above(whole, b.f32(1.0)), whole, b.f32(1.0));
        let spread = b.and(above(largest, smallest), above(range, b.f32(0.0)));
        let exponent = b.select(spread, b.to_int(Val::F(whole), 32), b.i32(16));
        let zeros = b.fcmp(FloatPredicate::OLT, capped, b.f32(f32::MIN_POSITIVE));
        (b.select(zeros, b.f32(0.0), largest), b.select(zeros, b.i32(0), exponent))
    }

    /// Stores the parameter as bf16, rounded stochastically.
    fn store_rounded(&self, p: Four<'c>) {
        let b = self.b;
        let noise = self.noise();
        let rounded: Vec<BasicValueEnum<'c>> = p.into_iter().zip(noise).map(|(p, noise)| self.rounded(p, noise).into()).collect();
        if self.whole_lanes() {
            b.if_then(self.inside(0), || b.store(b.at(b.arg(0), self.first, 2), b.vector(&rounded), 8));
            return;
        }
        for (i, bits) in rounded.into_iter().enumerate() {
            b.if_then(self.inside(i), || b.store(b.at(b.arg(0), b.addc(self.first, i as i64), 2), bits, 2));
        }
    }

    /// The bits of one of the two nearest bf16, as `numerics::f32_to_bf16_stochastic` has it.
    fn rounded(&self, x: Float<'c>, noise: Int<'c>) -> Int<'c> {
        const INFINITY: i64 = 0x7f80_0000;
        let b = self.b;
        let bits = b.bits(x);
        let up = b.add(bits, noise);
        let is_infinite = |bits: Int<'c>| b.eqc(b.andc(bits, INFINITY), INFINITY);
        let taken = b.select(is_infinite(up), bits, up);
        let special = b.zext(b.bf16_bits(x), 32);
        b.zext(b.select(is_infinite(bits), special, b.shr(taken, 16)), 16)
    }

    /// Sixteen random bits for each element of the lane: half of a block for every two lanes.
    fn noise(&self) -> [Int<'c>; LANES] {
        let (b, at) = (self.b, self.k.control_arg());
        let number = |i: usize| self.word(at, b.i32((Control::RANDOM + i) as i32));
        let block = b.add(b.mulc(self.group, GROUP as i64 / 8), b.shr(self.lane, 1));
        let words = philox(b, [number(0), number(1)], [block, self.word(at + 2, b.i32(0)), number(2), number(3)]);
        let odd = b.eqc(b.andc(self.lane, 1), 1);
        let [low, high] = [0, 1].map(|i| b.select(odd, words[i + 2], words[i]));
        [b.andc(low, 0xffff), b.shr(low, 16), b.andc(high, 0xffff), b.shr(high, 16)]
    }
}

/// As `numerics::philox`.
fn philox<'c>(b: &Build<'c, '_>, mut key: [Int<'c>; 2], mut c: [Int<'c>; 4]) -> [Int<'c>; 4] {
    let product = |m: u32, x: Int<'c>| {
        let p = b.mulc(b.zext(x, 64), i64::from(m));
        (b.zext(b.shr(p, 32), 32), b.zext(p, 32))
    };
    for _ in 0..ROUNDS {
        let ((h0, l0), (h1, l1)) = (product(MULTIPLIERS[0], c[0]), product(MULTIPLIERS[1], c[2]));
        c = [b.xor(b.xor(h1, c[1]), key[0]), l1, b.xor(b.xor(h0, c[3]), key[1]), l0];
        key = [0, 1].map(|i| b.addc(key[i], i64::from(WEYL[i] as i32)));
    }
    c
}
