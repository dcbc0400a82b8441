//! Prefix sums: a thread for each line along the axis.

use super::direct::{each, unravel};
use super::module::Emitter;
use super::value::Val;
use crate::KernelError;
use crate::program::{Fold, Kernel, Kind, Scan};

/// Generates the single entry of a prefix sum.
pub fn generate(e: &Emitter<'_>, k: &Scan, name: &str) -> Result<(), KernelError> {
    let mut result = Ok(());
    each(e, name, &Kernel::Scan(*k).args(), if k.extent == 0 { 0 } else { k.outer * k.inner }, |b, line| {
        let [outer, inner] = unravel(b, line, [k.outer, k.inner]);
        let first = b.add(b.mulc(outer, (k.extent * k.inner) as i64), inner);
        let start = b.zero(Kind::from(k.dtype));
        let (float, int) = match start {
            Val::F(x) => (Some(b.cell(x)), None),
            Val::I(x) | Val::B(x) => (None, Some(b.cell(x))),
        };
        b.for_range(b.like(line, 0), b.like(line, k.extent as i64), 1, |j| {
            let j = if k.reverse { b.sub(b.like(j, k.extent as i64 - 1), j) } else { j };
            let at = b.add(first, b.mulc(j, k.inner as i64));
            let sum = float.map_or_else(|| int.map_or(start, |c| Val::I(b.get(&c))), |c| Val::F(b.get(&c)));
            match b.fold(Fold::Sum, sum, b.load_elem(b.arg(0), k.dtype, at)) {
                Ok(next) => {
                    b.store_elem(b.arg(1), k.dtype, at, if k.exclusive { sum } else { next });
                    match (next, float, int) {
                        (Val::F(x), Some(c), _) => b.set(&c, x),
                        (Val::I(x), _, Some(c)) => b.set(&c, x),
                        _ => {}
                    }
                }
                Err(e) => result = Err(e),
            }
        });
    })?;
    result
}
