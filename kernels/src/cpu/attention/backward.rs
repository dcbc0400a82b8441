//! Backward: for each key head, the queries that look at it, block by block, against its keys, block by block.

use super::super::Buffer;
use super::super::loops::dot;
use super::super::matrix::{Float, Operand, Shape, View, product};
use super::super::tasks::Tasks;
use super::scores::{Block, Cap, Gradients};
use super::{KEYS, Plan, QUERIES, Tensor, cut};
use crate::KernelError;
use crate::numerics::simd::dispatch;
use std::ops::Range;

/// Floats of the sums of dk and dv where they cannot grow in the arguments.
fn sums(plan: &Plan) -> usize {
    plan.panel(plan.kv_len, plan.depth + plan.v_depth)
}

pub(super) fn tasks(plan: &Plan) -> Tasks {
    let (queries, keys) = (plan.queries(), plan.ld());
    let (d, dv) = (plan.depth, plan.v_depth);
    let panels = plan.panel(queries, d) + plan.panel(queries, dv) + plan.panel(keys, d) + plan.panel(keys, dv);
    let scores = queries * keys * if plan.cap.is_some() { 3 } else { 2 };
    Tasks {
        // Without positions or depth there is nothing to write.
        count: if plan.q_len.max(plan.kv_len) == 0 || d.max(dv) == 0 { 0 } else { (plan.k.batch * plan.k.kv_heads) as usize },
        floats: (sums(plan) + panels + scores + queries * (d + 2) + 2 * dv + keys) as u64,
        flops: plan.flops(5),
    }
}

/// The backward kernel's other arguments.
struct Others {
    o: Tensor,
    lse: Operand,
    d_o: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
}

/// # Safety
/// As [`super::run_grad`].
pub(super) unsafe fn run(plan: &Plan, [o, lse, d_o, dq, dk, dv]: &[Buffer; 6], scratch: Buffer) -> Result<(), KernelError> {
    let tensor = |arg, heads| Tensor::new(Some(arg), plan.float, heads);
    let [l_o, l_q, l_k, l_v] = plan.k.grads;
    let g = Others {
        o: tensor(o, plan.k.o),
        lse: Operand { ptr: lse.ptr, float: Float::F32, rs: 1, cs: 1 },
        d_o: tensor(d_o, l_o),
        dq: tensor(dq, l_q),
        dk: tensor(dk, l_k),
        dv: tensor(dv, l_v),
    };
    let kv_heads = plan.k.kv_heads as usize;
    let task = |task: usize, slot: &mut [f32]| {
        // SAFETY: the gradients of this key head and its query heads are this task's own.
        unsafe { KeyHead::new(plan, &g, task / kv_heads, task % kv_heads, slot).run() }
    };
    // SAFETY: the caller's promise.
    unsafe { tasks(plan).run(scratch, task) }
}

/// Sums of a gradient `[positions, depth]`: in the argument, or in scratch.
#[derive(Clone, Copy)]
struct Sums {
    ptr: *mut f32,
    ld: usize,
}

impl Sums {
    fn at(self, row: usize) -> *mut f32 {
        self.ptr.wrapping_add(row * self.ld)
    }
}

