//! Offsets for a schedule's lifetimes.

use super::schedule::Schedule;
use crate::quantity::Bytes;
use fp8c_solve::pack::{Span, pack as pack_spans};

/// A layout of a schedule's instances: the offset of each, and the height reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    pub offsets: Vec<Bytes>,
    pub height: Bytes,
}

/// Packs a schedule's instances; goes to greater lengths only where the height is not `enough`.
pub fn pack(schedule: &Schedule, enough: Bytes) -> Packing {
    let spans: Vec<Span> = schedule.instances.iter().map(|i| Span { first: i.first, last: i.last, bytes: i.bytes.0 }).collect();
    let packed = pack_spans(&spans, enough.0);
    Packing { offsets: packed.offsets.into_iter().map(Bytes).collect(), height: Bytes(packed.height) }
}
