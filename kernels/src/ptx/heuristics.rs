//! Tile shapes for sm_90a's products: candidates, and a cycle model that ranks them.
//!
//! The model is of an H100: every multiprocessor works on one tile at a time; a step along the depth takes as long as the busiest of
//! tensor core, shared memory and L2 does; a tile ends with the store of its results, which nothing overlaps; and the last wave is as long
//! as any. It knows neither clocks nor power. Its rates are those that NVIDIA states or, for L2, that others measured.

/// Multiprocessors of a chip.
pub const PROCESSORS: u64 = 132;
/// Multiplications with addition that a multiprocessor does a cycle on E4M3; half as many on bf16.
const MULTIPLY_ADDS: u64 = 4096;
/// Bytes of shared memory that a multiprocessor moves a cycle.
const SHARED: u64 = 128;
/// Bytes that a multiprocessor gets from L2 a cycle when all do: 5120 among them.
const L2: u64 = 38;
/// Cycles from a block's launch to its first product, and from the last one to the stores.
const LATENCY: u64 = 1500;
/// Bytes of shared memory that a block can have.
const SHARED_MAX: i64 = 227 * 1024;
/// Bytes of a tile's line: of the depth of a step.
const LINE: u64 = 128;

/// A product to choose a tile for.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub batches: u64,
    pub m: u64,
    pub n: u64,
    pub k: u64,
    /// Bytes of an operand's element.
    pub element: u64,
    /// Bytes moved for an element of the result.
    pub result: u64,
}

/// A block's tile of the result: `groups` warpgroups multiply, each `fragments` times 64 rows, by `n` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub groups: i64,
    pub fragments: i64,
    pub n: i64,
    pub stages: i64,
}

/// Shapes whose sums fit into registers: `n` times `fragments` is at most 256, and E4M3 has a second set for one fragment.
/// Two fragments of 128 columns would fit by count, and ptxas spills.
const SHAPES: [[i64; 3]; 8] = [[1, 1, 64], [1, 1, 128], [2, 1, 64], [2, 1, 128], [2, 1, 192], [2, 1, 256], [2, 2, 64], [2, 2, 96]];

/// Most sums of a thread, with those of one product.
const SUMS: i64 = 192;

impl Tile {
    /// Rows.
    pub fn m(&self) -> i64 {
        64 * self.groups * self.fragments
    }

    pub fn threads(&self) -> i64 {
        128 * (self.groups + 1)
    }

    /// Tiles down and across the result.
    pub fn tiles(&self, p: &Problem) -> [i64; 2] {
        [p.m.div_ceil(self.m() as u64) as i64, p.n.div_ceil(self.n as u64) as i64]
    }

    /// Blocks of the persistent grid.
    pub fn blocks(&self, p: &Problem) -> i64 {
        (p.batches as i64 * self.tiles(p).iter().product::<i64>()).min(PROCESSORS as i64)
    }

    /// The candidate that the model predicts to be fastest.
    pub fn choose(p: &Problem) -> Tile {
        let fastest = Tile::candidates(p).into_iter().min_by_key(|t| t.cycles(p));
        fastest.unwrap_or(Tile { groups: 1, fragments: 1, n: 64, stages: 4 })
    }

    /// Shapes for a product, each with as many stages as fit.
    pub fn candidates(p: &Problem) -> Vec<Tile> {
        let fits = |[groups, fragments, n]: [i64; 3]| {
            let of_product = if p.element == 1 { n / 2 } else { 0 };
            // Columns that lie across are in panels of 64.
            let panels = p.element == 1 || n % 64 == 0;
            let stage = (64 * groups * fragments + n) * LINE as i64 + 2048;
            let stages = ((SHARED_MAX - 1024) / stage).min(8);
            (fragments * n / 2 + of_product <= SUMS && panels).then_some(Tile { groups, fragments, n, stages })
        };
        SHAPES.into_iter().filter_map(fits).collect()
    }

