//! `wgmma`: matrices in shared memory, products under way, and the rules on what may be touched meanwhile.
//!
//! A warp of a warpgroup computes its own 16 of the 64 rows. Results are in the registers at once, but whoever touches them, or what the
//! product reads, before the wait for its group is at fault: nobody can tell that they are there early.

use crate::barriers::Place;
use crate::exec::Cluster;
use crate::float::{from_bf16, from_e4m3};
use crate::memory::{Actor, Path};
use crate::parse::{Async, Matrix, Product};
use crate::warp::{LANES, Step, Warp};
use std::collections::VecDeque;

/// Bytes of the depth of one product.
const DEPTH: usize = 32;
/// Rows of a warp's part.
const ROWS: usize = 16;
/// What shared memory is read in.
const CHUNK: usize = 16;

/// A product under way.
struct Flight {
    registers: Vec<usize>,
    /// Chunks of shared memory that it reads.
    chunks: Vec<Place>,
}

/// What a product under way does with a register.
#[derive(Clone, Copy, Default)]
struct Use {
    products: u16,
    /// As an accumulator: extent of the product and place among its accumulators.
    sum: Option<(usize, usize)>,
}

/// A warp's products under way.
pub(crate) struct Flights {
    open: Vec<Flight>,
    groups: VecDeque<Vec<Flight>>,
    uses: Vec<Use>,
    /// Registers that other instructions touched since the last `wgmma.fence`.
    touched: Vec<bool>,
    fenced: bool,
}

impl Flights {
    pub fn new(registers: usize) -> Self {
        let (uses, touched) = (vec![Use::default(); registers], vec![false; registers]);
        Flights { open: vec![], groups: VecDeque::new(), uses, touched, fenced: false }
    }

    pub fn any(&self) -> bool {
        !self.open.is_empty() || self.groups.iter().any(|g| !g.is_empty())
    }

    /// Notes that another instruction touches registers of products.
    pub fn touch(&mut self, registers: &[usize]) -> Step {
        if registers.iter().any(|&r| self.uses[r].products > 0) {
            return Err("a register is touched while a wgmma that uses it is under way".into());
        }
        registers.iter().for_each(|&r| self.touched[r] = true);
        Ok(())
    }

    fn fence(&mut self) {
        self.touched.fill(false);
        self.fenced = true;
    }

    fn start(&mut self, p: &Product, chunks: Vec<Place>) -> Step {
        let registers = p.registers();
        if !self.fenced || registers.iter().any(|&r| self.touched[r]) {
            return Err("a wgmma whose registers were touched without a wgmma.fence after".into());
        }
        for (i, &r) in p.sums.iter().enumerate() {
            let u = &mut self.uses[r];
            if u.products > 0 && u.sum != Some((p.n, i)) {
                return Err("an accumulator that a wgmma of another shape, under way, uses".into());
            }
            *u = Use { products: u.products + 1, sum: Some((p.n, i)) };
        }
        for r in p.inputs() {
            let u = &mut self.uses[r];
            if u.products > 0 && u.sum.is_some() {
                return Err("an operand that is the accumulator of a wgmma under way".into());
            }
            u.products += 1;
        }
        self.open.push(Flight { registers, chunks });
        Ok(())
    }

    fn commit(&mut self) {
        let group = std::mem::take(&mut self.open);
        self.groups.push_back(group);
    }

    /// Products of all but the last `pending` groups.
    fn wait(&mut self, pending: u64) -> Vec<Flight> {
        let mut done = vec![];
        while self.groups.len() as u64 > pending {
            done.extend(self.groups.pop_front().unwrap_or_default());
        }
        for r in done.iter().flat_map(|f| &f.registers) {
            let u = &mut self.uses[*r];
            u.products -= 1;
            if u.products == 0 {
                u.sum = None;
            }
        }
        done
    }
}

/// A matrix descriptor, byte offsets.
#[derive(Clone, Copy)]
struct Descriptor {
    start: u64,
    /// Leading and stride dimension.
    leading: u64,
    stride: u64,
    swizzled: bool,
}

