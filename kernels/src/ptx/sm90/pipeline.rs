//! The ring of stages between the warpgroup that fetches and those that multiply.
//!
//! A stage is a tile of each operand, as `tiles` lays them out, and what else the product wants beside them. `full[s]` is complete when
//! all fetching threads have seen their copies to stage s land and fenced them for the asynchronous proxy; `empty[s]` when all
//! multiplying warps are done with it.

use super::instructions::Multiply;
use crate::ptx::build::{Build, Cell, Float, Int, Ptr};
use crate::ptx::epilogue::Output;
use crate::ptx::heuristics::Tile;
use crate::ptx::tiles::{Operand, Tiles};

/// Threads of a warpgroup.
pub const WARPGROUP: i64 = 128;
/// Alignment of tiles, and bytes before the first one, which hold the barriers.
const ALIGN: i64 = 1024;
/// Registers of a fetching and of a multiplying thread, where two warpgroups multiply: 504 together, as the launch has them.
const FETCHING: i64 = 56;
const MULTIPLYING: i64 = 224;

/// Operands and shape of a product.
#[derive(Clone, Copy)]
pub struct Plan {
    pub tile: Tile,
    pub left: Operand,
    pub right: Operand,
    /// Tiles along the depth.
    pub steps: i64,
    /// Bytes of a stage beside the operands' tiles.
    pub beside: i64,
    /// Tiles of the result, and blocks that share them.
    pub tiles: i64,
    pub blocks: i64,
}

/// A tile of the result.
#[derive(Clone, Copy)]
pub struct Job<'c> {
    /// Its first row and column, i32.
    pub row: Int<'c>,
    pub col: Int<'c>,
    /// First elements of the batch's operands and result, i64.
    pub left: Int<'c>,
    pub right: Int<'c>,
    pub out: Int<'c>,
}

impl Plan {
    /// The operands' bytes and what is beside them.
    fn stage(&self) -> i64 {
        self.left.bytes() + self.right.bytes() + (self.beside + ALIGN - 1) / ALIGN * ALIGN
    }

    /// Shared memory of a block, bytes.
    pub fn shared(&self) -> i64 {
        ALIGN + self.tile.stages * self.stage()
    }

    /// Where what is beside the operands starts in a stage.
    pub fn beside_at(&self) -> i64 {
        self.left.bytes() + self.right.bytes()
    }

    fn form(&self) -> Multiply {
        let across = [&self.left, &self.right].map(|o| !o.k_major());
        Multiply { n: self.tile.n, element: self.left.element, across }
    }
}

/// A place in the ring that goes round.
struct Turn<'c> {
    stage: Cell<'c, Int<'c>>,
    parity: Cell<'c, Int<'c>>,
}

/// The ring of a block.
pub struct Ring<'c, 'b> {
    pub b: &'b Build<'c, 'b>,
    pub plan: Plan,
}

