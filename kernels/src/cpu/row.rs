//! Row programs on the CPU: interpretation of a whole tile at a time.
//!
//! A program is compiled into loops over tiles that stay in a core's cache (`row/compile.rs`): its dimensions are ordered so that most
//! memory is read along lines ([`layout`]), its statements become phases of steps ([`schedule`]), and each step is one loop over a
//! tile, compiled for the processor's vectors ([`loops`], [`transfers`], [`folds`]). Sets of rows are spread over the threads; where
//! there are few and long ones, pieces of rows are, and their folds are joined in order. Memory beside the arguments is a few hundred
//! KiB a thread, however large the tensors.

mod access;
#[cfg(test)]
mod accuracy;
mod compile;
mod exec;
mod folds;
mod layout;
mod loops;
mod numbers;
mod ops;
mod schedule;
mod transfers;
mod values;

use super::Buffer;
use super::tasks::{Shared, Tasks};
use crate::KernelError;
use crate::program::{Arg, RowProgram};
use compile::{Compiled, compile};
use exec::{Frame, Launch};
use layout::{Order, Part};
use loops::Isa;
use std::sync::Mutex;

/// A verified program ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    compiled: Compiled,
    args: Vec<Arg>,
    /// Nothing to do: there is no row, or no point and no row value.
    empty: bool,
}

impl Program {
    pub(crate) fn new(k: &RowProgram) -> Result<Program, KernelError> {
        let compiled = compile(k, Isa::detect())?;
        // An empty row still has row values.
        let points = if compiled.layout.order == Order::Flat { k.rows().saturating_mul(k.row_len()) } else { k.rows() };
        Ok(Program { compiled, args: k.args.clone(), empty: points == 0 })
    }

    /// Scratch bytes for a pool of `threads`.
    pub(crate) fn scratch(&self, threads: usize) -> u64 {
        if self.empty { 0 } else { Split::new(&self.compiled, threads).scratch(&self.compiled, threads) }
    }

    /// Runs the program.
    ///
    /// # Safety
    /// As for [`super::launch`].
    pub(crate) unsafe fn run(&self, args: &[Buffer], scratch: Buffer) -> Result<(), KernelError> {
        if self.empty {
            return Ok(());
        }
        let compiled = &self.compiled;
        let mut uniform = vec![0u64; compiled.uniform_bytes.div_ceil(8)];
        let failure = Mutex::new(None);
        let launch = Launch { compiled, args, dtypes: &self.args, uniform: uniform.as_mut_ptr().cast(), failure: &failure };
        let none = std::ptr::null_mut();
        // SAFETY: the uniform steps touch the arguments, as the caller promises them, and the uniform values.
        unsafe { Frame::new(&launch, none, none).uniform() };
        let split = Split::new(compiled, rayon::current_num_threads());
        // SAFETY: the caller's promise on arguments and scratch.
        unsafe {
            match split.pieces {
                1 => split.by_rows(&launch, scratch)?,
                _ => split.by_pieces(&launch, scratch)?,
            }
        }
        failure.into_inner().map_or(Ok(()), |failure| failure.map_or(Ok(()), Err))
    }
}

/// How a launch is spread over threads.
struct Split {
    /// Sets of rows, and tiles along one.
    sets: usize,
    tiles: usize,
    /// Pieces into which each row is cut for different threads.
    pieces: usize,
    /// Sets in a task, where rows are not cut.
    grain: usize,
    /// Elements that all steps touch together.
    work: u64,
}

/// Fewer sets of rows than this are cut into pieces.
const FEW_SETS: usize = 32;
/// Points of tiles in one task.
const TASK_POINTS: usize = 1 << 15;

impl Split {
    fn new(compiled: &Compiled, threads: usize) -> Split {
        let layout = &compiled.layout;
        let sets = layout.tiles(Part::Outer) * layout.tiles(Part::Lane);
        let tiles = layout.tiles(Part::Column);
        // Not a matter of the number of threads: folds of pieces are rounded when they are joined.
        let pieces = if sets < FEW_SETS { tiles.clamp(1, 2 * FEW_SETS / sets.max(1)) } else { 1 };
        let set_points = layout.tile(Part::Outer) * layout.tile(Part::Lane) * layout.extent(Part::Column);
        let grain = (TASK_POINTS / set_points.max(1)).min(sets / (4 * threads.max(1))).max(1);
        let steps = compiled.schedule.steps().count() as u64;
        let work = (set_points as u64).saturating_mul(sets as u64).saturating_mul(steps);
        Split { sets, tiles, pieces, grain, work }
    }

