//! Counter-based random numbers: a value depends on a key and a position, not on what was drawn before.

use fp8c_kernels::numerics::philox;

/// Philox under a seed, on one of its streams.
///
/// Streams with the top bit set belong to shuffles, those with the next one to the steps of a training; the rest to first values.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
    stream: [u32; 2],
}

impl Philox {
    /// A generator for a seed and one of its independent streams.
    pub fn new(seed: u64, stream: u64) -> Self {
        Philox { key: halves(seed), stream: halves(stream) }
    }

    /// The key and the stream of a training step's random numbers, for the control block.
    pub fn of_step(seed: u64, step: u64) -> [u32; 4] {
        let ([a, b], [c, d]) = (halves(seed), halves(1 << 62 | step));
        [a, b, c, d]
    }

    /// Four words for a counter.
    pub fn block(&self, counter: u64) -> [u32; 4] {
        let [low, high] = halves(counter);
        philox(self.key, [low, high, self.stream[0], self.stream[1]])
    }

    /// Sixty-four bits for a counter.
    pub fn bits(&self, counter: u64) -> u64 {
        let [a, b, ..] = self.block(counter);
        u64::from(b) << 32 | u64::from(a)
    }

    /// A whole number below `bound` for a counter; 0 for a bound of 0. The bias is below 2^-64 times the bound.
    pub fn below(&self, counter: u64, bound: u64) -> u64 {
        ((u128::from(self.bits(counter)) * u128::from(bound)) >> 64) as u64
    }

    /// Four standard normal numbers for a counter (Box-Muller on pairs of words).
    pub fn normals(&self, counter: u64) -> [f32; 4] {
        let w = self.block(counter);
        let pair = |a: u32, b: u32| {
            // In (0, 1], so that the logarithm is finite.
            let u = (f64::from(a) + 1.0) / 4_294_967_296.0;
            let radius = (-2.0 * u.ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * f64::from(b) / 4_294_967_296.0).sin_cos();
            [(radius * cos) as f32, (radius * sin) as f32]
        };
        let ([a, b], [c, d]) = (pair(w[0], w[1]), pair(w[2], w[3]));
        [a, b, c, d]
    }

    /// Four numbers in [0, 1), of 24 bits.
    pub fn uniforms(&self, counter: u64) -> [f32; 4] {
        self.block(counter).map(|w| (w >> 8) as f32 / 16_777_216.0)
    }
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// A permutation of `0..len` for each round, computed position by position.
///
/// A four-round Feistel network over the next even power of two, walked until it falls below `len`.
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    philox: Philox,
    len: u64,
    half: u32,
}

impl Shuffle {
    /// The `round`-th permutation of a seed.
    pub fn new(seed: u64, round: u64, len: u64) -> Self {
        let bits = 64 - len.max(2).saturating_sub(1).leading_zeros();
        // Streams with the top bit set belong to shuffles.
        Shuffle { philox: Philox::new(seed, 1 << 63 | round), len, half: bits.div_ceil(2) }
    }

    /// Where `position` goes; `position < len`.
    pub fn at(&self, position: u64) -> u64 {
        let mut x = position;
        loop {
            x = self.network(x);
            // The network is a bijection, so the walk from inside comes back inside.
            if x < self.len || self.len == 0 {
                return x;
            }
        }
    }

    fn network(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (x >> self.half, x & mask);
        for round in 0..4u64 {
            let mixed = self.philox.bits(round << 32 | right) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << self.half | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_is_a_permutation_of_any_length() {
        for len in [1u64, 2, 3, 7, 64, 65, 1000] {
            let s = Shuffle::new(3, 1, len);
            let mut seen: Vec<u64> = (0..len).map(|i| s.at(i)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..len), "length {len}");
        }
    }

    #[test]
    fn rounds_of_a_shuffle_differ() {
        let order = |round| (0..50).map(|i| Shuffle::new(3, round, 50).at(i)).collect::<Vec<_>>();
        assert_ne!(order(0), order(1));
        assert_eq!(order(1), order(1));
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let p = Philox::new(1, 2);
        let x: Vec<f64> = (0..25_000).flat_map(|i| p.normals(i)).map(f64::from).collect();
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn numbers_below_a_bound_reach_all_of_it() {
        let p = Philox::new(9, 0);
        let seen: std::collections::HashSet<u64> = (0..200).map(|i| p.below(i, 10)).collect();
        assert_eq!(seen.len(), 10);
        assert_eq!(p.below(5, 0), 0);
    }
}
