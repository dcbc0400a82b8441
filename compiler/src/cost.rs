//! What a kernel is predicted to cost on a target.

use crate::quantity::Seconds;
use crate::units::{Program, Unit};
use fp8c_kernels::DType;
use fp8c_kernels::program::Kernel;

/// Peak rates of a machine: a roofline with a fixed cost for each launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceProfile {
    pub name: &'static str,
    /// Operations a second of matrix products, by operand format.
    pub f32_flops: f64,
    pub bf16_flops: f64,
    pub e4m3_flops: f64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// What each launch costs beside its work.
    pub launch: Seconds,
}

/// Two AVX-512 cores, as measured with the project's own kernels (`docs/benchmarks.md`).
pub const CPU: DeviceProfile =
    DeviceProfile { name: "cpu", f32_flops: 200e9, bf16_flops: 160e9, e4m3_flops: 100e9, bandwidth: 15e9, launch: Seconds(4e-6) };

/// An RTX 4090: published peaks, f32 on the vector units.
pub const SM_89: DeviceProfile =
    DeviceProfile { name: "sm_89", f32_flops: 80e12, bf16_flops: 165e12, e4m3_flops: 330e12, bandwidth: 1.0e12, launch: Seconds(3e-6) };

/// An H100 SXM: published dense peaks.
pub const SM_90A: DeviceProfile =
    DeviceProfile { name: "sm_90a", f32_flops: 67e12, bf16_flops: 989e12, e4m3_flops: 1979e12, bandwidth: 3.35e12, launch: Seconds(3e-6) };

impl DeviceProfile {
    /// The profile of a target's name.
    pub fn of(target: &str) -> Option<&'static DeviceProfile> {
        [&CPU, &SM_89, &SM_90A].into_iter().find(|p| p.name == target)
    }

    /// Predicted time of one launch: the larger of arithmetic and traffic, plus the launch.
    pub fn seconds(&self, unit: &Unit) -> Seconds {
        let rate = match &unit.kernel {
            Kernel::ScaledContract(_) => self.e4m3_flops,
            Kernel::Contract(k) if k.a.dtype == DType::F32 && k.b.dtype == DType::F32 => self.f32_flops,
            Kernel::Contract(_) => self.bf16_flops,
            Kernel::Attention(k) | Kernel::AttentionGrad(k) if k.dtype == DType::Bf16 => self.bf16_flops,
            _ => self.f32_flops,
        };
        self.launch + unit.flops.at(rate).max(unit.traffic.at(self.bandwidth))
    }

    /// Predicted time of each unit of a program, those of [`Program::again`] behind the others.
    pub fn all(&self, program: &Program) -> Vec<Seconds> {
        program.units.iter().chain(&program.again).map(|u| self.seconds(u)).collect()
    }
}
