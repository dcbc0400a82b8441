//! Optimizer steps through ptxas, and emulated against the CPU.

use super::agree::{EXACT, Noise, Tolerance, agree_with, on_cpu};
use super::assembler::check;
use fp8c_kernels::DType;
use fp8c_kernels::program::{Control, Kernel, Rule, Update};

fn steps() -> Vec<Update> {
    let mut all = vec![];
    for (i, rule) in [Rule::AdamW, Rule::Sgd, Rule::Lion].into_iter().enumerate() {
        for (j, moments) in [DType::F32, DType::Bf16, DType::E4m3].into_iter().enumerate() {
            for (k, master) in [DType::F32, DType::Bf16].into_iter().enumerate() {
                let elements = [2048, 1300, 129, 3][(i + j + k) % 4];
                let gradient = if (i + k) % 3 == 2 { DType::Bf16 } else { DType::F32 };
                all.push(Update { rule, elements, gradient, master, moments, guarded: (i + j) % 2 == 1 });
            }
        }
    }
    all
}

/// Arguments after one step from moments of zero, so that E4M3 ones are as a step leaves them.
fn arguments(k: &Update) -> Vec<Vec<u8>> {
    let mut noise = Noise(k.elements);
    let mut args: Vec<Vec<u8>> = Kernel::Update(*k).args().iter().map(|a| vec![0; a.bytes() as usize]).collect();
    let mut fill = |bytes: &mut Vec<u8>, dtype: DType| {
        for element in bytes.chunks_exact_mut(dtype.size() as usize) {
            let x = noise.float() * (noise.float() * 3.0).exp2();
            let bytes = x.to_le_bytes();
            element.copy_from_slice(&bytes[4 - dtype.size() as usize..]);
        }
    };
    fill(&mut args[0], k.master);
    fill(&mut args[1], k.gradient);
    let mut block = [0f32; Control::LEN];
    block[Control::LEARNING_RATE] = 1e-2;
    (block[Control::BETA1], block[Control::BETA2], block[Control::EPS]) = (0.9, 0.99, 1e-8);
    (block[Control::CORRECTION1], block[Control::CORRECTION2]) = (0.19, 0.14);
    (block[Control::WEIGHT_DECAY], block[Control::GRAD_MULTIPLIER], block[Control::FINITE]) = (0.1, 0.01, 1.0);
    let mut words = block.map(f32::to_bits);
    words[Control::RANDOM..].copy_from_slice(&[0x9abc_def0, 0xffff_fff0, 77, 1 << 30]);
    let at = k.control_arg();
    args[at] = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    args[at + 1] = 1f32.to_le_bytes().to_vec();
    if k.master == DType::Bf16 {
        args[at + 2] = 5u32.to_le_bytes().to_vec();
    }
    on_cpu(&Kernel::Update(*k), &args)
}

#[test]
fn optimizer_steps_assemble_without_spills() {
    steps().iter().enumerate().for_each(|(i, k)| check(&format!("update_{i}"), &Kernel::Update(*k)));
}

#[test]
fn optimizer_steps_agree_with_the_cpu_bit_for_bit_but_for_e4m3_moments() {
    for (i, k) in steps().iter().enumerate() {
        // Logarithms of the two differ in their last bit.
        let close = Tolerance { relative: 1e-3, absolute: 1e-2 };
        let tolerance = if k.moments == DType::E4m3 { close } else { EXACT };
        agree_with(&format!("update_{i}"), &Kernel::Update(*k), tolerance, arguments(k));
    }
}
