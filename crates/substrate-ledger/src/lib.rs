//! Everything that follows from a set of verified records.
//!
//! Invariant: a fold is total, idempotent and free of order: the same records give the same state,
//! whichever way they came. Every fold has a bound that its authors cannot move.
//!
//! Absent by design: clocks (time is an argument), randomness, files, floats, hash order. Credit,
//! reputation, membership, consent, mixture and governance join here as their records appear.
//!
//! Reading order: [`registry`] (which models may be used where), [`capacity`] (what is on offer).

#![deny(clippy::float_arithmetic)]

pub mod capacity;
pub mod registry;

pub use capacity::{CapacityView, Sighting};
pub use registry::{Insertion, Registry, Standing};