    /// Bytes of row values, accumulators and tile values of a worker that runs whole sets of rows.
    fn worker_bytes(compiled: &Compiled) -> usize {
        compiled.row_bytes + compiled.tile_bytes
    }

    fn partial_bytes(compiled: &Compiled) -> usize {
        compiled.row_bytes - compiled.accumulators
    }

    /// Bytes that workers share where rows are cut: row values of each set, accumulators of each piece.
    fn shared_bytes(&self, compiled: &Compiled) -> usize {
        self.sets * (compiled.row_bytes + self.pieces * Self::partial_bytes(compiled))
    }

    fn tasks(&self, count: usize, bytes: usize) -> Tasks {
        Tasks { count, floats: bytes.div_ceil(4) as u64, flops: self.work }
    }

    fn scratch(&self, compiled: &Compiled, threads: usize) -> u64 {
        match self.pieces {
            1 => self.tasks(self.sets.div_ceil(self.grain), Self::worker_bytes(compiled)).scratch(threads),
            _ => {
                let tasks = self.tasks(self.sets * self.pieces, compiled.tile_bytes);
                self.shared_bytes(compiled) as u64 + tasks.scratch(threads)
            }
        }
    }

    unsafe fn by_rows(&self, launch: &Launch, scratch: Buffer) -> Result<(), KernelError> {
        let compiled = launch.compiled;
        let tasks = self.tasks(self.sets.div_ceil(self.grain), Self::worker_bytes(compiled));
        let task = |number: usize, slot: &mut [f32]| {
            let rows = slot.as_mut_ptr().cast::<u8>();
            // SAFETY: the slot has room for row values and tile values.
            let mut frame = unsafe { Frame::new(launch, rows, rows.wrapping_add(compiled.row_bytes)) };
            for set in number * self.grain..((number + 1) * self.grain).min(self.sets) {
                frame.seek_rows(set);
                for phase in &compiled.schedule.phases {
                    // SAFETY: as above.
                    unsafe {
                        frame.start(phase, rows);
                        frame.head(phase);
                        frame.body(phase, 0..self.tiles, rows);
                    }
                }
            }
        };
        // SAFETY: verified stores of different rows do not overlap.
        unsafe { tasks.run(scratch, task) }
    }

    unsafe fn by_pieces(&self, launch: &Launch, scratch: Buffer) -> Result<(), KernelError> {
        let compiled = launch.compiled;
        let shared = self.shared_bytes(compiled);
        if scratch.bytes < shared {
            return Err(KernelError::Binding { arg: launch.args.len(), have: scratch.bytes, need: shared as u64 });
        }
        let base = Shared(scratch.ptr);
        let rows_of = |set: usize| base.get().wrapping_add(set * compiled.row_bytes);
        // Accumulators of a piece, as if row values were before them.
        let partial = |set: usize, piece: usize| {
            let at = self.sets * compiled.row_bytes + (set * self.pieces + piece) * Self::partial_bytes(compiled);
            base.get().wrapping_add(at).wrapping_sub(compiled.accumulators)
        };
        let rest = Buffer { ptr: scratch.ptr.wrapping_add(shared), bytes: scratch.bytes - shared };
        let null = std::ptr::null_mut();
        for phase in &compiled.schedule.phases {
            for set in 0..self.sets {
                // SAFETY: the head of a phase works on row values alone.
                unsafe {
                    let mut frame = Frame::new(launch, rows_of(set), null);
                    frame.seek_rows(set);
                    frame.start(phase, rows_of(set));
                    frame.head(phase);
                }
            }
            if phase.body.is_empty() {
                continue;
            }
            let task = |number: usize, slot: &mut [f32]| {
                let (set, piece) = (number / self.pieces, number % self.pieces);
                let tiles = self.tiles * piece / self.pieces..self.tiles * (piece + 1) / self.pieces;
                // SAFETY: the slot has room for tile values; the piece has accumulators of its own.
                unsafe {
                    let mut frame = Frame::new(launch, rows_of(set), slot.as_mut_ptr().cast());
                    frame.seek_rows(set);
                    frame.start(phase, partial(set, piece));
                    frame.body(phase, tiles, partial(set, piece));
                }
            };
            // SAFETY: verified stores of different points do not overlap.
            unsafe { self.tasks(self.sets * self.pieces, compiled.tile_bytes).run(rest, task)? };
            for set in 0..self.sets {
                // SAFETY: all pieces are done.
                unsafe {
                    let mut frame = Frame::new(launch, rows_of(set), null);
                    frame.seek_rows(set);
                    (0..self.pieces).for_each(|piece| frame.merge(phase, partial(set, piece)));
                }
            }
        }
        Ok(())
    }
}