impl<'c, 'b> Ring<'c, 'b> {
    fn turn(&self, parity: i32) -> Turn<'c> {
        Turn { stage: self.b.cell(self.b.i32(0)), parity: self.b.cell(self.b.i32(parity)) }
    }

    fn advance(&self, turn: &Turn<'c>) {
        let b = self.b;
        let stage = b.get(&turn.stage);
        let last = b.eqc(stage, self.plan.tile.stages - 1);
        b.set(&turn.stage, b.select(last, b.i32(0), b.addc(stage, 1)));
        let parity = b.get(&turn.parity);
        b.set(&turn.parity, b.select(last, b.xorc(parity, 1), parity));
    }

    fn full(&self, stage: Int<'c>) -> Ptr<'c> {
        self.b.at(self.b.shared(), stage, 8)
    }

    fn empty(&self, stage: Int<'c>) -> Ptr<'c> {
        self.b.at(self.b.shared(), self.b.addc(stage, self.plan.tile.stages), 8)
    }

    fn place(&self, stage: Int<'c>) -> Ptr<'c> {
        let b = self.b;
        b.at(b.shared(), b.addc(b.mulc(stage, self.plan.stage()), ALIGN), 1)
    }

    /// Runs the block: `job` names the tiles; `fetch` brings what is beside the operands to a stage, for a step along the depth;
    /// `multiply` gets a stage's address and `finish` the job, when all steps are done.
    pub fn run(
        &self,
        job: impl Fn(Int<'c>) -> Job<'c>,
        fetch: impl FnOnce(Ptr<'c>, &Job<'c>, Int<'c>),
        start: impl FnOnce(),
        multiply: impl FnOnce(Ptr<'c>),
        finish: impl FnOnce(&Job<'c>),
    ) {
        let (b, tile) = (self.b, &self.plan.tile);
        b.align_shared(ALIGN as u32);
        b.if_then(b.eqc(b.thread(), 0), || {
            for s in 0..tile.stages {
                b.init_barrier(self.full(b.i32(s as i32)), WARPGROUP);
                b.init_barrier(self.empty(b.i32(s as i32)), 4 * tile.groups);
            }
            b.fence_barriers();
        });
        b.barrier();
        b.if_else(
            b.ltc(b.thread(), WARPGROUP),
            || {
                if tile.groups > 1 {
                    b.max_registers(FETCHING, false);
                }
                self.fetch(&job, fetch);
            },
            || {
                if tile.groups > 1 {
                    b.max_registers(MULTIPLYING, true);
                }
                let turn = self.turn(0);
                self.each_job(&job, |job| {
                    start();
                    b.for_range(b.i32(0), b.i32(self.plan.steps as i32), 1, |_| {
                        let stage = b.get(&turn.stage);
                        b.wait_barrier(self.full(stage), b.get(&turn.parity));
                        multiply(self.place(stage));
                        b.warp_barrier();
                        b.if_then(b.eqc(b.andc(b.thread(), 31), 0), || b.arrive(self.empty(stage)));
                        self.advance(&turn);
                    });
                    finish(job);
                });
            },
        );
    }

    fn each_job(&self, job: &impl Fn(Int<'c>) -> Job<'c>, body: impl FnOnce(&Job<'c>)) {
        let b = self.b;
        match self.plan.tiles == self.plan.blocks {
            true => body(&job(b.block_index())),
            false => b.for_range(b.block_index(), b.i32(self.plan.tiles as i32), self.plan.blocks, |t| body(&job(t))),
        }
    }

    /// The fetching warpgroup: copies run ahead of those announced by all but two stages.
    fn fetch(&self, job: &impl Fn(Int<'c>) -> Job<'c>, beside: impl FnOnce(Ptr<'c>, &Job<'c>, Int<'c>)) {
        let (b, plan) = (self.b, &self.plan);
        let ahead = plan.tile.stages - 2;
        let (write, announce) = (self.turn(1), self.turn(0));
        let announce_one = || {
            b.arrive(self.full(b.get(&announce.stage)));
            self.advance(&announce);
        };
        // Steps fetched and not yet announced.
        let open = b.cell(b.i32(0));
        self.each_job(job, |job| {
            let left = Tiles { b, o: plan.left, base: job.left, origin: job.row };
            let right = Tiles { b, o: plan.right, base: job.right, origin: job.col };
            b.for_range(b.i32(0), b.i32(plan.steps as i32), 1, |step| {
                let stage = b.get(&write.stage);
                b.wait_barrier(self.empty(stage), b.get(&write.parity));
                let tile = self.place(stage);
                left.fetch(tile, step);
                right.fetch(b.at(tile, b.i32(plan.left.bytes() as i32), 1), step);
                beside(b.at(tile, b.i32(plan.beside_at() as i32), 1), job, step);
                b.commit_copies();
                self.advance(&write);
                b.wait_copies(ahead as i32);
                b.fence_proxy();
                let more = b.eqc(b.get(&open), ahead);
                b.if_then(more, announce_one);
                b.set(&open, b.select(more, b.get(&open), b.addc(b.get(&open), 1)));
            });
        });
        b.wait_copies(0);
        b.fence_proxy();
        b.for_range(b.i32(0), b.get(&open), 1, |_| announce_one());
    }

    /// Multiplies 64 rows, the `fragment`-th of the warpgroup, of a stage's operands, added to `sums` where given.
    pub fn product(&self, stage: Ptr<'c>, fragment: i64, sums: Option<&[Float<'c>]>) -> Vec<Float<'c>> {
        let (b, plan) = (self.b, &self.plan);
        // 64 rows are 8192 bytes in either arrangement: 64 lines of 128, or one panel.
        let rows = b.mulc(b.addc(b.mulc(self.group(), plan.tile.fragments), fragment), 64 * 128);
        let right = b.at(stage, b.i32(plan.left.bytes() as i32), 1);
        let (a, c) = (b.matrix_descriptor(b.at(stage, rows, 1), 64 * 128), b.matrix_descriptor(right, 64 * 128));
        // A slice of the depth is 32 bytes along a line, or 16 lines.
        let slice = |across: bool, s: i64| if across { (s * 16 * 128) >> 4 } else { (s * 32) >> 4 };
        let form = plan.form();
        let slices = [0, 1, 2, 3].map(|s| [b.addc(a, slice(form.across[0], s)), b.addc(c, slice(form.across[1], s))]);
        b.multiply(form, &slices, sums)
    }

    /// Number of this thread's multiplying warpgroup.
    pub fn group(&self) -> Int<'c> {
        let b = self.b;
        b.addc(b.udivc(b.thread(), WARPGROUP), -1)
    }

    /// Row of a thread's first results in the block's tile, for the `fragment`-th 64 rows of its warpgroup; the second are 8 below.
    pub fn row(&self, fragment: i64) -> Int<'c> {
        let b = self.b;
        let first = b.addc(b.mulc(self.group(), 64 * self.plan.tile.fragments), 64 * fragment);
        let warp = b.andc(b.udivc(b.thread(), 32), 3);
        b.add(b.add(first, b.mulc(warp, 16)), b.shr(b.andc(b.thread(), 31), 2))
    }

    /// Column of a thread's first result in the first eight columns of the tile; the second is next to it.
    pub fn col(&self) -> Int<'c> {
        self.b.mulc(self.b.andc(self.b.thread(), 3), 2)
    }

    /// Stores the sums of a tile.
    pub fn store(&self, out: &Output<'c, '_>, job: &Job<'c>, sums: &[Cell<'c, Float<'c>>]) {
        let (b, col) = (self.b, self.col());
        let per_fragment = self.plan.tile.n as usize / 2;
        for (fragment, sums) in sums.chunks(per_fragment).enumerate() {
            let row = b.add(job.row, self.row(fragment as i64));
            for (j, eight) in sums.chunks(8).enumerate() {
                let first = b.addc(job.col, 16 * j as i64);
                for h in 0..2 {
                    let pair = |at: usize| [b.get(&eight[at + 2 * h]), b.get(&eight[at + 2 * h + 1])];
                    out.store_sixteen(b.addc(row, 8 * h as i64), first, col, [pair(0), pair(4)]);
                }
            }
        }
    }
}
