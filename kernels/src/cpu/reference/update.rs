//! Reference of optimizer steps: one element after the other, in f32 as the program has it; and their tests.

use super::Data;
use crate::DType;
use crate::cpu::math::Fused;
use crate::numerics::{Expansion, compress, expand, f32_to_bf16_stochastic, philox};
use crate::program::{Control, Rule, Update};

fn floats(data: &Data) -> Vec<f32> {
    data.values().iter().map(|x| *x as f32).collect()
}

fn words(data: &Data) -> Vec<u32> {
    data.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The arguments after a step.
pub(crate) fn reference(k: &Update, inputs: &[Data]) -> Vec<Data> {
    let mut out = inputs.to_vec();
    let at = k.control_arg();
    let (c, random) = (floats(&inputs[at]), words(&inputs[at])[Control::RANDOM..].to_vec());
    let finite = !k.guarded || floats(&inputs[k.sum_arg()])[0].is_finite();
    if c[Control::FINITE] == 0.0 || !finite {
        return out;
    }
    let (mut p, g) = (floats(&inputs[0]), floats(&inputs[1]));
    let mut moments: Vec<Vec<f32>> = (0..k.rule.moments()).map(|i| moment(k, inputs, i)).collect();
    let decay = c[Control::WEIGHT_DECAY] * floats(&inputs[at + 1])[0];
    for (i, p) in p.iter_mut().enumerate() {
        let mut m: Vec<f32> = moments.iter().map(|m| m[i]).collect();
        *p = element(k, &c, decay, *p, g[i] * c[Control::GRAD_MULTIPLIER], &mut m);
        moments.iter_mut().zip(m).for_each(|(all, m)| all[i] = m);
    }
    out[0] = match k.master {
        DType::Bf16 => {
            let site = words(&inputs[at + 2])[0];
            let round = |(i, x): (usize, &f32)| {
                let block = philox([random[0], random[1]], [(i / 8) as u32, site, random[2], random[3]]);
                f32_to_bf16_stochastic(*x, block[i % 8 / 2] >> (16 * (i % 2))).to_le_bytes()
            };
            Data { dtype: DType::Bf16, bytes: p.iter().enumerate().flat_map(round).collect() }
        }
        dtype => Data::new(dtype, &p),
    };
    for (i, x) in moments.iter().enumerate() {
        let first = 2 + i * k.moment_args();
        match k.moments {
            DType::E4m3 => (out[first], out[first + 1]) = compressed(x),
            dtype => out[first] = Data::new(dtype, x),
        }
    }
    out
}

fn element(k: &Update, c: &[f32], decay: f32, p: f32, g: f32, m: &mut [f32]) -> f32 {
    let (rate, [b1, b2]) = (c[Control::LEARNING_RATE], [c[Control::BETA1], c[Control::BETA2]]);
    let mix = |x: f32, y: f32, b: f32| x * b + y * (1.0 - b);
    let kept = p * (1.0 - rate * decay);
    match k.rule {
        Rule::AdamW => {
            let squared = k.moments == DType::E4m3;
            m[0] = mix(m[0], g, b1);
            let v = mix(if squared { m[1] * m[1] } else { m[1] }, g * g, b2);
            m[1] = if squared { v.sqrt() } else { v };
            let below = v.sqrt() * (1.0 / c[Control::CORRECTION2]) + c[Control::EPS];
            kept - m[0] * (rate / c[Control::CORRECTION1]) / below
        }
        Rule::Sgd => {
            m[0] = m[0] * b1 + g + p * decay;
            p - m[0] * rate
        }
        Rule::Lion => {
            let toward = mix(m[0], g, b1);
            let sign = if toward > 0.0 {
                1.0
            } else if toward < 0.0 {
                -1.0
            } else {
                toward
            };
            m[0] = mix(m[0], g, b2);
            kept - sign * rate
        }
    }
}

fn moment(k: &Update, inputs: &[Data], which: usize) -> Vec<f32> {
    let first = 2 + which * k.moment_args();
    if k.moments != DType::E4m3 {
        return floats(&inputs[first]);
    }
    let mut out = vec![0.0; inputs[first].bytes.len()];
    let groups = inputs[first].bytes.chunks(128).zip(out.chunks_mut(128));
    groups.zip(words(&inputs[first + 1])).for_each(|((codes, x), word)| expand::<Fused>(codes, Expansion::of_word(word), x));
    out
}

fn compressed(x: &[f32]) -> (Data, Data) {
    let (mut codes, mut all) = (vec![0; x.len()], vec![]);
    for (x, codes) in x.chunks(128).zip(codes.chunks_mut(128)) {
        let magnitudes = || x.iter().map(|x| x.abs()).filter(|x| *x > 0.0);
        let group = Expansion::of::<Fused>(magnitudes().fold(0.0, f32::max), magnitudes().fold(f32::INFINITY, f32::min));
        compress::<Fused>(x, group, codes);
        all.extend(group.word().to_le_bytes());
    }
    (Data { dtype: DType::E4m3, bytes: codes }, Data { dtype: DType::F32, bytes: all })
}

#[cfg(test)]
mod tests {
    use super::super::{Random, run};
    use super::*;
    use crate::program::Kernel;
    use proptest::prelude::*;

    fn kernel(n: usize, elements: u64, guarded: bool) -> Update {
        let rule = [Rule::AdamW, Rule::Sgd, Rule::Lion][n % 3];
        let moments = [DType::F32, DType::Bf16, DType::E4m3][n / 3 % 3];
        let [gradient, master] = [n / 9 % 2, n / 18].map(|i| [DType::F32, DType::Bf16][i]);
        Update { rule, elements, gradient, master, moments, guarded }
    }

    /// A step's arguments: gradients over some octaves, moments as steps have left them.
    fn arguments(k: &Update, random: &mut Random) -> Vec<Data> {
        let mut normal = |scale: f32| -> Vec<f32> { random.normal(k.elements).iter().map(|x| x * scale).collect() };
        let mut args = vec![Data::new(k.master, &normal(0.02)), Data::new(k.gradient, &normal(8.0))];
        for which in 0..k.rule.moments() {
            let x: Vec<f32> = normal(0.01).iter().map(|x| if which == 1 { x * x } else { *x }).collect();
            match k.moments {
                DType::E4m3 => args.extend(<[Data; 2]>::from(compressed(&x))),
                dtype => args.push(Data::new(dtype, &x)),
            }
        }
        args.extend([control(1.0), Data::new(DType::F32, &[1.0])]);
        args.extend((k.master == DType::Bf16).then(|| Data::new(DType::I32, &[7.0])));
        args.extend(k.guarded.then(|| Data::new(DType::F32, &[3.0])));
        args
    }

    fn control(finite: f32) -> Data {
        let mut block = [0f32; Control::LEN];
        block[Control::LEARNING_RATE] = 1e-3;
        (block[Control::BETA1], block[Control::BETA2], block[Control::EPS]) = (0.9, 0.99, 1e-8);
        (block[Control::CORRECTION1], block[Control::CORRECTION2]) = (0.19, 0.14);
        (block[Control::WEIGHT_DECAY], block[Control::GRAD_MULTIPLIER], block[Control::FINITE]) = (0.1, 0.01, finite);
        let mut data = Data::new(DType::F32, &block);
        let random = [1u32, 2, 3, 1 << 30].map(u32::to_le_bytes).concat();
        data.bytes[4 * Control::RANDOM..].copy_from_slice(&random);
        data
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_step_agrees_with_the_reference(n in 0usize..36, elements in prop::sample::select(vec![1u64, 127, 128, 129, 700, 20_000]), seed: u64) {
            let k = kernel(n, elements, seed % 2 == 0);
            let inputs = arguments(&k, &mut Random::new(seed));
            let (have, want) = (run(&Kernel::Update(k), &inputs), reference(&k, &inputs));
            for (i, (have, want)) in have.iter().zip(&want).enumerate() {
                // Another order of the logarithm's roundings may move a code by one.
                let close = |(x, y): (&f64, &f64)| (x - y).abs() <= 0.13 * x.abs().max(y.abs()) || (x - y).abs() < 1e-2;
                let same = if k.moments == DType::E4m3 { have.values().iter().zip(&want.values()).all(close) } else { have == want };
                prop_assert!(same, "argument {} of {:?}", i, k);
            }
        }
    }

    #[test]
    fn a_step_that_is_not_finite_changes_nothing() {
        for n in 0..36 {
            for guarded in [false, true] {
                let k = kernel(n, 300, guarded);
                let mut inputs = arguments(&k, &mut Random::new(n as u64));
                match guarded {
                    true => inputs[k.sum_arg()] = Data::new(DType::F32, &[[f32::INFINITY, f32::NAN][n % 2]]),
                    false => inputs[k.control_arg()] = control(0.0),
                }
                assert!(run(&Kernel::Update(k), &inputs) == inputs, "{k:?}");
            }
        }
    }

    #[test]
    fn parameters_of_other_sites_and_steps_are_rounded_otherwise_and_on_average_exactly() {
        let k = kernel(18, 128 * 200, false);
        let mut inputs = arguments(&k, &mut Random::new(5));
        inputs[0] = Data::new(DType::Bf16, &vec![1.0; k.elements as usize]);
        let first = run(&Kernel::Update(k), &inputs);
        assert!(first == run(&Kernel::Update(k), &inputs));
        let exact = {
            let k = Update { master: DType::F32, ..k };
            let mut plain: Vec<Data> = inputs[..k.control_arg() + 2].to_vec();
            plain[0] = Data::new(DType::F32, &vec![1.0; k.elements as usize]);
            run(&Kernel::Update(k), &plain)[0].values()
        };
        let rounded = first[0].values();
        let bias = rounded.iter().zip(&exact).map(|(x, y)| x - y).sum::<f64>() / exact.len() as f64;
        // A step of bf16 below 1 is 2^-8, of whose uniform noise this is 4 standard deviations.
        assert!(bias.abs() < 4.0 * 0.003_906 / (exact.len() as f64).sqrt(), "{bias}");
        for (arg, at) in [(k.control_arg() + 2, 0), (k.control_arg(), 4 * (Control::RANDOM + 2))] {
            let mut other = inputs.clone();
            other[arg].bytes[at] ^= 1;
            assert!(run(&Kernel::Update(k), &other)[0] != first[0]);
        }
    }
}
