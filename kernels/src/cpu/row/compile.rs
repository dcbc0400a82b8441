//! A program ready to run: its schedule, the size of its tiles, and a place for every value.

use super::folds::ACCUMULATOR;
use super::layout::{Layout, Order, Part};
use super::loops::Isa;
use super::schedule::{self, QUANTUM, Schedule, Source, Value};
use super::values::{self, Rank, size};
use crate::KernelError;
use crate::program::{Kind, RowProgram, Stmt};

/// Bytes of tile values that one worker keeps in its first-level cache.
const TILE_BYTES: usize = 32 << 10;
/// Bytes of tile values that one worker keeps in its second-level cache, where a tile holds whole rows.
const ROW_BYTES: usize = 256 << 10;
/// Fewest and most points of a tile.
const POINTS: (usize, usize) = (512, 4096);
/// Lanes of a tile whose rows are cut.
const LANES: usize = 256;

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: its step was dropped.
    Nowhere,
    /// Byte of the values that are made once a launch.
    Uniform(usize),
    /// Byte of the row values of a set of rows.
    Row(usize),
    /// Byte of the tile values of a worker.
    Tile(usize),
}

/// A compiled program.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub layout: Layout,
    pub schedule: Schedule,
    pub places: Vec<Place>,
    pub uniform_bytes: usize,
    /// Row values and accumulators of one set of rows, and where the accumulators begin.
    pub row_bytes: usize,
    pub accumulators: usize,
    /// Tile values of one worker.
    pub tile_bytes: usize,
}

/// Compiles a verified program for a processor.
pub fn compile(p: &RowProgram, isa: Isa) -> Result<Compiled, KernelError> {
    let types = p.types().map_err(|reason| KernelError::Invalid { family: "row", reason })?;
    let mut layout = Layout::new(p, &types);
    let infos = values::analyse(p, &types, &layout);
    let source = |layout: &Layout, cut: bool| schedule::schedule(&Source { program: p, infos: &infos, layout, isa }, cut);
    let whole = source(&layout, false)?;
    let slots = allocate(&whole);
    let per_point = slots.bytes_per_point(Rank::Tile).max(4);
    if layout.order == Order::Flat {
        layout.fill_flat(points(per_point));
        return Ok(placed(layout, whole, &slots));
    }
    let unit = if p.body.iter().any(|s| matches!(s, Stmt::StoreQuantized { .. })) { QUANTUM } else { 16 };
    let one_body = whole.phases.iter().filter(|p| !p.body.is_empty()).count() <= 1;
    if fill_whole(&mut layout, per_point, one_body) {
        return Ok(placed(layout, whole, &slots));
    }
    let cut = source(&layout, true)?;
    let slots = allocate(&cut);
    fill_cut(&mut layout, points(slots.bytes_per_point(Rank::Tile).max(4)), unit);
    Ok(placed(layout, cut, &slots))
}

/// Points of a tile whose values take so many bytes each.
fn points(per_point: usize) -> usize {
    (TILE_BYTES / per_point).clamp(POINTS.0, POINTS.1) / 64 * 64
}

/// Makes tiles that hold whole rows; false if rows are too long, or gain nothing by it.
fn fill_whole(layout: &mut Layout, per_point: usize, one_body: bool) -> bool {
    let row = layout.extent(Part::Column);
    let points = points(per_point);
    let most = if one_body { points } else { ROW_BYTES / per_point };
    match layout.order {
        Order::Lanes => {
            let fewest = layout.extent(Part::Lane).min(64);
            if row.saturating_mul(fewest) > most {
                return false;
            }
            layout.fill(Part::Outer, 1, 1);
            layout.fill(Part::Lane, (points / row.max(1)).max(fewest), 16);
        }
        _ => {
            if row > most {
                return false;
            }
            layout.fill(Part::Outer, (points / row.max(1)).max(1), 1);
        }
    }
    layout.fill(Part::Column, row.max(1), 1);
    true
}

/// Makes tiles of pieces of rows.
fn fill_cut(layout: &mut Layout, points: usize, unit: usize) {
    layout.fill(Part::Outer, 1, 1);
    layout.fill(Part::Lane, LANES, 64);
    let lanes = layout.tile(Part::Lane);
    layout.fill(Part::Column, (points / lanes).max(unit.min(points)), if lanes > 1 { 1 } else { unit });
}

/// Slots that values share: the rank and bytes of each, and the slot of each value.
struct Slots {
    slots: Vec<(Rank, usize)>,
    of: Vec<Option<usize>>,
}

impl Slots {
    fn bytes_per_point(&self, rank: Rank) -> usize {
        self.slots.iter().filter(|s| s.0 == rank).map(|s| s.1).sum()
    }
}

/// Gives values slots; one whose value is no longer read is free for another of its rank and size.
fn allocate(schedule: &Schedule) -> Slots {
    let mut last_use = vec![0; schedule.values.len()];
    for (at, step) in schedule.steps().enumerate() {
        schedule::inputs_of(step).iter().for_each(|v| last_use[v.0] = at);
    }
    let mut slots = Slots { slots: Vec::new(), of: vec![None; schedule.values.len()] };
    let mut free: Vec<usize> = Vec::new();
    for (at, step) in schedule.steps().enumerate() {
        if let Some(Value(out)) = schedule::out_of(step) {
            let ty = schedule.values[out];
            let class = (ty.rank, size(ty.kind));
            let found = free.iter().rposition(|&s| slots.slots[s] == class).map(|i| free.remove(i));
            slots.of[out] = Some(found.unwrap_or_else(|| {
                slots.slots.push(class);
                slots.slots.len() - 1
            }));
        }
        // After the result has its slot: a step does not write over what it reads.
        for Value(v) in schedule::inputs_of(step) {
            let slot = slots.of[v].filter(|_| last_use[v] == at);
            free.extend(slot.filter(|s| !free.contains(s)));
        }
    }
    slots
}

fn placed(layout: Layout, schedule: Schedule, slots: &Slots) -> Compiled {
    let rows = layout.tile(Part::Outer) * layout.tile(Part::Lane);
    let points = rows * layout.tile(Part::Column);
    let (mut uniform, mut row, mut tile) = (0, 0, 0);
    let line = |bytes: usize| bytes.next_multiple_of(64);
    let places: Vec<Place> = slots
        .slots
        .iter()
        .map(|&(rank, bytes)| match rank {
            Rank::Uniform => Place::Uniform(advance(&mut uniform, size(Kind::Int))),
            Rank::Row => Place::Row(advance(&mut row, line(rows * bytes))),
            Rank::Tile => Place::Tile(advance(&mut tile, line(points * bytes))),
        })
        .collect();
    let accumulators = row;
    let row_bytes = row + schedule.folds.len() * line(rows * ACCUMULATOR);
    let places = slots.of.iter().map(|s| s.map_or(Place::Nowhere, |s| places[s])).collect();
    Compiled { layout, schedule, places, uniform_bytes: uniform, row_bytes, accumulators, tile_bytes: tile }
}

fn advance(at: &mut usize, bytes: usize) -> usize {
    *at += bytes;
    *at - bytes
}

impl Compiled {
    /// Byte, among row values, where the accumulators of a fold begin.
    pub fn accumulator(&self, fold: usize) -> usize {
        let rows = self.layout.tile(Part::Outer) * self.layout.tile(Part::Lane);
        self.accumulators + fold * (rows * ACCUMULATOR).next_multiple_of(64)
    }
}
