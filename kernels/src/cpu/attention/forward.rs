//! Forward: for each block of queries, an online softmax over blocks of keys.

use super::super::Buffer;
use super::super::loops::rescale;
use super::super::matrix::{Float, Operand, Shape, View, product};
use super::super::tasks::Tasks;
use super::scores::{Block, Cap, Softmax};
use super::{KEYS, Plan, QUERIES, Tensor, cut};
use crate::KernelError;
use crate::numerics::simd::dispatch;
use std::ops::Range;

pub(super) fn tasks(plan: &Plan) -> Tasks {
    let (queries, keys) = (plan.queries(), plan.ld());
    let panels = plan.panel(queries, plan.depth) + plan.panel(keys, plan.depth) + plan.panel(keys, plan.v_depth);
    Tasks {
        count: (plan.k.batch * plan.k.heads) as usize * plan.q_len.div_ceil(QUERIES),
        floats: (panels + queries * (keys + plan.v_depth + 2) + keys) as u64,
        flops: plan.flops(2),
    }
}

/// # Safety
/// As [`super::run`].
pub(super) unsafe fn run(plan: &Plan, [o, lse]: &[Buffer; 2], scratch: Buffer) -> Result<(), KernelError> {
    let o = Tensor::new(Some(o), plan.float, plan.k.o);
    let lse = Operand { ptr: lse.ptr, float: Float::F32, rs: 1, cs: 1 };
    let blocks = plan.q_len.div_ceil(QUERIES);
    let heads = plan.k.heads as usize;
    let task = |task: usize, slot: &mut [f32]| {
        // The last queries see most under a causal mask: they go first.
        let block = blocks - 1 - task % blocks;
        let (batch, head) = (task / blocks / heads, task / blocks % heads);
        let queries = block * QUERIES..((block + 1) * QUERIES).min(plan.q_len);
        // SAFETY: the block is this task's own.
        unsafe {
            let mut state = State::new(plan, batch, head, queries, slot);
            state.scan();
            state.store(o, lse);
        }
    };
    // SAFETY: the caller's promise.
    unsafe { tasks(plan).run(scratch, task) }
}

/// A block of queries of one head.
struct State<'a> {
    plan: &'a Plan<'a>,
    batch: usize,
    head: usize,
    queries: Range<usize>,
    q: View,
    panel_k: &'a mut [f32],
    panel_v: &'a mut [f32],
    /// Scores, then probabilities, rows `Plan::ld` apart.
    scores: &'a mut [f32],
    /// Sums of p * v, still to be divided by `sum`.
    out: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    bias: &'a mut [f32],
}

impl<'a> State<'a> {
    unsafe fn new(plan: &'a Plan<'a>, batch: usize, head: usize, queries: Range<usize>, mut slot: &'a mut [f32]) -> State<'a> {
        let slot = &mut slot;
        let (rows, keys) = (plan.queries(), plan.ld());
        let panel_q = cut(slot, plan.panel(rows, plan.depth));
        // SAFETY: the queries are inside.
        let q = unsafe { plan.q.at(batch, head, queries.start).view(queries.len(), plan.depth, panel_q) };
        let state = State {
            plan,
            batch,
            head,
            queries,
            q,
            panel_k: cut(slot, plan.panel(keys, plan.depth)),
            panel_v: cut(slot, plan.panel(keys, plan.v_depth)),
            scores: cut(slot, rows * keys),
            out: cut(slot, rows * plan.v_depth),
            max: cut(slot, rows),
            sum: cut(slot, rows),
            bias: cut(slot, keys),
        };
        state.out.fill(0.0);
        state.sum.fill(0.0);
        state.max.fill(f32::NEG_INFINITY);
        state
    }

    /// Goes over the blocks of keys.
    unsafe fn scan(&mut self) {
        let plan = self.plan;
        let kv_head = self.head / plan.group;
        let seen = plan.visible.keys_of(self.queries.clone());
        let (rows, ld) = (self.queries.len(), plan.ld());
        for start in seen.clone().step_by(KEYS) {
            let keys = start..(start + KEYS).min(seen.end);
            let n = keys.len();
            // SAFETY: keys and queries are inside; the scores have `rows` rows of at least `n`.
            unsafe {
                let k = plan.key.at(self.batch, kv_head, start).view(n, plan.depth, self.panel_k);
                product(Shape { m: rows, n, k: plan.depth }, self.scores.as_mut_ptr(), ld, false, self.q, k.t(), plan.scale);
                self.softmax(keys);
                let v = plan.v.at(self.batch, kv_head, start).view(n, plan.v_depth, self.panel_v);
                let p = View::rows(self.scores, ld);
                product(Shape { m: rows, n: plan.v_depth, k: n }, self.out.as_mut_ptr(), plan.v_depth, true, p, v, 1.0);
            }
        }
    }

    /// Turns raw scores into exponentials.
    unsafe fn softmax(&mut self, keys: Range<usize>) {
        let plan = self.plan;
        let (ld, queries) = (plan.ld(), self.queries.clone());
        let scores = &mut self.scores[..queries.len() * ld];
        if let Some(cap) = plan.cap {
            dispatch(Cap { scores, slope: None, cap });
        }
        let mut block = Block { scores, ld, queries, keys, visible: plan.visible };
        if let Some(bias) = &plan.bias {
            // SAFETY: keys and queries are inside.
            unsafe { block.add_bias(bias, self.batch, self.head, self.bias) };
        }
        dispatch(Softmax { block, max: self.max, sum: self.sum, out: self.out, depth: plan.v_depth });
    }

    /// Divides and stores.
    unsafe fn store(self, o: Tensor, lse: Operand) {
        let plan = self.plan;
        let first = (self.batch * plan.k.heads as usize + self.head) * plan.q_len + self.queries.start;
        for row in 0..self.queries.len() {
            let out = &mut self.out[row * plan.v_depth..][..plan.v_depth];
            let sum = self.sum[row];
            rescale(out, if sum == 0.0 { 0.0 } else { 1.0 / sum });
            // SAFETY: the row is this task's own.
            unsafe {
                o.at(self.batch, self.head, self.queries.start + row).store_row(out);
                lse.at(first + row, 0).store_row(&[self.max[row] + sum.ln()]);
            }
        }
    }
}
