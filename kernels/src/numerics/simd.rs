//! Loops compiled several times, for the widest vectors that the CPU at hand has.

use crate::cpu::math::{Fma, Fused, Split};
use std::sync::OnceLock;

/// A loop that [`dispatch`] compiles for each vector width. Implementations mark `run` `#[inline(always)]`, and so everything
/// hot that it calls: only what is inlined is compiled for the wider vectors. Where `F` is not used, all versions give the same bits.
pub(crate) trait Vectorised {
    type Output;
    fn run<F: Fma>(self) -> Self::Output;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

fn width() -> Width {
    static WIDTH: OnceLock<Width> = OnceLock::new();
    *WIDTH.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Width {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("bmi2");
    if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") {
        Width::Avx512
    } else if avx2 {
        Width::Avx2
    } else {
        Width::Baseline
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Width {
    Width::Baseline
}

/// Folds lanes (a power of two of them) in halves, which vectorises where a fold from left to right would not.
#[inline(always)]
pub(crate) fn fold_lanes<const N: usize>(mut lanes: [f32; N], op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = op(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Runs `task` in the version for this CPU's vectors.
#[inline]
pub(crate) fn dispatch<T: Vectorised>(task: T) -> T::Output {
    match width() {
        Width::Baseline => task.run::<Split>(),
        // SAFETY: `detect` has seen the features on this CPU.
        #[cfg(target_arch = "x86_64")]
        Width::Avx2 => unsafe { avx2(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Width::Avx512 => unsafe { avx512(task) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi2")]
unsafe fn avx2<T: Vectorised>(task: T) -> T::Output {
    task.run::<Fused>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi2,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn avx512<T: Vectorised>(task: T) -> T::Output {
    task.run::<Fused>()
}