    /// Predicted cycles of the product.
    pub fn cycles(&self, p: &Problem) -> u64 {
        let tiles = p.batches * self.tiles(p).iter().product::<i64>() as u64;
        let steps = (p.k * p.element).div_ceil(LINE);
        let store = (self.m() * self.n) as u64 * p.result / L2;
        tiles.div_ceil(PROCESSORS) * (steps * self.step(p) + store) + LATENCY
    }

    /// Cycles of a step along the depth.
    fn step(&self, p: &Problem) -> u64 {
        let (m, n) = (self.m() as u64, self.n as u64);
        let depth = LINE / p.element;
        let multiply = m * n * depth / (MULTIPLY_ADDS / p.element);
        let brought = (m + n) * LINE;
        // Each product of 64 rows reads its rows and all columns.
        let read = m / 64 * (64 + n) * LINE;
        // What one warpgroup adds up, another's products hide.
        let exposed = if self.groups == 1 { multiply / 2 + 60 } else { 0 };
        multiply.max((brought + read) / SHARED).max(brought / L2) + exposed
    }

    /// Predicted share of the chip's rate for the product.
    #[cfg(test)]
    fn share(&self, p: &Problem) -> f64 {
        let least = (p.batches * p.m * p.n * p.k) as f64 / (PROCESSORS * MULTIPLY_ADDS / p.element) as f64;
        least / self.cycles(p) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn e4m3(m: u64, n: u64, k: u64) -> Problem {
        Problem { batches: 1, m, n, k, element: 1, result: 2 }
    }

    #[test]
    fn a_step_takes_as_long_as_the_busiest_unit() {
        let tile = Tile { groups: 2, fragments: 1, n: 128, stages: 4 };
        // 128 x 128 x 128 at 4096 a cycle are 512; 32 KB in and twice 24 KB out at 128 a cycle are 640; 32 KB at 38 are 862.
        assert_eq!(tile.step(&e4m3(4096, 4096, 7168)), 862);
        let wide = Tile { groups: 2, fragments: 1, n: 256, stages: 4 };
        let bf16 = Problem { element: 2, ..e4m3(4096, 4096, 7168) };
        assert_eq!(wide.step(&bf16), 48 * 1024 / 38);
    }

    #[test]
    fn waves_are_whole() {
        let tile = Tile { groups: 2, fragments: 2, n: 128, stages: 4 };
        let one = tile.cycles(&e4m3(256 * 132, 128, 1024));
        assert_eq!(tile.cycles(&e4m3(256 * 131 + 1, 128, 1024)), one);
        assert_eq!(tile.cycles(&e4m3(256 * 133, 128, 1024)) - LATENCY, 2 * (one - LATENCY));
    }

    #[test]
    fn small_products_take_small_tiles_and_large_ones_large() {
        assert_eq!(Tile::choose(&e4m3(64, 64, 256)).m(), 64);
        let large = Tile::choose(&e4m3(4096, 7168, 16384));
        assert!(large.m() * large.n >= 128 * 192, "{large:?}");
        // The last as a weight's gradient is, added in f32 to what is there.
        let gradient = Problem { result: 8, ..e4m3(7168, 2112, 8192) };
        for p in [e4m3(4096, 4096, 7168), e4m3(4096, 7168, 16384), gradient] {
            let tile = Tile::choose(&p);
            eprintln!("{} x {} x {}: {tile:?}, {:.1}% of the rate", p.m, p.n, p.k, 100.0 * tile.share(&p));
        }
    }

    #[test]
    fn every_candidate_fits() {
        for p in [e4m3(1, 1, 1), Problem { element: 2, ..e4m3(1, 1, 1) }] {
            for t in Tile::candidates(&p) {
                assert!(t.stages >= 3 && t.stages * ((t.m() + t.n) * 128 + 2048) + 1024 <= SHARED_MAX, "{t:?}");
            }
        }
    }
}
