//! What happens to a product before it is stored.

use super::build::{Build, Float, Int};
use super::value::Val;
use crate::DType;
use crate::program::{Kernel, ScaledContract};

/// Where a matrix product goes: argument `arg` at `base + row * row_stride + col * col_stride`.
pub struct Output<'c, 'b> {
    pub b: &'b Build<'c, 'b>,
    pub arg: usize,
    pub dtype: DType,
    /// First element of the batch's matrix, i64.
    pub base: Int<'c>,
    pub m: i64,
    pub n: i64,
    pub row_stride: i64,
    pub col_stride: i64,
    /// Largest power of two that divides the offset and every batch stride.
    pub aligned: i64,
    /// Argument and format of the bias.
    pub bias: Option<(usize, DType)>,
    pub accumulate: bool,
    /// True if tiles never reach beyond the matrix.
    pub exact: bool,
}

/// Largest power of two up to 16 that divides all of some offsets.
pub fn alignment(offsets: impl IntoIterator<Item = i64>) -> i64 {
    let divides = |p: &i64, all: &[i64]| all.iter().all(|o| o % p == 0);
    let all: Vec<i64> = offsets.into_iter().collect();
    [16, 8, 4, 2].into_iter().find(|p| divides(p, &all)).unwrap_or(1)
}

impl<'c, 'b> Output<'c, 'b> {
    /// The result of a scaled product that is made in tiles of `tile_m` rows and `tile_n` columns.
    pub fn scaled(b: &'b Build<'c, 'b>, k: &ScaledContract, [tile_m, tile_n]: [i64; 2]) -> Self {
        Output {
            b,
            arg: Kernel::ScaledContract(k.clone()).args().len() - 1,
            dtype: k.c,
            base: b.i64(0),
            m: k.m as i64,
            n: k.n as i64,
            row_stride: k.n as i64,
            col_stride: 1,
            aligned: 16,
            bias: k.epilogue.bias.map(|d| (4, d)),
            accumulate: k.epilogue.accumulate,
            exact: k.m as i64 % tile_m == 0 && k.n as i64 % tile_n == 0,
        }
    }

    /// Elements that one store may take, of runs of `run` columns that start at a multiple of `run`.
    fn piece(&self, run: i64) -> i64 {
        let fits = |p: &i64| self.aligned % p == 0 && self.row_stride % p == 0 && self.n % p == 0 && run % p == 0;
        let contiguous = self.col_stride == 1;
        [4, 2].into_iter().filter(|_| contiguous).find(fits).unwrap_or(1)
    }

    /// Stores neighbouring columns of a row; `col` is a multiple of their number.
    pub fn store(&self, row: Int<'c>, col: Int<'c>, values: &[Float<'c>]) {
        let b = self.b;
        let piece = self.piece(values.len() as i64) as usize;
        let rows = b.add(self.base, b.mulc(b.to_i64(row), self.row_stride));
        for (i, part) in values.chunks(piece).enumerate() {
            let col = b.addc(col, (i * piece) as i64);
            let at = b.add(rows, b.mulc(b.to_i64(col), self.col_stride));
            let write = || {
                let new: Vec<Val<'c>> = part.iter().enumerate().map(|(l, &v)| Val::F(self.finish(v, at, col, l as i64))).collect();
                b.store_elems(b.arg(self.arg), self.dtype, at, &new);
            };
            match self.exact {
                true => write(),
                false => b.if_then(b.and(b.ltc(row, self.m), b.ltc(col, self.n)), write),
            }
        }
    }

    /// Stores two pairs of columns of a row, eight apart, that four neighbouring lanes hold of 16: as few and wide as possible.
    ///
    /// Lane q of the four has columns `col` + 2 q and the next in `low`, those 8 beyond in `high`; `col` is a multiple of 16, `quarter` is
    /// 2 q. All lanes of the warp take part.
    pub fn store_sixteen(&self, row: Int<'c>, col: Int<'c>, quarter: Int<'c>, [low, high]: [[Float<'c>; 2]; 2]) {
        let b = self.b;
        if self.dtype != DType::Bf16 || self.accumulate || self.piece(4) != 4 {
            self.store(row, b.add(col, quarter), &low);
            self.store(row, b.add(b.addc(col, 8), quarter), &high);
            return;
        }
        // Even lanes take four columns of the low eight, odd ones of the high eight: one sector for each row.
        let odd = b.eqc(b.andc(b.thread(), 1), 1);
        let biased = |pair: [Float<'c>; 2], col: Int<'c>| {
            let finish = |i: usize| self.finish(pair[i], b.i64(0), b.minc(b.addc(col, i as i64), self.n - 1), 0);
            b.bf16_pair(finish(0), finish(1))
        };
        let (low, high) = (biased(low, b.add(col, quarter)), biased(high, b.add(b.addc(col, 8), quarter)));
        let other = b.shuffle_xor(b.select(odd, low, high), 1);
        let words = [b.select(odd, other, low), b.select(odd, high, other)];
        let first = b.add(b.add(col, b.andc(quarter, 4)), b.select(odd, b.i32(8), b.i32(0)));
        let at = b.add(b.add(self.base, b.mulc(b.to_i64(row), self.row_stride)), b.to_i64(first));
        let write = || b.store(b.at(b.arg(self.arg), at, 2), b.vector(&words.map(|w| w.into())).into_vector_value(), 8);
        match self.exact {
            true => write(),
            false => b.if_then(b.and(b.ltc(row, self.m), b.ltc(first, self.n)), write),
        }
    }

    /// Bias and what C holds already, added in this order.
    fn finish(&self, v: Float<'c>, at: Int<'c>, col: Int<'c>, lane: i64) -> Float<'c> {
        let b = self.b;
        let add = |v, arg: usize, dtype, index| b.fadd(v, b.to_float(b.load_elem(b.arg(arg), dtype, b.addc(index, lane))));
        let v = self.bias.map_or(v, |(arg, dtype)| add(v, arg, dtype, b.to_i64(col)));
        if self.accumulate { add(v, self.arg, self.dtype, at) } else { v }
    }
}
