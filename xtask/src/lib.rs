//! What the demo, the benchmarks and the end-to-end tests share: real nodes, started as a user would.
//!
//! Invariant: a node started here is a process of its own, under an unprivileged user, in a home of its own,
//! and is gone when its handle is dropped.

pub mod hostile;
pub mod model;
pub mod node;
pub mod packages;
pub mod proxy;
pub mod python;
pub mod seam;
pub mod sh;
pub mod size;
pub mod stage;
pub mod stream;
pub mod trio;
