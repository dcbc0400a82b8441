//! The checks behind [`super::Kernel::verify`].
//!
//! Plans come from files, so nothing here may overflow or take long on hostile numbers: addresses are computed in 128 bits, sizes
//! are limited by [`MAX_POINTS`], [`MAX_DIMS`], [`MAX_STATEMENTS`] and [`MAX_LEVELS`], and whatever cannot be shown to be safe is
//! refused. Work is near linear in a kernel's size: comparisons and points that are counted out have allowances.
//!
//! Executors compute addresses in 64 bits, wrapping. They are right where an access is made, because its element is below
//! [`MAX_POINTS`]; where a shape is empty nothing is bounded, and no address is followed.

mod attention;
mod conflicts;
mod overlap;
mod products;
mod row;
mod window;

pub(super) use attention::attention;
pub(super) use products::{contract, quantize, scaled_contract, scan, scatter_add, update};
pub(super) use row::row;
pub(super) use window::{conv, pool};

use super::Arg;
use crate::KernelError;

/// Most elements of an argument and points of an iteration space.
pub const MAX_POINTS: u64 = 1 << 48;
/// Most dimensions of an iteration space.
pub const MAX_DIMS: usize = 16;
/// Most statements of a row program.
pub const MAX_STATEMENTS: usize = 1 << 12;
/// Most folds of a row program that depend on one another: each is one more pass over long rows.
pub const MAX_LEVELS: usize = 32;

/// Reports a broken invariant of one family.
#[derive(Clone, Copy)]
struct Family(&'static str);

impl Family {
    fn fail<T>(self, reason: impl Into<String>) -> Result<T, KernelError> {
        Err(KernelError::Invalid { family: self.0, reason: reason.into() })
    }

    fn require(self, holds: bool, reason: &str) -> Result<(), KernelError> {
        if holds { Ok(()) } else { self.fail(reason) }
    }

    /// Checks that a product of extents stays within [`MAX_POINTS`]; zeros count as ones, so that no part of it overflows either.
    fn volume(self, extents: &[u64], what: &str) -> Result<(), KernelError> {
        let volume = extents.iter().fold(1u64, |v, &e| v.saturating_mul(e.max(1)));
        self.require(volume <= MAX_POINTS, &format!("{what} is larger than {MAX_POINTS} elements"))
    }

    /// Checks that every argument has a size that a machine can address.
    fn arguments(self, args: &[Arg]) -> Result<(), KernelError> {
        match args.iter().position(|a| a.elements > MAX_POINTS) {
            Some(i) => self.fail(format!("argument {i} has more than {MAX_POINTS} elements")),
            None => Ok(()),
        }
    }

    /// Checks that `offset + sum(strides * index)` stays in `[0, elements)` for every index of a box of unsigned strides.
    fn strided(self, what: &str, elements: u64, offset: u64, dims: &[(u64, u64)]) -> Result<(), KernelError> {
        let large = dims.iter().map(|d| d.1).chain([offset]).any(|term| term > MAX_POINTS);
        self.require(!large, &format!("an offset or stride of {what} is too large"))?;
        if dims.iter().any(|&(extent, _)| extent == 0) {
            return Ok(());
        }
        let last = dims.iter().try_fold(u128::from(offset), |at, &(extent, stride)| {
            u128::from(extent - 1).checked_mul(u128::from(stride)).and_then(|step| at.checked_add(step))
        });
        match last {
            Some(last) if last < u128::from(elements) => Ok(()),
            _ => self.fail(format!("{what} reaches past its {elements} elements")),
        }
    }
}
