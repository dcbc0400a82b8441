//! The checks behind [`super::Kernel::verify`].

use super::*;

macro_rules! pending { ($($f:ident: $t:ty),*) => { $(pub(super) fn $f(k: &$t) -> Result<(), KernelError> { let _ = k; Ok(()) })* } }
pending!(row: RowProgram, contract: Contract, scaled_contract: ScaledContract, quantize: Quantize, attention: Attention, conv: Conv, pool: Pool, scatter_add: ScatterAdd, scan: Scan);