impl Descriptor {
    fn new(bits: u64) -> Result<Self, String> {
        let field = |shift: u32| (bits >> shift & 0x3fff) << 4;
        let d = Descriptor { start: field(0), leading: field(16), stride: field(32), swizzled: bits >> 62 == 1 };
        let unused = bits & !(0x3fff | 0x3fff << 16 | 0x3fff << 32 | 3 << 62);
        if unused != 0 || bits >> 62 > 1 {
            return Err(format!("matrix descriptor {bits:#x}: only no swizzle and 128 bytes', without base offset, are emulated"));
        }
        if d.swizzled && d.start >> 7 & 7 != 0 {
            return Err(format!("matrix descriptor {bits:#x}: a swizzled matrix that does not start at a multiple of 1024"));
        }
        Ok(d)
    }

    fn swizzle(&self, at: u64) -> u64 {
        if self.swizzled { at ^ (at >> 7 & 7) << 4 } else { at }
    }

    /// Chunk `half` of the depth of a row, of a matrix whose rows run along the depth.
    fn along_depth(&self, row: usize, half: usize) -> u64 {
        let (row, half) = (row as u64, half as u64);
        let offset = match self.swizzled {
            true => row % 8 * 128 + row / 8 * self.stride + half * 16,
            false => row % 8 * 16 + row / 8 * self.stride + half * self.leading,
        };
        self.swizzle(self.start + offset)
    }

    /// Rows `8 * eight` and on at element `k` of the depth, of a matrix of bf16 that lies across.
    fn across(&self, eight: usize, k: usize) -> u64 {
        let (eight, k) = (eight as u64, k as u64);
        let offset = match self.swizzled {
            true => eight % 8 * 16 + eight / 8 * self.leading + k % 8 * 128 + k / 8 * self.stride,
            false => eight * self.stride + k % 8 * 16 + k / 8 * self.leading,
        };
        self.swizzle(self.start + offset)
    }
}

fn element(bytes: &[u8], codes: bool) -> f64 {
    match codes {
        true => from_e4m3(bytes[0]) as f64,
        false => from_bf16(u16::from_le_bytes([bytes[0], bytes[1]])) as f64,
    }
}

