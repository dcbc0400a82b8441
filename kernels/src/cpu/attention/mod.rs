//! Attention without stored scores: blocks of queries meet blocks of keys, and what a block of scores needs stays in cache.
//!
//! Forward, each block of queries of each head is a task of its own. Backward, one task has all queries of the heads that share a
//! key head, so that the gradients of keys and values are summed in one fixed order.

mod backward;
mod forward;
mod scores;

use super::Buffer;
use super::matrix::{Float, Operand};
use super::tasks::{Tasks, flops};
use crate::KernelError;
use crate::program::{Attention, Heads};
use scores::{Bias, Visible};

/// Queries and keys of a block of scores.
const QUERIES: usize = 64;
const KEYS: usize = 256;

/// An operand `[batch, heads, positions, depth]` of an argument.
#[derive(Clone, Copy)]
struct Tensor {
    base: Operand,
    heads: Heads,
}

impl Tensor {
    fn new(arg: Option<&Buffer>, float: Float, heads: Heads) -> Tensor {
        let ptr = arg.map_or(std::ptr::null_mut(), |b| b.ptr);
        Tensor { base: Operand { ptr, float, rs: heads.position as isize, cs: 1 }.offset(heads.offset as isize), heads }
    }

    /// The matrix `[positions, depth]` of a head, from a position on.
    fn at(&self, batch: usize, head: usize, position: usize) -> Operand {
        let elements = (batch as u64).wrapping_mul(self.heads.batch).wrapping_add((head as u64).wrapping_mul(self.heads.head));
        self.base.offset(elements as isize).at(position, 0)
    }
}

/// Everything that a task needs to know. Without arguments the addresses are null: enough to ask for scratch.
struct Plan<'a> {
    k: &'a Attention,
    q_len: usize,
    kv_len: usize,
    depth: usize,
    v_depth: usize,
    /// Query heads for each key head.
    group: usize,
    float: Float,
    scale: f32,
    cap: Option<f32>,
    visible: Visible,
    q: Tensor,
    key: Tensor,
    v: Tensor,
    bias: Option<Bias>,
}

impl<'a> Plan<'a> {
    fn new(k: &'a Attention, args: &[Buffer]) -> Result<Plan<'a>, KernelError> {
        let float = Float::of(k.dtype, "attention")?;
        let bias = k.bias.map(|b| Bias::new(b, args.get(3))).transpose()?;
        Ok(Plan {
            k,
            q_len: k.q_len as usize,
            kv_len: k.kv_len as usize,
            depth: k.depth as usize,
            v_depth: k.v_depth as usize,
            group: (k.heads / k.kv_heads.max(1)) as usize,
            float,
            scale: f32::from_bits(k.scale.0),
            cap: k.softcap.map(|c| f32::from_bits(c.0)),
            visible: Visible::new(k),
            q: Tensor::new(args.first(), float, k.q),
            key: Tensor::new(args.get(1), float, k.k),
            v: Tensor::new(args.get(2), float, k.v),
            bias,
        })
    }

    /// Floats from row to row of a block of scores: whole lanes.
    fn ld(&self) -> usize {
        KEYS.min(self.kv_len).next_multiple_of(16)
    }

    fn queries(&self) -> usize {
        QUERIES.min(self.q_len)
    }

    /// Floats that a panel of `rows` of a depth takes where it must be converted.
    fn panel(&self, rows: usize, depth: usize) -> usize {
        if self.float == Float::F32 { 0 } else { (rows * depth).next_multiple_of(16) }
    }

    /// Multiplications and additions of `products` products of every visible block.
    fn flops(&self, products: u64) -> u64 {
        flops(&[products, self.k.batch, self.k.heads, self.k.q_len, self.k.kv_len, self.k.depth + self.k.v_depth])
    }
}

/// The arguments after the inputs.
fn outputs<'a, const N: usize>(k: &Attention, args: &'a [Buffer]) -> Result<&'a [Buffer; N], KernelError> {
    let rest = args.get(3 + usize::from(k.bias.is_some())..).unwrap_or(&[]);
    let wrong = |_| KernelError::Invalid { family: "attention", reason: format!("{} arguments", args.len()) };
    rest.try_into().map_err(wrong)
}

/// Cuts the next `n` floats off a slot.
fn cut<'a>(slot: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (head, tail) = std::mem::take(slot).split_at_mut(n);
    *slot = tail;
    head
}

fn scratch_of(k: &Attention, threads: usize, tasks: fn(&Plan) -> Tasks) -> u64 {
    Plan::new(k, &[]).map_or(0, |plan| tasks(&plan).scratch(threads))
}

/// Scratch bytes of the forward kernel for a pool of `threads`.
pub(crate) fn scratch(k: &Attention, threads: usize) -> u64 {
    scratch_of(k, threads, forward::tasks)
}

/// Scratch bytes of the backward kernel for a pool of `threads`.
pub(crate) fn scratch_grad(k: &Attention, threads: usize) -> u64 {
    scratch_of(k, threads, backward::tasks)
}

/// Runs the forward kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// [`KernelError::Unsupported`] for formats other than f32 and bf16.
pub(crate) unsafe fn run(k: &Attention, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let plan = Plan::new(k, args)?;
    // SAFETY: the caller's promise.
    unsafe { forward::run(&plan, outputs(k, args)?, scratch) }
}

/// Runs the backward kernel.
///
/// # Safety
/// As [`super::launch`].
///
/// # Errors
/// As [`run`].
pub(crate) unsafe fn run_grad(k: &Attention, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
    let plan = Plan::new(k, args)?;
    // SAFETY: the caller's promise.
    unsafe { backward::run(&plan, outputs(k, args)?, scratch) }
}
