//! The loss head in slices of rows: tokens x vocabulary never exists as a whole.
//!
//! A cross-entropy over the product of an activation with a weight has logits `[rows, classes]` that nothing else wants, and gradients of
//! them as large. [`slice()`] writes the forward graph with the product, what is elementwise behind it and the loss once for each slice of
//! rows; differentiation then gives each slice its own gradients, and the weight's is the sum over slices. [`turn()`] lets each slice run
//! forward and backward at once, between the two passes: the gradient of the loss by itself (the loss scale, the number of labels that
//! count) is known beforehand, so that neither logits nor their gradient outlive their slice, and nothing is computed twice. What waits for
//! the backward pass is the gradient of the head's input.
//!
//! Slices are a property of the program and never of a budget: see [`Extents::slice_rows`].

mod find;
mod slice;
#[cfg(test)]
mod tests;
mod turn;

pub use slice::slice;
pub use turn::turn;

/// Rows of a slice at least: whole groups of E4M3 scales, and a tile of a product.
const LEAST_ROWS: u64 = 128;
/// Rows of a slice at most: enough to make up for reading the weight and adding to its gradient once a slice.
const MOST_ROWS: u64 = 1024;
/// Logits of a slice at least, where there are as many, so that launches stay few.
const LEAST_BYTES: u64 = 8 << 20;

/// How large a loss head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// Rows of logits: tokens.
    pub rows: u64,
    pub classes: u64,
    /// Length of what is multiplied with the weight.
    pub depth: u64,
    /// Of one logit.
    pub bytes: u64,
}

impl Extents {
    /// Rows of a slice: a power of two such that logits and their gradient take at most half as much as the f32 weight and its gradient,
    /// which are there anyway, within the module's bounds. All rows are one slice where they are no more.
    pub fn slice_rows(&self) -> u64 {
        let row = self.classes.saturating_mul(self.bytes).max(1);
        let beside_weight = (2 * self.depth / self.bytes.max(1)).min(MOST_ROWS);
        let rows = (LEAST_BYTES / row).max(beside_weight).max(LEAST_ROWS);
        1 << rows.ilog2()
    }
}
