//! What products for sm_90a do, counted as a profiler would.

use super::agree::{arguments, emulate};
use super::contract::{Layout, dense};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Epilogue, Kernel, ScaleGroup, ScaledContract};
use fp8c_kernels::ptx::{Tile, generate_tiled};
use fp8c_ptx_emulator::Counts;

const M: u64 = 512;
const N: u64 = 384;
const K: u64 = 512;
const TILE: Tile = Tile { groups: 2, fragments: 2, n: 128, stages: 4 };

fn counted(kernel: &Kernel) -> Counts {
    let module = generate_tiled(kernel, "product", TILE).unwrap();
    let (_, counts) = emulate(kernel, &module, &arguments(kernel, 1)).unwrap_or_else(|fault| panic!("{fault}"));
    counts
}

/// Bytes that the tiles of a product bring, each operand's tile once for each tile of the result.
fn brought(element: u64) -> u64 {
    let tiles = (M / TILE.m() as u64) * (N / TILE.n as u64);
    tiles * (TILE.m() + TILE.n) as u64 * K * element
}

fn products() -> Vec<(&'static str, u64, Kernel)> {
    let scaled = |b_scales, c| Kernel::ScaledContract(ScaledContract { m: M, n: N, k: K, b_scales, c, epilogue: Epilogue::default() });
    let bf16 = |left, right| dense([DType::Bf16; 3], &[], [M, N, K], Layout { left, right }, Epilogue::default());
    vec![
        ("e4m3, block scales", 1, scaled(ScaleGroup::Block, DType::Bf16)),
        ("e4m3, row scales, f32", 1, scaled(ScaleGroup::Row, DType::F32)),
        ("bf16, both along the depth", 2, bf16(false, true)),
        ("bf16, both across", 2, bf16(true, false)),
    ]
}

#[test]
fn products_touch_every_bank_once_and_bring_every_tile_once() {
    for (name, element, kernel) in products() {
        let counts = counted(&kernel);
        assert_eq!(counts.shared.conflicts(), 0, "{name}");
        let (have, least) = (counts.global_reads.bytes as f64, brought(element) as f64);
        assert!(have <= 1.1 * least, "{name}: {have} bytes read, {least} of tiles");
        let writes = &counts.global_writes;
        assert_eq!(writes.sectors, writes.least_sectors, "{name}");
        let reads = &counts.global_reads;
        let sectors = reads.sectors as f64 / reads.least_sectors as f64;
        eprintln!(
            "{name}: {:.3} of the tiles' bytes, {sectors:.3} of the least sectors, {} instructions",
            have / least,
            counts.instructions
        );
        // Scales of a step are a column of their matrix: a sector for four bytes.
        assert!(sectors <= if element == 1 { 1.2 } else { 1.0 }, "{name}: {sectors}");
    }
}

#[test]
fn products_multiply_on_warpgroups_as_often_as_their_tiles_have_elements() {
    for (name, element, kernel) in products() {
        let instruction = if element == 1 { "wgmma.e4m3" } else { "wgmma.bf16" };
        let counts = counted(&kernel);
        assert_eq!(counts.products.iter().collect::<Vec<_>>(), [(&instruction, &(M * N * K))], "{name}");
    }
}