/// One key head's task.
struct KeyHead<'a> {
    plan: &'a Plan<'a>,
    g: &'a Others,
    batch: usize,
    kv_head: usize,
    dk: Sums,
    dv: Sums,
    panels: [&'a mut [f32]; 4],
    scores: &'a mut [f32],
    grads: &'a mut [f32],
    slope: &'a mut [f32],
    dq: &'a mut [f32],
    delta: &'a mut [f32],
    lse: &'a mut [f32],
    rows: [&'a mut [f32]; 2],
    bias: &'a mut [f32],
}

impl<'a> KeyHead<'a> {
    fn new(plan: &'a Plan<'a>, g: &'a Others, batch: usize, kv_head: usize, mut slot: &'a mut [f32]) -> KeyHead<'a> {
        let slot = &mut slot;
        let (queries, keys, d, dv) = (plan.queries(), plan.ld(), plan.depth, plan.v_depth);
        let sums = cut(slot, sums(plan));
        let (dk_sums, dv_sums) = if plan.float == Float::F32 {
            [g.dk, g.dv].map(|t| Sums { ptr: t.at(batch, kv_head, 0).ptr.cast(), ld: t.heads.position as usize }).into()
        } else {
            let (k, v) = sums.split_at_mut(plan.kv_len * d);
            (Sums { ptr: k.as_mut_ptr(), ld: d }, Sums { ptr: v.as_mut_ptr(), ld: dv })
        };
        let panels = [(queries, d), (queries, dv), (keys, d), (keys, dv)].map(|(rows, depth)| cut(slot, plan.panel(rows, depth)));
        KeyHead {
            plan,
            g,
            batch,
            kv_head,
            dk: dk_sums,
            dv: dv_sums,
            panels,
            scores: cut(slot, queries * keys),
            grads: cut(slot, queries * keys),
            slope: cut(slot, if plan.cap.is_some() { queries * keys } else { 0 }),
            dq: cut(slot, queries * d),
            delta: cut(slot, queries),
            lse: cut(slot, queries),
            rows: [cut(slot, dv), cut(slot, dv)],
            bias: cut(slot, keys),
        }
    }

    unsafe fn run(mut self) {
        let plan = self.plan;
        // SAFETY: the sums have `kv_len` rows, and what is stored is this task's own.
        unsafe {
            for row in 0..plan.kv_len {
                std::slice::from_raw_parts_mut(self.dk.at(row), plan.depth).fill(0.0);
                std::slice::from_raw_parts_mut(self.dv.at(row), plan.v_depth).fill(0.0);
            }
            for head in self.kv_head * plan.group..(self.kv_head + 1) * plan.group {
                for start in (0..plan.q_len).step_by(QUERIES) {
                    self.queries(head, start..(start + QUERIES).min(plan.q_len));
                }
            }
            if plan.float != Float::F32 {
                for row in 0..plan.kv_len {
                    let (dk, dv) = (self.g.dk.at(self.batch, self.kv_head, row), self.g.dv.at(self.batch, self.kv_head, row));
                    dk.store_row(std::slice::from_raw_parts(self.dk.at(row), plan.depth));
                    dv.store_row(std::slice::from_raw_parts(self.dv.at(row), plan.v_depth));
                }
            }
        }
    }

    /// All that a block of queries gives and gets.
    unsafe fn queries(&mut self, head: usize, queries: Range<usize>) {
        let plan = self.plan;
        let (batch, rows, first) = (self.batch, queries.len(), queries.start);
        // SAFETY: the queries are inside, and their gradient this task's own.
        unsafe {
            let q = plan.q.at(batch, head, first).view(rows, plan.depth, self.panels[0]);
            let d_o = self.g.d_o.at(batch, head, first).view(rows, plan.v_depth, self.panels[1]);
            let lse = self.g.lse.at((batch * plan.k.heads as usize + head) * plan.q_len + first, 0);
            lse.load_row(&mut self.lse[..rows]);
            let [o_row, d_o_row] = &mut self.rows;
            for row in 0..rows {
                self.g.o.at(batch, head, first + row).load_row(o_row);
                self.g.d_o.at(batch, head, first + row).load_row(d_o_row);
                self.delta[row] = dot(o_row, d_o_row);
            }
            self.dq.fill(0.0);
            let seen = plan.visible.keys_of(queries.clone());
            for start in seen.clone().step_by(KEYS) {
                self.block(head, &queries, start..(start + KEYS).min(seen.end), q, d_o);
            }
            for (row, dq) in self.dq.chunks_exact(plan.depth.max(1)).take(rows).enumerate() {
                self.g.dq.at(batch, head, first + row).store_row(dq);
            }
        }
    }

    /// One block of scores.
    unsafe fn block(&mut self, head: usize, queries: &Range<usize>, keys: Range<usize>, q: View, d_o: View) {
        let plan = self.plan;
        let (m, n, d, dv, ld) = (queries.len(), keys.len(), plan.depth, plan.v_depth, plan.ld());
        // SAFETY: keys and queries are inside; both blocks of scores have `m` rows of at least `n`.
        unsafe {
            let k = plan.key.at(self.batch, self.kv_head, keys.start).view(n, d, self.panels[2]);
            let v = plan.v.at(self.batch, self.kv_head, keys.start).view(n, dv, self.panels[3]);
            product(Shape { m, n, k: d }, self.scores.as_mut_ptr(), ld, false, q, k.t(), plan.scale);
            product(Shape { m, n, k: dv }, self.grads.as_mut_ptr(), ld, false, d_o, v.t(), 1.0);
            self.gradients(head, queries.clone(), keys.clone());
            let (p, dz) = (View::rows(self.scores, ld), View::rows(self.grads, ld));
            product(Shape { m: n, n: dv, k: m }, self.dv.at(keys.start), self.dv.ld, true, p.t(), d_o, 1.0);
            product(Shape { m: n, n: d, k: m }, self.dk.at(keys.start), self.dk.ld, true, dz.t(), q, plan.scale);
            product(Shape { m, n: d, k: n }, self.dq.as_mut_ptr(), d, true, dz, k, plan.scale);
        }
    }

    /// Turns raw scores into probabilities, and `do . v` into the gradients of the scores.
    unsafe fn gradients(&mut self, head: usize, queries: Range<usize>, keys: Range<usize>) {
        let plan = self.plan;
        let (ld, rows) = (plan.ld(), queries.len());
        let scores = &mut self.scores[..rows * ld];
        if let Some(cap) = plan.cap {
            dispatch(Cap { scores, slope: Some(&mut self.slope[..rows * ld]), cap });
        }
        let mut block = Block { scores, ld, queries, keys, visible: plan.visible };
        if let Some(bias) = &plan.bias {
            // SAFETY: keys and queries are inside.
            unsafe { block.add_bias(bias, self.batch, head, self.bias) };
        }
        let slope = plan.cap.is_some().then_some(&*self.slope);
        dispatch(Gradients { block, grads: self.grads, slope, lse: &self.lse[..rows], delta: &self.delta[..rows] });
    }
}