impl Warp<'_> {
    /// An instruction of all lanes on products.
    pub fn products(&mut self, line: usize, kind: &Async, cluster: &mut Cluster<'_>) -> Step {
        match kind {
            Async::Elect { lane, to } => {
                for l in 0..LANES {
                    self.set(*to, l, (l == 0) as u64);
                    if let Some(lane) = lane {
                        self.set(*lane, l, 0);
                    }
                }
                return Ok(());
            }
            Async::MultiplyFence => self.flights.fence(),
            Async::CommitProducts => self.flights.commit(),
            Async::WaitProducts { pending } => self.wait(*pending, cluster)?,
            Async::Multiply(p) => return self.multiply(line, p, cluster),
            _ => {}
        }
        self.alike(line, 0, 0, cluster)
    }

    fn wait(&mut self, pending: u64, cluster: &mut Cluster<'_>) -> Step {
        let slot = self.slot(0);
        for (block, at) in self.flights.wait(pending).into_iter().flat_map(|f| f.chunks) {
            cluster.with_shared(block, slot, Path::Matrix, |region, by| region.stop_reading(at, CHUNK, by))?;
        }
        Ok(())
    }

    fn multiply(&mut self, line: usize, p: &Product, cluster: &mut Cluster<'_>) -> Step {
        let b = self.uniform(p.b)?;
        let a = if let Matrix::Descriptor(a) = p.a { self.uniform(a)? } else { 0 };
        self.alike(line, a, b, cluster)?;
        let (signs, adds) = (p.signs.map(|s| self.value(s, 0) as i32 as f64), self.uniform(p.accumulates)? & 1 == 1);
        let mut chunks = vec![];
        let first = ROWS * (self.number() % 4);
        let left = match &p.a {
            Matrix::Descriptor(_) => self.operand(a, first..first + ROWS, p.codes, p.transposed[0], &mut chunks, cluster)?,
            Matrix::Registers(_) => self.left_fragment(p),
        };
        let right = self.operand(b, 0..p.n, p.codes, p.transposed[1], &mut chunks, cluster)?;
        self.flights.start(p, chunks)?;
        let depth = left.len() / ROWS;
        let across: Vec<f64> = (0..depth).flat_map(|k| (0..p.n).map(move |j| (k, j))).map(|(k, j)| right[j * depth + k]).collect();
        let mut sums = vec![0f64; p.n];
        for row in 0..ROWS {
            let place = |j: usize| (p.sums[j / 8 * 4 + row / 8 * 2 + j % 2], 4 * (row % 8) + j % 8 / 2);
            for (j, sum) in sums.iter_mut().enumerate() {
                let (register, lane) = place(j);
                *sum = if adds { f32::from_bits(self.value(crate::parse::Source::Register(register), lane) as u32) as f64 } else { 0.0 };
            }
            for (x, line) in left[row * depth..(row + 1) * depth].iter().zip(across.chunks_exact(p.n)) {
                let x = x * signs[0] * signs[1];
                sums.iter_mut().zip(line).for_each(|(sum, y)| *sum += x * y);
            }
            for (j, sum) in sums.iter().enumerate() {
                let (register, lane) = place(j);
                self.set(register, lane, (*sum as f32).to_bits() as u64);
            }
        }
        let name = if p.codes { "wgmma.e4m3" } else { "wgmma.bf16" };
        cluster.counts.product(name, (ROWS * p.n * depth) as u64);
        Ok(())
    }

    /// Rows of an operand in shared memory, row by row.
    fn operand(
        &self,
        descriptor: u64,
        rows: std::ops::Range<usize>,
        codes: bool,
        across: bool,
        chunks: &mut Vec<Place>,
        cluster: &mut Cluster<'_>,
    ) -> Result<Vec<f64>, String> {
        let d = Descriptor::new(descriptor)?;
        let size = if codes { 1 } else { 2 };
        let (depth, count) = (DEPTH / size, rows.len());
        let order = cluster.clocks.common(self.slot(0)..self.slot(LANES));
        let by = Actor { agent: cluster.clocks.thread(self.slot(0)), order: &order, clocks: &cluster.clocks, path: Path::Matrix };
        let region = &mut cluster.shared[self.block];
        let mut out = vec![0f64; count * depth];
        let mut chunk = |at: u64| -> Result<[u8; CHUNK], String> {
            chunks.push((self.block, at));
            let bytes = region.start_reading(at, CHUNK, &by)?;
            Ok(std::array::from_fn(|i| bytes[i]))
        };
        if across {
            for (eight, k) in (0..count / 8).flat_map(|e| (0..depth).map(move |k| (e, k))) {
                let bytes = chunk(d.across(rows.start / 8 + eight, k))?;
                (0..8).for_each(|i| out[(8 * eight + i) * depth + k] = element(&bytes[2 * i..], codes));
            }
            return Ok(out);
        }
        for (row, half) in rows.enumerate().flat_map(|row| [(row, 0), (row, 1)]) {
            let bytes = chunk(d.along_depth(row.1, half))?;
            let line = &mut out[row.0 * depth + half * depth / 2..][..depth / 2];
            line.iter_mut().zip(bytes.chunks(size)).for_each(|(x, b)| *x = element(b, codes));
        }
        Ok(out)
    }

    /// The warp's rows of a left operand in registers.
    fn left_fragment(&self, p: &Product) -> Vec<f64> {
        let (size, depth) = if p.codes { (1, 32) } else { (2, 16) };
        let Matrix::Registers(a) = &p.a else { return vec![] };
        let per_register = 4 / size;
        let mut out = vec![0f64; ROWS * depth];
        for (lane, (n, source)) in (0..LANES).flat_map(|l| a.iter().enumerate().map(move |s| (l, s))) {
            let (row, k) = (lane / 4 + 8 * (n % 2), lane % 4 * per_register + n / 2 * 4 * per_register);
            let bytes = (self.value(*source, lane) as u32).to_le_bytes();
            (0..per_register).for_each(|i| out[row * depth + k + i] = element(&bytes[i * size..], p.codes));
        }
        out
    }
}
