//! Instructions that keep no lane waiting, for all lanes of a warp at once: where nearly all time goes.

use crate::float::{from_bf16, from_e4m3};
use crate::ops::Op;
use crate::parse::Source;
use crate::warp::{LANES, Warp};

impl Warp<'_> {
    /// The lanes of `here` whose guard holds.
    pub fn active(&self, guard: Option<(usize, u64)>, here: u32) -> u32 {
        let Some((register, wanted)) = guard else { return here };
        let holds = |l: &usize| self.registers[register * LANES + l] & 1 == wanted;
        here & (0..LANES).filter(holds).fold(0, |m, l| m | 1 << l)
    }

    /// A source's value for every lane.
    fn all_lanes(&self, s: Source) -> [u64; LANES] {
        match s {
            Source::Register(r) => std::array::from_fn(|l| self.registers[r * LANES + l]),
            Source::Constant(c) => [c; LANES],
        }
    }

    /// An instruction from registers to a register.
    pub fn plain(&mut self, op: Op, to: usize, from: &[Source], active: u32) {
        let source = |i: usize| from.get(i).map_or([0; LANES], |s| self.all_lanes(*s));
        let (a, b) = (source(0), source(1));
        // Few instructions have more than two operands.
        let (c, d) = if from.len() > 2 { (source(2), source(3)) } else { ([0; LANES], [0; LANES]) };
        let out = &mut self.registers[to * LANES..][..LANES];
        for l in (0..LANES).filter(|l| active >> l & 1 == 1) {
            out[l] = op([a[l], b[l], c[l], d[l]]);
        }
    }

    /// `mma` of 16 x 8 with 32 bytes of depth: the products are summed in f64, in ascending order of depth, and rounded once.
    pub fn mma(&mut self, to: [usize; 4], a: &[[u64; LANES]; 4], b: &[[u64; LANES]; 2], c: &[[u64; LANES]; 4], codes: bool) {
        let per_register = if codes { 4 } else { 2 };
        let element = |register: u64, i: usize| match codes {
            true => from_e4m3((register >> (8 * i)) as u8) as f64,
            false => from_bf16((register >> (16 * i)) as u16) as f64,
        };
        let (mut left, mut right) = ([[0f64; 32]; 16], [[0f64; 8]; 32]);
        for k in 0..8 * per_register {
            // Four lanes hold a slice of the depth, in two halves.
            let (half, within) = (k / (4 * per_register), k % (4 * per_register));
            let (quad, part) = (within / per_register, within % per_register);
            (0..16).for_each(|row| left[row][k] = element(a[row / 8 + 2 * half][4 * (row % 8) + quad], part));
            (0..8).for_each(|col| right[k][col] = element(b[half][4 * col + quad], part));
        }
        for (row, left) in left.iter().enumerate() {
            let place = |col: usize| (2 * (row / 8) + col % 2, 4 * (row % 8) + col / 2);
            let mut sums: [f64; 8] = std::array::from_fn(|col| {
                let (register, lane) = place(col);
                f32::from_bits(c[register][lane] as u32) as f64
            });
            for (&x, right) in left.iter().zip(&right).take(8 * per_register) {
                sums.iter_mut().zip(right).for_each(|(sum, y)| *sum += x * y);
            }
            for (col, sum) in sums.into_iter().enumerate() {
                let (register, lane) = place(col);
                self.registers[to[register] * LANES + lane] = (sum as f32).to_bits() as u64;
            }
        }
    }
}
