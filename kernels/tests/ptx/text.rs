//! The text of small products for sm_90a.

use super::contract::{Layout, dense};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Epilogue, Kernel, ScaleGroup, ScaledContract};
use fp8c_kernels::ptx::{Tile, generate_tiled};

const TILE: Tile = Tile { groups: 2, fragments: 1, n: 64, stages: 3 };

#[test]
fn an_e4m3_product_for_sm_90a() {
    let product = ScaledContract { m: 128, n: 64, k: 1024, b_scales: ScaleGroup::Block, c: DType::Bf16, epilogue: Epilogue::default() };
    insta::assert_snapshot!(generate_tiled(&Kernel::ScaledContract(product), "product", TILE).unwrap().text);
}

#[test]
fn a_bf16_product_for_sm_90a() {
    let layout = Layout { left: false, right: false };
    let product = dense([DType::Bf16; 3], &[], [128, 64, 1024], layout, Epilogue::default());
    insta::assert_snapshot!(generate_tiled(&product, "product", TILE).unwrap().text);
}
