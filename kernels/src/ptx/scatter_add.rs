//! Scatter-add in a fixed order, without atomic operations.
//!
//! Where the index does not vary along the inner axis (embeddings), a warp owns 32 columns of a range of destination rows, as f32 sums
//! in shared memory. It looks through the index 32 picks at a time and adds those that fall into its range, one after the other. A
//! lane owns its column, so that nothing needs a barrier. Where the index varies, a thread owns an element of the destination and
//! looks through its picks.

use super::build::{Build, Int};
use super::direct::{each, index_width, ravel, unravel};
use super::module::Emitter;
use super::value::Val;
use crate::KernelError;
use crate::program::{Kernel, ScatterAdd};

/// Bytes of a block's sums.
const SUMS: u64 = 32 * 1024;

/// Generates the single entry of a scatter-add.
pub fn generate(e: &Emitter<'_>, k: &ScatterAdd, name: &str) -> Result<(), KernelError> {
    if k.outer * k.extent * k.inner == 0 {
        return Ok(());
    }
    if k.index_inner { by_element(e, k, name) } else { by_range(e, k, name) }
}

fn by_element(e: &Emitter<'_>, k: &ScatterAdd, name: &str) -> Result<(), KernelError> {
    each(e, name, &Kernel::ScatterAdd(*k).args(), k.outer * k.extent * k.inner, |b, i| {
        let [outer, row, inner] = unravel(b, i, [k.outer, k.extent, k.inner]);
        let start = if k.accumulate { b.to_float(b.load_elem(b.arg(2), k.dst, i)) } else { b.f32(0.0) };
        let sum = b.cell(start);
        b.for_range(b.like(i, 0), b.like(i, k.picks as i64), 1, |j| {
            let from = if k.index_outer { outer } else { b.like(i, 0) };
            let index = b.to_int(b.load_elem(b.arg(1), k.index, ravel(b, [from, j, inner], [k.outer, k.picks, k.inner])), 64);
            b.if_then(b.cmp(inkwell::IntPredicate::EQ, index, b.zext(row, 64)), || {
                let v = b.load_elem(b.arg(0), k.src, ravel(b, [outer, j, inner], [k.outer, k.picks, k.inner]));
                b.set(&sum, b.fadd(b.get(&sum), b.to_float(v)));
            });
        });
        b.store_elem(b.arg(2), k.dst, i, Val::F(b.get(&sum)));
    })
}

fn by_range(e: &Emitter<'_>, k: &ScatterAdd, name: &str) -> Result<(), KernelError> {
    let args = Kernel::ScatterAdd(*k).args();
    let columns = 32 * k.inner.div_ceil(32).min(8);
    let rows = k.extent.min(SUMS / (4 * columns));
    let (parts, ranges) = (k.inner.div_ceil(columns), k.extent.div_ceil(rows));
    let b = e.entry(name, &args, k.outer * ranges * parts, columns as u32, (4 * rows * columns) as u32)?;
    let width = index_width(&args, 0);
    let (thread, block) = (b.zext(b.thread(), width), b.zext(b.block_index(), width));
    let [outer, range, part] = unravel(&b, block, [k.outer, ranges, parts]);
    let inner = b.add(b.mulc(part, columns as i64), thread);
    let owned = Owned { b: &b, k, columns: columns as i64, rows: rows as i64, outer, first: b.mulc(range, rows as i64), inner };
    owned.visit(|slot, at| {
        let start = if k.accumulate { b.to_float(b.load_elem(b.arg(2), k.dst, at)) } else { b.f32(0.0) };
        b.store_f32(b.shared(), slot, start);
    });
    owned.scan();
    owned.visit(|slot, at| b.store_elem(b.arg(2), k.dst, at, Val::F(b.load_f32(b.shared(), slot))));
    b.finish();
    Ok(())
}

/// A lane's column of a range of destination rows.
struct Owned<'c, 'b> {
    b: &'b Build<'c, 'b>,
    k: &'b ScatterAdd,
    columns: i64,
    rows: i64,
    outer: Int<'c>,
    first: Int<'c>,
    inner: Int<'c>,
}

impl<'c> Owned<'c, '_> {
    fn exists(&self) -> Int<'c> {
        self.b.ltc(self.inner, self.k.inner as i64)
    }

    /// The sum of row `row` of the range, in f32 elements of shared memory.
    fn slot(&self, row: Int<'c>) -> Int<'c> {
        let b = self.b;
        b.add(b.mulc(b.zext(row, 32), self.columns), b.thread())
    }

    /// Runs `body` on the slot and the destination of each element of the column.
    fn visit(&self, body: impl FnOnce(Int<'c>, Int<'c>)) {
        let (b, k) = (self.b, self.k);
        let left = b.sub(b.like(self.first, k.extent as i64), self.first);
        let count = b.select(self.exists(), b.minc(left, self.rows), b.like(left, 0));
        b.for_range(b.like(count, 0), count, 1, |row| {
            body(self.slot(row), ravel(b, [self.outer, b.add(self.first, row), self.inner], [k.outer, k.extent, k.inner]));
        });
    }

    /// Looks through all picks in ascending order.
    fn scan(&self) {
        let (b, k) = (self.b, self.k);
        let lane = b.andc(b.thread(), 31);
        let zero = b.like(self.first, 0);
        b.for_range(zero, b.like(zero, k.picks as i64), 32, |j| {
            let pick = b.add(j, b.zext(lane, zero.get_type().get_bit_width()));
            let there = b.ltc(pick, k.picks as i64);
            let from = if k.index_outer { self.outer } else { zero };
            let at = ravel(b, [from, b.minc(pick, k.picks as i64 - 1)], [k.outer, k.picks]);
            let index = b.to_int(b.load_elem(b.arg(1), k.index, at), 64);
            let row = b.sub(index, b.zext(self.first, 64));
            let ours = b.cmp(inkwell::IntPredicate::ULT, row, b.i64(self.rows));
            let ours = b.and(ours, b.cmp(inkwell::IntPredicate::ULT, index, b.i64(k.extent as i64)));
            let hits = b.cell(b.ballot(b.and(ours, there)));
            let row = b.zext(row, 32);
            b.while_true(
                || b.not(b.eqc(b.get(&hits), 0)),
                || {
                    let bit = b.trailing_zeros(b.get(&hits));
                    b.set(&hits, b.and(b.get(&hits), b.addc(b.get(&hits), -1)));
                    let slot = self.slot(b.shuffle(row, bit));
                    let pick = b.add(j, b.zext(bit, zero.get_type().get_bit_width()));
                    b.if_then(self.exists(), || {
                        let v = b.load_elem(b.arg(0), k.src, ravel(b, [self.outer, pick, self.inner], [k.outer, k.picks, k.inner]));
                        b.store_f32(b.shared(), slot, b.fadd(b.load_f32(b.shared(), slot), b.to_float(v)));
                    });
                },
            );
        });
    }
}
