//! From units to a plan: which forward values are kept, when the others are computed again, and where everything lies.
//!
//! [`schedule`] turns decisions into an exact sequence of launches with the lifetime of every byte; [`offsets`] lays the
//! lifetimes out in one arena; [`assemble`] writes the result as data. What is decided here is proved again by `crate::check`,
//! which shares no code with it.

pub mod assemble;
pub mod offsets;
pub mod schedule;
