//! The text form of kernels: what `--emit kernels` prints and tests compare, and its inverse.
//!
//! A row program is a listing:
//!
//! ```text
//! row space=[128, 768] row_dims=1
//!   a0: bf16[98304] read
//!   a1: f32[128] write
//!   %0 = load a0[768*d0 + d1]
//!   %1 = sum %0
//!   store a1[d0] = %1
//! ```
//!
//! Every other kernel is its fields, `key=value`, one line for the kernel and one for each part of it. The text holds all of a
//! kernel: parsing it gives an equal value.

mod families;
mod listing;
mod names;
mod record;
mod row;

pub use names::Named;

use super::Kernel;
use crate::KernelError;
use std::fmt;
use std::str::FromStr;

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kernel::Row(p) => p.fmt(f),
            other => families::records(other).iter().try_for_each(|record| record.fmt(f)),
        }
    }
}

impl FromStr for Kernel {
    type Err = KernelError;

    /// Parses the text form.
    ///
    /// # Errors
    /// [`KernelError::Parse`] with the line at fault. What parses need not verify.
    fn from_str(text: &str) -> Result<Self, KernelError> {
        if text.trim_start().starts_with("row ") { row::parse(text).map(Kernel::Row) } else { families::parse(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::program::*;
    use proptest::prelude::*;

    fn example(family: u8, n: [u64; 6], flags: [bool; 3]) -> Kernel {
        let dtype = if flags[0] { DType::F32 } else { DType::Bf16 };
        let epilogue = Epilogue { bias: flags[1].then_some(dtype), accumulate: flags[2] };
        let window =
            Window { input: [n[0], n[1]], output: [n[2], n[3]], kernel: [n[4], 1], stride: [1, 2], dilation: [1, 1], pad: [n[5], 0] };
        let heads = |i: usize| Heads { elements: n[i], offset: n[5 - i], batch: n[0], head: n[1], position: n[2] };
        let matrix = |i: usize| Matrix {
            dtype,
            elements: n[i],
            offset: n[i + 1],
            batch_strides: n[..i].to_vec(),
            row_stride: n[4],
            col_stride: n[5],
        };
        let mask = Mask { causal: flags[0], window: flags[1].then_some(n[0]), align_end: flags[2] };
        let bias = flags[2].then_some(Bias { dtype, elements: n[0], batch: n[1], head: n[2], query: n[3], key: n[4] });
        let attention = Attention {
            batch: n[0],
            heads: n[1],
            kv_heads: n[2],
            q_len: n[3],
            kv_len: n[4],
            depth: n[5],
            v_depth: n[0],
            scale: FloatBits(n[1] as u32),
            softcap: flags[0].then_some(FloatBits(n[2] as u32)),
            mask,
            bias,
            dtype,
            q: heads(0),
            k: heads(1),
            v: heads(2),
            o: heads(3),
            grads: [heads(2), heads(1), heads(0), heads(3)],
        };
        let [rows, cols, outer, picks, inner, extent] = n;
        match family {
            0 => {
                let batch = n[..2].to_vec();
                Kernel::Contract(Contract { batch, m: n[2], n: n[3], k: n[4], a: matrix(0), b: matrix(1), c: matrix(2), epilogue })
            }
            1 => {
                let b_scales = if flags[0] { ScaleGroup::Block } else { ScaleGroup::Row };
                Kernel::ScaledContract(ScaledContract { m: n[0], n: n[1], k: n[2], b_scales, c: dtype, epilogue })
            }
            2 => {
                let layouts = [Layout::Rows, Layout::Columns, Layout::RowsAndColumns, Layout::Blocks, Layout::BlocksBoth];
                let layout = layouts[n[3] as usize % 5];
                Kernel::Quantize(Quantize { rows, cols, source: dtype, layout, power_of_two: flags[1] })
            }
            3 => Kernel::Attention(attention),
            4 => Kernel::AttentionGrad(attention),
            5 => {
                let pass = [ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad][n[0] as usize % 3];
                let [batch, cin, cout, groups] = [n[1], n[2], n[3], n[4]];
                Kernel::Conv(Conv { pass, batch, cin, cout, groups, window, bias: flags[1], dtype, weight: DType::F32 })
            }
            6 => {
                let op = [PoolOp::Max, PoolOp::Average, PoolOp::AverageWithPadding { pad_end: [n[0], n[1]] }][n[2] as usize % 3];
                Kernel::Pool(Pool { op, backward: flags[1], planes: n[3], window, dtype })
            }
            7 => {
                let (index_outer, index_inner, accumulate) = (flags[0], flags[1], flags[2]);
                let (src, index, dst) = (dtype, DType::I64, DType::F32);
                Kernel::ScatterAdd(ScatterAdd { outer, picks, inner, extent, index_outer, index_inner, src, index, dst, accumulate })
            }
            8 => Kernel::Scan(Scan { outer, extent, inner, exclusive: flags[1], reverse: flags[2], dtype }),
            _ => {
                let rule = [Rule::AdamW, Rule::Sgd, Rule::Lion][n[0] as usize % 3];
                let moments = [DType::F32, DType::Bf16, DType::E4m3][n[1] as usize % 3];
                Kernel::Update(Update { rule, elements: extent, gradient: dtype, master: dtype, moments, guarded: flags[1] })
            }
        }
    }

    fn row_program() -> Kernel {
        let text = "row space=[2, 3] row_dims=1
  a0: bf16[6] read
  a1: f32[20] update
  a2: e4m3[6] write
  a3: f32[2] write
  %0 = load a0[-3*d0 - d1 + 5] if 0 <= d0 < 1, -1 <= d1 < 3
  %1 = index d1
  %2 = load a1[0] by 4*%1 below 5
  %3 = const float 0.1
  %4 = const int -7
  %5 = const float 0xffc00001
  %6 = const float -inf
  %7 = add %0, %3
  %8 = gelu_tanh_grad %7
  %9 = lt %8, %3
  %10 = select %9, %0, %8
  %11 = reduce.max %10
  %12 = cast %11 to bf16
  store a1[d0 + 2] = %12
  store a1[d0 + 4] += %12 if 0 <= d0 < 2
  quantize a2[3*d0 + d1], a3 = %10 power_of_two
";
        let kernel: Kernel = text.parse().expect("a kernel");
        assert_eq!(kernel.to_string(), text);
        kernel
    }

    #[test]
    fn a_listing_prints_as_it_was_written() {
        let Kernel::Row(p) = row_program() else { panic!("a row program") };
        assert_eq!((p.args.len(), p.body.len()), (4, 16));
        let Stmt::Load { access, .. } = &p.body[0] else { panic!("a load") };
        assert_eq!((access.offset, access.strides.as_slice(), access.guards.len()), (5, [-3i64, -1].as_slice(), 2));
    }

    #[test]
    fn errors_name_the_line() {
        let text = row_program().to_string().replace("select %9,", "select");
        assert!(matches!(text.parse::<Kernel>(), Err(KernelError::Parse { line: 16, .. })));
        for text in ["", "row", "frobnicate m=1", "quantize rows=1", "contract m=x"] {
            assert!(matches!(text.parse::<Kernel>(), Err(KernelError::Parse { line: 1, .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_family_parses_back(family in 0u8..10, n: [u64; 6], flags: [bool; 3]) {
            let kernel = example(family, n, flags);
            prop_assert_eq!(kernel.to_string().parse::<Kernel>(), Ok(kernel));
        }

        #[test]
        fn damaged_text_gives_an_error_not_a_panic(family in 0u8..11, at in 0usize..600, with in "[ -~]{0,3}", cut in 0usize..4) {
            let kernel = if family == 10 { row_program() } else { example(family, [3, 4, 5, 6, 7, 8], [true; 3]) };
            let text = kernel.to_string();
            let (at, end) = (at % text.len(), (at % text.len() + cut).min(text.len()));
            let damaged = format!("{}{with}{}", &text[..at], &text[end..]);
            if let Ok(kernel) = damaged.parse::<Kernel>() {
                prop_assert_eq!(kernel.to_string().parse::<Kernel>(), Ok(kernel));
            }
        }
    }
}
